"""Fetching against a small hub that can be told to misbehave: said first, one bar, patience with
limits, errors in words, nothing left behind."""

import errno, json, os, shutil, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import hub as server
import huggingface_hub.constants as constants
import huggingface_hub.file_download as file_download
from fastedit import models as M
from fastedit.models import download, fetching, hub as H
from fastedit.models.places import PARTS
from fastedit.core import ModelError

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def layout(tmp_path_factory):
    "A small SDXL-shaped repository."
    d = M.random_model(tmp_path_factory.mktemp("layout") / "xl", channels=(16, 32, 32), width=16)
    (d / "README.md").write_text("a card")
    (d / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (d / "all_in_one.safetensors").write_bytes(b"x")
    return server.folder(d)


@pytest.fixture(scope="session")
def small(layout):
    "The same files with next to nothing in them, for tests that load nothing."

    def tensor(name):
        head = json.dumps(
            {name: dict(dtype="F16", shape=[30_000], data_offsets=[0, 60_000])}
        ).encode()
        return (
            len(head).to_bytes(8, "little")
            + head
            + name.encode() * (60_000 // len(name))
            + b"x" * (60_000 % len(name))
        )

    return {
        n: tensor(n.partition("/")[0]) if n.endswith(".safetensors") and "/" in n else b
        for n, b in layout.items()
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    h = server.Hub()
    for k, v in dict(
        FASTEDIT_CACHE="cache",
        HF_HUB_CACHE="hub",
        FASTEDIT_MODELS="mirror",
        FASTEDIT_MODELS_TOML="mine.toml",
    ).items():
        monkeypatch.setenv(k, str(tmp_path / v))
    for k, v in dict(
        ENDPOINT=h.url,
        HUGGINGFACE_CO_URL_TEMPLATE=h.url + "/{repo_id}/resolve/{revision}/{filename}",
        HF_HUB_OFFLINE=False,
        HF_HUB_DISABLE_XET=True,
    ).items():
        monkeypatch.setattr(constants, k, v)
    monkeypatch.setattr(
        file_download, "time", SimpleNamespace(sleep=lambda s: None, time=time.time)
    )
    monkeypatch.setattr(H, "_WAITS", (0.01, 0.02, 0.03, 0.04, 0.05))
    h.cache = tmp_path / "hub"
    yield h
    h.close()


@pytest.fixture
def model(hub, small):
    "A model of one's own whose parts lie in two repositories."
    hub.add(
        "someone/model",
        {k: v for k, v in small.items() if not k.startswith("controlnet/")},
        licence="openrail++",
    )
    hub.add(
        "someone/canny",
        {k.removeprefix("controlnet/"): v for k, v in small.items() if k.startswith("controlnet/")},
        licence="mit",
    )
    return M.ModelSpec("mine", "sdxl", M.Source("someone/model"), controlnet="someone/canny")


def fetch(spec, **kw):
    return M.fetch(spec, **{"quiet": True, **kw})


def leftovers(cache):
    return [p for p in cache.rglob("*") if p.name.endswith((".incomplete", ".lock"))]


# --- what is said, what is taken ------------------------------------------------------------------


def test_fetch_says_what_it_takes_before_taking_it(hub, model, capsys):
    text = []
    real = download.take

    def taking(*a, **kw):
        text.append(capsys.readouterr())
        return real(*a, **kw)

    fetching.take = taking
    try:
        d = M.fetch(model)
    finally:
        fetching.take = real
    said = text[0].out
    assert d.ok and not text[0].err
    assert all(
        w in said
        for w in (
            "mine: ",
            "files to take",
            "someone/model",
            "licence: openrail++",
            "someone/canny",
            "licence: mit",
            WEIGHTS,
            "GB free",
            str(hub.cache),
        )
    )
    need = sum(len(b) for n, b in hub.repos["someone/canny"].files.items()) + sum(
        len(b) for n, b in hub.repos["someone/model"].files.items() if n in said
    )
    assert H.size_text(need) in said.splitlines()[0]
    assert not leftovers(hub.cache)


def test_only_what_is_needed_is_taken_once(hub, model):
    assert fetch(model).ok
    taken = hub.taken()
    assert (
        set(taken.values()) == {1}
        and WEIGHTS in taken
        and not {"unet/diffusion_pytorch_model.bin", "all_in_one.safetensors", "README.md"}
        & set(taken)
    )
    hub.calm()
    assert fetch(model).ok and not hub.taken(), "nothing is taken twice"


def test_one_bar_over_all(hub, model, capsys):
    M.fetch(model)
    err = capsys.readouterr().err
    assert {r.split(":")[0].strip() for r in err.replace("\n", "\r").split("\r") if "%|" in r} == {
        "fetching mine"
    } and "100%" in err
    M.fetch(model, quiet=True)
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_bytes_count_once_however_they_come():
    """The library's other way to download tells of received and of written bytes, to one bar that
    it makes of our class."""
    reporting = pytest.importorskip("huggingface_hub.utils._xet_progress_reporting")
    bar = SimpleNamespace(n=0)
    bar.update = lambda n: setattr(bar, "n", bar.n + n)
    with reporting.XetDownloadProgressReporter(
        reconstruction_desc="f", total=100, log_level=40, tqdm_class=download._counter(bar)
    ) as r:
        for n in (40, 100):
            r.update_progress(
                SimpleNamespace(
                    total_bytes_completed=n,
                    total_transfer_bytes_completed=n,
                    total_bytes=100,
                    total_bytes_completion_rate=1.0,
                    total_transfer_bytes_completion_rate=1.0,
                )
            )
    assert bar.n == 100


def test_dry_run_takes_nothing(hub, model, capsys):
    d = M.fetch(model, dry_run=True)
    assert (
        not d.ok
        and not hub.taken()
        and "files to take" in capsys.readouterr().out
        and not hub.cache.exists()
    )


# --- patience -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503, 500, 502, 504])
@pytest.mark.parametrize(
    "where",
    ["GET /api/models", "HEAD .*unet/config.json", "GET .*unet/config.json", "GET /store/.*unet"],
)
def test_a_busy_hub_is_asked_again(hub, model, capsys, status, where):
    hub.fault(where, times=2, status=status)
    assert M.fetch(model).ok
    said = capsys.readouterr().err
    assert said.count(f"{status}, ") == 2 and "try 2 of 6" in said and "try 3 of 6" in said


@pytest.mark.parametrize(
    "headers,wait",
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "0"}, 0),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"Retry-After": "soon"}, 0.01),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ],
)
def test_the_hub_says_how_long_to_wait(hub, model, monkeypatch, headers, wait):
    waits = []
    monkeypatch.setattr(H, "time", SimpleNamespace(sleep=waits.append, time=time.time))
    hub.fault("HEAD .*unet/config.json", times=1, status=429, headers=headers)
    assert fetch(model).ok and waits == [wait]


