"""The command line: results on stdout, the rest on stderr, exit codes, one line per error, nothing
half-written."""

import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner
from fastedit import world as pb
from fastedit.cli import app
from fastedit.core import Cancelled
from fastedit.images import read_metadata
from fastedit.memory import RESIDENCIES
from fastedit.models import random_model, random_weights
from fastedit.studies.demo import METHODS
from shared import DEMO_ROW

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("model") / "tiny", channels=(16, 32, 32), width=16)


@pytest.fixture
def place(tmp_path, model, monkeypatch):
    "An empty folder with one picture, as the current folder."
    for k, v in dict(
        FASTEDIT_CACHE="cache",
        HF_HUB_CACHE="hub",
        FASTEDIT_MODELS="mirror",
        FASTEDIT_MODELS_TOML="none.toml",
        FASTEDIT_WEIGHTS="weights",
    ).items():
        monkeypatch.setenv(k, str(tmp_path / "home" / v))
    d = tmp_path / "here"
    d.mkdir()
    monkeypatch.chdir(d)
    Image.fromarray(pb.render(pb.sample_scene(5))).save("a.png")
    return d


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def edit(model, *args, out="b.png"):
    return run("edit", "a.png", "a blue ball", "-o", out, "--model", model, *args)


def says(r, code, *words):
    "One clean line on stderr and the exit code."
    assert r.exit_code == code, r.output
    assert "Traceback" not in r.output and not r.stdout
    for w in words:
        assert w in r.stderr
    return r


# --- edit


def test_edit_writes_a_picture_that_knows_its_request(place, model):
    r = edit(model, "--source-prompt", "a red ball", "--seed", 3, "--steps", 2)
    assert (
        r.exit_code == 0
        and r.stdout.startswith("b.png: edit_friendly-4 on ")
        and r.stdout.count("\n") == 1
    )
    m = read_metadata("b.png")
    # the default method starts at .8
    assert (
        m["request"]["prompt"] == "a blue ball"
        and m["request"]["seed"] == 3
        and m["timesteps"] == [799, 399]
    )
    again = edit(model, "--source-prompt", "a red ball", "--seed", 3, "--steps", 2, out="c.png")
    assert again.exit_code == 0 and Path("b.png").read_bytes() == Path("c.png").read_bytes()
    assert sorted(os.listdir()) == ["a.png", "b.png", "c.png"]


def test_edit_passes_everything_on(place, model):
    Image.fromarray(np.pad(np.full((24, 24), 255, np.uint8), 20)).save("m.png")
    r = edit(
        model,
        "--method",
        "img2img",
        "--schedule",
        "stock",
        "--steps",
        4,
        "--strength",
        0.75,
        "--guidance",
        "linear:2:1",
        "--control",
        "canny",
        "--control-scale",
        0.7,
        "--mask",
        "m.png",
        "--size",
        "64x64",
        "--negative-prompt",
        "a cup",
        "--json",
        "--quiet",
        "--feather",
        0,
        "--repair",
    )
    d = json.loads(r.stdout)
    q = d["request"]
    assert not r.stderr
    assert (
        q["method"],
        q["schedule"],
        q["steps"],
        q["strength"],
        q["guidance"],
        q["control"],
        q["control_scale"],
        q["size"],
        q["negative_prompt"],
    ) == ("img2img", "stock", 4, 0.75, "linear:2:1", "canny", 0.7, [64, 64], "a cup")
    # the last step's guidance is 1: no pair
    assert (
        d["timesteps"] == [759, 499, 259]
        and d["nfe"] == 5
        and d["control_nfe"] == 5
        and d["output"] == "b.png"
        and q["mask"]
        and q["repair"]
        and any(n.startswith("repair: ") for n in d["notes"])
    )
    a, b = (np.asarray(Image.open(f).convert("RGB")) for f in ("a.png", "b.png"))
    out = np.ones((64, 64), bool)
    out[20:44, 20:44] = False
    assert (a[out] == b[out]).all() and (a[~out] != b[~out]).any()


