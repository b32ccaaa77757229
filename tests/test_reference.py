"""A reference picture: an IP-Adapter of a pipeline sees it as in stock, and what cannot see is
said."""

import diffusers, pytest, torch
from PIL import Image
from fastedit import EditRequest, FastEditor
from fastedit.core import ModelError, OptionError
from fastedit.models import random_ip_adapter, random_model
from fastedit.world import render, sample_scene

A, B, C = (Image.fromarray(render(sample_scene(i), 64)) for i in (5, 6, 7))
SAME = dict(method="img2img", schedule="stock", steps=4, strength=0.75, seed=3)


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def pipe(request, tmp_path_factory):
    diffusers.logging.disable_progress_bar()
    family = request.param
    folder = tmp_path_factory.mktemp("m") / family
    random_model(folder, family, channels=(16, 32, 32), width=16)
    kind = "StableDiffusion" + ("XL" if family == "sdxl" else "") + "ControlNetImg2ImgPipeline"
    more = dict(safety_checker=None) if family == "sd15" else {}
    net = diffusers.ControlNetModel.from_pretrained(folder / "controlnet")
    p = getattr(diffusers, kind).from_pretrained(folder, controlnet=net, **more)
    p.set_progress_bar_config(disable=True)
    return random_ip_adapter(p)


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


def apart(a, b):
    return (a - getattr(b, "latents", b)).abs().max().item()


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


def test_methods_that_compare_take_it(editor):
    e = editor(A, "a cup", source_prompt="a ball", reference=B, method="ddcm", steps=2)
    assert e.nfe


def test_what_cannot_see_is_said(pipe, editor, tmp_path):
    with pytest.raises(OptionError, match="wants to see"):
        editor(A, "a cup", **SAME)
    with pytest.raises(OptionError, match="takes over the attention"):
        editor(A, "a cup", source_prompt="a ball", reference=B, method="p2p", steps=2)
    with pytest.raises(OptionError, match="no IP-Adapter"):
        FastEditor("mini", controlnet=False)(A, "a cup", reference=B, method="img2img")
    encoder = pipe.image_encoder
    pipe.image_encoder = None
    with pytest.raises(ModelError, match="image_encoder"):
        FastEditor(pipe)
    pipe.image_encoder = encoder
