"""Memory: the meter, predictions against real runs and against the table, plans, policies, the
ladder on a simulated device."""

import pytest, torch
from hypothesis import given, settings, strategies as st
from dataclasses import replace
from fastedit import memory as Q, models as M
from fastedit.memory.trace import EmptyInputs
from fastedit.core import MemoryPlanError, NumericalError, OptionError
from fastedit.models import find_spec
from fastedit.pictures import plan_fit

GIB = 2**30


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return M.load_model(
        M.random_model(tmp_path_factory.mktemp("m"), channels=(16, 32, 32), width=16), device="cpu"
    )


# --- the meter ------------------------------------------------------------------------------------


def test_meter_counts_storages_not_views():
    x = torch.zeros(256, 256)
    with Q.live_tensors().ignore(x) as m:
        a = x.t()
        b = a[3:]
        c = x + 1
        d = c.view(-1)
        c.mul_(2)
        assert m.live == x.nbytes
        del c
        assert m.live == x.nbytes, "a view keeps its storage alive"
        del d
        assert m.live == 0
        e = (x + 1) + 1
    assert (
        (m.live, m.peak) == (x.nbytes, 2 * x.nbytes)
        and a is not None
        and b is not None
        and e is not None
    )


def test_meter_limit_raises_out_of_memory():
    with pytest.raises(torch.OutOfMemoryError), Q.live_tensors(limit=1000):
        torch.zeros(1000)
    with pytest.raises(torch.OutOfMemoryError), Q.live_tensors(limit=5000, weights=4000):
        torch.zeros(1000)
    with Q.live_tensors(limit=5000, weights=900) as m:
        torch.zeros(1000)
    assert m.most == 4900


def real_and_fake(arch, part, side, batch, factor):
    m = M.build(arch, "cpu")
    E = lambda *s, d=None: torch.zeros(s, dtype=d or torch.float32)
    call = EmptyInputs(m, E, side, side, batch, factor).call(part)
    with torch.no_grad(), Q.live_tensors().ignore(*m.parameters(), *m.buffers()) as real:
        call()
    return real, Q.trace(arch, part, side, batch=batch, dtype="float32", factor=factor)


@pytest.mark.parametrize(
    "name,part",
    [
        ("unet", "eps"),
        ("controlnet", "control"),
        ("vae", "encode"),
        ("vae", "decode"),
        ("text_encoder", "text"),
    ],
)
def test_prediction_equals_the_live_tensors_of_a_real_run(name, part):
    real, fake = real_and_fake(
        M.tiny_configs(channels=(16, 32, 32), width=16)[name], part, 64, 2, 4
    )
    assert abs(fake.peak / real.peak - 1) < 0.1 and fake.flops >= 0.95 * real.flops > 0


@pytest.mark.skipif(
    not (M.weights_dir() / "mini" / "unet").is_dir(), reason="no embedded weights in this checkout"
)
@pytest.mark.parametrize("name,part", [("unet", "eps"), ("vae", "decode")])
def test_prediction_holds_for_the_embedded_model(name, part):
    real, fake = real_and_fake(Q.configurations("mini")[name], part, 64, 2, 4)
    assert abs(fake.peak / real.peak - 1) < 0.1
    p = Q.predict_memory("mini", "fp32", device="cpu")
    assert p.weights["unet"] == M.module_bytes(M.build(Q.configurations("mini")["unet"]), "fp32")


def test_activations_are_linear_in_batch_and_number_size():
    c = M.tiny_configs(channels=(16, 32, 32), width=16)["controlnet"]
    a, b, h = (
        Q.trace(c, "control", 64, batch=n, dtype=d, factor=4)
        for n, d in ((1, "float32"), (3, "float32"), (1, "float16"))
    )
    assert (
        abs(b.peak / a.peak / 3 - 1) < 0.02
        and abs(h.peak / a.peak * 2 - 1) < 0.05
        and abs(b.flops / a.flops / 3 - 1) < 0.02
    )


# --- full-size figures ----------------------------------------------------------------------------