@pytest.mark.parametrize(
    "where", ["GET /api/models", "HEAD .*unet/config.json", "GET /store/.*unet"]
)
def test_patience_has_an_end(hub, model, monkeypatch, where):
    waits = []
    monkeypatch.setattr(H, "time", SimpleNamespace(sleep=waits.append, time=time.time))
    hub.fault(where, status=503)
    with pytest.raises(ModelError, match="503, busy.*someone/model.*come again"):
        fetch(model)
    assert len(waits) == 5 and not leftovers(hub.cache)
    hub.calm()
    hub.fault(where, status=429, headers={"Retry-After": "3600"})
    waits.clear()
    with pytest.raises(ModelError, match="429"):
        fetch(model)
    assert not waits, "nobody waits an hour in silence"


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_connection_is_taken_up_again(hub, model, reset):
    hub.fault("GET /store/.*unet", times=3, cut=50_000, reset=reset)
    assert fetch(model).ok and not leftovers(hub.cache)


@pytest.mark.parametrize("kind", [dict(wrong=True), dict(short=10)])
@pytest.mark.parametrize("name", [WEIGHTS, "unet/config.json"])
def test_what_arrives_damaged_is_taken_again_and_then_refused(hub, model, kind, name):
    hub.fault(f"GET .*{name}", times=1, **kind)
    assert fetch(model).ok and not leftovers(hub.cache)
    shutil.rmtree(hub.cache)
    hub.fault(f"GET .*{name}", **kind)
    with pytest.raises(ModelError, match=f"{name}.*(damaged|size)"):
        fetch(model)
    assert not list(hub.cache.rglob(Path(name).name)) or name not in {
        str(p.relative_to(p.parents[1])) for p in hub.cache.rglob("*")
    }
    hub.calm()
    assert fetch(model).ok


