"""ControlNet-Union: one network for several kinds of maps, each named, as in stock's pipeline."""

import inspect
import diffusers, numpy as np, pytest, torch
from PIL import Image
from typer.testing import CliRunner
from fastedit import EditRequest, FastEditor
from fastedit.cli import app
from fastedit.core import ModelError, OptionError
from fastedit.denoise import Memo
from fastedit.editor import take_control, weigh_edit
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


def typed(folder, place, *maps):
    "Edit a picture with maps on the command line: what came of it, and the result's file."
    for name, p in dict(a=A, b=B).items():
        p.save(place / f"{name}.png")
    out = place / "out.png"
    line = ["edit", place / "a.png", "a cup", "-o", out, "--model", folder, "-q"]
    line += ["--method", "img2img", "--steps", "2", "--control", *maps]
    return CliRunner().invoke(app, [str(x) for x in line]), out


def test_it_can_be_typed(folder, tmp_path):
    done, out = typed(folder, tmp_path, f"depth:{tmp_path / 'b.png'}")
    assert done.exit_code == 0, done.output
    assert EditRequest.from_png(out).control.startswith("depth:picture:")


def stock_of_several(pipe, maps, modes, scales, **kw):
    return pipe(
        "a cup",
        image=A,
        control_image=list(maps),
        control_mode=list(modes),
        strength=0.75,
        num_inference_steps=4,
        guidance_scale=1.5,
        controlnet_conditioning_scale=list(scales),
        generator=torch.Generator().manual_seed(3),
        height=64,
        width=64,
        **kw,
    ).images[0]