TABLE = {
    ("sdxl", "eps", 1024): 6.76,
    ("ssd-1b", "eps", 1024): 4.21,
    ("controlnet-sdxl", "control", 1024): 3.02,
    ("controlnet-sdxl-mid", "control", 1024): 0.78,
    ("controlnet-sdxl-small", "control", 1024): 0.57,
    ("vae-sdxl", "encode", 1024): 4.88,
    ("vae-sdxl", "decode", 1024): 10.47,
    ("taesd", "encode", 1024): 0.49,
    ("taesd", "decode", 1024): 0.57,
    ("sd15", "eps", 512): 0.803,
}
PEAKS = {("vae-sdxl", "encode", 1024): 1.26, ("vae-sdxl", "decode", 1024): 1.50}  # GiB


@pytest.mark.parametrize("key", list(TABLE))
def test_operations_match_the_published_table(key):
    assert abs(Q.TRACES[key][1] / 1e12 / TABLE[key] - 1) < 0.02


def test_peaks_match_the_published_table():
    assert (
        abs(
            (Q.TRACES["clip-l", "text", 0][1] + Q.TRACES["clip-bigg", "text", 0][1]) / 1e12 / 0.111
            - 1
        )
        < 0.02
    )
    for k, gib in PEAKS.items():
        assert abs(Q.TRACES[k][0] / GIB / gib - 1) < 0.02
    # the UNet with the residuals that it is given
    for batch, gib in (
        (1, 0.21),
        (2, 0.42),
        (8, 1.68),
    ):
        u = (
            Q.call_cost("ssd-1b", "eps", 1024, 1024, batch).peak
            + Q.residual_numbers(M.ARCHITECTURES["ssd-1b"].config, 128, 128) * 2 * batch
        )
        assert abs(u / GIB / gib - 1) < 0.05
    assert (
        abs(Q.predict_memory("ssd-1b", vae_tile=512).stages[-1].activations / GIB / 0.38 - 1) < 0.1
    )


@pytest.mark.parametrize(
    "arch,part,side",
    [
        ("taesd", "decode", 512),
        ("vae-sdxl", "decode", 512),
        ("controlnet-sdxl-small", "control", 512),
    ],
)
def test_traced_again(arch, part, side):
    t = Q.trace(arch, part, side)
    assert (t.peak, t.flops) == Q.TRACES[arch, part, side]


def test_between_the_tabulated_sizes():
    for arch, part in (("sdxl", "eps"), ("vae-sdxl", "decode")):
        a, b, c = (Q.call_cost(arch, part, s, s) for s in (512, 768, 1024))
        assert (
            a.peak < b.peak < c.peak
            and a.flops < b.flops < c.flops
            and abs(a.peak * 4 / c.peak - 1) < 0.01
        )
    assert Q.call_cost("sdxl", "eps", 512, 2048).flops == pytest.approx(
        Q.call_cost("sdxl", "eps", 1024, 1024).flops, rel=1e-6
    )


# --- weights, predictions, plans ------------------------------------------------------------------


def test_weights_are_exact():
    w = Q.weight_bytes("ssd-1b", "fp16")
    ids = 77 * 8
    assert (
        w["unet"] == 2 * 1_331_416_324
        and w["controlnet"] == 2 * 160_111_120
        and w["vae"] == 2 * 83_653_863
        and w["text_encoder"] == 2 * 123_060_480 + ids
    )
    assert Q.weight_bytes("sd15-lcm", "fp32")["unet"] == 4 * 859_520_964
    assert (
        Q.weight_bytes(replace(M.MODELS["ssd-1b"], vae="sdxl-original"), "fp16")["vae"]
        == 4 * 83_653_863
    ), "the original VAE stays in fp32"


def test_loaded_model_weighs_what_was_predicted(parts):
    for p in ("fp32", "fp16", "bf16"):
        assert Q.weight_bytes(parts.spec.path, p, device="cuda") == {
            k: b // (1 if p == "fp32" else 2) + (77 * 8 // 2 if "text" in k and p != "fp32" else 0)
            for k, b in parts.weight_bytes().items()
        }
    fp8 = M.load_model(parts.spec.path, precision="fp8", device="cpu")
    assert Q.weight_bytes(parts.spec.path, "fp8", device="cpu") == fp8.weight_bytes()


