"""The editor: equal to stock where it says so, honest where stock is not, the same bytes for the
same request; on small random models."""

import copy, json, pickle, warnings
from dataclasses import replace
import numpy as np, pytest, torch
from PIL import Image
from hypothesis import given, settings, strategies as st
from fastedit import world as pb
from fastedit.conditions import canny
from fastedit import memory as Q, models as M
from fastedit.core import (
    Cancelled,
    DataError,
    FastEditError,
    ImageError,
    MaskError,
    MemoryPlanError,
    ModelError,
    NumericalError,
    OptionError,
    PromptError,
)
from fastedit.editor import (
    EditRequest,
    EditResult,
    FastEditor,
    StageCache,
    bench_memory,
    pixel_hash,
    weigh_edit,
)
from fastedit.models import load_model, random_model

KW = dict(channels=(16, 32, 32), width=16)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    d = tmp_path_factory.mktemp("models")
    return dict(cfg=random_model(d / "cfg", **KW), w=random_model(d / "w", w_embedding=True, **KW))


@pytest.fixture(scope="module")
def parts(folders):
    return {k: load_model(f) for k, f in folders.items()}


@pytest.fixture(scope="module")
def stock(folders):
    from diffusers import StableDiffusionXLControlNetImg2ImgPipeline as P

    return {k: P.from_pretrained(f) for k, f in folders.items()}


@pytest.fixture
def ed(parts):
    return FastEditor(parts["cfg"])


def picture(seed=5, size=(64, 64)):
    return (
        Image.fromarray(pb.render(pb.sample_scene(seed), max(64, *size))).resize(size, 1)
        if size != (64, 64)
        else Image.fromarray(pb.render(pb.sample_scene(seed), 64))
    )


A = picture()


def same(a, b):
    return a.image.tobytes() == b.image.tobytes() and torch.equal(a.latents, b.latents)


def source_latents(e, im=A):
    from fastedit.denoise import Denoiser
    from fastedit.images import to_tensor

    return Denoiser(e.parts).encode(to_tensor(im))


# --- equal to stock


@pytest.mark.parametrize("kind", ["cfg", "w"])
@pytest.mark.parametrize(
    "guidance, strength, scale",
    [(1.5, 0.5, 0.5), (1.0, 0.5, 0.5), (1.5, 0.8, 1.0), (2.0, 1.0, 0.3)],
)
def test_stock_schedule_equals_the_stock_pipeline(parts, stock, kind, guidance, strength, scale):
    p = stock[kind]
    p.set_progress_bar_config(disable=True)
    calls = []
    hook = p.unet.register_forward_hook(lambda m, a, o: calls.append(len(a[0])))
    try:
        want = p(
            "a blue ball",
            image=A,
            control_image=canny(A),
            strength=strength,
            num_inference_steps=4,
            guidance_scale=guidance,
            controlnet_conditioning_scale=scale,
            generator=torch.Generator().manual_seed(3),
            height=64,
            width=64,
        ).images[0]
    finally:
        hook.remove()
    got = FastEditor(parts[kind])(
        A,
        "a blue ball",
        method="img2img",
        schedule="stock",
        steps=4,
        strength=strength,
        guidance=guidance,
        control="canny",
        control_scale=scale,
        seed=3,
    )
    assert np.abs(np.asarray(want).astype(int) - np.asarray(got.image)).max() <= 1
    assert len(got.timesteps) == len(calls) == int(4 * strength) and got.nfe == sum(calls)
    assert np.asarray(got.image).std() > 1


# --- honest steps


def test_steps_are_what_ran(ed):
    for method, kw, n in (
        ("img2img", dict(strength=0.5), 4),
        ("img2img", dict(strength=0.5, steps=3), 3),
        ("ddcm", dict(steps=5), 5),
        ("img2img", dict(schedule="stock", strength=0.5), 2),
    ):
        seen = []
        r = ed(
            A,
            "a blue ball",
            method=method,
            source_prompt="a red ball",
            guidance=1.0,
            control="none",
            on_step=lambda s: seen.append(s["t"]),
            **kw,
        )
        assert (
            tuple(seen) == r.timesteps
            and len(seen) == n
            and r.nfe == n * (2 if method == "ddcm" else 1)
            and r.control_nfe == 0
        )
    a, b = (ed(A, "a blue ball", method="img2img", strength=s) for s in (0.5, 0.6))
    assert a.timesteps != b.timesteps and a.image.tobytes() != b.image.tobytes()
    a, b = (
        ed(A, "a blue ball", method="img2img", schedule="stock", strength=s) for s in (0.5, 0.6)
    )
    assert same(a, b)  # the stock pipeline's bands


@pytest.mark.parametrize("take", [pickle.dumps, copy.deepcopy])
def test_an_editor_stays_in_its_process_and_says_what_to_do_instead(ed, take):
    with pytest.raises(OptionError, match="make a FastEditor in each process"):
        take(ed)
    with pytest.raises(OptionError, match="make a FastEditor in each process"):
        take([ed])


def test_a_shallow_copy_of_an_editor_shares_its_networks(ed):
    other = copy.copy(ed)
    assert type(other) is type(ed) and other.parts is ed.parts and other.cache is ed.cache