def test_notes_go_to_stderr_and_quiet_means_quiet(place, model):
    frames = [Image.fromarray(pb.render(pb.sample_scene(i))) for i in (1, 2)]
    frames[0].save("a.gif", save_all=True, append_images=frames[1:])
    args = ("edit", "a.gif", "a blue ball", "-o", "b.webp", "--model", model, "--steps", 1)
    r = run(*args)
    assert (
        r.exit_code == 0
        and "several frames" in r.stderr
        and "the empty prompt was used" in r.stderr
        and "note" not in r.stdout
    )
    r = run(*args, "--quiet")
    assert (
        r.exit_code == 0
        and "the empty prompt" not in r.stderr
        and read_metadata("b.webp")["request"]["steps"] == 1
    )


BAD_USAGE = [
    (["--steps", "0"], "steps"),
    (["--steps", "four"], "whole number"),
    (["--strength", "0"], "strength"),
    (["--strength", "nan"], "strength"),
    (["--strength", "1.2"], "strength"),
    (["--method", "img2img", "--schedule", "stock", "--strength", "0.2"], "no step"),
    (["--method", "magic"], "img2img"),
    (["--control", "depth"], "canny"),
    (["--seed", "-1"], "seed"),
    (["--schedule", "stock"], "schedule"),
    (["--guidance", "linear:1"], "curve"),
    (["--guidance", "-1"], "guidance"),
    (["--control-scale", "11"], "control_scale"),
    (["--size", "big"], "WIDTHxHEIGHT"),
    (["--size", "65x64"], "multiples"),
    (["--option", "novalue"], "name=value"),
    (["--option", "speed=3"], "speed"),
    (["--option", "a=1", "--option", "a=2"], "a is given twice"),
    (["--frob"], "--frob"),
    (["--precision", "fp12"], "fp16"),
    (["--feather", "-1"], "feather"),
]


@pytest.mark.parametrize(
    "args, word", BAD_USAGE, ids=lambda a: " ".join(a) if isinstance(a, list) else ""
)
def test_bad_usage(place, model, args, word):
    says(edit(model, *args), 2, word)
    assert os.listdir() == ["a.png"]


def test_bad_outputs_and_prompts(place, model):
    says(edit(model, out="b.bmp"), 2, ".png")
    says(edit(model, out="."), 2)
    says(edit(model, out="a.png"), 2, "the picture itself")
    says(edit(model, out="a.png/b.png"), 2, "not a folder")
    says(run("edit", "a.png", "  ", "-o", "b.png"), 2, "prompt")
    says(run("edit", "a.png", "a ball"), 2, "-o")
    says(run("edit"), 2)
    assert os.listdir() == ["a.png"]


def test_failures(place, model):
    Path("text.png").write_text("no picture")
    Path("cut.png").write_bytes(Path("a.png").read_bytes()[:300])
    Path("empty.png").touch()
    Image.new("RGB", (4, 4)).save("tiny.png")
    for name, word in dict(
        nowhere="exist", text="not a picture", cut="damaged", empty="empty", tiny="4x4"
    ).items():
        says(
            run("edit", f"{name}.png", "a ball", "-o", "b.png", "--model", model),
            1,
            word,
            f"{name}.png",
        )
    says(edit(model, "--mask", "text.png"), 1, "mask")
    Image.new("L", (64, 64)).save("black.png")
    says(edit(model, "--mask", "black.png"), 1, "selects no pixel")
    says(edit("unknown"), 1, "unknown", "mini")
    says(edit("mini"), 1, "mini")
    says(edit("ssd-1b"), 1, "fastedit fetch ssd-1b")
    Path("broken").mkdir()
    says(edit("broken"), 1, "model_index.json")
    assert not Path("b.png").exists()


def test_interrupts_and_faults_leave_nothing(place, model, monkeypatch):
    from fastedit.editor import FastEditor

    for error, code, word in (
        (KeyboardInterrupt(), 130, "interrupted"),
        (Cancelled("stopped by its caller"), 1, "stopped"),
        (ZeroDivisionError("oops"), 1, "fault of fastedit"),
        (MemoryError(), 1, "memory"),
        (PermissionError(13, "Permission denied", "x"), 1, "permissions"),
    ):
        monkeypatch.setattr(FastEditor, "__call__", lambda *a, **k: (_ for _ in ()).throw(error))
        says(edit(model), code, word)
        assert os.listdir() == ["a.png"]


