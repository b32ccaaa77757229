"""What cannot work is refused before torch is imported, an edit imports nothing that it does not
use, and waiting threads sleep."""

import json, os, subprocess, sys
from pathlib import Path
import pytest
from PIL import Image
from fastedit import world as pb
from fastedit.core import Later, nearest, pages_on_demand

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "IPython",
    "bitsandbytes",
    "diffusers",
    "matplotlib",
    "pandas",
    "peft",
    "scipy",
    "sklearn",
    "torch",
    "torchao",
    "torchvision",
    "transformers",
    "triton",
)
PROBE = """import contextlib, io, json, sys
from fastedit.cli import main
for args in json.loads(sys.argv[1]):
    sys.argv, out, said, code = ["fastedit", *args], io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try: main()
        except SystemExit as e: code = e.code or 0
    modules = [m for m in sys.modules if m.count(".") < 2]
    print(json.dumps(dict(args=args, code=code, said=said.getvalue(), modules=modules)))"""


@pytest.fixture
def place(tmp_path):
    Image.fromarray(pb.render(pb.sample_scene(5), 64)).save(tmp_path / "a.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "small.png")
    return tmp_path


def start_all(place, commands, **env):
    """Run commands one after another in a new process: for each its arguments, exit code, standard
    error, and the modules imported so far."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([list(map(str, c)) for c in commands])],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **env},
    )
    assert done.returncode == 0, done.stderr
    return [
        (d["args"], d["code"], d["said"], set(d["modules"]))
        for d in map(json.loads, done.stdout.splitlines())
    ]


def start(place, *args, **env):
    """Run a command in a process of its own: exit code, standard error, the modules that it
    imported."""
    return start_all(place, [args], **env)[0][1:]


EDIT = ["edit", "a.png", "a blue ball", "-o", "b.png"]
REFUSED = [
    ([*EDIT, "--methdo", "ddcm"], "--method"),
    ([*EDIT, "--method", "ddmc"], "'ddcm'"),
    ([*EDIT, "--model", "mnii"], "'mini'"),
    ([*EDIT, "--model", "ssd-1b"], "fetch ssd-1b"),
    ([*EDIT, "--model", "flux-kontext"], "not on this machine"),
    ([*EDIT, "--size", "65x64"], "multiples of 16"),
    ([*EDIT, "--size", "big"], "WIDTHxHEIGHT"),
    ([*EDIT, "--mask", "none.png"], "none.png"),
    ([*EDIT, "--control", "cany"], "'canny'"),
    ([*EDIT, "--precision", "pf16"], "'fp16'"),
    ([*EDIT, "--residency", "rezident"], "'resident'"),
    ([*EDIT, "--device", "cdua"], "'cuda'"),
    ([*EDIT, "--method", "turbo", "--option", "shfit=1"], "'shift'"),
    ([*EDIT, "--method", "img2img", "--option", "sampler=dimm"], "'ddim'"),
    ([*EDIT, "--option", "threshold=7"], "threshold"),
    ([*EDIT, "--method", "instruct"], "8 input channels"),
    ([*EDIT, "--method", "instruct", "--model", "ssd-1b"], "8 input channels"),
    ([*EDIT, "--method", "ddcm", "--model", "instruct-pix2pix"], "use 'instruct'"),
    ([*EDIT, "--method", "leditspp", "--model", "mini"], "DDIMScheduler"),
    ([*EDIT, "--control", "canny", "--control", "canny"], "2 maps"),
    (
        [*EDIT, "--method", "p2p", "--ip-adapter", "ip-sdxl", "--reference", "a.png"],
        "takes over the attention",
    ),
    ([*EDIT, "--method", "img2img", "--schedule", "stokc"], "'stock'"),
    ([*EDIT, "--method", "img2img", "--schedule", "stock", "--strength", "0.2"], "no step"),
    ([*EDIT, "--strength", "2"], "strength"),
    ([*EDIT, "--guidance", "liner:1:2"], "curve"),
    ([*EDIT, "--lora", "none.safetensors"], "none.safetensors"),
    (["edit", "none.png", "a ball", "-o", "b.png"], "none.png"),
    (["edit", "a.png", "a ball", "-o", "b.bmp"], ".png"),
    (["edti"], "edit"),
    (["report", "NOFOLDER"], "NOFOLDER"),
    (["demo", "--model", "mnii"], "'mini'"),
    (["sweep", "a.png", "a ball", "--method", "ddmc"], "'ddcm'"),
    (["sweep", "none.png", "a ball"], "none.png"),
    (["sweep", "a.png", "a ball", "--method", "instruct"], "8 input channels"),
    (["bench", "--methods", "ddmc"], "ddcm"),
    (["bench", "--dataset", "none.csv"], "none.csv"),
    (["bench", "--profile", "drwan"], "'drawn'"),
    (["plan", "--model", "ssd1b"], "'ssd-1b'"),
    (["doctor", "mnii"], "'mini'"),
    (["fetch", "mnii"], "'mini'"),
    (["train", "teecher"], "'teacher'"),
    (["bench-speed", "--model", "mnii"], "'mini'"),
    (["bench-memory", "--model", "sd15-lmc"], "'sd15-lcm'"),
    (["bench-metrics", "--profile", "hole"], "'whole'"),
]


def test_refused_before_torch_is_imported(place):
    found = start_all(place, [args for args, _ in REFUSED])
    assert len(found) == len(REFUSED)
    for (args, code, said, modules), (_, word) in zip(found, REFUSED):
        assert (
            code in (1, 2) and word in said and "Traceback" not in said and not modules & set(HEAVY)
        ), (args, code, said)
    assert sorted(os.listdir(place)) == ["a.png", "small.png"]


COMMANDS = [
    "edit",
    "demo",
    "train",
    "sweep",
    "bench-sweep",
    "doctor",
    "fetch",
    "bench",
    "plan",
    "bench-memory",
    "report",
    "bench-metrics",
    "bench-speed",
]


def test_help_and_version_import_nothing_heavy(place):
    for args, code, said, modules in start_all(
        place, [["--help"], ["--version"], [], *([c, "--help"] for c in COMMANDS)]
    ):
        assert code == 0 and not said and not modules & {*HEAVY, "numpy", "cv2", "PIL"}, args


UNUSED = (
    "IPython",
    "bitsandbytes",
    "matplotlib",
    "pandas",
    "peft",
    "scipy",
    "sklearn",
    "torch._dynamo",
    "torch._inductor",
    "torch.onnx",
    "torchao",
    "torchvision",
    "triton",
)


def test_an_edit_imports_nothing_that_it_does_not_use(place):
    from fastedit.models import mini_path

    mini_path("mini")  # assembled once, on first use
    code, said, modules = start(place, *EDIT, "--steps", 1, "--method", "img2img", "--quiet")
    assert (
        code == 0
        and not said
        and (place / "b.png").exists()
        and {"torch", "diffusers", "transformers"} <= modules
    )
    assert not modules & set(UNUSED)


def test_a_lean_start_gives_the_bytes_of_a_full_one(place):
    from fastedit import FastEditor

    code, said, modules = start(place, *EDIT, "--steps", 2, "--control", "canny", "--quiet")
    assert code == 0
    here = FastEditor("mini", device="cpu")(
        place / "a.png", "a blue ball", steps=2, control="canny"
    )
    assert Image.open(place / "b.png").tobytes() == here.image.tobytes()


def test_a_cold_cache_and_methods_that_need_more_start_too(place):
    code, said, _ = start(
        place, *EDIT, "--steps", 1, "--quiet", FASTEDIT_CACHE=str(place / "cache")
    )
    assert code == 0 and not said
    os.remove(place / "b.png")
    code, said, modules = start(
        place, *EDIT, "--method", "leditspp", "--model", "mini-teacher", "--steps", 2, "--quiet"
    )
    assert code == 0 and (place / "b.png").exists()


def in_python(src, **env):
    return subprocess.run(
        [sys.executable, "-c", src],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, **env},
    ).stdout.split()


def test_hidden_packages_are_there_again_and_what_was_there_stays():
    src = """import sys, gc, scipy, importlib.util
from fastedit.start import UNUSED, lean_imports
with lean_imports():
    import torch
    assert importlib.util.find_spec("peft") is None and scipy is sys.modules["scipy"]
    assert not torch.distributed.is_available() and not gc.isenabled()
    try: import matplotlib
    except ImportError: print("hidden")
    @torch.compiler.disable
    def f(x): return x+1
    assert f(1) == 2
assert gc.isenabled() and torch.distributed.is_available()
assert "torch._dynamo" not in sys.modules and importlib.util.find_spec("peft") is not None
import matplotlib, torch._dynamo
print(torch._dynamo.__file__ is not None)"""
    assert in_python(src) == ["hidden", "True"]


def test_an_error_inside_leaves_nothing_hidden():
    src = """import sys
from fastedit.start import UNUSED, lean_imports
try:
    with lean_imports(): raise KeyError
except KeyError: pass
print([k for k in UNUSED if k in sys.modules])"""
    assert in_python(src) == ["[]"]


def test_a_users_own_way_to_wait_stays():
    src = (
        "from fastedit.start import sleep_while_waiting as s; import os; s(); "
        "print(os.environ.get('OMP_WAIT_POLICY'), "
        "os.environ.get('GOMP_SPINCOUNT'), os.environ.get('KMP_BLOCKTIME'))"
    )
    none = {
        k: v
        for k, v in os.environ.items()
        if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    }

    def told(**env):
        return subprocess.run(
            [sys.executable, "-c", src],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={**none, **env},
        ).stdout.split()

    assert (
        told() == ["PASSIVE", "0", "0"]
        and told(GOMP_SPINCOUNT="99") == ["None", "99", "None"]
        and told(OMP_WAIT_POLICY="ACTIVE") == ["ACTIVE", "None", "None"]
    )


def test_data_sets_reports_and_requests_are_read_without_torch():
    src = """import sys, fastedit.studies.bench, fastedit.report, fastedit.editor, fastedit.memory
from fastedit.measure import read_data
from fastedit.methods.base import find_method, method_names
from fastedit.denoise import lcm_grid
for k in method_names(): find_method(k)
fastedit.editor.EditRequest("a ball", control_scale="linear:1:0"); lcm_grid(4)
print("torch" in sys.modules)"""
    assert in_python(src) == ["False"]


def test_profiles_are_those_of_the_metrics():
    from fastedit.cli import checks
    from fastedit.measure import PROFILES

    assert set(checks.PROFILES) == set(PROFILES)


def test_later_and_pages_on_demand():
    sqrt = Later("math").sqrt
    assert sqrt(4) == 2
    with pytest.raises(AttributeError):
        Later("math").nothing
    with pytest.raises(ModuleNotFoundError):
        Later("no_such_module").x
    find, names = pages_on_demand("fastedit.measure", ".runs", ".comparison")
    assert find("decode_mask").__module__ == "fastedit.measure.runs" and {
        "compare",
        "decode_mask",
    } <= set(names())
    with pytest.raises(AttributeError, match="fastedit.measure"):
        find("nothing")


def test_the_nearest_name():
    assert (
        nearest("ddmc", ["ddim", "ddcm"]) == " (did you mean 'ddcm'?)"
        and nearest("zzz", ["ddim"]) == ""
        and nearest("MINI", ["mini"]) == " (did you mean 'mini'?)"
    )
    assert nearest(None, ["mini"]) == nearest(3, []) == ""


# --- what is measured


def test_a_busy_core_is_held_for_a_while_only():
    from fastedit.speed import busy_core

    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no pinning here")
    before = os.sched_getaffinity(0)
    with busy_core(30) as core:
        assert core in before and os.sched_getaffinity(0) == before
        held = [
            p
            for p in Path("/proc").glob("[0-9]*/stat")
            if (s := _stat(p)) and s[1] == str(os.getpid()) and s[0] in "RS"
        ]
        pid = int(held[0].parent.name)
        assert os.sched_getaffinity(pid) == {core}
    assert not Path(f"/proc/{pid}").exists()


def _stat(path):
    try:
        return path.read_text().rpartition(") ")[2].split()[:2]
    except OSError:
        return None


def test_bench_startup_says_what_it_measured(place):
    code, said, _ = start(place, "bench-startup", "--repeats", 1, "--json", "s.json", "--quiet")
    assert code == 0 and not said
    d = json.loads((place / "s.json").read_text())
    t = {x["case"]: x for x in d["timings"]}
    assert list(t) == ["fastedit edit", "fastedit edit, a wrong method", "fastedit edit --help"]
    assert t["fastedit edit"]["target"] == 2.5 and all(
        x["against"] == "import torch" and x["cpu_ratio"] > 0 for x in t.values()
    )
    # less than torch alone, by far
    assert (
        t["fastedit edit, a wrong method"]["cpu_ratio"] < 1
        and t["fastedit edit --help"]["cpu_ratio"] < 1
    )


def test_a_row_of_bench_speed_is_about_a_busy_core():
    import torch
    from fastedit.models import load_model
    from fastedit.speed import Bench, SpeedReport, busy_timing

    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no pinning here")
    before = torch.get_num_threads()
    t = busy_timing(Bench(load_model("mini", device="cpu"), steps=1, repeats=1, size=(64, 64)))
    assert (
        t.target == 2.5
        and len(t.ours) == len(t.other) == 1
        and "one thread" in t.against
        and "uses 1 of" in t.notes[0]
        and torch.get_num_threads() == before
    )
    assert "beside a busy core" in str(SpeedReport((t,), (), dict(device="x")))