@pytest.mark.parametrize(
    "kw",
    [
        dict(strength=0),
        dict(strength=-0.1),
        dict(strength=1.1),
        dict(strength=float("nan")),
        dict(strength=True),
        dict(method="img2img", schedule="stock", strength=0.2),
        dict(strength=0.04),
        dict(strength=0.5, steps=30),
        dict(steps=0),
        dict(steps=2.5),
        dict(steps=51),
    ],
)
def test_strengths_and_steps_that_cannot_run_are_refused(ed, kw):
    with pytest.raises(OptionError):
        ed(A, "a blue ball", **(dict(method="ddcm") | kw))


# --- guidance


@pytest.mark.parametrize("kind", ["cfg", "w"])
def test_a_kept_negative_gives_the_same_edits_for_fewer_evaluations(parts, kind):
    kept, fewer = FastEditor(parts[kind], keep_negative=True), kind == "cfg"
    for kw in (
        dict(method="img2img", control="canny", control_scale=0.5),
        dict(method="ddcm", source_prompt="a red ball"),
        dict(method="p2p", source_prompt="a red ball", steps=4),
    ):
        for i, prompt in enumerate(("a blue ball", "a red star", "a cup")):
            r = kept(A, prompt, guidance=3.0, seed=2, **kw)
            want = FastEditor(parts[kind], keep_negative=False)(
                A, prompt, guidance=3.0, seed=2, **kw
            )
            assert same(
                r,
                FastEditor(parts[kind], keep_negative=True)(A, prompt, guidance=3.0, seed=2, **kw),
            ), "what is remembered must not change a bit"
            assert (r.latents - want.latents).abs().max() < 1e-3 and np.abs(
                np.asarray(r.image).astype(int) - np.asarray(want.image)
            ).max() <= 1
            assert (r.nfe, r.control_nfe, r.reused) == (
                want.nfe,
                want.control_nfe,
                int(fewer and i > 0 and kw["method"] != "p2p"),
                # attention control needs both halves in one batch
            ) and ("known" in r.summary) == bool(r.reused), (
                kw,
                prompt,
            )
            if not fewer:
                assert same(r, want)
    with pytest.raises(OptionError, match="keep_negative='yes'"):
        FastEditor(parts[kind], keep_negative="yes")
    kept.cache.clear()
    assert kept(A, "a cup", guidance=3.0, seed=2, method="img2img").reused == 0


@pytest.mark.parametrize("kind, nfe", [("cfg", 8), ("w", 4)])
def test_guidance_changes_the_picture(parts, kind, nfe):
    e = FastEditor(parts[kind])
    a, b = (e(A, "a blue ball", method="img2img", guidance=g) for g in (1.5, 4.0))
    # an embedding costs half of a pair
    assert a.nfe == b.nfe == nfe and a.image.tobytes() != b.image.tobytes()
    assert e(A, "a blue ball", method="img2img", guidance=1.0).nfe == 4
    one = e(A, "a blue ball", method="img2img", guidance="linear:3:1")
    assert one.nfe == (7 if kind == "cfg" else 4)  # the last step needs no pair


def test_negative_prompt_and_control_matter(ed):
    base, neg, free, weak = (
        ed(A, "a blue ball", method="img2img", **k)
        for k in ({}, dict(negative_prompt="a cup"), dict(control="none"), dict(control_scale=0.1))
    )
    assert (
        len({r.image.tobytes() for r in (base, neg, free, weak)}) == 4
        and base.request.control == "canny"
        and free.control_nfe == 0 < weak.control_nfe
    )
    late = ed(A, "a blue ball", method="img2img", control_scale="interval:1:0:0.5")
    assert late.control_nfe == base.control_nfe / 2


# --- ddcm


@pytest.mark.parametrize(
    "g, kw",
    [
        (1.0, dict()),
        (3.0, dict(steps=2)),
        (1.0, dict(steps=7, strength=0.6, control="canny", control_scale=0.5)),
    ],
)
@pytest.mark.parametrize("kind", ["cfg", "w"])
def test_ddcm_with_equal_prompts_returns_the_source_latents(parts, kind, g, kw):
    kw = dict(kw, method="ddcm", guidance=g, source_guidance=g)
    e = FastEditor(parts[kind])
    assert torch.equal(
        e(A, "a blue ball", source_prompt="a blue ball", **kw).latents, source_latents(e)
    )
    assert not torch.equal(
        e(A, "a red star", source_prompt="a blue ball", **kw).latents, source_latents(e)
    )


def test_a_missing_source_prompt_is_said(ed):
    r = ed(A, "a blue ball")
    assert r.request.source_prompt == "" and any("source prompt" in n for n in r.notes)
    assert not ed(A, "a blue ball", source_prompt="a ball").notes


# --- the same request, the same bytes


