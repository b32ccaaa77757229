"The checks of `.ci/nb.py` find what they are for; the package installs whole and imports light."

import ast, base64, importlib.util, json, re, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from pathlib import Path
import pytest
from hypothesis import given, strategies as st
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("nb_tool", ROOT / ".ci" / "nb.py")
nb_tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(nb_tool)

PNG = base64.b64encode(b"\x89PNG picture").decode()
SHOWN = [dict(output_type="stream", name="stdout", text="2\n")]


def code(src, outputs=(), **kw):
    return dict(
        cell_type="code", source=src, outputs=list(outputs), execution_count=None, metadata={}, **kw
    )


def prose(src):
    return dict(cell_type="markdown", source=src, metadata={})


def notebook(*cells, stamped=True):
    cells = [dict(c, id=f"cell{i}") for i, c in enumerate(cells)]
    nb = dict(
        cells=cells,
        metadata=dict(kernelspec=dict(display_name="python3", language="python", name="python3")),
        nbformat=4,
        nbformat_minor=5,
    )
    if stamped:
        nb["metadata"]["executed"] = nb_tool.stamp(nb)
    return nb


def module(name, src):
    return notebook(
        prose(f"# {name}"),
        code(f"#| default_exp {name}"),
        code(f"#| export\n{src}"),
        code("1+1", SHOWN),
    )


@pytest.fixture
def project(tmp_path):
    "A project of the notebooks given by name; `project.root` is its folder."
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "fastedit").mkdir()
    (tmp_path / "fastedit" / "__init__.py").write_text("")

    def add(**nbs):
        for name, nb in nbs.items():
            p = tmp_path / "nbs" / f"{name.strip('_')}.ipynb"
            p.parent.mkdir(exist_ok=True)
            p.write_text(
                json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n",
                encoding="utf-8",
            )
        return tmp_path

    add.root = tmp_path
    return add


def python(src, **kw):
    return subprocess.run(
        [sys.executable, "-c", src], cwd=ROOT, capture_output=True, text=True, check=True, **kw
    ).stdout


# ---- the package


def test_import_is_light_and_takes_under_a_second():
    src = """import sys, time
start = time.perf_counter()
import fastedit
took = time.perf_counter() - start
heavy = ("torch", "diffusers", "transformers", "cv2", "matplotlib", "numpy", "IPython")
print(took, *(m for m in heavy if m in sys.modules))"""
    runs = [python(src).split() for _ in range(3)]
    assert all(len(r) == 1 for r in runs), runs
    assert min(float(r[0]) for r in runs) < 1


def test_every_lazy_name_is_exported_by_its_module():
    import fastedit

    for name, mod in fastedit._lazy.items():
        files = [
            *(ROOT / "fastedit").glob(f"{mod}.py"),
            *(ROOT / "fastedit" / mod).glob("[!_]*.py"),
        ]
        names = [re.search(r"__all__ = \[(.*?)\]", f.read_text(), re.S)[1] for f in files]
        assert any(f"'{name}'" in n for n in names), f"fastedit.{mod} exports no {name}"


def test_lazy_names_resolve_without_loading_the_rest():
    out = python(
        (
            "import fastedit, sys; print(fastedit.mini_path.__module__, 'torch' in "
            "sys.modules, set(fastedit.__all__) <= set(dir(fastedit)))"
        )
    )
    assert out.split() == ["fastedit.models.mini", "False", "True"]


def test_package_knows_its_version_and_nothing_else():
    import fastedit

    assert isinstance(fastedit.__version__, str) and fastedit.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'FastEdtior'"):
        fastedit.FastEdtior


def settings():
    parser = ConfigParser(delimiters="=", interpolation=None)
    parser.read(ROOT / "settings.ini")
    return parser["DEFAULT"]


def requirements(key):
    return [Requirement(o) for o in settings()[key].split("\n") if o.strip()]


def test_constraints_pin_every_requirement_within_its_range():
    lines = [
        Requirement(o)
        for o in (ROOT / "constraints.txt").read_text().splitlines()
        if o and not o.startswith("#")
    ]
    name = lambda r: r.name.lower().replace("_", "-")
    pins = {name(r): next(iter(r.specifier)).version for r in lines}
    for r in requirements("requirements") + requirements("dev_requirements"):
        assert name(r) in pins, f"{r.name} has no tested version"
        assert r.specifier.contains(pins[name(r)]), f"{r} excludes the tested {pins[name(r)]}"


