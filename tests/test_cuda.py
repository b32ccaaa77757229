"""On a GPU: the same picture as on the CPU, from every policy and every precision; memory within
the plan; a full card is no catastrophe. Skipped where torch sees no CUDA device."""

import numpy as np, pytest, torch
from PIL import Image
from fastedit import memory as Q, models as M, world as pb
from fastedit.core import MemoryPlanError, OptionError
from fastedit.denoise import STEPPERS, Denoiser, Noise, pairs, switched_off
from fastedit.editor import FastEditor, bench_memory, weigh_on_gpu
from fastedit.studies import speed as S

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
SCENE = pb.sample_scene(11)
A = Image.fromarray(pb.render(SCENE, 64))
TELL = dict(source_prompt=pb.caption(SCENE), seed=3)


def pixels(edit):
    return np.asarray(edit.image).astype(int)


def editor(**kw):
    return FastEditor(kw.pop("model", "mini"), device="cuda", **kw)


@pytest.mark.parametrize("model", ["mini", "mini-s"])
@pytest.mark.parametrize("method", ["ddcm", "img2img", "turbo", "edit_friendly"])
def test_a_gpu_draws_what_a_cpu_draws(model, method):
    """TensorFloat-32 in the convolutions and other kernels move a few values; a wrong step or
    embedding would move whole things."""
    kw = dict(TELL, method=method)
    a = FastEditor(model, device="cpu")(A, "a blue ball", **kw)
    b = editor(model=model)(A, "a blue ball", **kw)
    far = np.abs(pixels(a) - pixels(b))
    assert (
        a.timesteps == b.timesteps
        and a.nfe == b.nfe
        and far.mean() < 1.5
        and a.request == b.request
    )


def test_same_request_same_bytes():
    a, b = editor()(A, "a blue ball", **TELL), editor()(A, "a blue ball", **TELL)
    assert a.image.tobytes() == b.image.tobytes()


@pytest.mark.parametrize("policy", list(Q.RESIDENCIES))
def test_every_policy_gives_the_same_bytes(policy):
    """What comes and goes, also by CUDA streams, must be there in time: a race would show in the
    picture."""
    whole = editor()(A, "a blue ball", **TELL)
    e = editor(residency=policy)
    for _ in range(3):
        assert e(A, "a blue ball", **TELL).image.tobytes() == whole.image.tobytes()
        e.cache.clear()
    kept = {k for k, m in e.parts.modules().items() if next(m.parameters()).device.type == "cuda"}
    assert kept == set(Q.RESIDENCIES[policy].keeps)
    e.release()


@pytest.mark.parametrize("precision", [k for k in M.PRECISIONS if k != "fp32"])
def test_every_precision_draws(precision):
    try:
        M.check_precision(precision, "cuda")
    except OptionError as e:
        pytest.skip(str(e))
    whole, e = editor()(A, "a blue ball", **TELL), editor(precision=precision)
    got = e(A, "a blue ball", **TELL)
    mse = ((pixels(whole) - pixels(got)) ** 2).mean()
    assert (
        got.request.precision == precision
        and 10 * np.log10(255**2 / max(mse, 1e-9)) > 15
        and sum(e.parts.weight_bytes().values())
        < sum(M.load_model("mini", device="cpu").weight_bytes().values())
    )


@pytest.mark.parametrize("policy", ["resident", "model-offload"])
def test_allocated_memory_stays_within_the_plan(policy):
    """On a picture of 512 pixels, where tensors outweigh the allocator's blocks; what convolutions
    borrow is the margin's."""
    d = weigh_on_gpu(editor(residency=policy), A, "a blue ball", size=(512, 512), method="img2img")
    assert (
        d["reserved"] >= d["allocated"] and d["allocated"] <= d["required"] and d["ratio"] > 0.5
    ), d


