"""Outlines and segmentation maps at once: the maps of the drawn world, the second ControlNet of the
mini models, what is trained of it, and the command that takes both."""

import csv
import numpy as np, pytest, torch
from PIL import Image
from typer.testing import CliRunner
from fastedit import FastEditor, training as tr
from fastedit.cli import app
from fastedit.core import ModelError, OptionError
from fastedit.measure import load_reader
from fastedit.models import diagnose, load_model, mini_path
from fastedit.pictures import ADE20K
from fastedit.world import (
    KINDS,
    LargeScene,
    LargeThing,
    Scene,
    Thing,
    object_masks,
    render,
    sample_edit,
    sample_scene,
    scene_segments,
)

BOTH = ["mini-canny", "mini-seg"]


@pytest.mark.parametrize("size", [32, 64, 100])
def test_a_thing_has_the_colour_of_its_kind_where_it_covers_half_a_pixel(size):
    scene = Scene((Thing("boat", "red", x=0.32), Thing("fish", "blue", "dotted", "small", x=0.8)))
    a, (boat, fish) = scene_segments(scene, size), object_masks(scene, size) >= 0.5
    assert a.shape == (size, size, 3) and a.dtype == np.uint8
    assert (a[fish] == ADE20K[KINDS["fish"]]).all()
    assert (a[boat & ~fish] == ADE20K[KINDS["boat"]]).all() and not a[~boat & ~fish].any()


def test_looks_leave_no_trace_in_a_map():
    def one(**kw):
        return scene_segments(Scene((Thing("star", kw.pop("colour", "red"), **kw),)))

    assert np.array_equal(one(), one(colour="green", material="checked"))
    assert not np.array_equal(one(), one(tilt=28.0))


def test_a_noun_without_a_colour_is_refused():
    with pytest.raises(OptionError, match="rocket.*ball"):
        scene_segments(LargeScene((LargeThing("rocket", "red"),)))


def test_the_second_controlnet_is_the_first_with_another_stem():
    canny, seg = (load_model("mini", controlnet=c).controlnet.state_dict() for c in BOTH)
    other = {k for k in canny if not torch.equal(canny[k], seg[k])}
    assert other == {k for k in canny if k.startswith("controlnet_cond_embedding.")}
    own = load_model("mini").controlnet.state_dict()
    assert all(torch.equal(own[k], canny[k]) for k in own)


@pytest.mark.parametrize("model", ["mini", "mini-s", "mini-teacher"])
def test_every_mini_model_takes_both(model):
    nets = load_model(model, controlnet=BOTH).controlnet.nets
    assert len(nets) == 2 and type(nets[0]).__name__ == "ControlNetModel"


def test_the_doctor_knows_it_and_other_models_refuse_it():
    assert diagnose("mini-seg").ok and diagnose("mini-canny").ok
    with pytest.raises(ModelError, match="mini-seg.*does not fit.*canny-sdxl"):
        load_model("ssd-1b", controlnet="mini-seg")


def test_weights_without_it_go_on_working(tmp_path, monkeypatch):
    import shutil
    from fastedit.models import weights_dir

    kept = shutil.ignore_patterns("controlnet-seg")
    shutil.copytree(weights_dir(), tmp_path / "weights", ignore=kept)
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("FASTEDIT_CACHE", str(tmp_path / "cache"))
    assert not (mini_path("mini") / "controlnet-seg").exists() and not diagnose("mini-seg").ok


@pytest.mark.parametrize("model", ["mini", "mini-s"])
def test_without_a_word_a_map_brings_back_outlines_and_nouns(model):
    parts = load_model(model, device="cpu", controlnet="mini-seg")
    scenes, reader = tr.held_out(12, 60_000)[0], load_reader()
    without, held = (
        tr.segment_agreement(parts, scenes, reader, s, guidance=1.0 if model == "mini" else 2.0)
        for s in (0.0, 1.0)
    )
    assert held["outline"] > 0.85 and held["outline"] > without["outline"] + 0.3
    assert without["noun"] <= 0.1 and held["noun"] >= 0.25


def test_the_target_of_a_map_is_drawn_where_a_user_painted_it():
    edit, editor = sample_edit(2, 4), FastEditor("mini", controlnet="mini-seg")
    source, want = Image.fromarray(edit.source_image()), edit.target_image()

    def off(control):
        r = editor(source, edit.target_prompt, method="img2img-4", control=control)
        return np.abs(np.asarray(r.image, float) - want)[edit.mask()].mean()

    assert off(Image.fromarray(scene_segments(edit.target))) < off("none")


def test_the_command_with_both_equals_the_python_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene = sample_scene(5)
    Image.fromarray(render(scene)).save("a.png")
    Image.fromarray(scene_segments(scene)).save("map.png")
    args = "--model mini --controlnet mini-canny --controlnet mini-seg --control canny"
    args += " --control seg:map.png --control-scale .5 --control-scale .7 --seed 3"
    done = CliRunner().invoke(app, ["edit", "a.png", "a red ball", "-o", "b.png", *args.split()])
    assert done.exit_code == 0, done.output
    r = FastEditor("mini", controlnet=BOTH)(
        "a.png", "a red ball", control=["canny", "seg:map.png"], control_scale=(0.5, 0.7), seed=3
    )
    assert r.control_nfe == 16
    assert np.array_equal(np.asarray(Image.open("b.png").convert("RGB")), np.asarray(r.image))


def test_only_the_stem_is_trained_and_it_goes_on_from_the_packages(tmp_path, monkeypatch):
    from fastedit.training import control, teacher
    from safetensors.torch import load_file

    drawn = np.stack([render(sample_scene(i), 64) for i in range(8)])
    monkeypatch.setattr(teacher, "pictures", lambda state, quiet=False: drawn)
    monkeypatch.setattr(control, "Judge", lambda state, n: tr.Judge(state, 2))
    net = tr.train_controlnet_seg(tmp_path, steps=1, batch=2, quiet=True)
    moved = load_file(tmp_path / "models" / "controlnet-seg" / "stem.safetensors")
    shipped = load_file(tr.shipped_part("controlnet-seg") / "stem.safetensors")
    assert moved.keys() == shipped.keys() and all(v.dtype == torch.float16 for v in moved.values())
    assert any(not torch.equal(moved[k], shipped[k]) for k in moved)
    assert max((moved[k] - shipped[k]).abs().max() for k in moved) < 0.02
    canny = load_model("mini").controlnet.state_dict()
    rest = {k: v for k, v in net.state_dict().items() if "cond_embedding" not in k}
    assert all(torch.equal(v, canny[k]) for k, v in rest.items())
    with open(tmp_path / "controlnet-seg.csv", newline="") as f:
        before, after = [int(r["step"]) for r in csv.DictReader(f)][-2:]
    assert after == before + 1