def test_damaged_files_of_the_cache_are_taken_again(hub, model):
    assert fetch(model).ok
    root = M.locate(model.base)
    hub.calm()
    (root / WEIGHTS).write_bytes((root / WEIGHTS).read_bytes()[:-100])
    b = bytearray((root / "vae/config.json").read_bytes())
    b[-2] ^= 1
    (root / "vae/config.json").write_bytes(bytes(b))
    assert fetch(model).ok and hub.taken().keys() == {WEIGHTS, "vae/config.json"}
    shutil.rmtree(root / "tokenizer")
    hub.calm()
    assert fetch(model).ok and not hub.taken(), "the content was still here"


# --- what the hub refuses -------------------------------------------------------------------------


def test_refusals_name_what_was_asked_for_and_the_way_out(hub, model):
    says = lambda spec, *words: [
        pytest.fail(f"{w!r} is not in {e}")
        for e in [pytest.raises(ModelError, fetch, spec).value]
        for w in words
        if w not in str(e)
    ]
    hub.repos["someone/canny"].gated = True
    says(
        model,
        "someone/canny is gated",
        "https://huggingface.co/someone/canny",
        "hf auth login",
        "terms",
    )
    hub.repos["someone/canny"].gated, hub.repos["someone/canny"].private = False, True
    says(model, "someone/canny", "private", "hf auth login")
    says(replace(model, base=M.Source("someone/modle")), "no repository someone/modle", "private")
    says(
        replace(model, base=M.Source("someone/model", revision="v9")),
        "someone/model",
        "no revision 'v9'",
    )
    says(
        replace(model, controlnet=None, lora=M.Source("someone/model", file="lcm.safetensors")),
        "someone/model/lcm.safetensors",
        "not among the files",
    )
    shutil.rmtree(hub.cache)
    hub.fault("HEAD .*unet/config.json", status=404, headers={"X-Error-Code": "EntryNotFound"})
    says(replace(model, controlnet=None), "someone/model", "no file 'unet/config.json'", "main")
    for status in (401, 403):
        hub.calm()
        hub.fault("/api/models", status=status)
        says(model, "someone/model", str(status), "hf auth login")
    hub.calm()
    hub.fault(
        "/api/models",
        status=403,
        headers={"X-Error-Message": "Access to this resource is disabled."},
    )
    says(model, "someone/model was closed")
    hub.calm()
    hub.fault("/api/models", status=200, text="<html>log in to this network")
    says(model, "someone/model", "could not be fetched", "HF_ENDPOINT")


def test_no_network_is_one_clear_error(hub, model):
    hub.close()
    with pytest.raises(ModelError, match=f"{hub.url} cannot be reached.*another machine"):
        fetch(model)


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_is_said_in_words(hub, model, monkeypatch, name):
    fetch(replace(model, controlnet=None))
    hub.calm()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(name, "1")
    assert fetch(replace(model, controlnet=None)).ok and not hub.log, (
        "what is here needs no network"
    )
    with pytest.raises(ModelError, match=f"{name} is set.*controlnet.*unset {name}"):
        fetch(model)
    with pytest.raises(ModelError, match=f"{name} is set.*other/thing"):
        fetch("other/thing")