# --- the other commands


def test_help_and_version(place):
    for args in ((), ("--help",), ("-h",)):
        r = run(*args)
        assert r.exit_code == 0 and all(
            c in r.stdout for c in ("edit", "demo", "train", "doctor", "fetch")
        )
    assert "fastedit demo" in run().stdout and run("--version").stdout.strip()
    for c in ("edit", "demo", "train", "doctor", "fetch"):
        assert run(c, "--help").exit_code == 0
    says(run("frobnicate"), 2, "frobnicate")


def test_demo(place, monkeypatch):
    from fastedit.measure import Reader

    w = random_weights(place.parent / "w")
    (w / "reader").mkdir()
    torch.manual_seed(0)
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(w))
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in Reader().state_dict().items()},
        w / "reader" / "model.safetensors",
    )
    r = run("demo", "--n", 1, "--out", "o", "--json", "-", "--model", "mini", "--seed", 4)
    assert r.exit_code == 0, r.output
    d = json.loads(r.stdout)
    assert (
        [x["method"] for x in d["rows"]] == list(METHODS)
        and d["seed"] == 4
        and Image.open("o/comparison.png").width > 500
    )
    assert DEMO_ROW <= set(d["rows"][0])
    r = run("demo", "--n", 1, "--out", "o", "--json", "f.json", "--model", "mini", "-q")
    assert (
        "img2img stock" in r.stdout
        and not r.stderr
        and json.loads(Path("f.json").read_text())["rows"]
    )
    says(run("demo", "--n", "0"), 2)
    says(run("demo", "--seed", "-1"), 2)
    says(run("demo", "--out", "a.png"), 2, "not a folder")
    says(run("demo", "--json", "o"), 2, "folder")
    says(run("demo", "--model", "nope", "--out", "p"), 1, "nope")
    assert not Path("p").exists()


def test_demo_without_weights(place):
    says(run("demo"), 1, "reader")
    assert os.listdir() == ["a.png"]


def test_train(place, monkeypatch):
    from fastedit import training

    seen = []
    for f in ("train_vae", "train_lcm", "train_lcm_lora", "train_controlnet"):
        monkeypatch.setattr(training, f, lambda state, f=f, **kw: seen.append((f, str(state), kw)))
    assert (
        run("train", "vae").exit_code
        == run("train", "lcm", "--steps", 7, "--state", "s", "-q").exit_code
        == run("train", "lcm", "--model", "mini-s", "--batch", 2).exit_code
        == 0
    )
    assert seen == [
        ("train_vae", "state", dict(quiet=False)),
        ("train_lcm_lora", "s", dict(quiet=True, steps=7)),
        ("train_lcm", "state", dict(quiet=False, batch=2)),
    ]
    says(run("train", "everything"), 2, "vae")
    says(run("train", "lcm", "--model", "sdxl"), 2, "mini-s")
    says(run("train", "vae", "--steps", 0), 2)
    says(run("train"), 2)
    says(run("train", "vae", "--state", "a.png"), 2, "not a folder")
    monkeypatch.setattr(
        training, "train_vae", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt())
    )
    says(run("train", "vae"), 130, "checkpoint")


@pytest.mark.parametrize(
    "line, said",
    [
        ("train vae --minutes 8 --device cuda", "--minutes and --device have no effect with vae"),
        ("train lcm --only vae --toy", "--only and --toy have no effect with lcm"),
        ("train vae --model mini", "--model has no effect with vae, only with lcm and edit-lora"),
        ("train family --steps 9 --batch 2", "--steps and --batch have no effect with family"),
        ("bench-speed --model mini --minutes 3", "--minutes has no effect without --full-size"),
        ("bench-speed --model mini --side 64", "--side has no effect without --sd15"),
        ("bench-speed --full-size --sd15", "--sd15 has no effect with models of full size"),
        ("bench-metrics --pie-standin --n 3", "--n has no effect with --pie-standin"),
    ],
)
def test_options_without_effect_are_refused(place, line, said):
    says(run(*line.split()), 2, said)


def test_train_needs_the_earlier_stages(place):
    says(run("train", "controlnet", "--state", "s", "-q"), 2, "fastedit train") if (
        place / "s/pictures-60000.npy"
    ).exists() else None


