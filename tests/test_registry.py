"By what names methods are found: the package's, registered ones, presets, and those of a file."

import subprocess, sys
from dataclasses import replace
from pathlib import Path
import pytest
from PIL import Image
from fastedit import FastEditor
from fastedit import world as pb
from fastedit.core import OptionError
from fastedit.editor import reproduce
from fastedit.methods import registry
from fastedit.methods.base import (
    PRESETS,
    REGION,
    Job,
    Method,
    Option,
    check_options,
    cost,
    find_method,
    find_preset,
    method_names,
    method_table,
    preset_names,
    register_method,
    register_preset,
    work,
)
from fastedit.models import MODELS

ROOT = Path(__file__).resolve().parent.parent
IMAGE = pb.render(pb.sample_scene(5), 64)
PROMPTS = dict(prompt="a drawing of a blue ball", source_prompt="a drawing of a red ball")


def last(job):
    "Believe the last answer."
    z = job.d.clean(job.z0, job.grid[-1], job.target, job.guidance[-1])
    job.tell(0, job.grid[-1], job.z0, z)
    return job.keep(z)


def method(key="mine", **kw):
    return Method(
        key,
        "believe one answer",
        last,
        nfe=lambda cfg, **_: cfg,
        steps=1,
        strength=0.3,
        guidance=1.0,
        **kw,
    )


@pytest.fixture(scope="session")
def editor():
    return FastEditor("mini", device="cpu")


@pytest.fixture(autouse=True)
def nothing_registered():
    "Forget what a test registered."
    yield
    registry._OWN.clear()
    registry._FILES.clear()


@pytest.fixture
def mine(tmp_path):
    "A file that defines a method and a function, and counts how often it runs."
    path = tmp_path / "mine.py"
    path.write_text(f"""
from pathlib import Path
from fastedit.methods.base import Method
Path({str(tmp_path / "runs")!r}).open("a").write("x")

def last(job): return job.d.clean(job.z0, job.grid[-1], job.target, job.guidance[-1])

LAST = Method("last", "believe one answer", last, nfe=lambda cfg, **_: cfg, steps=1, strength=.3)
""")
    return path


# ---- the package's own


def test_every_page_gives_its_methods_in_the_order_of_the_book():
    found = [k for page in registry.PAGES for k in registry.page_methods(page)]
    assert found == list(method_names()) and len(found) == len(set(found)) == 19
    assert all(find_method(k).key == k for k in found)


def test_method_names_leave_presets_out_unless_asked():
    assert not set(method_names()) & set(preset_names())
    assert method_names(presets=True) == (*method_names(), *preset_names())


def test_special_cases_are_fields_of_a_method():
    with_ = {
        k: [m for m in method_names() if getattr(find_method(m), k)]
        for k in ("pipeline", "guided_source", "equal_guidance", "attention_options")
    }
    assert with_ == dict(
        pipeline=["leditspp"],
        guided_source=["ddcm", "edit_friendly", "leditspp"],
        equal_guidance=["ddcm"],
        attention_options=["ddcm"],
    )
    assert [m for m in method_names() if not find_method(m).edits] == ["identity", "vae"]


def test_what_can_be_rehearsed_depends_on_options_too():
    ddcm = find_method("ddcm")
    assert (
        ddcm.rehearsable({})
        and not ddcm.rehearsable(dict(uac=True))
        and not ddcm.rehearsable(dict(region="words"))
    )
    assert [k for k in method_names() if not find_method(k).rehearsable({})] == [
        "p2p",
        "direct",
        "negative_prompt_inversion",
        "null_text",
        "masactrl",
        "pnp",
        "leditspp",
    ]


def test_a_job_has_its_denoiser_under_a_short_name_too():
    job = Job("d", None, None)
    assert job.d == job.denoiser == "d"


# ---- registered


def test_a_registered_method_edits_and_is_listed(editor):
    m = register_method(method(options=dict(REGION, w=Option(1.0, 0.0, 2.0))))
    r = editor(IMAGE, **PROMPTS, method="mine", options=dict(w=0.5))
    assert (
        r.nfe == cost(m, 1, False)[0] == 1
        and r.request.method == "mine"
        and r.request.options["w"] == 0.5
    )
    assert (
        method_names()[-1] == "mine"
        and method_table(("mine",))[0]["options"] == "region, threshold, w"
    )
    assert work(m, MODELS["sd15"]).nfe == 1
    with pytest.raises(OptionError, match="w=3"):
        editor(IMAGE, **PROMPTS, method="mine", options=dict(w=3.0))