def test_same_request_same_bytes_across_editors_and_orders(folders, tmp_path):
    jobs = [
        dict(method=m, source_prompt="a red ball", seed=s, prompt=p)
        for m in ("ddcm", "img2img")
        for s, p in ((1, "a blue ball"), (2, "a cup"))
    ]
    a, b = FastEditor(str(folders["cfg"])), FastEditor(str(folders["cfg"]))
    first = [a(A, **j) for j in jobs]
    second = [b(A, **j) for j in jobs[::-1]][::-1]
    for i, (x, y) in enumerate(zip(first, second)):
        assert same(x, y) and x.request.hash == y.request.hash and x.revision == y.revision
        assert (
            x.save(tmp_path / f"x{i}.png").read_bytes()
            == y.save(tmp_path / f"y{i}.png").read_bytes()
        )
    assert len({x.request.hash for x in first}) == len({x.image.tobytes() for x in first}) == 4
    torch.manual_seed(123)
    torch.rand(5)
    np.random.seed(3)
    assert same(a(A, **jobs[0]), first[0])  # nobody else's random numbers matter


@pytest.mark.parametrize("method", ["ddcm", "img2img"])
def test_cached_stages_equal_uncached(parts, method):
    e = FastEditor(parts["cfg"])
    kw = dict(
        method=method, source_prompt="a ball", guidance=2.0, control="canny", control_scale=0.5
    )
    cold = e(A, "a blue ball", **kw)
    misses = e.cache.misses
    warm = e(A, "a blue ball", **kw)
    assert same(cold, warm) and e.cache.misses == misses and e.cache.hits >= 4
    e(picture(6), "a cup", **kw)
    again = e(A, "a blue ball", **kw)
    assert same(cold, again)
    tiny = FastEditor(parts["cfg"], cache_bytes=1)
    assert same(tiny(A, "a blue ball", **kw), cold) and len(tiny.cache.items) == 1


def test_another_precision_or_picture_misses_the_cache(ed):
    a, b = ed(A, "a cup", source_prompt="a ball"), ed(picture(6), "a cup", source_prompt="a ball")
    assert a.image.tobytes() != b.image.tobytes() and a.request.image != b.request.image
    c = StageCache(100)
    made = []
    for k in "abab":
        c.get(k, lambda k=k: made.append(k) or torch.zeros(20))
    assert made == list("abab") and c.bytes == 80  # each pushes the other out
    c.clear()
    assert not c.items and c.bytes == 0


# --- cancelling


@pytest.mark.parametrize("method", ["ddcm", "img2img"])
def test_cancel_within_one_step_and_leave_no_trace(ed, method):
    kw = dict(
        method=method, source_prompt="a ball", guidance=2.0, control="canny", control_scale=0.5
    )
    before = ed(A, "a cup", **kw)
    seen = []

    def stop(s):
        seen.append(s["step"])
        if s["step"] == 1:
            raise Cancelled("enough")

    def hooks():
        return sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks)
            for n in ed.parts.modules().values()
            for m in n.modules()
        )

    stem = ed.parts.controlnet.controlnet_cond_embedding
    n = hooks()
    with pytest.raises(Cancelled, match="enough"):
        ed(A, "a star", on_step=stop, **kw)
    assert (
        seen == [0, 1]
        and same(ed(A, "a cup", **kw), before)
        and hooks() == n
        and ed.parts.controlnet.controlnet_cond_embedding is stem
        and not ed._lock.locked()
    )


def test_on_step_sees_the_latents(ed):
    seen = []
    r = ed(A, "a cup", method="img2img", on_step=seen.append)
    assert (
        [s["step"] for s in seen] == [0, 1, 2, 3]
        and {s["steps"] for s in seen} == {4}
        and torch.equal(seen[-1]["clean"], r.latents)
        and seen[0]["latents"].shape == (1, 4, 16, 16)
    )


# --- masks


def test_outside_the_mask_the_png_is_byte_identical(ed, tmp_path):
    for size in ((64, 64), (90, 50), (201, 140)):
        im = picture(size=size)
        m = np.zeros(size[::-1], np.uint8)
        m[size[1] // 4 : size[1] // 2, size[0] // 4 : size[0] // 2] = 255
        r = ed(im, "a blue ball", method="img2img", mask=m, feather=0.0)
        out = np.asarray(Image.open(r.save(tmp_path / "m.png")))
        src = np.asarray(im)
        assert (
            (out[m == 0] == src[m == 0]).all()
            and (out[m > 0] != src[m > 0]).mean() > 0.5
            and r.request.mask
        )
    soft = ed(im, "a blue ball", method="img2img", mask=m)
    assert (
        np.asarray(soft.image)[m == 0] == src[m == 0]
    ).all() and soft.image.tobytes() != r.image.tobytes()
    whole = ed(A, "a cup", source_prompt="a ball", mask=np.ones((64, 64)))
    assert same(whole, ed(A, "a cup", source_prompt="a ball"))


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((64, 64)),
        np.ones((64, 32)),
        np.full((64, 64), np.nan),
        "nowhere.png",
        np.ones((64, 64, 3)),
    ],
)
def test_bad_masks(ed, mask):
    with pytest.raises(MaskError):
        ed(A, "a cup", mask=mask)


# --- sizes and sources