def test_policies_order_the_peaks():
    peak = {r: Q.predict_memory("ssd-1b", residency=r).peak for r in Q.RESIDENCIES}
    moved = {r: Q.predict_memory("ssd-1b", residency=r).moved for r in Q.RESIDENCIES}
    assert (
        peak["resident"]
        > peak["text-cached"]
        > peak["model-offload"]
        > peak["group-offload"]
        >= peak["sequential"]
    )
    assert (
        moved["resident"]
        == 0
        < moved["text-cached"]
        < moved["model-offload"]
        < moved["group-offload"]
        == moved["sequential"]
    )
    w = Q.weight_bytes("ssd-1b")
    text = w["text_encoder"] + w["text_encoder_2"]
    assert (
        moved["model-offload"] == text + 2 * w["vae"] + w["unet"]
        and moved["group-offload"] == 2 * text + 2 * w["vae"] + 4 * w["unet"]
    ), "ddcm does not ask the ControlNet"
    asked = Q.Work("img2img", 4, 1, 4, 4, 4)
    assert Q.predict_memory("ssd-1b", residency="sequential", work=asked).moved == 2 * text + 2 * w[
        "vae"
    ] + 4 * (w["unet"] + w["controlnet"])
    assert abs(moved["text-cached"] / 1.64e9 - 1) < 0.01 and moved["model-offload"] < 9.6e9, (
        "against 9.6 GB of the published system"
    )
    p = Q.predict_memory("ssd-1b")
    assert p.worst.stage == "decode" and p.peak / GIB > 5.9 and "peak" in str(p)


@settings(deadline=None, max_examples=20)
@given(
    st.sampled_from(["ssd-1b", "sdxl", "sd15-lcm"]),
    st.floats(0.3, 90),
    st.integers(1, 8),
    st.sampled_from([None, "fp16", "fp32", "fp8"]),
)
def test_a_plan_fits_or_is_refused_in_words(model, budget, batch, precision):
    try:
        p = Q.plan(model, budget, batch=batch, precision=precision)
    except MemoryPlanError as e:
        assert "needs at least" in str(e) and ("fit" in str(e) or "device" in str(e))
        return
    assert (
        p.prediction.required <= budget * GIB
        and precision in (None, p.prediction.precision)
        and p.settings.residency == p.prediction.residency
    )


# what changes pixels: less is better
BETTER = lambda p: (
    p.vae_tile is not None,
    p.precision == "fp8",
)


@pytest.mark.parametrize(
    "model", ["ssd-1b", "ssd-1b-lora", "sdxl", "sd15-lcm", "sdxl-turbo", "sd15", "instruct-pix2pix"]
)
def test_no_plan_that_fits_is_faster_and_as_good(model):
    "Over budgets and cards, against every combination, each predicted anew."
    size = (M.find_spec(model).resolution,) * 2
    tile = Q.tile_for(size)
    every = [
        Q.predict_memory(model, p, r, vae_tile=t)
        for p in ("fp16", "fp8")
        for r in Q.RESIDENCIES
        for t in (None, tile)
    ]
    for card in Q.CARDS.values():
        seconds = {id(p): Q.estimate_seconds(p, card) for p in every}
        for budget in (0.9, 1.2, 1.6, 2, 2.4, 3, 3.6, 4, 4.6, 5, 5.5, 6, 7, 8, 10, 12, 24, 80):
            fits = [p for p in every if p.required <= budget * GIB]
            try:
                q = Q.plan(model, budget, card=card).prediction
            except MemoryPlanError:
                assert not fits
                continue
            s = Q.estimate_seconds(q, card)
            assert q.required <= budget * GIB
            for p in fits:
                as_good = all(a <= b for a, b in zip(BETTER(p), BETTER(q)))
                assert not (
                    as_good
                    and (seconds[id(p)] < s or seconds[id(p)] == s and BETTER(p) != BETTER(q))
                ), (card.key, budget, q, p)


def test_five_gib_are_neither_slower_nor_tiled():
    card = Q.CARDS["RTX 3060 Laptop 6GB"]
    q = Q.plan("ssd-1b", 5).prediction
    assert q.vae_tile is None and q.precision == "fp16"
    for r in ("model-offload", "group-offload"):
        p = Q.predict_memory("ssd-1b", residency=r)
        assert p.required <= 5 * GIB and Q.estimate_seconds(q, card) <= Q.estimate_seconds(p, card)