def test_a_method_of_ones_own_may_be_registered_again():
    register_method(method())
    assert register_method(method(control=0.5)) == find_method("mine")


@pytest.mark.parametrize(
    "bad, says",
    [
        ("ddcm", "no method"),
        (last, "no method"),
        (Method("mine", "", None, lambda **_: 1), "run=None"),
        (Method("mine", "", last, 4), "nfe=4"),
        (method(options=dict(w=1.0)), "option w"),
        (method("ddcm"), "there already"),
        (method("ddcm-uac"), "there already"),
        (method("flow"), "there already"),
        (method(""), "cannot be called"),
        (method("a,b"), "without"),
        (method("a b"), "without"),
        (method(3), "cannot be called 3"),
    ],
)
def test_what_cannot_be_registered_is_said(bad, says):
    with pytest.raises(OptionError, match=says):
        register_method(bad)
    assert not registry._OWN


# ---- presets


@pytest.mark.parametrize("key", list(PRESETS))
def test_a_preset_gives_the_bytes_of_its_settings(editor, key):
    p = PRESETS[key]
    m = find_method(p.method)
    options = {k: v for k, v in p.settings.items() if k in m.options}
    settings = {k: v for k, v in p.settings.items() if k not in options}
    a = editor(IMAGE, **PROMPTS, method=key, seed=3)
    b = editor(IMAGE, **PROMPTS, method=p.method, seed=3, options=options, **settings)
    assert a.image.tobytes() == b.image.tobytes() and a.timesteps == b.timesteps and a.nfe == b.nfe
    assert a.request.method == key and a.request.options == b.request.options


def test_what_is_given_goes_before_a_preset(editor):
    r = editor(IMAGE, **PROMPTS, method="edit_friendly-4", steps=2, options=dict(region="words"))
    assert (
        r.request.steps == 2
        and r.request.strength == 0.8
        and r.request.options["region"] == "words"
    )


def test_presets_with_equal_prompts_return_the_source(editor):
    r = editor(
        IMAGE,
        "a red ball",
        source_prompt="a red ball",
        method="ddcm-words",
        guidance=2.0,
        source_guidance=2.0,
    )
    assert (r.latents - editor.denoiser().encode(editor.pixels(IMAGE))).abs().max() == 0


def test_a_preset_of_ones_own(editor):
    register_method(
        method(options=dict(w=Option(1.0, 0.0, 2.0)), schedules=("continuous", "stock"))
    )
    p = register_preset(
        "mine-gently",
        "mine",
        "half of it",
        w=0.5,
        strength=0.2,
        schedule="stock",
        control_scale=0.3,
    )
    m = find_method("mine-gently")
    assert (m.key, m.strength, m.schedules, m.control) == (
        "mine-gently",
        0.2,
        ("stock", "continuous"),
        0.3,
    )
    assert (
        check_options(m, {}) == dict(w=0.5)
        and find_preset("mine-gently") == p
        and preset_names()[-1] == "mine-gently"
    )


@pytest.mark.parametrize(
    "key, base, settings, says",
    [
        ("a", "ddmc", {}, "did you mean 'ddcm'"),
        ("a", "img2img", dict(region="words"), "no region='words'"),
        ("a", "ddcm", dict(threshold=7.0), "threshold=7"),
        ("a", "ddcm", dict(schedule="stock"), "no schedule='stock'"),
        ("ddcm", "ddcm", {}, "there already"),
        ("ddcm-uac", "ddcm", {}, "there already"),
        ("a", "ddcm", dict(control="canny"), "no control='canny'"),
        ("a", "ddcm", dict(stepps=3), "did you mean 'steps'"),
    ],
)
def test_presets_that_cannot_be_are_refused(key, base, settings, says):
    with pytest.raises(OptionError, match=says):
        register_preset(key, base, **settings)
    assert not registry._OWN


# ---- from a file


def test_a_method_of_a_file_edits_and_runs_the_file_once(editor, mine):
    key = f"{mine}:LAST"
    r = editor(IMAGE, **PROMPTS, method=key)
    assert r.nfe == 2 and r.request.method == key == find_method(key).key
    assert (mine.parent / "runs").read_text() == "x"


def test_a_changed_file_runs_again(mine):
    assert find_method(f"{mine}:LAST").steps == 1
    mine.write_text(mine.read_text().replace("steps=1", "steps=2"))
    import os

    os.utime(mine, (1, 1))
    assert find_method(f"{mine}:LAST").steps == 2