def test_doctor(place, model, monkeypatch):
    r = run("doctor")
    assert r.exit_code == 0 and all(
        w in r.stdout for w in ("torch", "device", "memory", "ssd-1b", "mini", "not here")
    )
    d = json.loads(run("doctor", "--json").stdout)
    assert {m["model"] for m in d["models"]} >= {"mini", "sdxl"} and not any(
        m["available"] for m in d["models"]
    )
    r = run("doctor", model)
    assert r.exit_code == 0 and "complete" in r.stdout
    r = run("doctor", "ssd-1b")
    assert r.exit_code == 1 and "fastedit fetch ssd-1b" in r.stdout and "missing" in r.stdout
    d = json.loads(run("doctor", "sdxl", "--json").stdout)
    assert not d["ok"] and d["missing_bytes"] > 10**9
    says(run("doctor", "nope"), 1, "nope")


def test_fetch(place, monkeypatch):
    from fastedit import models

    asked = []
    with monkeypatch.context() as m:
        m.setattr(models, "fetch", lambda *a: asked.append(a) or models.diagnose("mini"))
        run("fetch", "ssd-1b", "--controlnet", "canny-sdxl", "--preview", "-q")
        run("fetch", "taesdxl", "--precision", "fp32", "--dry-run")
        run("fetch", "sdxl", "--controlnet", "none")
    assert asked == [
        ("ssd-1b", "fp16", "canny-sdxl", True, True, False),
        ("taesdxl", "fp32", True, False, False, True),
        ("sdxl", "fp16", False, False, False, False),
    ]
    says(run("fetch", "nope"), 1, "nope")
    says(run("fetch", "ssd-1b", "--precision", "fp7"), 2, "fp16")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    says(run("fetch", "ssd-1b"), 1, "OFFLINE is set", "unet")


def test_plan(place):
    r = run("plan", "--budget", 6, "-q")
    assert r.exit_code == 0, r.output
    lines = r.stdout.splitlines()
    assert (
        [l.split()[0] for l in lines[2:8]] == ["4", "6", "8", "12", "16", "24"]
        and "model-offload" in lines[2]
        and "text-cached" in lines[3]
        and "resident" in lines[4]
    )
    assert (
        "6 GiB: fp16, text-cached" in r.stdout
        and "moves 1.64 GB" in r.stdout
        and "<- peak" in r.stdout
        and "estimates, not measurements" in r.stdout
        and " s on RTX 4090" in r.stdout
    )
    d = json.loads(
        run(
            "plan",
            "--model",
            "sdxl",
            "--budget",
            12,
            "--size",
            "768x768",
            "--steps",
            2,
            "--no-controlnet",
            "--json",
            "-q",
        ).stdout
    )
    c = d["chosen"]
    assert (
        (c["size"], c["steps"], c["budget_gb"]) == ([768, 768], 2, 12)
        and c["needs_gb"] <= 12
        and len(c["stages"]) == 4
        and c["seconds_estimate"]
        and len(d["table"]) == 6
        and "50%" in d["assumptions"]
    )
    small = run("plan", "--precision", "fp32", "-q")
    assert (
        "does not fit" not in small.stdout
        and "group-offload" in small.stdout
        and "fp16" not in small.stdout
    )
    assert (
        "It would fit"
        in run("plan", "--model", "sdxl", "--precision", "fp32", "--size", "2048x2048", "-q").stdout
    )


def test_the_help_of_plan_names_the_method_that_runs_where_none_is_named():
    from fastedit.methods import DEFAULT_METHOD

    assert DEFAULT_METHOD in run("plan", "--help").stdout


def test_plan_refuses_in_words(place):
    says(
        run("plan", "--model", "sdxl", "--budget", 1, "-q"),
        1,
        "needs at least",
        "It would fit",
        "384x384",
    )
    says(run("plan", "--budget", 0.3, "-q"), 1, "Use a device with")
    says(run("plan", "--budget", 3, "--precision", "fp32", "-q"), 1, "fit in fp16")
    says(run("plan", "--budget", 0, "-q"), 2, "budget")
    says(run("plan", "--precision", "fp17", "-q"), 2, "fp16")
    says(run("plan", "--size", "big", "-q"), 2, "WIDTHxHEIGHT")
    says(run("plan", "--size", "99999x8", "-q"), 2, "multiples of 64")
    says(run("plan", "--model", "nope", "-q"), 1, "nope")
    says(run("plan", "--model", "flux2-klein", "-q"), 2, "pipeline")


