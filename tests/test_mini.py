"""The shipped mini models: size, stock loading, equality with stock pipelines, what they must be
able to do."""

import numpy as np, pytest, torch
from PIL import Image
from fastedit import FastEditor, mini_path, world as pb
from fastedit.conditions import canny
from fastedit.models import load_model, weights_dir
from fastedit.training import held_out, psnr, to_batch


@pytest.fixture(scope="module", params=["mini", "mini-s"])
def editor(request):
    return FastEditor(request.param)


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(pb.render(pb.sample_scene(9_300_005), 64))


def test_the_weights_stay_small():
    assert sum(p.stat().st_size for p in weights_dir().rglob("*") if p.is_file()) <= 32e6


def test_weights_are_half_precision_safetensors_only():
    from safetensors import safe_open

    files = [
        p
        for p in weights_dir().rglob("*")
        if p.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl")
    ]
    assert files and all(p.suffix == ".safetensors" for p in files)
    for p in files:
        with safe_open(p, "pt") as f:
            assert {f.get_slice(k).get_dtype() for k in f.keys()} <= {"F16", "I64"}, p


def test_the_vae_keeps_30_db():
    p = load_model("mini", controlnet=False)
    x = to_batch(held_out(64, 310_000)[1])
    with torch.no_grad():
        y = p.vae.decode(p.vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    assert psnr(y, x).mean() >= 30


@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("strength", [0.5, 0.8])
def test_stock_schedule_equals_the_stock_pipeline(editor, picture, guidance, strength):
    from diffusers import StableDiffusionXLControlNetImg2ImgPipeline

    pipe = StableDiffusionXLControlNetImg2ImgPipeline.from_pretrained(mini_path(editor.spec.key))
    pipe.set_progress_bar_config(disable=True)
    ours = editor(
        picture,
        "a blue ball",
        method="img2img",
        schedule="stock",
        strength=strength,
        guidance=guidance,
        control_scale=0.5,
        seed=7,
    )
    theirs = pipe(
        "a blue ball",
        image=picture,
        control_image=canny(picture),
        strength=strength,
        num_inference_steps=4,
        guidance_scale=guidance,
        controlnet_conditioning_scale=0.5,
        generator=torch.Generator().manual_seed(7),
        height=64,
        width=64,
    ).images[0]
    assert np.abs(np.asarray(ours.image, int) - np.asarray(theirs, int)).max() <= 1


def test_guidance_is_an_input_or_a_pair(editor, picture):
    runs = [
        editor(
            picture, "a drawing of a large blue ball", method="img2img", strength=0.8, guidance=g
        )
        for g in (1.5, 3.0)
    ]
    assert not np.array_equal(runs[0].image, runs[1].image)
    assert runs[0].nfe == (4 if editor.spec.key == "mini-s" else 8)


def test_equal_prompts_give_the_source_back(editor, picture):
    r = editor(
        picture,
        "a red ball",
        source_prompt="a red ball",
        method="ddcm",
        guidance=2.0,
        source_guidance=2.0,
    )
    assert torch.equal(r.latents, editor.denoiser().encode(editor.pixels(picture)))


def test_the_controlnet_changes_the_picture(editor, picture):
    a, b = (
        editor(
            picture,
            "a drawing of a large blue ball",
            method="img2img",
            strength=0.9,
            control="canny",
            control_scale=s,
        )
        for s in (0.0, 1.0)
    )
    assert not np.array_equal(a.image, b.image) and a.control_nfe == 0 < b.control_nfe


def test_a_photograph_runs_and_is_named(editor):
    y, x = np.mgrid[:90, :120] / 120
    shades = (np.stack([x, y, 1 - x], -1) * 255).astype(np.uint8)
    r = editor(shades, "a red ball", source_prompt="shades")
    assert r.image.size == (120, 90) and any("drawn" in n for n in r.notes)
