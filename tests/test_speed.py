"""Speed against stock: the arithmetic of a comparison, the same weights on both sides, calls that
are counted, caches that change no bit. Nothing here depends on how fast a machine is."""

import itertools, json, os
import pytest, torch
from typer.testing import CliRunner
from fastedit import world as pb, speed as S
from fastedit.core import ModelError, OptionError
from fastedit.models import load_model, random_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    d = tmp_path_factory.mktemp("speed")
    kw = dict(channels=(16, 32, 32), width=16)
    return dict(
        cfg=random_model(d / "cfg", **kw),
        w=random_model(d / "w", w_embedding=True, **kw),
        sd15=random_model(d / "sd15", "sd15", **kw),
    )


@pytest.fixture(scope="module")
def benches(folders):
    return {k: S.Bench(load_model(f, device="cpu"), repeats=2) for k, f in folders.items()}


def timing(ours, other, **kw):
    return S.Timing("m", "case", "stock", tuple(ours), tuple(other), **kw)


# --- arithmetic


def test_ratios_are_of_neighbours_and_the_median_counts():
    t = timing(
        (1.0, 2.0, 9.0),
        (2.0, 2.0, 10.0),
        target=0.95,
        networks=(0.8, 1.2, 2.0),
        cpu=((1.0, 1.0, 1.0), (2.0, 4.0, 1.0)),
    )
    assert (
        t.ratios == (0.5, 1.0, 0.9)
        and t.ratio == 0.9
        and t.met
        and t.bound == 0.4
        and t.cpu_ratio == 0.5
    )
    assert (
        not timing((1.0,), (1.0,), target=0.9).met
        and timing((1.0,), (1.0,)).met is None
        and timing((1.0,), (1.0,), target=1.0).met
    )


@pytest.mark.parametrize(
    "networks, word", [(0.8, "out of reach"), (0.69, "the networks: "), (0.2, "our own code")]
)
def test_what_holds_a_figure_is_said(networks, word):
    assert word in timing((0.75,), (1.0,), target=0.7, networks=(networks,)).near


def test_both_sides_take_turns(monkeypatch):
    """Each repeat runs both, the first one changing; a clock that jumps the same for both gives
    ratio 1."""
    clock = itertools.count()
    monkeypatch.setattr(S.timing.time, "perf_counter", lambda: float(next(clock)))
    ran = []
    (a, b), _, results = S.in_turns(
        lambda i: ran.append(("a", i)) or i, lambda i: ran.append(("b", i)) or -i, 3
    )
    assert (
        ran == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
        and a == b == (1.0, 1.0, 1.0)
        and results == ([0, 1, 2], [0, -1, -2])
    )


def test_a_timing_is_plain_data():
    d = timing(
        (1.0,), (2.0,), calls=dict(ours=dict(unet=2), other=dict(unet=4)), notes=("n",)
    ).to_dict()
    assert (
        json.loads(json.dumps(d, allow_nan=False)) == d
        and d["ratio"] == 0.5
        and d["bound"] is None
        and d["near"] == ""
    )


# --- the two sides


@pytest.mark.parametrize("kind", ["cfg", "w", "sd15"])
def test_both_sides_are_the_same_computation_on_the_same_weights(benches, kind):
    b = benches[kind]
    assert (
        b.pipe.unet is b.parts.unet
        and b.pipe.controlnet is b.parts.controlnet
        and b.pipe.vae is b.parts.vae
        and b.pipe.text_encoder is b.parts.text_encoder
    )
    assert b.difference() <= 1


@pytest.mark.parametrize("kind, pair", [("cfg", 2), ("w", 1), ("sd15", 2)])
def test_calls_are_counted_and_the_caches_save_them(benches, kind, pair):
    b = benches[kind]
    first, second, guided = b.first(), b.second(), b.guided()
    for t in (first, second, guided):
        assert (
            t.identical
            and t.calls["ours"]["unet"]
            == b.steps * pair - (pair if pair == 2 and t is guided else 0)
            and t.calls["other"]["unet"] == b.steps * 2
            and len(t.ratios) == b.repeats == len(t.networks)
            and t.cpu_ratio > 0
        )
    encoded = [t.calls["ours"]["encode"] for t in (first, second, guided)]
    texts = [t.calls["ours"]["text"] for t in (first, second, guided)]
    assert (
        encoded == [1, 0, 0]
        and texts[2] == 0 < texts[1] <= texts[0]
        and second.calls["other"]["encode"] == 1
        and second.calls["other"]["text"] >= 1
    )
    # transformers keeps some of its own
    assert not any(
        f.__module__.startswith("fastedit")
        for n in b.parts.modules().values()
        for m in n.modules()
        for f in m._forward_hooks.values()
    )


def test_halves_asked_apart_save_one(benches):
    b = benches["cfg"]
    a, c = b.first(True), b.second(True)
    assert (
        a.identical
        and c.identical
        and (a.calls["ours"]["unet"], c.calls["ours"]["unet"]) == (2 * b.steps, 2 * b.steps - 1)
        and a.target is c.target is None
        and "halves apart" in c.case
    )