def test_edit_within_a_budget(place, model):
    r = edit(
        model, "--residency", "model-offload", "--method", "img2img", "--steps", 1, "--json", "-q"
    )
    assert r.exit_code == 0, r.output
    d = json.loads(r.stdout)
    assert (
        d["memory"]["residency"] == "model-offload"
        and d["memory"]["moved"] > 0
        and d["fallbacks"] == []
    )
    assert (
        edit(model, "--method", "img2img", "--steps", 1, out="c.png").exit_code == 0
        and Path("b.png").read_bytes() == Path("c.png").read_bytes()
    )
    says(edit(model, "--residency", "here", out="d.png"), 2, "text-cached")
    says(
        edit(model, "--residency", "auto", "--budget", 0.1, "-q", out="d.png"), 1, "needs at least"
    )
    assert not Path("d.png").exists()


def test_bench_memory(place, monkeypatch):
    from fastedit import editor

    row = dict(weights=10**6, predicted=10**6, measured=10**6, ratio=1.0)
    seen = []
    monkeypatch.setattr(
        editor,
        "bench_memory",
        lambda *a, **kw: (
            seen.append((*a, kw))
            or dict(stages=[dict(row, stage="text")], peak=row, steps=1, nfe=2, seconds=1.5)
        ),
    )
    r = run("bench-memory", "--size", "64", "--steps", 1, "--json", "m.json", "-q")
    assert (
        r.exit_code == 0
        and "1.000" in r.stdout
        and json.loads(Path("m.json").read_text())["peak"]["ratio"] == 1
    )
    assert json.loads(run("bench-memory", "--json", "-", "-q").stdout)["nfe"] == 2 and seen == [
        ("sd15-lcm", s, n, False, dict(residency="resident", precision=None, device="cpu"))
        for s, n in (((64, 64), 1), ((256, 256), 2))
    ]
    says(run("bench-memory", "--json", "."), 2, "folder")
    says(run("bench-memory", "--size", "big"), 2, "WIDTHxHEIGHT")


def test_bench_memory_on_a_gpu(place, monkeypatch):
    "The table of all policies, from what a GPU's run gives."
    from fastedit import editor

    says(run("bench-memory", "--precision", "fp16", "-q"), 2, "device='cuda'")
    says(run("bench-memory", "--residency", "here", "-q"), 2, "text-cached")
    if not torch.cuda.is_available():
        says(run("bench-memory", "--device", "cuda", "-q"), 2, "no CUDA device")
    asked = []
    row = dict(
        predicted=2**30,
        allocated=2**30,
        ratio=1.0,
        reserved=2**31,
        required=3 * 2**30,
        moved=0,
        moved_predicted=10**9,
        seconds=1.5,
        second_prompt_seconds=0.5,
    )
    monkeypatch.setattr(
        editor,
        "bench_memory",
        lambda *a, **kw: (
            asked.append(kw)
            or dict(
                policies=[dict(row, residency=k) for k in kw["residency"]],
                steps=4,
                precision="fp16",
                device="a card",
                outside=2**29,
            )
        ),
    )
    r = run("bench-memory", "--device", "cuda", "-q")
    assert (
        r.exit_code == 0
        and "a card; 0.50 GiB outside" in r.stdout
        and all(k in r.stdout for k in RESIDENCIES)
        and asked[0]["residency"] == tuple(RESIDENCIES)
    )


# --- a real process


def start(*args, **kw):
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=kw.pop("cwd"),
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kw,
    )


def test_help_is_light(place):
    code = (
        "import sys; sys.argv = ['fastedit', '--help']\n"
        "from fastedit.cli import main\ntry: main()\n"
        "except SystemExit as e: print(e.code, 'torch' in sys.modules, 'numpy' "
        "in sys.modules)"
    )
    out, err = start("-c", code, cwd=place).communicate(timeout=120)
    assert out.strip().endswith("0 False False") and "Usage: " in out and not err


