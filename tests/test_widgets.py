"The notebook editor without a browser: what it shows and exports is what ran."

import threading
import numpy as np
import pytest
from fastedit import FastEditor, world
from fastedit.editor import EditRequest
from fastedit.widgets import EditorWidget


@pytest.fixture(scope="module")
def editor():
    return FastEditor("mini")


@pytest.fixture
def widget(editor):
    scene = world.Scene(
        (world.Thing("ball", "red", "plain", "large", 0.0, 0.5, 0.5),), "meadow", "flat", 0.3
    )
    picture = world.render(scene, 64)
    return EditorWidget(
        editor, picture, "a drawing of a large blue ball on a meadow", world.caption(scene)
    )


def run(widget):
    widget.c["run"].click()
    assert widget.wait(120)
    return widget.result


def test_an_edit_of_the_widget_is_the_edit_of_its_request(widget, editor):
    done = run(widget)
    again = editor(widget.image, request=widget.asked)
    assert again.image.tobytes() == done.image.tobytes()


def test_the_json_that_it_exports_is_the_request(widget):
    done = run(widget)
    assert EditRequest.from_json(widget.c["json"].value) == done.request


def test_a_mask_keeps_the_rest(widget):
    widget.masks.c["kind"].value = "ellipse"
    widget.masks.c["draw"].click()
    done = run(widget)
    outside = widget.mask == 0
    assert outside.any()
    assert np.array_equal(np.asarray(done.image)[outside], np.asarray(done.source)[outside])


def test_a_step_back_restores_the_settings(widget):
    run(widget)
    assert widget.knobs.controls["strength"].value == 0.8
    widget.knobs.controls["strength"].value = 0.9
    assert widget.wait(120)
    widget.restore(widget.history[0])
    assert widget.knobs.controls["strength"].value == 0.8


def test_bytes_of_a_browser_are_a_mask(widget):
    from fastedit.pictures import pack_mask

    painted = np.zeros((64, 64), np.float32)
    painted[8:24, 8:24] = 1
    widget.masks.brush.set_state(dict(mask=memoryview(pack_mask(painted))))
    assert np.array_equal(widget.mask, painted)


@pytest.fixture
def slow(monkeypatch):
    "Models load only after `slow.set()`; `slow.names` are those that were asked for."
    import fastedit.widgets.editor_widget as page

    gate = threading.Event()
    gate.names = []

    def load(name):
        gate.names.append(name)
        assert gate.wait(60)
        return FastEditor(name)

    monkeypatch.setattr(page, "FastEditor", load)
    yield gate
    gate.set()


def test_a_knob_turned_while_a_model_loads_asks_the_new_model(widget, slow):
    run(widget)
    widget.c["model"].value = "mini-s"
    widget.knobs.controls["strength"].value = 0.9
    assert len(widget.history) == 1
    slow.set()
    assert widget.wait(120)
    asked = widget.result.request
    assert (asked.model, asked.strength) == ("mini-s", 0.9) and len(widget.history) == 2


def test_cancelling_a_load_keeps_the_model(widget, slow):
    widget.c["model"].value = "mini-s"
    widget.c["cancel"].click()
    slow.set()
    assert widget.wait(120)
    assert widget.c["model"].value == widget.editor.spec.key == "mini"


def test_a_step_back_brings_its_model(widget):
    run(widget)
    widget.c["model"].value = "mini-s"
    assert widget.wait(120) and widget.result.request.model == "mini-s"
    widget.restore(widget.history[0])
    assert widget.wait(120)
    assert (
        widget.editor.spec.key == widget.c["model"].value == widget.result.request.model == "mini"
    )
    assert len(widget.history) == 2


def test_an_empty_prompt_is_said_in_the_widget(widget):
    widget.c["prompt"].value = ""
    widget.c["run"].click()
    assert "the prompt is empty" in widget.c["words"].value


def test_a_missing_file_is_said_in_the_widget(widget):
    widget.open("nowhere.png")
    assert "nowhere.png" in widget.c["words"].value


def test_the_command_line_knows_every_flag_that_is_exported():
    import shlex
    import typer
    from fastedit.cli import app
    from fastedit.widgets.exports import as_cli

    known = {f for p in typer.main.get_command(app).commands["edit"].params for f in p.opts}
    full = EditRequest(
        "a blue ball",
        "a red ball",
        "grey",
        method="ddcm",
        steps=3,
        strength=0.5,
        guidance=2.0,
        source_guidance=1.5,
        control="canny",
        control_scale=0.5,
        schedule="continuous",
        size=(64, 64),
        precision="fp32",
        feather=1.0,
        seed=7,
        options=dict(uac=True),
    )
    flags = {w for w in shlex.split(as_cli(full, mask="mask.png")) if w.startswith("-")}
    assert "--source-guidance" in flags
    assert flags <= known
