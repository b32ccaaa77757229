"""Inpainting: nine channels and four as stock has them, the part around a mask, and what is
outside of it untouched."""

import diffusers, numpy as np, pytest, torch
from PIL import Image
from typer.testing import CliRunner
from fastedit import EditRequest, FastEditor
from fastedit.cli import app
from fastedit.core import MaskError, ModelError, OptionError
from fastedit.models import random_lora, random_model
from fastedit.pictures import crop_box, mask_box
from fastedit.world import render, sample_scene

A = Image.fromarray(render(sample_scene(5), 64))
HOLE = np.zeros((64, 64), np.float32)
HOLE[20:44, 12:40] = 1
MASK = Image.fromarray((HOLE * 255).astype(np.uint8))
HOW = dict(method="inpaint", schedule="stock", steps=4, seed=3, guidance=3.0, feather=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    d = tmp_path_factory.mktemp("m")
    small = dict(channels=(16, 32, 32), width=16)
    made = {
        (f, c): random_model(d / f"{f}{c}", f, in_channels=c, **small)
        for f, c in (("sdxl", 9), ("sd15", 9), ("sdxl", 4), ("sd15", 8))
    }
    return made


def stock(folder, family, picture=A, mask=MASK, scheduler=None, **kw):
    diffusers.logging.disable_progress_bar()
    name = "StableDiffusion" + ("XL" if family == "sdxl" else "")
    more = dict(safety_checker=None) if family == "sd15" else {}
    plain = getattr(diffusers, f"{name}Pipeline").from_pretrained(folder, **more)
    pipe = getattr(diffusers, f"{name}InpaintPipeline").from_pipe(plain)
    pipe.set_progress_bar_config(disable=True)
    if scheduler:
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    asked = dict(image=picture, mask_image=mask, height=64, width=64, num_inference_steps=4)
    seed = torch.Generator().manual_seed(3)
    return pipe, pipe("a cup", guidance_scale=3.0, generator=seed, **(asked | kw)).images[0]


def same_inside(got, want, hole=HOLE, source=A):
    a, b, s = (np.asarray(x).astype(int) for x in (got, want, source))
    assert (a == s)[hole == 0].all()
    return np.abs(a - b)[hole > 0].max() <= 1


@pytest.mark.parametrize("family, channels", [("sdxl", 9), ("sd15", 9), ("sdxl", 4)])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_it_is_the_stock_pipeline(folders, family, channels, strength):
    folder = folders[family, channels]
    pipe, want = stock(folder, family, strength=strength)
    got = FastEditor(folder, controlnet=False)(A, "a cup", mask=MASK, strength=strength, **HOW)
    lent = FastEditor(pipe)(A, "a cup", mask=MASK, strength=strength, **HOW)
    assert same_inside(got.image, want) and lent.image.tobytes() == got.image.tobytes()
    assert got.request.scheduler == "own" and got.nfe == 2 * len(got.timesteps)


@pytest.mark.parametrize("key, kind", [("dpmpp", "DPMSolverMultistepScheduler"), ("euler_a", None)])
def test_with_another_scheduler_too(folders, key, kind):
    kind = kind or "EulerAncestralDiscreteScheduler"
    _, want = stock(folders["sdxl", 9], "sdxl", strength=0.9, scheduler=kind)
    editor = FastEditor(folders["sdxl", 9], controlnet=False)
    got = editor(A, "a cup", mask=MASK, scheduler=key, strength=0.9, **HOW)
    assert same_inside(got.image, want)


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_the_part_around_the_mask_is_stocks(folders, family):
    big = A.resize((160, 128), 0)
    hole = np.zeros((128, 160), np.float32)
    hole[40:64, 90:114] = 1
    mask = Image.fromarray((hole * 255).astype(np.uint8))
    _, want = stock(folders[family, 9], family, big, mask, strength=1.0, padding_mask_crop=20)
    editor = FastEditor(folders[family, 9], controlnet=False)
    got = editor(big, "a cup", mask=mask, mask_crop=20, strength=1.0, **HOW)
    assert got.request.size == (64, 64) and same_inside(got.image, want, hole, big)


def test_any_method_takes_the_part(folders):
    editor = FastEditor(folders["sdxl", 4])
    how = dict(method="img2img", steps=2, mask=MASK, control="canny", control_scale=1.0)
    near, whole = editor(A, "a cup", mask_crop=4, **how), editor(A, "a cup", **how)
    assert near.image.tobytes() != whole.image.tobytes()
    for e in (near, whole):
        assert (np.asarray(e.image) == np.asarray(A))[HOLE == 0].all()
    again = editor(A, request=near.request, mask=MASK)
    assert again.image.tobytes() == near.image.tobytes()


def test_honest_steps_controlnet_and_lora(folders, tmp_path):
    folder = folders["sdxl", 9]
    editor = FastEditor(folder)
    how = dict(method="inpaint", steps=3, mask=MASK)
    plain = editor(A, "a cup", **how)
    held = editor(A, "a cup", control="canny", control_scale=1.0, **how)
    assert plain.control_nfe == 0 < held.control_nfe and len(plain.timesteps) == 3
    assert plain.latents is not None and not torch.equal(plain.latents, held.latents)
    lora = random_lora(tmp_path / "a.safetensors", editor.parts.unet, std=0.2)
    with_lora = FastEditor(folder, loras=[(lora, 0.8)])(A, "a cup", scheduler="lcm", **how)
    assert not torch.equal(with_lora.latents, plain.latents)


def test_several_in_one_call_are_the_single_ones(folders):
    editor = FastEditor(folders["sd15", 9], controlnet=False)
    how = dict(method="inpaint", steps=2, mask=MASK)
    for e, s in zip(editor(A, "a cup", seeds=[1, 2], at_once=2, **how), (1, 2)):
        assert same_inside(e.image, editor(A, "a cup", seed=s, **how).image)


def test_without_a_mask_all_is_filled(folders):
    editor = FastEditor(folders["sd15", 9], controlnet=False)
    e = editor(A, "a cup", method="inpaint", steps=2, mask_crop=3)
    assert any("mask_crop" in n for n in e.notes)
    assert (np.asarray(e.image) != np.asarray(A)).any(-1).mean() > 0.9


def test_what_does_not_fit_is_said(folders):
    with pytest.raises(ModelError, match="use 'inpaint'"):
        FastEditor(folders["sdxl", 9])(A, "a cup", method="img2img")
    with pytest.raises(ModelError, match="9 or 4 input channels"):
        FastEditor(folders["sd15", 8])(A, "a cup", method="inpaint", mask=MASK)
    for crop in (-1, 1.5, "big"):
        with pytest.raises(OptionError, match="mask_crop"):
            EditRequest("a cup", mask_crop=crop)


def test_boxes():
    assert mask_box(HOLE, 0) == (12, 20, 40, 44) and mask_box(HOLE, 30) == (0, 0, 64, 64)
    left, top, right, bottom = crop_box(HOLE, 2, (64, 32))
    assert (right - left) == 2 * (bottom - top)
    with pytest.raises(MaskError):
        crop_box(HOLE * 0, 2, (64, 64))


def test_the_command_line_takes_it(tmp_path):
    A.save(tmp_path / "a.png"), MASK.save(tmp_path / "m.png")
    call = ["edit", str(tmp_path / "a.png"), "a cup", "-o", str(tmp_path / "b.png"), "-q"]
    more = ["--method", "inpaint", "--mask", str(tmp_path / "m.png"), "--mask-crop", "6"]
    run = CliRunner().invoke(app, [*call, *more, "--steps", "1"])
    assert run.exit_code == 0, run.output
    r = EditRequest.from_png(tmp_path / "b.png")
    assert (r.mask_crop, r.method, r.scheduler) == (6, "inpaint", "own")