def test_w_embedding_halves_the_evaluations(benches):
    t = benches["w"].embedded()
    assert (
        t.calls["other"]["unet"] == 2 * t.calls["ours"]["unet"]
        and t.identical
        and t.against == "CFG pair, ours"
    )


def test_a_preview_after_every_step(benches):
    b = benches["cfg"]
    t = b.previews()
    assert t.identical is None and "random weights" in t.notes[0] and "one decode" in t.notes[1]
    assert t.calls["ours"]["decode"] == 1 and t.calls["other"]["decode"] == 1 + b.steps, (
        "ours previews through the tiny VAE alone"
    )


def test_a_cached_edit_that_differs_is_an_error(benches):
    b = benches["cfg"]
    run = lambda i: b.ours(b.editor(), "a red ball")
    other = lambda i: b.ours(b.editor(), "a blue ball")
    with pytest.raises(ModelError, match="fault of fastedit"):
        b.compare("first edit", run, run, fresh=other)


def test_tiny_vae_fits_the_latents(benches):
    b = benches["cfg"]
    v, tiny = b.parts.vae, S.tiny_vae(b.parts.vae)
    z = torch.randn(1, v.config.latent_channels, 16, 12)
    with torch.no_grad():
        assert tiny.decode(z).sample.shape == v.decode(z).sample.shape
    assert torch.equal(tiny.decoder.layers[0].weight, S.tiny_vae(v).decoder.layers[0].weight)


# --- the command


def test_report_and_json(folders, tmp_path, monkeypatch):
    for k, v in dict(FASTEDIT_CACHE="cache", FASTEDIT_MODELS_TOML="none.toml").items():
        monkeypatch.setenv(k, str(tmp_path / v))
    from fastedit.cli import app

    f = tmp_path / "f.json"
    r = CliRunner().invoke(
        app,
        [
            "bench-speed",
            "--model",
            str(folders["w"]),
            "--repeats",
            "1",
            "--steps",
            "1",
            "--device",
            "cpu",
            "--json",
            str(f),
            "-q",
        ],
    )
    assert r.exit_code == 0, r.output
    d = json.loads(f.read_text())
    assert d["schema"] == 1 and [t["case"] for t in d["timings"]] == [
        "first edit",
        "second prompt",
        "guidance change",
        "w-embedding",
        "first edit with previews",
        *["beside a busy core"] * hasattr(os, "sched_setaffinity"),
        "packed",
        "channels_last",
    ]
    assert (
        all(t["case"] in r.stdout for t in d["timings"])
        and {t["identical"] for t in d["timings"]} == {True, None}
        and d["models"][0]["difference"] <= 1
        and "CPU" in d["machine"]["device"]
    )
    assert {
        "model",
        "case",
        "against",
        "ours_s",
        "other_s",
        "ratio",
        "ratio_low",
        "ratio_high",
        "cpu_ratio",
        "repeats",
        "target",
        "met",
        "calls",
        "networks_s",
        "bound",
        "near",
        "identical",
        "notes",
    } == set(d["timings"][0])


@pytest.mark.parametrize(
    "kw, word",
    [
        (dict(side=100), "multiple of 64"),
        (dict(options=("magic",)), "packed or channels_last or compile"),
        (dict(repeats=0), "repeats=0"),
    ],
)
def test_bad_requests(folders, kw, word):
    with pytest.raises(OptionError, match=word):
        S.bench_speed((str(folders["cfg"]),), device="cpu", **kw)


def test_stock_needs_a_controlnet(folders):
    with pytest.raises(ModelError, match="no ControlNet"):
        S.Bench(load_model(folders["cfg"], device="cpu", controlnet=False))


# --- precision


def test_what_a_precision_costs(folders):
    edits = [pb.sample_edit(k, 9_000_000 + k) for k in (1, 6)]
    judged = []
    rows = S.precision_costs(
        edits,
        str(folders["cfg"]),
        ("bf16", "fp8"),
        judge=lambda im, e: judged.append(e) or im.width == 64,
        device="cpu",
        quiet=True,
        steps=2,
    )
    assert (
        [r["precision"] for r in rows] == ["fp32", "bf16", "fp8"]
        and rows[0]["psnr"] == 100
        and all(0 < r["psnr_lowest"] <= r["psnr"] < 100 for r in rows[1:])
        and all(r["success"] == 1 for r in rows)
    )
    assert (
        judged == edits * 3
        and rows[0]["bytes"] > rows[1]["bytes"]
        and rows[0]["bytes"] > rows[2]["bytes"]
        and rows[0]["n"] == 2
    )
    with pytest.raises(OptionError, match="at least one"):
        S.precision_costs([], str(folders["cfg"]))
    with pytest.raises(OptionError, match="fp17"):
        S.precision_costs(edits, str(folders["cfg"]), ("fp17",), device="cpu")