# --- the disk -------------------------------------------------------------------------------------


def test_the_disk_is_checked_for_what_is_missing_only(hub, model, monkeypatch):
    rest = sum(len(b) for b in hub.repos["someone/canny"].files.values())
    assert fetch(replace(model, controlnet=None)).ok
    free = [rest - 1]
    monkeypatch.setattr(H.shutil, "disk_usage", lambda p: SimpleNamespace(free=free[0]))
    with pytest.raises(
        ModelError,
        match="needs .* more and .*hub has .* free: free some space, or set HF_HUB_CACHE",
    ):
        fetch(model)
    free[0] = rest
    assert fetch(model).ok


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_in_the_middle_is_said(hub, model, monkeypatch, code):
    real = file_download.http_get

    def full(url, temp_file, **kw):
        if "unet" in url and "store" in url:
            temp_file.write(b"x" * 1000)
            raise OSError(code, os.strerror(code))
        return real(url, temp_file, **kw)

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(ModelError, match=f"hub is full.*{WEIGHTS}.*set HF_HUB_CACHE"):
        fetch(model)
    assert not leftovers(hub.cache)
    monkeypatch.setattr(file_download, "http_get", real)
    hub.calm()
    assert fetch(model).ok and "tokenizer/vocab.json" not in hub.taken(), (
        "what came before it was kept"
    )


def test_a_cache_that_cannot_be_written_is_said(hub, model, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(ModelError, match="file.hub cannot be written"):
        fetch(model)


def test_the_variable_that_decides_is_named(monkeypatch):
    for k in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(k, raising=False)
    assert "set HF_HOME to" in H.other_disk()
    monkeypatch.setenv("HUGGINGFACE_HUB_CACHE", "/x")
    assert "set HUGGINGFACE_HUB_CACHE to" in H.other_disk()


def test_leftovers_of_killed_downloads_are_removed_but_not_those_of_the_living(hub, model, capsys):
    from filelock import FileLock

    blobs, locks = (
        hub.cache / "models--someone--model" / "blobs",
        hub.cache / ".locks" / "models--someone--model",
    )
    blobs.mkdir(parents=True)
    locks.mkdir(parents=True)
    for n in ("dead.12345678.incomplete", "old.incomplete", "alive.12345678.incomplete"):
        (blobs / n).write_bytes(b"x" * 1000)
    for n in ("dead.lock", "free.lock"):
        (locks / n).touch()
    with FileLock(str(locks / "alive.lock")):
        assert M.fetch(model).ok
        assert {p.name for p in leftovers(hub.cache)} == {
            "alive.12345678.incomplete",
            "alive.lock",
        } and "removed 2 leftovers" in capsys.readouterr().err
    fetch(model)
    assert {p.name for p in leftovers(hub.cache)} <= {"alive.lock"}


# --- stopped and killed ---------------------------------------------------------------------------


def start(hub, *args):
    "Run the command line against the hub; returns the process once the slow file is on its way."
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }
    # a job in the background inherits that it is ignored
    p = subprocess.Popen(
        [sys.executable, "-m", "fastedit", *args],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.time() + 60
    while not any("/store/" in r and "unet" in r for r in hub.log):
        assert time.time() < end and p.poll() is None, p.communicate()
        time.sleep(0.02)
    time.sleep(0.2)
    return p


def test_ctrl_c_and_kill_lose_at_most_the_file_in_flight(hub, model, layout):
    Path(os.environ["FASTEDIT_MODELS_TOML"]).write_text(
        '[mine]\nfamily = "sdxl"\nbase = "someone/model"\ncontrolnet = "someone/canny"\n'
    )
    hub.fault("GET /store/.*unet", slow=6_000)
    p = start(hub, "fetch", "mine")
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=30)
    assert p.returncode == 130 and not leftovers(hub.cache)
    assert (
        "files to take" in out
        and "stopped: " in err
        and "are here and stay" in err
        and "`fastedit fetch mine` goes on" in err
        and "Traceback" not in err
    )
    before = hub.taken()
    hub.log.clear()
    p = start(hub, "fetch", "mine", "-q")
    p.kill()
    p.wait()
    assert [q.name.rpartition(".")[2] for q in leftovers(hub.cache)].count("incomplete") == 1
    assert not before.keys() - {WEIGHTS} & hub.taken().keys(), "what was here is not taken again"
    hub.calm()
    assert (
        M.fetch("mine", quiet=True).ok
        and not leftovers(hub.cache)
        and not before.keys() - {WEIGHTS} & hub.taken().keys()
    )


