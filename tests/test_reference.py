"""A reference picture: an IP-Adapter of a pipeline sees it as in stock, and what cannot see is
said."""

import copy, pytest, torch
from dataclasses import replace
from PIL import Image
from fastedit import EditRequest, FastEditor
from fastedit.core import ModelError, OptionError
from fastedit.memory import predict_memory
from fastedit.models import borrow, random_ip_adapter
from fastedit.world import render, sample_scene
from shared import stock_pipeline

A, B, C = (Image.fromarray(render(sample_scene(i), 64)) for i in (5, 6, 7))
SAME = dict(method="img2img", schedule="stock", steps=4, strength=0.75, seed=3)


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def pipe(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("m") / request.param
    kind = "ControlNetImg2ImgPipeline"
    return random_ip_adapter(stock_pipeline(folder, request.param, kind, control=True))


@pytest.fixture(scope="module")
def editor(pipe):
    return FastEditor(pipe)


def stock(pipe, picture, guidance, scale=0.0):
    return pipe(
        "a cup",
        image=A,
        control_image=A,
        ip_adapter_image=picture,
        strength=0.75,
        num_inference_steps=4,
        guidance_scale=guidance,
        controlnet_conditioning_scale=scale,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        height=64,
        width=64,
    ).images


def tensors(net):
    return [*net.parameters(), *net.buffers()]


def apart(a, b):
    a, b = (getattr(x, "latents", x) for x in (a, b))
    return (a - b).abs().max().item()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_it_is_shown_as_in_the_stock_pipeline(pipe, editor, guidance, scale):
    want = stock(pipe, B, guidance, scale)
    how = dict(SAME, guidance=guidance, control=A if scale else "none", control_scale=scale)
    got = editor(A, "a cup", reference=B, **how)
    assert apart(want, got) < 1e-3 < apart(want, editor(A, "a cup", reference=C, **how))


def test_its_scale_is_the_pipelines(pipe, editor):
    how = dict(SAME, guidance=3.0, control="none")
    first = editor(A, "a cup", reference=B, **how)
    pipe.set_ip_adapter_scale(0.3)
    weak = editor(A, "a cup", reference=B, **how)
    assert apart(stock(pipe, B, 3.0), weak) < 1e-3 < apart(first.latents, weak)
    assert weak.revision != first.revision
    pipe.set_ip_adapter_scale(1.0)


def test_the_request_names_it(editor, tmp_path):
    B.save(tmp_path / "b.png")
    e = editor(A, "a cup", reference=tmp_path / "b.png", **SAME)
    assert e.request.reference.startswith("picture:")
    assert EditRequest.from_json(e.request.json) == e.request
    again = editor(A, request=e.request, reference=B)
    assert again.image.tobytes() == e.image.tobytes()
    with pytest.raises(OptionError, match="give the picture itself"):
        editor(A, request=e.request)
    with pytest.raises(OptionError, match="reference: the picture that was given is not the one"):
        editor(A, request=e.request, reference=C)


def test_several_in_one_call_see_it(editor):
    both = editor(A, "a cup", reference=B, seeds=[1, 2], at_once=2, method="img2img", steps=2)
    for e, s in zip(both, (1, 2)):
        alone = editor(A, "a cup", reference=B, seed=s, method="img2img", steps=2)
        assert apart(e.latents, alone) < 1e-3


@pytest.fixture
def own(pipe):
    """The pipeline with an image encoder and a reader of its own, which a test may change."""
    kept = pipe.image_encoder, pipe.feature_extractor
    pipe.image_encoder, pipe.feature_extractor = map(copy.deepcopy, kept)
    yield pipe
    pipe.image_encoder, pipe.feature_extractor = kept


def scaled(pipe):
    with torch.no_grad():
        for p in pipe.image_encoder.parameters():
            p.mul_(1.5)


def another(pipe):
    pipe.image_encoder = copy.deepcopy(pipe.image_encoder)
    scaled(pipe)


def unlike(pipe):
    pipe.feature_extractor.do_normalize = False


@pytest.mark.parametrize("change", [scaled, another, unlike])
def test_what_it_sees_with_is_looked_at_again(own, change):
    editor, how = FastEditor(own), dict(SAME, guidance=3.0, control="none")
    before = editor(A, "a cup", reference=B, **how)
    change(own)
    after = editor(A, "a cup", reference=B, **how)
    fresh = FastEditor(own)(A, "a cup", reference=B, **how)
    assert after.revision == fresh.revision != before.revision
    assert apart(fresh, after.latents) == 0
    assert apart(stock(own, B, 3.0), after) < 1e-3 < apart(before, after.latents)


def test_what_sees_must_be_at_rest(own):
    own.image_encoder.train()
    with pytest.raises(ModelError, match=r"image_encoder.eval\(\)"):
        FastEditor(own)
    own.image_encoder.eval()
    accelerate = pytest.importorskip("accelerate")
    accelerate.hooks.add_hook_to_module(own.image_encoder, accelerate.hooks.ModelHook())
    with pytest.raises(ModelError, match="image_encoder is moved by hooks"):
        FastEditor(own)


def test_without_an_adapter_nothing_sees(pipe):
    plain = {k: v for k, v in pipe.components.items() if v is not None}
    plain["unet"] = copy.deepcopy(pipe.unet)
    plain["unet"].encoder_hid_proj = None
    plain["image_encoder"] = torch.nn.Linear(1, 1).train()
    assert borrow(plain).image_encoder is None


def test_its_seconds_are_counted_once(own):
    editor, how = FastEditor(own), dict(SAME, control="none")
    first = editor(A, "a cup", reference=B, **how)
    denoiser = editor.denoiser()
    seen, none = denoiser.see(B)
    assert seen.shape == none.shape and set(denoiser.count.seconds) == {"reference"}
    assert denoiser.count.network_seconds == denoiser.count.seconds["reference"] > 0
    assert first.seconds["total"] >= first.seconds["reference"] > 0
    assert sum(v for k, v in first.seconds.items() if k != "total") <= first.seconds["total"]


def test_it_comes_and_goes_with_the_other_networks(own):
    editor = FastEditor(own, residency="model-offload")
    there = FastEditor(own, residency="resident")
    mover, size = editor.parts.mover, editor.parts.weight_bytes()["image_encoder"]
    assert size == sum(t.nbytes for t in tensors(own.image_encoder))
    e = editor(A, "a cup", reference=B, **SAME)
    assert ("image_encoder", "in", size) in mover.log
    assert mover.log.index(("image_encoder", "in", size)) < mover.log.index(
        ("image_encoder", "out", 0)
    )
    assert apart(there(A, "a cup", reference=B, **SAME), e.latents) == 0
    editor.release()


def test_its_memory_is_planned(editor):
    plain = predict_memory(replace(editor.parts, seer=None), "fp32", "model-offload")
    p = predict_memory(editor.parts, "fp32", "model-offload")
    size = editor.parts.weight_bytes()["image_encoder"]
    assert p.weights == plain.weights | dict(image_encoder=size)
    assert p.stages[0].stage == "reference" and p.stages[0].weights == size
    assert p.stages[0].activations > 0 and p.stages[0].flops > 0
    assert p.stages[1:] == plain.stages and p.moved == plain.moved + size


def test_methods_that_compare_take_it(editor):
    e = editor(A, "a cup", source_prompt="a ball", reference=B, method="ddcm", steps=2)
    assert e.nfe


def test_what_cannot_see_is_said(pipe, editor, tmp_path):
    with pytest.raises(OptionError, match="wants to see"):
        editor(A, "a cup", **SAME)
    with pytest.raises(OptionError, match="takes over the attention"):
        editor(A, "a cup", source_prompt="a ball", reference=B, method="p2p", steps=2)
    with pytest.raises(OptionError, match="without an IP-Adapter"):
        FastEditor("mini", controlnet=False)(A, "a cup", reference=B, method="img2img")
    encoder = pipe.image_encoder
    pipe.image_encoder = None
    with pytest.raises(ModelError, match="image_encoder"):
        FastEditor(pipe)
    pipe.image_encoder = encoder


@pytest.mark.parametrize("method", ["identity", "vae"])
def test_what_leaves_the_picture_needs_none(editor, method):
    alone = editor(A, "a cup", method=method)
    shown = editor(A, "a cup", method=method, reference=B)
    assert alone.image.tobytes() == shown.image.tobytes()
    assert alone.request.reference is None


def test_a_control_beside_a_whole_request_is_refused_though_a_picture_came_along(editor):
    e = editor(A, "a blue ball", reference=B, method="img2img", steps=1)
    with pytest.raises(OptionError, match="not both"):
        editor(A, request=e.request, reference=B, control="canny")