def test_a_file_that_is_not_named_is_not_run(mine, monkeypatch):
    monkeypatch.chdir(mine.parent)
    for key in ("mine", "mine.py", "LAST", "mine:LAST"):
        with pytest.raises(OptionError):
            find_method(key)
    method_names(presets=True)
    assert not (mine.parent / "runs").exists()


@pytest.mark.parametrize(
    "name, says",
    [
        ("LSAT", "did you mean 'LAST'"),
        ("last", "no Method"),
        ("Path", "no Method"),
        ("", "defines no ''"),
    ],
)
def test_what_a_file_does_not_define(mine, name, says):
    with pytest.raises(OptionError, match=says):
        find_method(f"{mine}:{name}")


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(OptionError, match="no file"):
        find_method(f"{tmp_path}/none.py:M")
    with pytest.raises(OptionError, match="none.py:NAME"):
        find_method(f"{tmp_path}/none.py")
    (tmp_path / "bad.py").write_text("1/0")
    with pytest.raises(OptionError, match="ZeroDivisionError"):
        find_method(f"{tmp_path}/bad.py:M")
    (tmp_path / "bad.py").write_text(
        "from fastedit.methods.base import Method\nM = Method('m', '', None, None)"
    )
    with pytest.raises(OptionError, match="run=None"):
        find_method(f"{tmp_path}/bad.py:M")


def test_an_editor_takes_a_method_itself(editor):
    own = method()
    edit = editor(IMAGE, **PROMPTS, method=own)
    assert edit.request.method == own.key and find_method(own.key) is own
    with pytest.raises(OptionError, match="there already"):
        editor(IMAGE, **PROMPTS, method=replace(own, key="ddcm"))


def test_a_picture_does_not_get_to_run_a_file(editor, mine, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "source.png")
    edit = editor(IMAGE, **PROMPTS, method=f"{mine}:LAST")
    saved = edit.save(tmp_path / "edit.png")
    mine.write_text("raise SystemExit('this ran')")
    with pytest.raises(OptionError, match="does not get to run code"):
        reproduce(saved)


def fastedit(place, *args):
    return subprocess.run(
        [sys.executable, "-m", "fastedit", *args],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
        env={**__import__("os").environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )


def test_the_command_line_takes_files_and_presets(mine):
    place = mine.parent
    Image.fromarray(IMAGE).save(place / "a.png")
    for key in ("mine.py:LAST", "turbo-words"):
        done = fastedit(
            place, "edit", "a.png", "a blue ball", "-o", "b.png", "--method", key, "--quiet"
        )
        assert done.returncode == 0, done.stderr
        (place / "b.png").unlink()
    done = fastedit(
        place, "edit", "a.png", "a blue ball", "-o", "b.png", "--method", "mine.py:LSAT"
    )
    assert done.returncode and "'LAST'" in done.stderr and "Traceback" not in done.stderr


def test_the_benchmark_takes_own_methods_presets_and_files(mine):
    from fastedit.studies.bench import VARIANTS, make_runs

    register_method(method())
    register_preset("mine-late", "mine", strength=0.9)
    runs = {r.label: r for r in make_runs(["mine", "mine-late", f"{mine}:LAST", "turbo-words"])}
    assert [r.method for r in runs.values()] == [
        "mine",
        "mine-late",
        f"{mine}:LAST",
        "turbo",
        "identity",
        "vae",
    ]
    assert (
        runs["turbo-words"].settings == dict(region="words", strength=0.8)
        and runs["mine"].model == "mini"
    )
    assert VARIANTS == {k: dict(method=p.method, **p.settings) for k, p in PRESETS.items()}
    with pytest.raises(OptionError, match="did you mean 'LAST'"):
        make_runs(f"{mine}:LSAT")
    with pytest.raises(OptionError, match="unknown"):
        make_runs("mine-early")


# ---- without torch


def test_presets_and_files_are_looked_up_without_torch(mine):
    src = f"""import sys
from fastedit.methods import find_method, method_names, method_table
for k in method_names(presets=True): find_method(k)
find_method({f"{mine}:LAST"!r}); method_table(method_names(presets=True))
print("torch" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", src], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr


def test_a_gguf_says_what_reads_it(monkeypatch):
    import fastedit.models.doctor as doctor

    for there, said in ((None, True), (object(), False)):
        monkeypatch.setattr(doctor, "find_package", lambda name: there)
        told = str(doctor.diagnose("flux2-klein-gguf"))
        assert ("pip install gguf" in told) == said and "unsloth/FLUX.2-klein-4B-GGUF" in told
    assert "gguf" not in str(doctor.diagnose("flux2-klein-fp8"))