def test_ctrl_c_before_anything_was_taken_says_how_to_go_on(hub, model, monkeypatch):
    def stop(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(H, "time", SimpleNamespace(sleep=stop, time=time.time))
    hub.fault("/api/models", status=503)
    with pytest.raises(KeyboardInterrupt, match="`fastedit fetch mine` starts again"):
        fetch(model)


# --- where files lie ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env",
    [
        {},
        dict(XDG_CACHE_HOME="/x/cache"),
        dict(HF_HOME="/x/home"),
        dict(HF_HOME="~/there"),
        dict(HUGGINGFACE_HUB_CACHE="/x/old"),
        dict(HF_HUB_CACHE="~/new", HUGGINGFACE_HUB_CACHE="/x/old"),
        dict(HF_HOME="$PLACE/home", PLACE="/x"),
        dict(XDG_CACHE_HOME="/x/cache", HF_HUB_CACHE="/x/hub"),
        dict(XDG_CACHE_HOME=""),
    ],
)
def test_the_cache_is_where_the_library_has_it(monkeypatch, env):
    for k in ("HF_HUB_CACHE", "HF_HOME", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(k, raising=False)
    for k, v in {"HOME": "/x/me", **env}.items():
        monkeypatch.setenv(k, v)
    code = Path(constants.__file__).read_text()
    theirs = {}
    exec(compile(code, "constants", "exec"), theirs)
    assert str(H.hub_cache()) == str(Path(theirs["HF_HUB_CACHE"])) == str(M.hub_cache())


# --- names ----------------------------------------------------------------------------------------


def test_a_repository_that_is_not_in_the_registry(hub, layout, capsys):
    hub.add("someone/painter", layout, licence="apache-2.0")
    with pytest.raises(ModelError, match="someone/painter.*fastedit fetch someone/painter"):
        M.load_model("someone/painter")
    assert (
        M.fetch("someone/painter").ok
        and "apache-2.0" in capsys.readouterr().out
        and M.diagnose("someone/painter").ok
    )
    c = M.load_model("someone/painter")
    assert (
        c.spec.key == "someone/painter"
        and c.controlnet is not None
        and "https://huggingface.co/someone/painter" in c.spec.notes
    )
    f = M.locate(M.Source("someone/painter")) / WEIGHTS
    f.unlink()
    d = M.diagnose("someone/painter")
    assert [x.component for x in d.findings if x.state != "ok"] == [
        "unet"
    ] and d.command == "fastedit fetch someone/painter"
    hub.calm()
    assert fetch("someone/painter").ok


def test_repositories_of_other_kinds_are_refused_before_their_weights(hub, layout):
    hub.add(
        "someone/flux",
        {
            "model_index.json": b'{"_class_name": "FluxPipeline", '
            b'"transformer": ["diffusers", "FluxTransformer2DModel"]}',
            "transformer/model.safetensors": b"x" * 1000,
        },
    )
    hub.add("someone/file", {"model.safetensors": b"x" * 1000})
    with pytest.raises(ModelError, match="someone/flux cannot be used"):
        fetch("someone/flux")
    with pytest.raises(ModelError, match="someone/file has no model_index.json.*hf download"):
        fetch("someone/file")
    assert not any("safetensors" in p for p in hub.log)


def test_names_of_the_registry_are_found_by_their_repository():
    assert (
        M.find_spec("stabilityai/sdxl-turbo").key == "sdxl-turbo"
        and M.find_spec("black-forest-labs/FLUX.2-klein-4B").key == "flux2-klein"
    )
    for name, word in (
        ("segmind/SSD-1B", "ssd-1b, ssd-1b-lora"),
        ("latent-consistency/lcm-sdxl", "lcm-sdxl"),
        ("taesdxl", "fastedit fetch taesdxl"),
        ("madebyollin/taesd", "fetch taesd"),
        ("canny-sdxl", "controlnet='canny-sdxl'"),
        ("magicbrush", "pickles"),
        ("vinesmsuic/magicbrush-jul7", "pickles"),
    ):
        with pytest.raises(ModelError, match=word):
            M.find_spec(name)


def _part_of(layout, kind):
    "The files of one folder; its VAE says that it is a tiny one, as those that stand alone are."
    names = (n for n in layout if n.startswith(kind + "/"))
    return {
        n.removeprefix(kind + "/"): layout[n].replace(b'"AutoencoderKL"', b'"AutoencoderTiny"')
        for n in names
    }


@pytest.mark.parametrize(
    "key,part,kind",
    [
        ("taesdxl", M.VAES["taesdxl"], "vae"),
        ("canny-sdxl", M.CONTROLNETS["canny-sdxl"], "controlnet"),
    ],
)
def test_parts_can_be_fetched_by_their_key(hub, layout, key, part, kind, monkeypatch):
    src = replace(part.source, revision="main")
    monkeypatch.setitem(PARTS[kind], key, replace(part, source=src))
    hub.add(
        src.repo,
        _part_of(layout, kind),
    )
    d = M.diagnose(key)
    assert not d.ok and d.command == f"fastedit fetch {key}" and d.missing_bytes > 10**6
    assert fetch(key).ok and M.diagnose(key).ok


def test_previews_and_other_controlnets_come_with_a_model(hub, model, layout, monkeypatch):
    for registry, key, kind in (
        (M.VAES, "taesdxl", "vae"),
        (M.CONTROLNETS, "canny-sdxl", "controlnet"),
    ):
        part = replace(registry[key], source=replace(registry[key].source, revision="main"))
        monkeypatch.setitem(registry, key, part)
        hub.add(
            part.source.repo,
            _part_of(layout, kind),
        )
    spec = replace(model, preview="taesdxl")
    d = fetch(spec, controlnet="canny-sdxl", preview=True)
    assert (
        d.ok
        and {f.component: f.source for f in d.findings}["controlnet"]
        == "diffusers/controlnet-canny-sdxl-1.0"
        and M.locate(M.VAES["taesdxl"].source)
    )
    with pytest.raises(ModelError, match="no tiny VAE"):
        fetch(model, preview=True)


def test_own_hub_models_agree_in_doctor_fetch_and_edit(hub, layout, tmp_path):
    toml = Path(os.environ["FASTEDIT_MODELS_TOML"])
    local = tmp_path / "local"
    hub.add("someone/model", layout)
    hub.add("someone/lora", {"pytorch_lora_weights.safetensors": b"x"})
    for name, data in layout.items():
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(data)
    toml.write_text(
        (
            f'[a]\nfamily = "sdxl"\nbase = "someone/model"\n'
            f'controlnet = "own"\n[b]\npath = "{local}"\n'
            f'controlnet = "someone/model"\n[c]\nfamily = "sdxl"\n'
            f'base = "someone/model"\nlora = "someone/lora"\n'
            f'vae = "someone/vae"\n'
        )
    )
    a = M.diagnose("a")
    assert not a.ok and a.command == "fastedit fetch a"
    with pytest.raises(ModelError, match="run `fastedit fetch a`"):
        M.load_model("a")
    assert fetch("a").ok and M.diagnose("a").ok and M.load_model("a").spec.key == "a"
    with pytest.raises(
        ModelError, match="lora .someone/lora/pytorch_lora_weights.safetensors.*fastedit fetch c"
    ):
        M.load_model("c")
    with pytest.raises(ModelError, match="someone/vae"):
        fetch("c")
    assert M.find_spec("c").size_gb() == 0 and M.diagnose("c").command == "fastedit fetch c"
    for key, bad in (("vae", "sdxl-fp16-fx"), ("controlnet", "cany"), ("preview", "someone/vae")):
        toml.write_text(f'[a]\nlike = "sdxl"\n{key} = "{bad}"\n')
        with pytest.raises(ModelError, match=f"{key}='{bad}': give one of"):
            M.find_spec("a")
    toml.write_text('[a]\nlike = "magicbrush"\n')
    with pytest.raises(ModelError, match="pickles"):
        M.find_spec("a")


def test_a_local_folder_with_parts_from_the_hub(hub, layout, tmp_path):
    "A model at a path takes from the hub what it has there, and doctor says the same command."
    hub.add(
        "someone/canny",
        {
            k.removeprefix("controlnet/"): v
            for k, v in layout.items()
            if k.startswith("controlnet/")
        },
    )
    local = tmp_path / "local"
    for name, data in layout.items():
        if not name.startswith("controlnet/"):
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            (local / name).write_bytes(data)
    Path(os.environ["FASTEDIT_MODELS_TOML"]).write_text(
        f'[b]\npath = "{local}"\ncontrolnet = "someone/canny"\n'
    )
    d = M.diagnose("b")
    assert [f.component for f in d.findings if f.state != "ok"] == [
        "controlnet"
    ] and d.command == "fastedit fetch b"
    assert fetch("b").ok and M.load_model("b").controlnet is not None
    (local / WEIGHTS).unlink()
    assert "copy unet to" in M.diagnose("b").command


@pytest.mark.parametrize(
    "text",
    ["https://huggingface.co/stabilityai/sdxl-turbo", "https://hf.co/stabilityai/sdxl-turbo/"],
)
def test_an_address_of_the_hub_is_shown_and_turned_into_a_name(text):
    with pytest.raises(ModelError) as e:
        M.find_spec(text)
    assert f"{text} is an address" in str(e.value) and "'stabilityai/sdxl-turbo'" in str(e.value)


@pytest.mark.parametrize(
    "text", ["https://a.b/c.png", "s3://bucket/c.png", "ftp://a.b/c.png", "file:///c.png"]
)
def test_addresses_are_shown_as_they_were_given(text, tmp_path, monkeypatch):
    from fastedit.core import OptionError, address, check_output
    from fastedit.images import load_image

    monkeypatch.chdir(tmp_path)
    for place in (text, Path(text)):
        assert address(place) == text
        with pytest.raises(Exception, match=f"{text} is an address"):
            load_image(place)
        with pytest.raises(OptionError, match=f"{text} is an address"):
            check_output(place)
    assert (
        not address("C:/a.png")
        and not address(Path("a:b/c.png"))
        and not address("/x/y.png")
        and not list(tmp_path.iterdir())
    )


def test_a_table_may_start_from_an_embedded_model(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(M.random_weights(tmp_path / "w")))
    Path(os.environ["FASTEDIT_MODELS_TOML"]).write_text(
        '[mine]\nlike = "mini"\nguidance_default = 1.25\n'
    )
    assert M.diagnose("mine").ok and fetch("mine").ok and not hub.log
    c, mini = M.load_model("mine"), M.load_model("mini")
    assert c.spec.guidance_default == 1.25 and all(
        (a == b).all() for a, b in zip(c.unet.parameters(), mini.unet.parameters())
    )