def test_whose_times_are_compared():
    assert (
        Q.plan("ssd-1b", 5).card.key == "RTX 3060 Laptop 6GB"
        and Q.plan("ssd-1b", 7).card.key == "RTX 4060 8GB"
        and Q.plan("ssd-1b", 500).card.key == "A100 80GB"
    )
    mine = Q.Card("mine", 6, 10.0, 5.0, 300, 6)
    assert (
        Q.plan("ssd-1b", 6, card=mine).to_dict()["card"] == "mine"
        and Q.plan("ssd-1b", 6, card="RTX 4060 8GB").card is Q.CARDS["RTX 4060 8GB"]
    )
    for bad in ("RTX 9999", 6, ["RTX 4060 8GB"]):
        with pytest.raises(OptionError, match="RTX 4060 8GB"):
            Q.plan("ssd-1b", 6, card=bad)


@pytest.mark.parametrize("size", [(513, 777), (512, 777), (500, 512)])
def test_a_size_that_the_editor_refuses_is_refused_by_the_planner_in_the_same_words(size):
    spec = find_spec("sd15")
    with pytest.raises(OptionError, match="does not suit the model") as theirs:
        plan_fit(size, spec.resolution, spec.multiple, size)
    for ask in (Q.predict_memory, lambda m, **kw: Q.plan(m, 8, **kw)):
        with pytest.raises(OptionError) as ours:
            ask("sd15", size=size)
        assert str(ours.value) == str(theirs.value)


def test_times_are_of_cards():
    p, name = Q.predict_memory("sd15"), "RTX 4060 8GB"
    assert Q.estimate_seconds(p, name) == Q.estimate_seconds(p, Q.CARDS[name])
    for bad in ("GTX 1", 7, [name], {}):
        with pytest.raises(OptionError, match="card .* is unknown"):
            Q.estimate_seconds(p, bad)
    with pytest.raises(OptionError, match="is no prediction"):
        Q.estimate_seconds("sd15", name)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "12", None, True])
def test_a_card_has_rates(rate):
    with pytest.raises(OptionError, match="mine.*bandwidth="):
        replace(Q.CARDS["RTX 4060 8GB"], key="mine", bandwidth=rate)


def test_time_follows_the_work():
    card = Q.CARDS["RTX 4060 8GB"]
    t = lambda **kw: Q.estimate_seconds(Q.predict_memory("sd15", **kw), card)
    assert (
        t(work=Q.Work("a", 4, 2, 8, 4, 0, 2))
        == t()
        == t(controlnet=False)
        < t(work=Q.Work("a", 4, 2, 8, 4, 8, 2))
    ), "a ControlNet that is not asked costs no time"
    p, q = (Q.predict_memory("sd15", work=Q.Work("a", 4, r, 12, c)) for r, c in ((3, 4), (1, 12)))
    assert (
        q.flops == p.flops
        and q.peak <= p.peak
        and q.stages[2].activations < p.stages[2].activations
    )
    assert Q.predict_memory("sd15", steps=8).work == Q.Work(
        "edit_friendly-4", 8, 2, 16, 8, 0, 2
    ) and Q.predict_memory("sd15", batch=2, steps=5).work == Q.Work(
        "edit_friendly-4", 5, 2, 10, 5, 0, 2
    )


def test_layers_come_ahead_only_from_the_second_call_on():
    card = Q.CARDS["RTX 3060 Laptop 6GB"]
    s = Q.StageMemory("denoise", 0, 0, 0, int(1e12), int(6e9), calls=4, leaves=True)
    c, b = 1e12 / (card.tflops * 1e12 / 2), 0.5
    assert Q.stage_seconds(s, card, False) == pytest.approx(c + b) and Q.stage_seconds(
        s, card, True
    ) == pytest.approx((c + b) / 4 + 0.75 * b)
    whole = replace(s, leaves=False)
    assert Q.stage_seconds(whole, card, True) == pytest.approx(c + b), (
        "what comes whole is waited for"
    )


@pytest.mark.parametrize("policy", ["model-offload", "group-offload", "sequential"])
def test_the_vae_comes_whole_under_every_policy(parts, policy):
    "As `Mover` brings it: on a simulated device its weights are what the prediction says."
    p = {s.stage: s for s in Q.predict_memory("ssd-1b", residency=policy).stages}
    vae = Q.weight_bytes("ssd-1b")["vae"]
    assert (
        p["encode"].weights == p["decode"].weights == p["encode"].moved == p["decode"].moved == vae
    )
    meter = Q.live_tensors()
    mover = Q.Mover(parts, policy, "cpu", meter)
    own = Q.predict_memory(parts, parts.precision, policy, device="cpu")
    for k in (1, 3):
        before = mover.moved
        with mover.stage(own.stages[k].stage):
            assert meter.weights == own.stages[k].weights
        assert mover.moved - before == own.stages[k].moved
    mover.release()


