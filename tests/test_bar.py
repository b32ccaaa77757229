"A bar in notebooks only, and only where nobody else tells how far an edit is."

import sys, types
from weakref import WeakSet
import pytest
import tqdm.std
from fastedit import core
from fastedit.core import OptionError
from fastedit.editor.bar import StepBar, counted, in_notebook


@pytest.fixture
def notebook(monkeypatch):
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    # loops that other tests of this process broke off are kept alive by their tracebacks
    monkeypatch.setattr(tqdm.std.tqdm, "_instances", WeakSet())
    monkeypatch.setattr(core, "_loops", WeakSet())


def test_a_program_shows_no_bar():
    assert not in_notebook()
    with counted(None) as on_step:
        assert on_step is None


def test_a_slow_edit_shows_its_steps(notebook):
    with counted(None, after=0.0) as on_step:
        for _ in range(3):
            on_step(dict(steps=3))
        assert on_step.bar is not None and on_step.done == 3


def test_a_quick_edit_shows_nothing(notebook):
    with counted(None, after=60.0) as on_step:
        on_step(dict(steps=1))
        assert isinstance(on_step, StepBar) and on_step.bar is None


def test_a_function_of_ones_own_stays(notebook):
    with counted(print) as on_step:
        assert on_step is print


def test_there_is_no_bar_inside_a_bar(notebook):
    import io
    from tqdm import tqdm

    with tqdm(total=1, file=io.StringIO(), disable=False):
        with counted(None, after=0.0) as on_step:
            on_step(dict(steps=1))
            assert on_step.bar is None


def test_what_cannot_be_called_is_refused():
    with pytest.raises(OptionError, match="on_step=3: give a function"), counted(3):
        pass


def test_a_quiet_loop_stays_quiet(notebook):
    from fastedit.core import progress

    for _ in progress(range(1), quiet=True):
        with counted(None, after=0.0) as on_step:
            on_step(dict(steps=1))
            assert on_step.bar is None