@pytest.mark.parametrize("scales", [(0.5, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_several_maps_at_once_are_stocks(pipe, editor, scales):
    want = stock_of_several(pipe, [B, canny(A)], [1, 3], scales)
    e = editor(A, "a cup", control=[{"depth": B}, "canny"], control_scale=list(scales), **SAME)
    assert apart(want, e.image) <= 1 and e.control_nfe == e.nfe
    one = editor(A, "a cup", control={"depth": B}, control_scale=scales[0], **SAME)
    assert apart(one.image, e.image)


def test_three_maps_and_their_order(pipe, editor):
    want = stock_of_several(pipe, [B, A, canny(A)], [5, 1, 3], [0.5, 0.5, 0.5])
    kinds = [{"seg": B}, {"depth": A}, "canny"]
    got = editor(A, "a cup", control=kinds, control_scale=0.5, **SAME)
    assert apart(want, got.image) <= 1
    turned = editor(A, "a cup", control=kinds[::-1], control_scale=0.5, **SAME)
    assert (turned.latents - got.latents).abs().max() < 1e-3


def test_each_map_has_its_window(pipe, editor):
    window = dict(control_guidance_start=[0.0, 0.3], control_guidance_end=[0.4, 1.0])
    want = stock_of_several(pipe, [B, canny(A)], [1, 3], [0.8, 0.6], **window)
    scales = ["interval:0.8:0:0.4", "interval:0.6:0.3:1"]
    got = editor(A, "a cup", control=[{"depth": B}, "canny"], control_scale=scales, **SAME)
    always = editor(A, "a cup", control=[{"depth": B}, "canny"], control_scale=[0.8, 0.6], **SAME)
    assert apart(want, got.image) <= 1 < apart(always.image, got.image)


def test_it_is_not_asked_once_no_map_speaks(editor):
    early = editor(
        A, "a cup", control=[{"depth": B}, "canny"], control_scale="interval:1:0:0.5", **SAME
    )
    assert 0 < early.control_nfe < early.nfe
    silent = editor(A, "a cup", control=[{"depth": B}, "canny"], control_scale=0, **SAME)
    assert silent.control_nfe == 0 and any("does nothing" in n for n in silent.notes)


def test_none_among_maps_is_left_out(editor):
    alone = editor(A, "a cup", control={"depth": B}, control_scale=0.8, **SAME)
    given = dict(control=["none", {"depth": B}], control_scale=[0.3, 0.8])
    e = editor(A, "a cup", **given, **SAME)
    assert e.image.tobytes() == alone.image.tobytes() and e.request.control == alone.request.control


def test_several_maps_of_a_borrowed_pipeline(pipe, editor):
    given = dict(control=[{"depth": B}, {"normal": B}], control_scale=[0.5, 0.8])
    a, b = (e(A, "a cup", **given, **SAME) for e in (FastEditor(pipe), editor))
    assert a.image.tobytes() == b.image.tobytes()


def test_kept_answers_know_the_scale_of_each_map(folder):
    own = FastEditor(folder, keep_negative=True)
    own.memo = Memo()
    for scales in ([0.5, 0.8], [0.8, 0.5]):
        given = dict(
            SAME, control=[{"depth": B}, {"normal": B}], control_scale=scales, guidance=3.0
        )
        fresh = FastEditor(folder, keep_negative=True)
        fresh.memo = Memo()
        assert torch.equal(own(A, "a cup", **given).latents, fresh(A, "a cup", **given).latents)


def test_a_request_with_several_maps_comes_again(editor):
    maps = [{"depth": B}, {"seg": A}]
    e = editor(A, "a cup", control=maps, control_scale=[0.5, 0.8], **SAME)
    assert EditRequest.from_json(e.request.json) == e.request
    again = editor(A, request=EditRequest.from_json(e.request.json), control=maps[::-1])
    assert again.image.tobytes() == e.image.tobytes()


def test_maps_that_do_not_go_together_are_refused(editor, folder, tmp_path):
    def refused(words, control, scale=None):
        with pytest.raises(OptionError, match=words):
            editor(A, "a cup", control=control, control_scale=scale, **SAME)

    refused("are of one kind to this ControlNet.*leave one out", [{"depth": A}, {"depth": B}])
    refused("are of one kind", [{"hed": A}, {"scribble": B}])
    refused("does not know that kind", [{"depth": A}, "tile"])
    refused("say which one this is", [{"depth": A}, B])
    refused("one number or curve for all 2 maps", [{"depth": A}, "canny"], [0.1, 0.2, 0.3])
    plain = random_model(tmp_path / "p", channels=(16, 32, 32), width=16, seed=1)
    with pytest.raises(OptionError, match="one ControlNet.*union-sdxl"):
        FastEditor(plain)(A, "a cup", control=[{"depth": B}, "canny"], **SAME)


def test_several_maps_are_planned(editor, folder):
    many, one = (predict_memory("sdxl", controlnet="union-sdxl", maps=n) for n in (3, 1))
    assert many.weights == one.weights and many.stages[-2].carried > one.stages[-2].carried
    w = weigh_edit(
        editor,
        A,
        "a cup",
        control=[{"depth": B}, "canny"],
        method="img2img",
        steps=2,
        guidance=1.5,
        size=(128, 128),
    )
    denoise = next(s for s in w["stages"] if s["stage"] == "denoise")
    assert 0.9 < denoise["ratio"] < 1.3
    with pytest.raises(OptionError, match="only one ControlNet-Union"):
        predict_memory("sdxl", maps=2)


def test_the_account_shows_every_map(editor):
    e = editor(A, "a cup", control=[{"depth": B}, "canny"], control_scale=0.5, **SAME)
    html = e._repr_html_()
    assert html.count("<figcaption>control map:") == 2 and "depth:picture:" in html
    own = editor(A, "a cup", control={"depth": B}, control_scale=0.5, **SAME)
    assert own._repr_html_().count("<figcaption>control map:") == 1


@pytest.mark.parametrize(
    "kind, words",
    [
        ("pose", "not drawn from the picture here: give it as a picture, control='pose.png'"),
        ("openpose", "'openpose:openpose.png'"),
        ("depth", r"pictures.depth_map\(photo\) computes one"),
        ("seg", r"pictures.segmentation_map\(photo\) computes one"),
    ],
)
def test_a_map_that_is_not_drawn_here_says_its_way(kind, words):
    with pytest.raises(OptionError, match=words):
        EditRequest("a cup", control=kind)


def test_several_maps_can_be_typed(folder, tmp_path):
    more = ["--control", "canny", "--control-scale", "0.4", "--control-scale", "interval:.6:0:.5"]
    done, out = typed(folder, tmp_path, f"depth:{tmp_path / 'b.png'}", *more)
    assert done.exit_code == 0, done.output
    r = EditRequest.from_png(out)
    assert len(r.control) == 2 and r.control_scale == (0.4, "interval:.6:0:.5")
    done = CliRunner().invoke(app, ["plan", "--model", "sdxl", "--maps", "2", "-q"])
    assert done.exit_code == 2 and "only one ControlNet-Union" in " ".join(done.output.split())
    pose, _ = typed(folder, tmp_path, "pose")
    assert pose.exit_code == 2 and "control='pose.png'" in " ".join(pose.output.split())