@pytest.fixture
def small_card():
    "Give torch only what a card of so many GiB has beside its context."
    total = torch.cuda.get_device_properties(0).total_memory

    def of(gib):
        Q.free_caches()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, (gib * 2**30 - Q.Margin().context) / total)
        )

    yield of
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_planner_and_the_ladder_on_a_6_gb_card(small_card):
    """SSD-1B's architecture at 1024x1024 with ControlNet: what the planner chose runs at once;
    everything resident runs out of memory, steps down and says so."""
    parts, kw = (
        Q.random_parts("ssd-1b", True, precision="fp16", device="cuda"),
        dict(source_prompt="a red ball", method="img2img", size=(1024, 1024), steps=2),
    )
    for how, budget in (("auto", 6), ("resident", None)):
        parts.to("cpu")
        small_card(6)
        e = FastEditor(parts, device="cuda", residency=how, budget_gb=budget)
        r = e(pb.render(SCENE, 256), "a blue ball", **kw)
        e.release()
        assert (
            r.memory["residency"] == "text-cached" and torch.cuda.max_memory_reserved() < 6 * 2**30
        )
        assert (
            (not r.fallbacks and r.memory["vae_tile"] is None)
            if budget
            else any("text-cached" in f for f in r.fallbacks)
        )


def test_no_memory_at_all_is_one_error(small_card):
    e = editor()
    small_card(0.5)
    with pytest.raises(MemoryPlanError, match="memory ran out"):
        e(A, "a blue ball", size=(2048, 2048), method="img2img")
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert e(A, "a blue ball", **TELL).image.size == A.size  # and the editor lives


@pytest.mark.parametrize(
    "precision,policy",
    [
        *(("fp8", k) for k in Q.RESIDENCIES),
        *((p, k) for p in ("int8", "nf4") for k in ("text-cached", "model-offload")),
    ],
)
def test_quantised_weights_come_and_go(precision, policy):
    try:
        M.check_precision(precision, "cuda")
    except OptionError as e:
        pytest.skip(str(e))
    whole, e = (
        editor(precision=precision)(A, "a blue ball", **TELL),
        editor(precision=precision, residency=policy),
    )
    for _ in range(2):
        got = e(A, "a blue ball", **TELL)
        e.cache.clear()
        assert got.image.tobytes() == whole.image.tobytes()
    e.release()


def test_weights_built_on_the_gpu():
    d = bench_memory(
        "sd15-lcm", (256, 256), 1, residency=("resident", "text-cached"), device="cuda"
    )
    a, b = d["policies"]
    assert (
        d["precision"] == "fp16"
        and a["pixels"] == b["pixels"]
        and b["allocated"] < a["allocated"]
        and d["outside"] > 0
    )


# --- tricks of a GPU


@pytest.fixture(scope="module")
def toy():
    "SDXL's structure with tiny networks, on the GPU."
    return S.shaped("sdxl", "cuda", toy=True)


@pytest.mark.parametrize("options", [*S.OPTIONS_OF.values()], ids=[*S.OPTIONS_OF])
def test_a_trick_moves_next_to_nothing(toy, options):
    if options == dict(compile=True):
        pytest.skip("minutes of compiling")
    plain = FastEditor(toy)(A, "a blue ball", **TELL)
    e = FastEditor(S.copied(toy, **options))
    for _ in range(2):
        assert S.apart(e(A, "a blue ball", **TELL), plain)["pixels"] <= S.LARGEST
        e.cache.clear()


@pytest.mark.parametrize("method", ["img2img", "ddcm", "turbo", "edit_friendly"])
def test_recorded_calls_draw_what_plain_ones_draw(method):
    kw = dict(TELL, method=method)
    plain, e = editor()(A, "a blue ball", **kw), editor(graphs=True)
    first = e(A, "a blue ball", **kw)
    graphs = e.parts.graphs
    assert not graphs.failed and graphs.kept
    before = len(graphs.kept)
    e.cache.clear()
    again = e(A, "a blue ball", **kw)
    assert len(graphs.kept) == before and again.image.tobytes() == first.image.tobytes()
    assert np.abs(pixels(first) - pixels(plain)).max() <= 2
    other = e(A, "a green star", **kw)  # inputs are copied anew, answers are nobody else's
    assert np.abs(pixels(other) - pixels(editor()(A, "a green star", **kw))).max() <= 2
    assert np.abs(pixels(e(A, "a blue ball", **kw)) - pixels(plain)).max() <= 2