@pytest.mark.parametrize("size", [(8, 8), (8, 200), (333, 47), (64, 65), (300, 300)])
def test_every_size_comes_back(ed, size):
    r = ed(picture(size=size), "a blue ball", method="img2img", steps=2)
    assert r.image.size == size and r.request.size[0] % 16 == r.request.size[1] % 16 == 0
    wide = r.request.size[0] / r.request.size[1]
    assert (wide > 1) == (size[0] > size[1] + 1) or wide == 1


def test_an_asked_for_size(ed):
    r = ed(A, "a cup", size=(96, 48), steps=1)
    assert r.request.size == (96, 48) and r.image.size == (64, 64)
    for bad in ((65, 64), (0, 0), (64,), "64"):
        with pytest.raises(FastEditError):
            ed(A, "a cup", size=bad, steps=1)


@pytest.mark.parametrize(
    "bad",
    [
        "nowhere.png",
        b"no picture",
        b"",
        np.zeros((4, 4, 3), np.uint8),
        np.full((64, 64, 3), np.nan),
        7,
        None,
    ],
)
def test_bad_pictures(ed, bad):
    with pytest.raises(ImageError):
        ed(bad, "a cup")


def test_grey_palette_and_alpha_are_read(ed, tmp_path):
    for mode in ("L", "P", "RGBA", "CMYK", "LA"):
        assert ed(A.convert(mode), "a cup", steps=1).image.mode == "RGB"
    A.save(tmp_path / "a.png")
    assert same(ed(tmp_path / "a.png", "a cup", steps=1), ed(A, "a cup", steps=1))


# --- numbers that are not


@pytest.mark.parametrize("net", ["unet", "vae", "controlnet", "text_encoder", "text_encoder_2"])
def test_nan_weights_give_an_error_and_no_picture(folders, net):
    p = load_model(folders["cfg"])
    e = FastEditor(p)
    w = next(
        v
        for k, v in p.modules()[net].named_parameters()
        if "embed" not in k or net.startswith("text")
    )
    w.data.fill_(float("nan"))
    with pytest.raises(NumericalError, match="NaN or infinite"):
        e(A, "a cup", method="img2img", guidance=2.0)


def test_nan_is_found_even_inside_a_mask(folders):
    p = load_model(folders["cfg"])
    p.vae.decoder.conv_out.bias.data.fill_(float("inf"))
    with pytest.raises(NumericalError):
        FastEditor(p)(A, "a cup", mask=np.eye(64), steps=1)


# --- requests are data

names = st.text(min_size=1, max_size=20).filter(str.strip)
requests = st.builds(
    EditRequest,
    prompt=names,
    source_prompt=st.none() | names,
    method=st.sampled_from(["ddcm", "img2img"]),
    steps=st.none() | st.integers(1, 50),
    strength=st.none() | st.floats(0.01, 1),
    guidance=st.none() | st.floats(0, 10) | st.just("linear:3:1"),
    seed=st.integers(0, 2**62),
    size=st.none() | st.tuples(st.integers(8, 99), st.integers(8, 99)),
    options=st.dictionaries(names, st.integers() | st.booleans(), max_size=2),
)


@given(requests)
@settings(max_examples=60)
def test_json_round_trip(r):
    again = EditRequest.from_json(r.json)
    assert again == r and again.hash == r.hash and json.loads(r.json)["prompt"] == r.prompt


@given(requests, requests)
@settings(max_examples=40)
def test_equal_hashes_mean_equal_requests(a, b):
    assert (a.hash == b.hash) == (a.json == b.json)


def test_png_round_trip_repeats_the_edit(ed, tmp_path):
    for name, m in (("a.png", None), ("b.webp", np.eye(64)), ("c.jpg", None)):
        r = ed(
            A,
            "a blue ball",
            source_prompt='a "red" ball – größer',
            mask=m,
            method="img2img",
            guidance="linear:3:1",
            seed=9,
        )
        q = EditRequest.from_png(r.save(tmp_path / name))
        assert q == r.request and same(ed(A, request=q, mask=m), r)
    A.save(tmp_path / "plain.png")
    with pytest.raises(DataError, match="no fastedit request"):
        EditRequest.from_png(tmp_path / "plain.png")
    for bad in ("{", '{"prompt": "a", "colour": 3}', "[1]"):
        with pytest.raises(DataError):
            EditRequest.from_json(bad)


@pytest.mark.parametrize(
    "kw, error",
    [
        (dict(stength=0.5), OptionError),
        (dict(method="magic"), OptionError),
        (dict(schedule="stock"), OptionError),
        (dict(control="depth"), OptionError),
        (dict(guidance=-1), OptionError),
        (dict(guidance=True), OptionError),
        (dict(guidance="steep"), OptionError),
        (dict(guidance=float("nan")), OptionError),
        (dict(control_scale=11), OptionError),
        (dict(seed=-1), OptionError),
        (dict(seed=1.5), OptionError),
        (dict(seed=2**63), OptionError),
        (dict(options=dict(speed=1)), OptionError),
        (dict(prompt=""), PromptError),
        (dict(prompt=None), PromptError),
        (dict(prompt=3), PromptError),
        (dict(negative_prompt=3), PromptError),
        (dict(source_prompt=3), PromptError),
        (dict(model="sdxl"), OptionError),
        (dict(feather=-1, mask=np.eye(64)), OptionError),
        (dict(source_guidance="x"), OptionError),
        (dict(precision="fp16"), OptionError),
        (dict(guidance=[1, 2]), OptionError),
        (dict(options=[1]), OptionError),
    ],
    ids=str,
)
def test_settings_that_are_refused(ed, kw, error):
    with pytest.raises(error) as e:
        ed(A, **dict(dict(prompt="a cup"), **kw))
    assert len(str(e.value)) > 10


