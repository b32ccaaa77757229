"""ControlNet-Union: one network for several kinds of maps, each named, as in stock's pipeline."""

import inspect
import diffusers, numpy as np, pytest, torch
from PIL import Image
from typer.testing import CliRunner
from fastedit import EditRequest, FastEditor
from fastedit.cli import app
from fastedit.core import ModelError, OptionError
from fastedit.editor import take_control
from fastedit.memory import predict_memory, weight_bytes
from fastedit.models import CONFIGURATION, is_union, load_model, quiet_libraries, random_model
from fastedit.pictures import CONTROL_KINDS, canny
from fastedit.world import render, sample_scene

A, B = (Image.fromarray(render(sample_scene(i), 64)) for i in (5, 6))
SAME = dict(method="img2img", schedule="stock", steps=4, strength=0.75, guidance=1.5, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("m") / "union"
    return random_model(home, channels=(16, 32, 32), width=16, union=6)


@pytest.fixture(scope="module")
def pipe(folder):
    kind = diffusers.StableDiffusionXLControlNetUnionImg2ImgPipeline
    with quiet_libraries():
        net = diffusers.ControlNetUnionModel.from_pretrained(folder / "controlnet")
        p = kind.from_pretrained(folder, controlnet=net)
    p.set_progress_bar_config(disable=True)
    return p


@pytest.fixture(scope="module")
def editor(folder):
    return FastEditor(folder)


def stock(pipe, shown, mode, scale, guidance=1.5):
    return pipe(
        "a cup",
        image=A,
        control_image=[shown],
        control_mode=[mode],
        strength=0.75,
        num_inference_steps=4,
        guidance_scale=guidance,
        controlnet_conditioning_scale=scale,
        generator=torch.Generator().manual_seed(3),
        height=64,
        width=64,
    ).images[0]


def apart(a, b):
    return np.abs(np.asarray(a).astype(int) - np.asarray(b)).max()


@pytest.mark.parametrize("kind", ["openpose", "depth", "hed", "normal", "segment"])
def test_each_kind_is_stocks(pipe, editor, kind):
    scale = 0.5 + 0.1 * CONTROL_KINDS[kind]
    want = stock(pipe, B, CONTROL_KINDS[kind], scale)
    got = editor(A, "a cup", control={kind: B}, control_scale=scale, **SAME)
    assert apart(want, got.image) <= 1 and got.control_nfe == got.nfe > 0


def test_what_is_drawn_has_its_kind(pipe, editor):
    got = editor(A, "a cup", control="canny", control_scale=0.8, **SAME)
    assert apart(stock(pipe, canny(A), 3, 0.8), got.image) <= 1
    given = editor(A, "a cup", control={"lineart": canny(A)}, control_scale=0.8, **SAME)
    assert given.image.tobytes() == got.image.tobytes()


def test_kinds_differ(editor):
    kinds = ("depth", "normal", "seg")
    found = [editor(A, "a cup", control={k: B}, control_scale=1.0, **SAME).latents for k in kinds]
    assert all((found[0] - x).abs().max() > 1e-4 for x in found[1:])


def test_a_borrowed_pipelines_is_taken(pipe, editor):
    lent = FastEditor(pipe)
    a, b = (e(A, "a cup", control={"depth": B}, control_scale=0.8, **SAME) for e in (lent, editor))
    assert a.image.tobytes() == b.image.tobytes()


def test_kept_answers_know_the_kind(folder):
    own = FastEditor(folder, keep_negative=True)
    how = dict(SAME, guidance=3.0, control_scale=1.0)
    for kind in ("depth", "normal"):
        kept = own(A, "a cup", control={kind: B}, **how)
        fresh = FastEditor(folder, keep_negative=True)(A, "a cup", control={kind: B}, **how)
        assert torch.equal(kept.latents, fresh.latents)


def test_beside_another_controlnet(folder, tmp_path):
    plain = random_model(tmp_path / "b", channels=(16, 32, 32), width=16, seed=1)
    both = FastEditor(folder, controlnet=["own", plain / "controlnet"])
    e = both(A, "a cup", control=[{"depth": B}, "canny"], control_scale=[0.5, 0.5], **SAME)
    alone = both(A, "a cup", control=[{"depth": B}, "none"], control_scale=[0.5, 0.5], **SAME)
    assert e.control_nfe == 2 * alone.control_nfe and apart(e.image, alone.image)


def test_the_request_names_the_kind(editor, tmp_path):
    B.save(tmp_path / "b.png")
    e = editor(A, "a cup", control=f"depth:{tmp_path / 'b.png'}", control_scale=0.8, **SAME)
    assert e.request.control.startswith("depth:picture:")
    assert EditRequest.from_json(e.request.json) == e.request
    again = editor(A, request=e.request, control={"depth": B})
    assert again.image.tobytes() == e.image.tobytes()
    with pytest.raises(OptionError, match="is not the one of"):
        editor(A, request=e.request, control={"normal": B})


def test_names_that_are_none(tmp_path):
    name, pictures = take_control({"seg": B})
    assert name.startswith("seg:picture:") and list(pictures) == [name]
    with pytest.raises(OptionError, match="'b.png' is no picture that is here"):
        EditRequest("a cup", control="depth:b.png")
    with pytest.raises(OptionError, match="use one of canny"):
        EditRequest("a cup", control="dept:b.png")


def test_what_it_is_not_told_is_said(editor):
    with pytest.raises(OptionError, match="say which one this is.*openpose, depth"):
        editor(A, "a cup", control=B, **SAME)
    with pytest.raises(OptionError, match="does not know that kind.*union-promax-sdxl"):
        editor(A, "a cup", control="tile", **SAME)
    with pytest.raises(ModelError, match="SDXL|use controlnet|does not fit"):
        load_model("sd15", controlnet="union-sdxl")


def test_a_plain_controlnet_takes_a_kind_as_it_comes(tmp_path):
    plain = random_model(tmp_path / "b", channels=(16, 32, 32), width=16)
    own = FastEditor(plain)
    a, b = (own(A, "a cup", control=c, control_scale=0.8, **SAME) for c in (B, {"depth": B}))
    assert a.image.tobytes() == b.image.tobytes()


def test_it_is_planned(folder):
    parts = load_model(folder)
    assert is_union(parts.controlnet)
    assert weight_bytes(folder, "fp32")["controlnet"] == parts.weight_bytes()["controlnet"]
    assert predict_memory(parts, "fp32").weights == predict_memory(folder, "fp32").weights
    assert (
        predict_memory("sdxl", controlnet="union-sdxl").weights["controlnet"] == 2 * 1_255_958_800
    )


def test_every_entry_of_its_class_is_in_the_table():
    said = inspect.signature(diffusers.ControlNetUnionModel.__init__).parameters
    assert not set(said) - {"self"} - set(CONFIGURATION["controlnet_union"])


def test_it_can_be_typed(folder, tmp_path):
    for name, p in dict(a=A, b=B).items():
        p.save(tmp_path / f"{name}.png")
    out = tmp_path / "out.png"
    line = ["edit", tmp_path / "a.png", "a cup", "-o", out, "--model", folder, "-q"]
    line += ["--method", "img2img", "--steps", "2", "--control", f"depth:{tmp_path / 'b.png'}"]
    done = CliRunner().invoke(app, [str(x) for x in line])
    assert done.exit_code == 0, done.output
    assert EditRequest.from_png(out).control.startswith("depth:picture:")