def test_recordings_go_with_the_weights_and_give_their_memory_back():
    e = editor(graphs=True)
    e(A, "a blue ball", size=(512, 512), **TELL)
    held = torch.cuda.memory_reserved()
    weight = e.parts.unet.conv_in.weight
    weight.data = weight.data * 1.5
    moved = e(A, "a blue ball", size=(512, 512), **TELL)
    plain = FastEditor(S.copied(e.parts))(A, "a blue ball", size=(512, 512), **TELL)
    assert np.abs(pixels(moved) - pixels(plain)).max() <= 2
    e.free()
    assert not e.parts.graphs.kept and torch.cuda.memory_reserved() < held


def test_recordings_only_of_what_stays():
    e = editor(graphs=True, residency="text-cached")
    whole = editor()(A, "a blue ball", **TELL)
    for _ in range(3):
        assert np.abs(pixels(e(A, "a blue ball", **TELL)) - pixels(whole)).max() <= 2
        e.cache.clear()
    assert e.parts.graphs.kept and not e.parts.graphs.failed
    e.release()
    e = editor(graphs=True, residency="model-offload")
    assert e(A, "a blue ball", **TELL).image.size == A.size and not e.parts.graphs.kept
    e.release()


def test_pinned_weights_come_and_go_alike():
    whole, e = editor()(A, "a blue ball", **TELL), editor(pinned=True, residency="text-cached")
    assert all(p.is_pinned() for p in e.parts.text_encoder.parameters())
    for _ in range(3):
        assert e(A, "a blue ball", **TELL).image.tobytes() == whole.image.tobytes()
        e.cache.clear()
    e.release()


def test_steps_wait_for_nothing(toy):
    "Once everything is warm, torch itself refuses whatever would have the processor wait."
    d = Denoiser(toy)
    d.negative = text = d.text("a blue ball")
    x = torch.randn(1, 4, 16, 16, device="cuda")
    noise = Noise([0], (4, 16, 16), "cuda")

    def steps():
        z = x
        for t, prev in pairs((999, 749, 499, 249)):
            clean = d.clean(z, t, text, 1.5)
            z, _ = STEPPERS["lcm"](d.schedule, z, z, clean, t, prev, None, noise)
        return z

    with torch.no_grad():
        steps()
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert 0 < d.count.network_seconds < 60 and not d.count.marks


def test_marks_say_what_waiting_says():
    e = editor()
    e(A, "a blue ball", **TELL)
    e.cache.clear()
    marked = e(A, "a blue ball", **TELL)
    e.cache.clear()
    with switched_off("queued"):
        waited = e(A, "a blue ball", **TELL)
    assert marked.image.tobytes() == waited.image.tobytes()
    assert 0 < marked.network_seconds <= marked.seconds["total"]


def test_the_study_of_full_size_to_its_end_on_tiny_networks():
    run = S.full_run(device="cuda", minutes=3, steps=1, repeats=2, toy=True)
    assert not run.of("failed"), str(run)
    done = {r["trick"] for r in run.of("trick")}
    assert done == set(S.TRICKS_HERE) and not any(r["failed"] for r in run.of("trick"))
    assert len(run.of("case")) == 2 * 8


def test_every_stage_of_the_family_to_its_end_on_a_toy(tmp_path):
    from fastedit import training as T

    report = T.train_family(tmp_path, "cuda", 0.2, T.TOY, cores=2, say=lambda *_: None)
    assert list(report.stages) == list(T.ORDER_OF_FAMILY) and report.figures and not report.notes