def test_ctrl_c(place, model):
    "A real interrupt in the middle of an edit: 130, one line, nothing written."
    code = f"""import os, signal, sys
# a shell's background job inherits it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
from fastedit import denoise as denoiser
old = denoiser.Denoiser.decode
def decode(self, z): os.kill(os.getpid(), signal.SIGINT); return old(self, z)
denoiser.Denoiser.decode = decode
sys.argv = ["fastedit", "edit", "a.png", "a ball", "-o", "b.png", "--steps", "1"]
sys.argv += ["--model", {str(model)!r}]
from fastedit.cli import main
main()"""
    p = start("-c", code, cwd=place)
    out, err = p.communicate(timeout=300)
    assert (
        p.returncode == 130
        and "interrupted" in err
        and "Traceback" not in err
        and not out
        and os.listdir() == ["a.png"]
    )


def test_the_mask_is_not_overwritten(place, model):
    Image.new("L", (64, 64), 255).save("m.png")
    before = open("m.png", "rb").read()
    says(edit(model, "--mask", "m.png", out="m.png"), 2, "the mask itself")
    assert open("m.png", "rb").read() == before


@pytest.mark.parametrize(
    "how",
    [
        dict(PYTHONIOENCODING="ascii:strict"),
        dict(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0"),
    ],
)
def test_a_terminal_without_utf8_replaces_letters(place, model, how):
    os.rename("a.png", "café ☕.png")
    env = {**os.environ, "PYTHONPATH": str(ROOT), **how}

    def go(*args):
        return subprocess.run(
            [sys.executable, "-m", "fastedit", *args], capture_output=True, env=env
        )

    r = go("edit", "café ☕.png", "une tasse de café ☕", "-o", "neu ☕.png", "--model", str(model))
    assert r.returncode == 0, r.stderr
    assert (
        r.stdout.startswith(b"neu ?")
        and r.stdout.isascii()
        and read_metadata("neu ☕.png")["request"]["prompt"] == "une tasse de café ☕"
    )
    r = go("edit", "nicht ☕.png", "a", "-o", "b.png")
    assert (
        r.returncode == 1
        and b"nicht" in r.stderr
        and r.stderr.isascii()
        and r.stderr.count(b"\n") == 1
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is full")
@pytest.mark.parametrize("to", ["2>/dev/full", "2>&-", "<&- >&- 2>&-"])
def test_an_edit_does_not_need_to_be_heard(place, model, to):
    words = [sys.executable, "-m", "fastedit", "edit", "a.png", "a ball", "-o", "b.png"]
    words += ["--model", str(model), "--steps", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    r = subprocess.run(["sh", "-c", f'exec "$@" {to}', "sh", *words], env=env, timeout=120)
    assert r.returncode == 0 and read_metadata("b.png")["request"]["prompt"] == "a ball"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is full")
def test_help_without_room_for_it_is_one_line(place):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        r = subprocess.run(
            [sys.executable, "-m", "fastedit", "--help"],
            env=env,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert r.returncode == 1 and r.stderr.count(b"\n") == 1 and b"space" in r.stderr


def test_outputs_are_checked_before_anything_is_read(place, model):
    Path("folder.png").mkdir()
    Path("loop.png").symlink_to("loop.png")
    before = set(os.listdir())
    for out in ("x" * 300 + ".png", "folder.png", "loop.png", "a.png/b.png", "/proc/b.png"):
        says(run("edit", "a.png", "a ball", "-o", out, "--model", "no such model"), 2)
    for args in (("bench-metrics",), ("bench-speed",), ("bench-sweep",), ("demo",), ("bench",)):
        says(run(*args, "--json", "x" * 300 + ".json"), 2, "305")
    for args in (("sweep", "a.png", "a ball"), ("bench",), ("demo",), ("report", "nowhere")):
        says(run(*args, "--out", "x" * 300), 2, "300")
    assert set(os.listdir()) == before
    Path("link.png").symlink_to("real.png")
    assert (
        edit(model, out="link.png").exit_code == 0
        and Path("link.png").is_symlink()
        and read_metadata("real.png")
    )