def test_a_mistyped_setting_is_told_the_one_that_was_meant(ed):
    with pytest.raises(OptionError, match="strenght .did you mean 'strength'"):
        ed(A, "a blue ball", strenght=0.5)


def test_control_without_a_controlnet(parts):
    e = FastEditor(replace(parts["cfg"], controlnet=None))
    assert e(A, "a cup", method="img2img", steps=1).request.control == "none"
    with pytest.raises(ModelError, match="ControlNet"):
        e(A, "a cup", control="canny", control_scale=0.5)


# --- the account


def test_the_result_tells_everything(ed, tmp_path):
    r = ed(
        A,
        "a <b>blue</b> ball",
        source_prompt="a ball",
        control="canny",
        control_scale=0.5,
        method="img2img",
    )
    d = r.to_dict()
    assert (
        {"total", "fit", "encode", "text", "denoise", "decode", "control", "finish"}
        <= set(r.seconds)
        and 0 < r.network_seconds < r.seconds["total"]
        and sum(v for k, v in r.seconds.items() if k != "total") <= r.seconds["total"]
    )
    assert (
        d["versions"]["torch"] == torch.__version__
        or d["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    )
    json.dumps(d)
    assert (
        r.revision
        and d["request"]["steps"] == 4
        and d["request"]["image"] == pixel_hash(A)
        and r.peak_memory is None
    )
    assert (
        isinstance(r, EditResult)
        and "<b>" not in r._repr_html_()
        and r._repr_png_()[:4] == b"\x89PNG"
        and "NFE" in repr(r)
    )
    with pytest.raises(OptionError):
        r.save(tmp_path / "x.bmp")


def test_long_prompts_are_cut_and_say_so(ed):
    r = ed(A, "ball " * 300, source_prompt="a", steps=1)
    assert any("did not fit" in n for n in r.notes)


def test_nothing_warns(ed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ed(A, "a cup", source_prompt="a ball", steps=1)


# --- ControlNet scale per block


def test_equal_scales_per_block_are_one_scale(ed):
    kw = dict(method="img2img", steps=2, control="canny")
    n = len(ed.parts.controlnet.down_blocks) + 1
    one = ed(A, "a red ball", control_scale=0.5, **kw)
    per = ed(A, "a red ball", control_scale=[0.5] * n, **kw)
    assert (
        torch.allclose(one.latents, per.latents, atol=1e-4)
        and EditRequest.from_json(per.request.json) == per.request
    )
    assert not torch.allclose(
        one.latents,
        ed(A, "a red ball", control_scale=[1.0, *[0] * (n - 1)], **kw).latents,
        atol=1e-4,
    )
    off = ed(A, "a red ball", control_scale=[0] * n, **kw)
    assert off.control_nfe == 0 and off.request.control_scale == 0


@pytest.mark.parametrize(
    "scales", [(1, 2), (1, "x", 0, 0), (1, None, 0, 0), ((1,), 0, 0, 0), (11, 0, 0, 0), ()]
)
def test_bad_scales_per_block_are_refused(ed, scales):
    with pytest.raises(OptionError):
        ed(A, "a red ball", method="img2img", steps=2, control="canny", control_scale=scales)


# --- memory

WIDE = dict(method="img2img", steps=1, size=(128, 128), control="canny", control_scale=0.5)
RUNGS = ["free-caches", "vae-tiling", "text-cached", "model-offload", "smaller-area"]


def keys(r):
    return [f.split(":")[0] for f in r.fallbacks]


def home(parts):
    return {
        (k, n): (t.data_ptr(), t.dtype, t.device)
        for k, m in parts.modules().items()
        for n, t in (*m.named_parameters(), *m.named_buffers())
    }


def small_device(parts, limit=None, settings=None, **kw):
    e = FastEditor(parts, meter=Q.live_tensors(limit=limit), **kw)
    if settings:
        e.memory = settings
    return e


@pytest.fixture(scope="module")
def heavy_text(tmp_path_factory):
    """A model whose text encoders weigh as much as its UNet, and whose decoder has the largest
    activations, as with SDXL."""
    c = M.tiny_configs(**KW)
    c["text_encoder_2"][1].update(intermediate_size=9000)
    c["vae"][1].update(block_out_channels=(32, 32, 32), norm_num_groups=8)
    # what is weighed is not packed, and is compared with what is not weighed
    return load_model(M.random_model(tmp_path_factory.mktemp("heavy"), configs=c), packed=False)


@pytest.fixture(scope="module")
def needs(heavy_text):
    "What an edit needs, and what it gives, on each rung."
    steps = [
        Q.MemorySettings(),
        Q.MemorySettings(vae_tile=64),
        Q.MemorySettings("text-cached", 64),
        Q.MemorySettings("model-offload", 64),
        Q.MemorySettings("model-offload", 64, 0.5),
    ]
    out = [small_device(heavy_text, settings=s)(A, "a blue ball", **WIDE) for s in steps]
    peaks = [r.peak_memory for r in out]
    assert sorted(peaks, reverse=True) == peaks and len(set(peaks)) == 5
    return out


@pytest.mark.parametrize("rung", range(5))
def test_every_rung_fires_and_gives_what_it_always_gives(heavy_text, needs, rung):
    before = home(heavy_text)
    e = small_device(heavy_text, needs[rung].peak_memory, allow_smaller=rung == 4)
    r = e(A, "a blue ball", **WIDE)
    assert (
        keys(r) == (RUNGS[: rung + 1] if rung else [])
        and r.peak_memory <= e.meter.limit
        and r.memory["residency"] == needs[rung].memory["residency"]
    )
    assert (
        same(r, needs[rung])
        and r.memory["vae_tile"] == needs[rung].memory["vae_tile"]
        and same(needs[1], needs[2])
        and same(needs[2], needs[3])
        and torch.equal(needs[0].latents, needs[1].latents)
    )
    assert (
        r.request.size == ((128, 128) if rung < 4 else (96, 96))
        or rung == 4
        and r.request.size[0] * r.request.size[1] <= 0.6 * 128 * 128
    )
    assert (
        home(heavy_text) == before
        and heavy_text.mover is None
        and heavy_text.execution is None
        and e.meter.weights == 0
    )
    assert same(FastEditor(heavy_text)(A, "a blue ball", **WIDE), needs[0])


def test_freeing_caches_can_be_enough(heavy_text, needs):
    e = small_device(heavy_text, settings=Q.MemorySettings("model-offload"))
    for i in range(2):
        e(picture(i), "a cup", **WIDE)
    need = small_device(heavy_text, settings=e.memory)(A, "a blue ball", **WIDE).peak_memory
    e.meter.limit = need + 40_000  # room for the latents of an earlier result, not for two pictures
    r = e(A, "a blue ball", **WIDE)
    assert (
        keys(r) == ["free-caches"]
        and same(r, needs[0])
        and not e(A, "a blue ball", **WIDE).fallbacks
    )


def test_where_the_ladder_ends(heavy_text, needs):
    before = home(heavy_text)
    e = small_device(heavy_text, needs[3].peak_memory - 1)
    with pytest.raises(
        MemoryPlanError,
        match="after free-caches, vae-tiling, text-cached, model-offload.*needs at least",
    ) as err:
        e(A, "a blue ball", **WIDE)
    assert (
        "smaller-area" not in str(err.value)
        and home(heavy_text) == before
        and not e._lock.locked()
        and err.value.__cause__ is err.value.__context__ is None
    )
    e.meter.limit = None
    assert same(e(A, "a blue ball", **WIDE), needs[0])
    r = small_device(heavy_text, needs[2].peak_memory, settings=Q.MemorySettings("text-cached"))(
        A, "a blue ball", **WIDE
    )
    assert keys(r) == RUNGS[:2]


@pytest.mark.parametrize("policy", list(Q.RESIDENCIES))
def test_policies_give_the_same_bytes(heavy_text, needs, policy):
    e = FastEditor(heavy_text, residency=policy)
    r, again = e(A, "a blue ball", **WIDE), e(A, "a cup", **WIDE)
    assert (
        same(r, needs[0])
        and r.memory["residency"] == policy
        and not r.fallbacks
        and r.peak_memory is None
        and (r.memory["moved"] > 0) == (policy != "resident")
    )
    sizes = heavy_text.weight_bytes()
    text, rest = (
        sizes["text_encoder"] + sizes["text_encoder_2"],
        sizes["unet"] + sizes["controlnet"] + 2 * sizes["vae"],
    )
    assert r.memory["moved"] == {"resident": 0, "text-cached": text}.get(policy, text + rest)
    # another prompt; the source's latents are kept
    assert again.memory["moved"] == {"resident": 0, "text-cached": text}.get(
        policy, text + rest - sizes["vae"]
    )
    # what the text says is known by now, too
    assert e(A, "a cup", **WIDE).memory["moved"] == {"resident": 0, "text-cached": 0}.get(
        policy, rest - sizes["vae"]
    )
    assert (
        same(FastEditor(heavy_text)(A, "a blue ball", **WIDE), needs[0])
        and heavy_text.mover is None
    )


def test_methods_that_ask_for_more_find_it(heavy_text):
    e = FastEditor(heavy_text, residency="model-offload")
    plain = FastEditor(heavy_text)
    kw = dict(method="masactrl", steps=2)  # asks for the empty prompt in the middle
    assert same(e(A, "a blue ball", **kw), plain(A, "a blue ball", **kw))
    d = FastEditor(heavy_text, residency="model-offload").denoiser()
    x = torch.zeros(1, 4, 16, 16)
    d.output(x, 499, d.text("a cup"))
    assert not heavy_text.mover.on and d.count.nfe == 1
    heavy_text.mover.release()


def test_errors_and_stops_leave_networks_at_home(heavy_text):
    before = home(heavy_text)
    for residency in ("resident", "model-offload"):
        e = FastEditor(heavy_text, residency=residency)
        for error in (Cancelled("enough"), RuntimeError("shape mismatch")):
            with pytest.raises(type(error)):
                e(A, "a cup", **WIDE, on_step=lambda s: (_ for _ in ()).throw(error))
            assert heavy_text.mover is None or not heavy_text.mover.on
    heavy_text.mover.release()
    assert home(heavy_text) == before


def test_a_real_allocation_failure_on_the_cpu(parts, monkeypatch):
    "Where there is nowhere to move to, only what helps is tried."
    from fastedit.denoise import Denoiser

    e, real, asked = FastEditor(parts["cfg"]), Denoiser.decode, []

    def decode(self, z):
        asked.append(self.tile)
        if len(asked) < 3:
            raise RuntimeError(
                (
                    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: "
                    "can't allocate memory: you tried to allocate 99 bytes"
                )
            )
        return real(self, z)

    monkeypatch.setattr(Denoiser, "decode", decode)
    r = e(A, "a cup", **WIDE)
    assert keys(r) == ["free-caches", "vae-tiling"] and asked == [None, None, 64]
    monkeypatch.setattr(Denoiser, "decode", lambda self, z: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryPlanError, match="MemoryError.*after free-caches, vae-tiling"):
        e(A, "a cup", **WIDE)


def test_overflow_in_fp16_is_computed_again_in_fp32(folders):
    p = load_model(folders["cfg"], precision="fp16")
    e = FastEditor(p)
    kw = dict(method="img2img", steps=1)
    assert not e(A, "a cup", **kw).fallbacks
    w = p.vae.decoder.conv_out.weight
    w.data = (w.float() * (3e4 / w.abs().max().item())).half()
    before = {(k, n): t.clone() for k, m in p.modules().items() for n, t in m.named_parameters()}
    r = e(A, "a cup", **kw)
    assert (
        keys(r) == ["fp32"]
        and r.latents.dtype == torch.float32
        and "fp16" in r.fallbacks[0]
        and r.to_dict()["fallbacks"]
    )
    assert all(
        t.dtype == torch.float16 and torch.equal(t, before[k, n])
        for k, m in p.modules().items()
        for n, t in m.named_parameters()
    )
    assert all(
        v.states.dtype == torch.float16 for v, _ in e.cache.items.values() if hasattr(v, "states")
    )
    p.unet.conv_in.weight.data.fill_(float("nan"))
    with pytest.raises(NumericalError):
        e(A, "a cup", **kw)
    assert p.unet.dtype == torch.float16


def test_a_budget_is_planned_before_anything_is_loaded(parts, monkeypatch):
    monkeypatch.setattr("fastedit.editor.placing.load_model", lambda *a, **k: pytest.fail("loaded"))
    for kw in (
        dict(residency="auto", budget_gb=0.2),
        dict(residency="resident", budget_gb=4),
        dict(residency="sequential", budget_gb=0.3),
    ):
        with pytest.raises(MemoryPlanError):
            FastEditor("ssd-1b", precision="fp16", **kw)
    for kw in (dict(residency="here"), dict(budget_gb=0), dict(budget_gb="much")):
        with pytest.raises(OptionError):
            FastEditor("ssd-1b", **kw)
    e = FastEditor(parts["cfg"], residency="auto")
    assert e.memory == Q.MemorySettings() and getattr(parts["cfg"], "mover", None) is None
    assert FastEditor(parts["cfg"], residency="auto", budget_gb=8).memory.residency == "resident"


def test_tiles_of_a_plan_are_said(parts):
    e = FastEditor(parts["cfg"])
    e.memory = Q.MemorySettings(vae_tile=64)
    r = e(A, "a cup", **WIDE)
    assert (
        r.memory["vae_tile"] == 64
        and any("tiles of 64" in n for n in r.notes)
        and not r.fallbacks
        and not e(A, "a cup", method="img2img", steps=1).memory["vae_tile"]
    )


@pytest.mark.parametrize("policy", ["resident", "model-offload"])
def test_an_edit_weighs_what_was_predicted(parts, policy):
    e = FastEditor(parts["cfg"], residency=policy)
    d = weigh_edit(e, A, "a cup", **WIDE)
    stages = [x["stage"] for x in d["stages"]]
    assert e.meter is None and stages == ["text", "encode", "denoise", "decode"]
    assert all(abs(d[k]["ratio"] - 1) < 0.1 for k in ("peak", "tensors")), d
    json.dumps(d)
    parts["cfg"].mover and parts["cfg"].mover.release()


def test_bench_memory_on_networks_in_small(monkeypatch):
    "The command's path, with small networks in the places of the large ones."
    c = M.tiny_configs("sd15", **KW, vocab=514)
    c["controlnet"][1].update(conditioning_embedding_out_channels=(8, 8, 16, 16))
    c["vae"][1].update(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    spec = M.find_spec("sd15-lcm")
    what = {a: c[k] for k, a in spec.parts().items()}
    monkeypatch.setattr(
        Q.dummy,
        "build",
        lambda arch, device="meta", dtype="float32": M.build(
            what.get(arch, arch) if isinstance(arch, str) else arch, device, dtype
        ),
    )
    d = bench_memory("sd15-lcm", (128, 64), 2, controlnet=True)
    assert (
        d["size"] == [128, 64]
        and d["weights"] == "random"
        and d["nfe"] == 4
        and abs(d["tensors"]["ratio"] - 1) < 0.1
    )
    assert d["parameters"]["unet"] == M.count_parameters(M.build(c["unet"]))


@pytest.mark.parametrize(
    "name,value,says",
    [
        ("guidance", "linear:500:500", "from 0 to 100"),
        ("guidance", "linear:nan:1", "from 0 to 100"),
        ("guidance", "interval:2:0:inf", "from 0 to 100"),
        ("control_scale", "linear:-5:1", "from 0 to 10"),
        ("feather", float("nan"), "feather=nan"),
        ("feather", -1, "feather=-1"),
        ("feather", "x", "feather='x'"),
        ("feather", None, "feather=None"),
    ],
)
def test_curves_and_ramps_have_ranges_too(name, value, says):
    with pytest.raises(OptionError, match=says):
        EditRequest("a ball", **{name: value})


def test_single_numbers_of_numpy_and_torch_are_numbers():
    r = EditRequest(
        "a ball",
        seed=np.int64(3),
        steps=np.int64(4),
        strength=np.float64(0.5),
        guidance=torch.tensor(2.0),
        feather=np.float32(1),
    )
    assert (
        r == EditRequest("a ball", seed=3, steps=4, strength=0.5, guidance=2.0, feather=1.0)
        and r.json
        == EditRequest("a ball", seed=3, steps=4, strength=0.5, guidance=2.0, feather=1.0).json
    )
    with pytest.raises(DataError, match="no prompt"):
        EditRequest.from_json("{}")
    for name in ("prompt", "source_prompt"):
        with pytest.raises(PromptError, match="UTF-8"):
            EditRequest(
                **{"prompt": "a ball", name: b"a \xff ball".decode(errors="surrogateescape")}
            )


def test_a_device_is_checked_before_anything_is_loaded(folders, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, says in (("foo", "unknown"), (3.5, "unknown"), ("cuda", "no GPU")):
        with pytest.raises(OptionError, match=says):
            FastEditor(str(folders["cfg"]), device=device)
        with pytest.raises(OptionError, match=says):
            load_model(folders["cfg"], device=device)


def test_equal_prompts_change_nothing_by_default(ed):
    r = ed(picture(), "a red ball", source_prompt="a red ball", method="ddcm")
    assert r.request.source_guidance == r.request.guidance and torch.equal(
        r.latents, ed.denoiser().encode(ed.pixels(picture()))
    )
    assert (
        ed(picture(), "a red ball", source_prompt="a ball", method="ddcm").request.source_guidance
        == 1
    )


def test_a_very_wide_edit_shows_itself(ed):
    assert ed(picture().resize((400, 8)), "a red ball", method="identity").pair().size[0] > 256


# --- repair


def test_repair_is_one_step_more_and_counted(ed):
    from fastedit.editor.mending import mended

    plain = ed(A, "a cup", method="img2img", strength=0.5)
    r = ed(A, "a cup", method="img2img", strength=0.5, repair=True)
    said = []
    image = mended(A, plain.image, said=said)
    assert r.image.tobytes() == image.tobytes() and said[0] in r.notes
    assert r.nfe == plain.nfe and r.seconds["repair"] > 0 and "repaired" in r.summary
    assert r.request.repair and not plain.request.repair and "repair" not in plain.seconds
    assert not any(n.startswith("repair") for n in plain.notes)


def test_repair_within_a_mask_keeps_the_rest(ed):
    m = np.zeros((64, 64), np.float32)
    m[:32] = 1
    r = ed(A, "a cup", method="img2img", mask=m, repair=True)
    assert (np.asarray(r.image)[32:] == np.asarray(A)[32:]).all()
    assert any(n.startswith("repair: ") for n in r.notes)


def test_repair_leaves_what_edits_nothing_alone(ed):
    r = ed(A, "a cup", method="identity", repair=True)
    assert r.image.tobytes() == A.tobytes() and not any(n.startswith("repair") for n in r.notes)


def test_repair_in_a_batch(ed):
    jobs = [dict(image=A, prompt=p, method="img2img", repair=True) for p in ("a cup", "a ball")]
    for e, job in zip(ed.batch(jobs, at_once=2), jobs):
        assert any(n.startswith("repair: ") for n in e.notes) and e.request.repair


@pytest.mark.parametrize("bad", [1, "yes", None, 0.0])
def test_repair_is_yes_or_no(bad):
    with pytest.raises(OptionError, match="repair=.*True or False"):
        EditRequest("a ball", repair=bad)