def test_wheel_holds_modules_weights_and_entry_points(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, src)
    shutil.copytree(
        ROOT / "fastedit", src / "fastedit", ignore=shutil.ignore_patterns("__pycache__")
    )
    probe = src / "fastedit" / "weights" / "probe" / "unet"
    probe.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "merges.txt", "README.md", "losses.csv"):
        (probe / name).write_text("probe")
    want = {p.relative_to(src).as_posix() for p in (src / "fastedit").rglob("*") if p.is_file()}
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            tmp_path,
            src,
        ],
        check=True,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("fastedit-*.whl")
    with zipfile.ZipFile(wheel) as z:
        names = set(z.namelist())
        meta, entry = (
            z.read(next(n for n in names if n.endswith(f"dist-info/{f}"))).decode()
            for f in ("METADATA", "entry_points.txt")
        )
    assert want - names == set()
    assert "fastedit = fastedit.cli:main" in entry and "fastedit = fastedit._modidx:d" in entry
    assert (
        f"Version: {settings()['version']}\n" in meta
        and "License-Expression: Apache-2.0" in meta
        and "Requires-Python: >=3.10" in meta
    )
    url = settings()["git_url"].rstrip("/")
    assert f"Project-URL: Source, {url}\n" in meta and "Project-URL: Documentation, " in meta
    assert f"]({url}/raw/main/nbs/images/" in meta
    assert not re.findall(r"\]\((?!https?:|#|mailto:)[^)]*\)", meta.partition("\n\n")[2])
    required = {Requirement(o) for o in re.findall(r"^Requires-Dist: (.*)$", meta, re.M)}
    assert {str(r) for r in required if not r.marker} == {
        str(r) for r in requirements("requirements")
    }
    assert {r.name for r in required if r.marker} >= {
        r.name for r in requirements("dev_requirements")
    }


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_uses_the_environment_it_is_given(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    run = lambda *args: (
        subprocess.run(
            ["make", "-n", "-C", ROOT, f"VENV={tmp_path}", *args],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    assert f"{tmp_path}/bin/python .ci/nb.py check" in run("test") and "-m venv" not in run("test")
    assert f"{tmp_path}/bin/fastedit demo" in run("demo") and "[dev]" not in run("demo")


# ---- the checks


def test_check_executed_finds_errors_missing_and_stale_stamps(project):
    stale = notebook(code("1+1", SHOWN))
    stale["cells"][0]["source"] = "1+2"
    error = dict(output_type="error", ename="ValueError", evalue="no", traceback=[])
    root = project(
        _00_good=notebook(code("1+1", SHOWN)),
        _01_error=notebook(code("f()", [error])),
        _02_never=notebook(code("1+1", SHOWN), stamped=False),
        _03_stale=stale,
        _04_silent=notebook(code("1+1")),
        _05_quiet=notebook(code("#| hide\n1+1")),
    )
    bad = nb_tool.check_executed(root)
    assert [b.partition(":")[0] for b in bad] == [
        f"nbs/{n}.ipynb" for n in ("01_error", "02_never", "03_stale", "04_silent")
    ]
    assert (
        "ValueError" in bad[0]
        and "not executed" in bad[1]
        and "changed" in bad[2]
        and "no cell has an output" in bad[3]
    )


@pytest.mark.parametrize(
    "src, want",
    [
        ("from fastedit.core import FastEditError", "core"),
        ("import fastedit.core", "core"),
        ("from fastedit import core", "core"),
        ("from .core import atomic_write", "core"),
        ("from . import core", "core"),
        ("def f():\n    from fastedit.methods.ddcm import run", "methods.ddcm"),
        ("from fastedit.methods import ddcm", "methods.ddcm"),
        ("import_module('fastedit.core')", "core"),
        ("importlib.import_module('fastedit.core')", "core"),
    ],
)
def test_imported_modules_sees_every_form_of_import(src, want):
    assert want in nb_tool.imported_modules(src)


def test_imported_modules_leaves_others_alone():
    assert (
        nb_tool.imported_modules(
            (
                "import torch, fasteditor\nfrom torch import nn\n"
                "from fastedit_tools import x\nload('fastedit.core')\n"
                "import fastedit\nfastedit.__version__"
            )
        )
        == []
    )


def test_check_layers_accepts_earlier_and_refuses_later_notebooks(project):
    root = project(
        _00_core=module("core", "x = 1"),
        _10_ddcm=module("methods.ddcm", "from fastedit.core import x"),
        _20_editor=module("editor", "def f():\n    from fastedit.methods import ddcm"),
        index=notebook(code("from fastedit.editor import f")),
    )
    assert nb_tool.check_layers(root) == []
    [bad] = nb_tool.check_layers(
        project(_05_memory=module("memory", "def f():\n    from fastedit.editor import f"))
    )
    assert "nbs/05_memory.ipynb: imports fastedit.editor of 20_editor.ipynb" in bad


@pytest.mark.parametrize(
    "src, reason",
    [
        ("from fastedit.core import x", "not an earlier notebook"),
        ("from fastedit import FastEditor", "no notebook exports"),
        ("import fastedit\nfastedit.FastEditor()", "no notebook exports"),
        ("%time x = 1", "no plain Python"),
    ],
)
def test_check_layers_refuses(project, src, reason):
    [bad] = nb_tool.check_layers(project(_00_core=module("core", src)))
    assert bad.startswith("nbs/00_core.ipynb: ") and reason in bad


def test_check_layers_wants_one_module_a_notebook(project):
    both = notebook(code("#| default_exp a"), code("#| default_exp b"), code("#| export\nx = 1"))
    other = notebook(code("#| default_exp c"), code("#| export d\nx = 1"))
    bad = nb_tool.check_layers(
        project(
            _00_both=both,
            _01_other=other,
            _02_a=module("a", "x = 1"),
            _03_homeless=notebook(code("#| export\nx = 1")),
        )
    )
    assert [b.partition(":")[0][4:6] for b in bad] == ["00", "01", "02", "03"]


@pytest.mark.parametrize(
    "src, reason",
    [
        ("x = 1", None),
        ("x = " + "1" * 120, "124 columns"),
        ("x = 1; y = 2", "several statements"),
        ('x = "a; b"  # c; d', None),
        ("if x: y = 1", None),
        ("x = 1\n" * 61, "61 lines"),
    ],
)
def test_check_lines_reads_exported_cells(project, src, reason):
    bad = nb_tool.check_lines(project(_00_old=module("old", src)))
    assert [b.partition(":")[0] for b in bad] == ["nbs/00_old.ipynb"] * bool(reason)
    assert all(reason in b for b in bad)


def test_check_lines_bounds_a_module(project):
    cells = [code("#| export\nx = 1\n" + "y = 2\n" * 50) for _ in range(9)]
    [bad] = nb_tool.check_lines(project(_00_long=notebook(code("#| default_exp a.long"), *cells)))
    assert "more than 400" in bad


def test_check_links_follows_links_inside_the_project(project):
    here = "see [a](00_here.ipynb#part), [b](https://example.org/x.ipynb), [c](#part)"
    root = project(
        _00_here=notebook(prose(here)), _01_gone=notebook(prose("see [it](02_gone.ipynb)"))
    )
    assert nb_tool.check_links(root) == [
        "nbs/01_gone.ipynb: links to 02_gone.ipynb, which is not there"
    ]


def test_check_size_and_paths(project):
    home = "/" + "home/somebody/x.py"
    root = project(
        _00_big=notebook(prose("x" * 1_600_000)),
        _01_path=notebook(
            code("1", [dict(output_type="stream", name="stderr", text=f"{home}:1: UserWarning")])
        ),
        _02_fine=notebook(prose("see https://example.org/home/page, ~/.cache and a/tmp/b")),
    )
    assert nb_tool.check_size(root) == ["nbs/00_big.ipynb: 1.6 MB"]
    assert nb_tool.check_paths(root) == [f"nbs/01_path.ipynb: names {home}"]
    (root / "fastedit" / "a.py").write_text(f"open({home!r})")
    assert len(nb_tool.check_paths(root)) == 2


def test_check_clean_finds_what_nbdev_clean_would_change(project):
    dirty = notebook(code("1+1", SHOWN))
    dirty["cells"][0]["execution_count"] = 3
    root = project(_00_clean=notebook(prose("# Title"), code("1+1")), _01_dirty=dirty)
    subprocess.run(
        [Path(sys.executable).parent / "nbdev-clean", "--fname", root / "nbs" / "00_clean.ipynb"],
        cwd=root,
        check=True,
    )
    [bad] = nb_tool.check_clean(root)
    assert bad.startswith("nbs/01_dirty.ipynb")


def test_check_export_finds_missing_changed_and_stray_modules(project):
    root = project(_00_core=module("core", "def f(): return 1"))
    assert any("core.py: missing" in b for b in nb_tool.check_export(root))
    subprocess.run([Path(sys.executable).parent / "nbdev-export"], cwd=root, check=True)
    assert nb_tool.check_export(root) == []
    core = root / "fastedit" / "core.py"
    core.write_text(core.read_text() + "\n# by hand\n")
    (root / "fastedit" / "stray.py").write_text("x = 1\n")
    assert nb_tool.check_export(root) == [
        "fastedit/stray.py: comes from no notebook",
        "fastedit/core.py: differs, run `make export`",
    ]


def test_check_ruff_and_imports_find_broken_modules(project):
    root = project.root
    (root / "fastedit" / "undefined.py").write_text("def f(): return missing\n")
    (root / "fastedit" / "broken.py").write_text("import no_such_package\n")
    [undefined, unused] = sorted(nb_tool.check_ruff(root), reverse=True)
    assert "F821" in undefined and "F401" in unused
    [bad] = nb_tool.check_imports(root)
    assert bad == "fastedit.broken: ModuleNotFoundError: No module named 'no_such_package'"


def test_check_notebooks_runs_asserts(project):
    assert nb_tool.check_notebooks(project(_00_good=notebook(code("assert 1+1 == 2")))) == []
    [bad] = nb_tool.check_notebooks(project(_01_bad=notebook(code("assert 1+1 == 3"))))
    assert "AssertionError" in bad and "01_bad.ipynb" in bad


def test_check_prints_a_line_each_and_counts_failures(project, capsys):
    root = project(
        _00_a=notebook(code("1+1", SHOWN)), _01_b=notebook(code("1+1", SHOWN), stamped=False)
    )
    assert nb_tool.check(root, ["size", "executed"]) == 1
    size, executed = capsys.readouterr().out.splitlines()
    assert size.startswith("ok      size: ") and executed.startswith(
        "FAILED  executed: nbs/01_b.ipynb: was not executed"
    )


# ---- README


def test_readme_holds_text_code_and_outputs_but_nothing_hidden(project):
    picture = dict(
        output_type="display_data", metadata={}, data={"image/png": PNG, "text/plain": "<Figure>"}
    )
    table = dict(
        output_type="execute_result",
        metadata={},
        execution_count=None,
        data={"text/markdown": "| a |", "text/plain": "a"},
    )
    root = project(
        _00_core=module("core", "x = 1"),
        index=notebook(
            prose(
                (
                    "# Title\n"
                    "see [core](00_core.ipynb), [us](../LICENSE), [web](https://x.org/a) "
                    "and [none](no.ipynb)"
                )
            ),
            code("#| hide\nsecret"),
            code("#| eval: false\nshow()", SHOWN),
            code("plot()", [picture, table]),
        ),
    )
    (root / "LICENSE").touch()
    assert nb_tool.check_readme(root) == [
        "README.md is not up to date: run `make readme`",
        "nbs/images/index-1.png is not up to date: run `make readme`",
    ]
    nb_tool.write_readme(root)
    assert nb_tool.check_readme(root) == []
    body = (root / "README.md").read_text().split("\n\n", 1)[1]
    assert body == (
        "# Title\n"
        "see [core](nbs/00_core.ipynb), [us](LICENSE), [web](https://x.org/a) "
        "and [none](no.ipynb)\n\n"
        "```python\nshow()\n```\n\n```\n2\n```\n\n```python\nplot()\n"
        "```\n\n![](nbs/images/index-1.png)\n\n| a |\n"
    )
    assert (root / "nbs" / "images" / "index-1.png").read_bytes() == base64.b64decode(PNG)
    (root / "README.md").write_text(body)
    assert len(nb_tool.check_readme(root)) == 1


# ---- execution


def test_execute_saves_outputs_and_stamp_and_keeps_gpu_cells(project):
    kept = [dict(output_type="stream", name="stdout", text="measured elsewhere\n")]
    root = project(
        _00_run=notebook(
            code("import os\nprint(os.path.basename(os.getcwd()))"),
            code("#| cuda\n1/0", kept),
            code("#| eval: false\n1/0", kept),
            stamped=False,
        )
    )
    p = root / "nbs" / "00_run.ipynb"
    assert nb_tool.execute_all([p]) == 0
    nb = nb_tool.load(p)
    assert [nb_tool.text(c["outputs"][0]["text"]) for c in nb["cells"]] == [
        "nbs\n",
        "measured elsewhere\n",
        "measured elsewhere\n",
    ]
    assert nb_tool.check_executed(root) == [] and nb_tool.check_clean(root) == []


def test_execute_keeps_no_progress_bar(project):
    loop = "from tqdm.notebook import tqdm\nfor i in tqdm(range(3)): pass\nprint('done')"
    slider = "import ipywidgets\nipywidgets.IntSlider(7)"
    p = project(_00_bar=notebook(code(loop), code(slider), stamped=False)) / "nbs" / "00_bar.ipynb"
    assert nb_tool.execute_all([p]) == 0
    nb = nb_tool.load(p)
    first, second = (c["outputs"] for c in nb["cells"])
    assert [o["output_type"] for o in first] == ["stream"] and len(second) == 1
    models = nb["metadata"]["widgets"][nb_tool.STATE]["state"].values()
    assert {m["model_name"] for m in models} == {
        "IntSliderModel",
        "LayoutModel",
        "SliderStyleModel",
    }


def test_a_progress_bar_is_found(project):
    bar = dict(
        output_type="display_data", data={"text/plain": ["  0%|     | 0/4 [00:00<?]"]}, metadata={}
    )
    root = project(_00_bar=notebook(code("f()", [bar])), _01_good=notebook(code("1+1", SHOWN)))
    assert nb_tool.check_executed(root) == ["nbs/00_bar.ipynb: holds a progress bar"]


def test_execute_fails_on_an_error_and_changes_nothing(project, capsys):
    p = (
        project(_00_bad=notebook(code("print(1)"), code("1/0"), stamped=False))
        / "nbs"
        / "00_bad.ipynb"
    )
    before = p.read_bytes()
    assert nb_tool.execute_all([p]) == 1 and p.read_bytes() == before
    assert "ZeroDivisionError" in capsys.readouterr().out


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
        st.from_regex(r"[a-z0-9.]{0,8}", fullmatch=True),
        max_size=4,
    ),
    st.sampled_from(["", "x = 1\n", "def f():\n    #| not one\n    pass\n"]),
)
def test_split_directives_returns_what_was_put_in(found, rest):
    src = "".join(f"#| {k}{': ' + v if v else ''}\n" for k, v in found.items()) + rest
    assert nb_tool.split_directives(src) == (found, rest)


@given(st.lists(st.text(max_size=20), max_size=4), st.integers(0, 3))
def test_stamp_changes_with_any_code_cell_and_with_nothing_else(sources, i):
    nb = notebook(*(code(s) for s in sources), prose("a"))
    again = notebook(*(code(s, SHOWN) for s in sources), prose("b"))
    assert nb_tool.stamp(nb) == nb_tool.stamp(again)
    again["cells"].insert(i, code("x"))
    assert nb_tool.stamp(nb) != nb_tool.stamp(again)


NOT_RUN = [
    pytest.param("".join(c["source"]), id=f"{p.stem}-{i}")
    for p in sorted((ROOT / "nbs").rglob("*.ipynb"))
    for i, c in enumerate(json.loads(p.read_text("utf-8"))["cells"])
    if c["cell_type"] == "code" and "#| eval: false" in "".join(c["source"])
]


@pytest.mark.parametrize("cell", NOT_RUN)
def test_a_cell_that_is_not_run_is_python_once_its_magics_are_transformed(cell):
    from IPython.core.inputtransformer2 import TransformerManager

    ast.parse(TransformerManager().transform_cell(cell))