def test_what_an_h100_allocated():
    """Tensors and what convolutions borrow where there is room, against every measured run; the
    policies that come layer by layer included."""
    import json
    from pathlib import Path

    seen = [
        (d, x)
        for d in json.loads(
            (Path(__file__).parent.parent / "nbs/experiments/gpu.json").read_text()
        )["runs"]
        for x in d["policies"]
    ]
    assert len(seen) > 20
    for d, x in seen:
        ask = Q.Work(
            "img2img",
            x["steps"],
            max(1, x["nfe"] // x["steps"]),
            x["nfe"],
            x["steps"],
            x["control_nfe"],
        )
        p = Q.predict_memory(
            d["model"],
            d["precision"],
            x["residency"],
            tuple(d["size"]),
            controlnet=d["controlnet"],
            vae_tile=x["vae_tile"],
            work=ask,
        )
        assert 0.96 < p.allocated / x["allocated"] < 1.04, (
            d["model"],
            d["precision"],
            x["residency"],
            p.allocated / x["allocated"],
        )


def test_more_memory_never_makes_a_plan_slower():
    card = Q.CARDS["RTX 3060 12GB"]
    rows = Q.plan_table("sdxl", steps=2)
    assert [r["budget_gb"] for r in rows] == [4, 6, 8, 12, 16, 24]
    times = [Q.estimate_seconds(Q.plan("sdxl", b).prediction, card) for b in (6, 8, 12, 24)]
    assert times[-1] == min(times)
    assert (
        Q.plan("ssd-1b", 6).prediction.residency == "text-cached"
        and Q.plan("ssd-1b", 12).prediction.residency == "resident"
    )


def test_refusals_name_the_smallest_change():
    with pytest.raises(MemoryPlanError, match="384x384"):
        Q.plan("sdxl", 1)
    assert Q.plan("sdxl", 1, size=(384, 384)).prediction.required <= GIB
    with pytest.raises(
        MemoryPlanError,
        match="2.06 GiB .fp16, group-offload. and 2 GiB are there. It would fit at 768x768",
    ):
        Q.plan("ssd-1b", 2)
    with pytest.raises(MemoryPlanError, match="device with"):
        Q.plan("ssd-1b", 0.4)
    for bad in (0, -1, float("nan")):
        with pytest.raises(OptionError):
            Q.plan("ssd-1b", bad)
    with pytest.raises(OptionError, match="unknown"):
        Q.predict_memory("ssd-1b", residency="nowhere")
    with pytest.raises(OptionError, match="unknown"):
        Q.predict_memory("ssd-1b", precision="fp17")
    with pytest.raises(OptionError, match="pipeline"):
        Q.predict_memory("flux2-klein")


def test_estimate_is_of_the_published_order():
    "Six seconds were measured with offload on this card, three executed steps with CFG."
    s = Q.estimate_seconds(
        Q.predict_memory(
            "ssd-1b-lora", residency="model-offload", work=Q.Work("img2img", 3, 2, 6, 3, 6)
        ),
        Q.CARDS["RTX 3060 Laptop 6GB"],
    )
    assert 3 < s < 9


# --- policies carried out, tiles ------------------------------------------------------------------


@pytest.mark.parametrize("policy", list(Q.RESIDENCIES))
def test_mover_keeps_what_the_policy_says(parts, policy):
    before = {
        n: t.clone()
        for k, m in parts.modules().items()
        for n, t in ((f"{k}.{n}", t) for n, t in m.state_dict().items())
    }
    meter = Q.live_tensors()
    mover = Q.Mover(parts, policy, "cpu", meter)
    size = parts.weight_bytes()
    keeps = set(Q.RESIDENCIES[policy].keeps) & set(size)
    stages = {k: set(need) & set(size) for k, need in Q.STAGES.items()}
    assert parts.device == torch.device("cpu") and mover.on == keeps
    for stage, need in stages.items():
        with mover.stage(stage):
            assert mover.on == keeps | need and meter.weights == sum(size[k] for k in mover.on)
        assert mover.on == keeps
    assert mover.moved == sum(size[k] for k in keeps) + sum(
        size[k] for need in stages.values() for k in need if k not in keeps
    )
    mover.release()
    assert not mover.on and parts.execution is None
    assert all(
        torch.equal(before[f"{k}.{n}"], t)
        for k, m in parts.modules().items()
        for n, t in m.state_dict().items()
    )


def test_tiles_are_close_to_the_whole_and_leave_no_trace(parts):
    z = torch.randn(1, 4, 32, 48, generator=torch.manual_seed(0))
    keep = parts.vae.tile_sample_min_size
    with torch.no_grad():
        whole, same, tiled = (Q.decode(parts.vae, z, t) for t in (None, 256, 64))
    assert (
        torch.equal(whole, same)
        and tiled.shape == whole.shape
        and not torch.equal(tiled, whole)
        and (tiled - whole).abs().mean() < 0.5 * whole.std()
        and parts.vae.tile_sample_min_size == keep
    )
    with torch.no_grad(), Q.live_tensors() as a:
        Q.decode(parts.vae, z)
    with torch.no_grad(), Q.live_tensors() as b:
        Q.decode(parts.vae, z, 64)
    assert b.peak < 0.8 * a.peak


# --- the ladder -----------------------------------------------------------------------------------


def climb(need, start=Q.MemorySettings(), **kw):
    "Run an edit that needs as much as `need` says for its settings."
    tried = []

    def run(s):
        tried.append(s)
        if need(s):
            raise torch.OutOfMemoryError("simulated: out of memory\nlong story")
        return "picture"

    return *Q.run_with_fallbacks(run, start, **kw), tried


def test_ladder_takes_the_cheapest_rung_that_helps():
    assert climb(lambda s: False)[:2] == ("picture", ())
    out, used, tried = climb(lambda s: s.residency != "text-cached")
    assert (
        [r.key for r in used] == ["free-caches", "vae-tiling", "text-cached"]
        and tried[0] == tried[1]
        and tried[-1] == Q.MemorySettings("text-cached", 512)
    )
    assert [
        r.key
        for r in climb(
            lambda s: s.residency != "model-offload", Q.MemorySettings("text-cached", 512)
        )[1]
    ] == ["free-caches", "model-offload"], "rungs that change nothing are left out"
    assert [r.key for r in climb(lambda s: s.area_scale == 1, smaller=True)[1]][
        -1
    ] == "smaller-area"


def test_ladder_ends_in_one_clear_error():
    with pytest.raises(MemoryPlanError, match="model-offload.*Buy a larger card") as e:
        climb(lambda s: s.area_scale == 1, advice="Buy a larger card")
    assert "smaller-area" not in str(e.value) and "long story" not in str(e.value)


def test_other_errors_are_not_swallowed():
    def run(s):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape"):
        Q.run_with_fallbacks(run)
    assert (
        Q.out_of_memory(MemoryError())
        and Q.out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        and not Q.out_of_memory(ValueError("out of memory"))
    )


def test_ladder_on_a_simulated_device(parts):
    def run(limit):
        def f(s):
            meter = Q.live_tensors(limit)
            mover = Q.Mover(parts, s.residency, "cpu", meter)
            meter.ignore(
                *(t for m in parts.modules().values() for t in [*m.parameters(), *m.buffers()])
            )
            try:
                with torch.no_grad(), meter:
                    with mover.stage("denoise"):
                        torch.zeros(1000)
                    with mover.stage("decode"):
                        Q.decode(parts.vae, torch.zeros(1, 4, 32, 32), s.vae_tile and 64)
                return meter.most
            finally:
                mover.release()

        return f

    full, tile, text, away = (
        run(None)(s)
        for s in (
            Q.MemorySettings(),
            Q.MemorySettings(vae_tile=512),
            Q.MemorySettings("text-cached", 512),
            Q.MemorySettings("model-offload", 512),
        )
    )
    assert full > tile > text > away
    for limit, keys in (
        (full, []),
        (full - 1, ["free-caches", "vae-tiling"]),
        (tile - 1, ["free-caches", "vae-tiling", "text-cached"]),
        (text - 1, ["free-caches", "vae-tiling", "text-cached", "model-offload"]),
    ):
        most, used = Q.run_with_fallbacks(run(limit))
        assert most <= limit and [r.key for r in used] == keys
    with pytest.raises(MemoryPlanError):
        Q.run_with_fallbacks(run(away - 1))


def test_automatic_settings():
    assert Q.auto_settings("ssd-1b", device="cpu") == Q.MemorySettings()
    assert (
        Q.auto_settings("ssd-1b", device="cuda", free=24 * GIB).residency == "resident"
        and Q.auto_settings("ssd-1b", device="cuda", free=int(5.5 * GIB)).residency == "text-cached"
    )
    with pytest.raises(MemoryPlanError):
        Q.auto_settings("ssd-1b", device="cuda", free=GIB // 4)


# --- networks that come and go --------------------------------------------------------------------


def hooks(parts):
    "Count the hooks that move weights."
    return sum(
        hasattr(x, "_hf_hook")
        + len(x._diffusers_hook.hooks if hasattr(x, "_diffusers_hook") else ())
        for m in parts.modules().values()
        for x in m.modules()
    )


@pytest.mark.parametrize("overlap", [False, True])
def test_leaves_come_and_go_and_leave_no_trace(parts, overlap):
    enc = parts.text_encoder
    ids = torch.arange(77)[None]
    before = {k: v.clone() for k, v in enc.state_dict().items()}
    with torch.no_grad():
        want = enc(ids)[0]
    Q.by_leaves(enc, "cpu", overlap)
    try:
        assert hooks(parts) > 3
        with torch.no_grad():
            got = enc(ids)[0]
    finally:
        Q.whole_again(enc)
    assert (
        torch.equal(want, got)
        and hooks(parts) == 0
        and all(torch.equal(before[k], v) for k, v in enc.state_dict().items())
    )
    with torch.no_grad():
        assert torch.equal(want, enc(ids)[0])


def test_stages_may_be_nested(parts):
    mover = Q.Mover(parts, "model-offload", "cpu", Q.live_tensors())
    assert parts.mover is mover
    with mover.stage("denoise", skip=("controlnet",)):
        assert mover.on == {"unet"}
        with mover.stage("denoise", "text"):
            assert (
                mover.on == {"unet", "controlnet", "text_encoder", "text_encoder_2"}
                and mover.meter.label == "denoise"
            )
        assert mover.on == {"unet"}
        with pytest.raises(KeyError), mover.stage("decode"):
            raise KeyError
        assert mover.on == {"unet"}
    assert not mover.on
    mover.release()
    assert parts.mover is None and parts.execution is None


def test_no_room_for_the_weights_leaves_them_at_home(parts):
    def home():
        return {
            (k, n): t.data_ptr()
            for k, m in parts.modules().items()
            for n, t in m.named_parameters()
        }

    where, size = home(), parts.weight_bytes()
    with pytest.raises(torch.OutOfMemoryError):
        Q.Mover(parts, "resident", "cpu", Q.live_tensors(limit=size["unet"]))
    assert parts.mover is None
    mover = Q.Mover(parts, "model-offload", "cpu", Q.live_tensors(limit=size["unet"]))
    with pytest.raises(torch.OutOfMemoryError), mover.stage("denoise"):
        pass
    assert not mover.on and mover.meter.weights == 0
    mover.release()
    assert home() == where


def test_wider_and_back_changes_no_bit(parts):
    half = M.load_model(parts.spec.path, precision="fp16", device="cpu")
    before = {
        (k, n): t.clone() for k, m in half.modules().items() for n, t in m.state_dict().items()
    }
    with pytest.raises(KeyError), Q.widened(half):
        assert half.unet.dtype == half.text_encoder.dtype == torch.float32
        raise KeyError
    assert all(
        t.dtype == before[k, n].dtype and torch.equal(t, before[k, n])
        for k, m in half.modules().items()
        for n, t in m.state_dict().items()
    )


@given(st.integers(8, 3000), st.integers(8, 3000), st.sampled_from([4, 8]))
def test_tiles_cut_the_picture(w, h, f):
    t = Q.tile_for((w, h), f)
    assert t is None and max(w, h) < 16 * f or t <= 512 and t <= max(w, h) // 2 and t % (8 * f) == 0


def test_ladders_fit_the_edit():
    assert (
        [r.key for r in Q.ladder_for((64, 64), 4)] == [r.key for r in Q.LADDER]
        and Q.ladder_for((64, 64), 4)[1].change == {"vae_tile": 32}
        and "32" in Q.ladder_for((64, 64), 4)[1].words
    )
    assert "vae-tiling" not in [r.key for r in Q.ladder_for((64, 64), 8)] and [
        r.key for r in Q.ladder_for((512, 512), 8, moves=False)
    ] == ["free-caches", "vae-tiling", "smaller-area"]


def test_numbers_that_overflow_are_tried_wider_once():
    def run(s):
        if not s.wide:
            raise NumericalError("inf")
        if s.vae_tile is None:
            raise MemoryError
        return s

    out, used = Q.run_with_fallbacks(run, wider=True)
    assert [r.key for r in used] == ["fp32", "free-caches", "vae-tiling"] and out.wide
    for wider, f in ((False, run), (True, lambda s: (_ for _ in ()).throw(NumericalError("inf")))):
        with pytest.raises(NumericalError):
            Q.run_with_fallbacks(f, wider=wider)


def test_settings_for_a_wish_and_a_budget():
    S = Q.settings_for
    assert (
        S("ssd-1b") == Q.MemorySettings()
        and S("ssd-1b", "sequential").residency == "sequential"
        and S("ssd-1b", "auto") == Q.MemorySettings()
    )
    assert (
        S("ssd-1b", "auto", 6).residency == "text-cached"
        and S("ssd-1b", "auto", 24).residency == "resident"
    )
    whole, tiled = (Q.predict_memory("sd15-lcm", vae_tile=t).required / GIB for t in (None, 256))
    assert tiled < whole
    assert (
        S("sd15-lcm", "resident", whole).vae_tile is None
        and S("sd15-lcm", "resident", (whole + tiled) / 2).vae_tile == 256
    )
    with pytest.raises(
        MemoryPlanError, match="resident.*may be used. The plan for 6 GiB: fp16, text-cached"
    ):
        S("ssd-1b", "resident", 6)
    with pytest.raises(MemoryPlanError, match="would fit"):
        S("sdxl", "auto", 1)
    for kw in (
        dict(residency="here"),
        dict(budget_gb=0),
        dict(budget_gb=-1),
        dict(budget_gb=True),
        dict(budget_gb="6"),
        dict(budget_gb=float("nan")),
    ):
        with pytest.raises(OptionError):
            S("ssd-1b", **kw)


def test_refusals_try_another_precision_first():
    with pytest.raises(MemoryPlanError, match="fit in fp16"):
        Q.plan("ssd-1b", 3, precision="fp32")


def test_a_plan_as_data():
    d = Q.plan("ssd-1b", 6).to_dict()
    assert (
        d["residency"] == "text-cached"
        and [s["stage"] for s in d["stages"]] == ["text", "encode", "denoise", "decode"]
        and max(s["total"] for s in d["stages"]) / GIB < d["needs_gb"] <= 6
    )
    assert (
        set(d["seconds_estimate"]) == set(Q.CARDS)
        and d["host_gb"] > 4
        and d["moved_gb"] == pytest.approx(1.64, abs=0.01)
    )


def test_random_parts_need_architectures():
    with pytest.raises(OptionError, match="sd15-lcm"):
        Q.random_parts("flux2-klein")
    with pytest.raises(OptionError, match="sd15-lcm"):
        Q.random_parts("mini")


# --- a plan is asked with what an edit can have


@pytest.mark.parametrize(
    "kw",
    [
        dict(size=(0, 0)),
        dict(size=(1024,)),
        dict(size="1024"),
        dict(size=(1e3, 1e3)),
        dict(batch=0),
        dict(batch=1.5),
        dict(steps=0),
        dict(steps=True),
        dict(prompts=-1),
        dict(vae_tile=-5),
    ],
)
def test_what_no_edit_has_is_not_predicted(kw):
    with pytest.raises(OptionError, match=f"{next(iter(kw))}=.*: give"):
        Q.predict_memory("mini", **kw)


def test_a_tiny_model_keeps_its_precision():
    import numpy as np

    native = M.native_precision(M.find_spec("mini"), "cuda")
    for budget in (4, np.float32(4), 24):
        p = Q.plan("mini", budget).prediction
        assert (p.precision, p.residency) == (native, "resident")
