"""Control: own pictures as maps, several ControlNets as stock's lists have them, and what does not
go together."""

import json
import numpy as np, pytest, torch
from PIL import Image
from typer.testing import CliRunner
from fastedit import EditRequest, FastEditor
from fastedit.cli import app
from fastedit.core import FastEditError, ImageError, MemoryPlanError, ModelError, OptionError
from fastedit.editor import take_control, weigh_edit
from fastedit.memory import predict_memory
from fastedit.models import joined, random_model
from fastedit.pictures import canny
from fastedit.world import render, sample_scene

A, B = (Image.fromarray(render(sample_scene(i), 64)) for i in (5, 6))
RAMP = Image.fromarray(np.linspace(0, 255, 64, dtype=np.uint8)[:, None].repeat(64, 1)).convert(
    "RGB"
)
SAME = dict(method="img2img", schedule="stock", steps=4, strength=0.75, guidance=1.5, seed=3)


def apart(a, b):
    return np.abs(np.asarray(a).astype(int) - np.asarray(b)).max()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    d = tmp_path_factory.mktemp("m")
    return [
        random_model(d / n, f, seed=s, channels=(16, 32, 32), width=16)
        for n, f, s in (("a", "sdxl", 0), ("b", "sdxl", 1), ("c", "sd15", 0), ("d", "sd15", 1))
    ]


def two(folders, family):
    a, b = folders[:2] if family == "sdxl" else folders[2:]
    return a, b / "controlnet"


def stock(folders, family, **kw):
    import diffusers

    diffusers.logging.disable_progress_bar()
    a, b = two(folders, family)
    kind = getattr(
        diffusers,
        "StableDiffusionXLControlNetImg2ImgPipeline"
        if family == "sdxl"
        else "StableDiffusionControlNetImg2ImgPipeline",
    )
    nets = [diffusers.ControlNetModel.from_pretrained(p) for p in (a / "controlnet", b)]
    p = kind.from_pretrained(
        a, controlnet=joined(nets), **(dict(safety_checker=None) if family == "sd15" else {})
    )
    p.set_progress_bar_config(disable=True)
    return p


def ask(pipe, **kw):
    return pipe(
        "a cup",
        image=A,
        strength=0.75,
        num_inference_steps=4,
        guidance_scale=1.5,
        generator=torch.Generator().manual_seed(3),
        height=64,
        width=64,
        **kw,
    ).images[0]


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
@pytest.mark.parametrize("scales", [(0.5, 0.8), (1.0, 0.0)])
def test_several_controlnets_equal_the_stock_pipeline(folders, family, scales):
    a, b = two(folders, family)
    pipe = stock(folders, family)
    want = ask(pipe, control_image=[canny(A), RAMP], controlnet_conditioning_scale=list(scales))
    got = FastEditor(a, controlnet=["own", b])(
        A, "a cup", control=["canny", RAMP], control_scale=scales, **SAME
    )
    assert apart(want, got.image) <= 1 and got.control_nfe == got.nfe * sum(s > 0 for s in scales)
    lent = FastEditor(pipe)(A, "a cup", control=["canny", RAMP], control_scale=scales, **SAME)
    assert lent.image.tobytes() == got.image.tobytes()


def test_a_window_for_each_equals_stocks(folders):
    a, b = two(folders, "sdxl")
    want = ask(
        stock(folders, "sdxl"),
        control_image=[canny(A), RAMP],
        controlnet_conditioning_scale=[0.5, 0.8],
        control_guidance_start=[0.0, 0.0],
        control_guidance_end=[1.0, 0.4],
    )
    got = FastEditor(a, controlnet=["own", b])(
        A, "a cup", control=["canny", RAMP], control_scale=[0.5, "interval:.8:0:.4"], **SAME
    )
    assert apart(want, got.image) <= 1 and len(got.timesteps) == 3


def test_one_that_is_left_out_is_as_if_it_were_not_there(folders):
    a, b = two(folders, "sdxl")
    both = FastEditor(a, controlnet=["own", b])
    assert (
        both(A, "a cup", control=["canny", "none"], control_scale=0.7, **SAME).image.tobytes()
        == FastEditor(a)(A, "a cup", control="canny", control_scale=0.7, **SAME).image.tobytes()
    )
    assert both(A, "a cup", **SAME).control_nfe == 0 and both(
        A, "a cup", control="none", **SAME
    ).request.control == ("none", "none")


def test_blocks_of_each_and_the_order_count(folders):
    a, b = two(folders, "sdxl")
    e, f = FastEditor(a, controlnet=["own", b]), FastEditor(a, controlnet=[b, "own"])
    x = e(A, "a cup", control=["canny", RAMP], control_scale=[(1, 0.5, 0.2, 0.7), 0.8], **SAME)
    y = f(A, "a cup", control=[RAMP, "canny"], control_scale=[0.8, (1, 0.5, 0.2, 0.7)], **SAME)
    assert (
        apart(x.image, y.image) <= 1
        and x.revision != y.revision
        and EditRequest.from_json(x.request.json) == x.request
    )


@pytest.fixture(scope="module")
def ed(folders):
    return FastEditor(folders[0])


def test_an_own_picture_is_the_map(ed):
    a, b = (ed(A, "a cup", control=c, control_scale=1.0, **SAME) for c in ("canny", canny(A)))
    assert a.image.tobytes() == b.image.tobytes() and b.request.control.startswith("picture:")
    assert (
        ed(A, "a cup", control=canny(B), control_scale=1.0, **SAME).image.tobytes()
        != a.image.tobytes()
    )
    wide = ed(A.resize((128, 128), 0), "a cup", control=canny(A), control_scale=1.0, **SAME)
    assert wide.control_nfe


def test_maps_of_a_request_are_given_again(ed, tmp_path):
    canny(A).save(tmp_path / "edges.png")
    A.save(tmp_path / "a.png")
    first = ed(
        tmp_path / "a.png", "a cup", control=str(tmp_path / "edges.png"), control_scale=1.0, **SAME
    )
    assert (
        ed(A, request=first.request, control=tmp_path / "edges.png").image.tobytes()
        == first.image.tobytes()
    )
    with pytest.raises(OptionError, match="hash only"):
        ed(A, request=first.request)
    with pytest.raises(OptionError, match="not the one of the request"):
        ed(A, request=first.request, control=canny(B))
    assert all(
        e.image.tobytes() == first.image.tobytes()
        for e in ed.batch([dict(image=A, request=first.request, control=canny(A))] * 2, at_once=1)
    )


def test_own_maps_go_together_in_a_batch(ed):
    jobs = [dict(image=x, prompt="a cup", control=canny(x), control_scale=1.0) for x in (A, B)]
    for e, j in zip(ed.batch(jobs, at_once=2, **SAME), jobs):
        assert apart(e.image, ed(**j, **SAME).image) <= 1


@pytest.mark.parametrize(
    "kw, error, says",
    [
        (dict(control=["canny", "soft"]), OptionError, "one ControlNet"),
        (dict(control=[]), OptionError, "each ControlNet"),
        (dict(control="cany"), OptionError, "or a picture"),
        (dict(control=3), OptionError, "control=3"),
        (dict(control=RAMP.resize((64, 16))), ImageError, "same shape"),
        (dict(control="picture:0123"), OptionError, "hash only"),
    ],
)
def test_what_is_no_control_is_said(ed, kw, error, says):
    with pytest.raises(error, match=says):
        ed(A, "a cup", **kw)


def test_what_does_not_go_together_is_said(folders):
    a, b = two(folders, "sdxl")
    e = FastEditor(a, controlnet=["own", b])
    for kw, says in (
        (dict(control="canny"), "2 ControlNets"),
        (dict(control=["canny"] * 3), "2 ControlNets"),
        (dict(control=["canny", RAMP], control_scale=[1, 2, 3]), "control_scale has 3"),
        (dict(control=["canny", RAMP], control_scale=[(1, 2), 1]), "has 2 values"),
    ):
        with pytest.raises(OptionError, match=says):
            e(A, "a cup", **kw)
    for bad in ([], ["own", None], ["own", folders[3] / "controlnet"]):
        with pytest.raises(ModelError):
            FastEditor(a, controlnet=bad)


def test_names_stay_and_pictures_become_hashes(tmp_path):
    assert take_control("canny") == ("canny", {}) and take_control(None) == (None, {})
    names, found = take_control(["soft", RAMP, np.asarray(RAMP)])
    assert names[1] == names[2] and list(found) == [names[1]]
    (tmp_path / "x.png").write_bytes(b"no")
    with pytest.raises(FastEditError):
        take_control(tmp_path / "x.png")


def test_the_command_takes_pictures_and_several(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    A.save("a.png")
    RAMP.save("ramp.png")
    a, b = two(folders, "sdxl")

    def run(*args):
        return CliRunner().invoke(app, [str(x) for x in args])

    r = run(
        "edit",
        "a.png",
        "a cup",
        "-o",
        "b.png",
        "--model",
        a,
        "--method",
        "img2img",
        "--steps",
        2,
        "--controlnet",
        "own",
        "--controlnet",
        b,
        "--control",
        "canny",
        "--control",
        "ramp.png",
        "--control-scale",
        ".5",
        "--control-scale",
        "interval:.8:0:.5",
    )
    assert r.exit_code == 0, r.output
    q = EditRequest.from_png("b.png")
    assert q.control[0] == "canny" and q.control_scale == (0.5, "interval:.8:0:.5")
    assert (
        run(
            "edit",
            "a.png",
            "a cup",
            "-o",
            "c.png",
            "--model",
            a,
            "--control",
            "ramp.png",
            "--steps",
            1,
        ).exit_code
        == 0
    )
    r = run("reproduce", "c.png", "--model", a, "--control", "ramp.png")
    assert r.exit_code == 0 and "bit-identical" in r.stdout, r.output
    r = run("edit", "a.png", "a cup", "-o", "d.png", "--model", a, "--control", "rmap.png")
    assert r.exit_code == 2 and "rmap.png" in r.output


# --- memory of several
def test_each_one_is_planned(folders):
    a, b = two(folders, "sdxl")
    one, more = (predict_memory(a, "fp32", controlnet=c) for c in (True, ["own", b]))
    assert more.weights == one.weights | dict(controlnet_2=one.weights["controlnet"])
    loaded = FastEditor(a, controlnet=["own", b])
    assert predict_memory(loaded.parts, "fp32").weights == more.weights
    total = sum(more.weights[k] for k in ("controlnet", "controlnet_2"))
    assert loaded.parts.weight_bytes()["controlnet"] == total
    denoise = [p.stages[-2] for p in (one, more)]
    assert denoise[1].weights - denoise[0].weights == one.weights["controlnet"]
    assert denoise[1].carried > denoise[0].carried


@pytest.mark.parametrize("n", [1, 2, 3])
def test_what_several_take_is_what_was_predicted(folders, n):
    a, b = two(folders, "sdxl")
    editor = FastEditor(a, controlnet=["own", b, b][:n] if n > 1 else True, residency="resident")
    maps = [RAMP, B, canny(B)][:n]
    how = dict(control=maps if n > 1 else RAMP, size=(128, 128), control_scale=0.5)
    found = weigh_edit(editor, A, "a cup", method="img2img", steps=2, **how)
    denoise = next(s for s in found["stages"] if s["stage"] == "denoise")
    assert 0.95 < denoise["ratio"] < 1.25


def test_a_budget_holds_for_several(folders):
    a, b = two(folders, "sdxl")
    editor = FastEditor(a, controlnet=["own", b], residency="auto", budget_gb=4)
    assert editor(A, "a cup", control=["canny", RAMP], control_scale=0.5, **SAME).control_nfe
    with pytest.raises(MemoryPlanError, match="needs"):
        FastEditor(a, controlnet=["own", b], residency="resident", budget_gb=0.5)


def test_a_plan_names_each(capsys):
    done = CliRunner().invoke(
        app,
        ["plan", "--model", "sdxl", "--budget", "24", "--precision", "fp16", "--json"]
        + ["--controlnet", "canny-sdxl-small", "--controlnet", "depth-sdxl", "-q"],
    )
    alone = CliRunner().invoke(app, ["plan", "--model", "sdxl", "--budget", "24", "--json", "-q"])
    a, b = (json.loads(d.stdout)["chosen"] for d in (done, alone))
    assert a["stages"][2]["weights"] - b["stages"][2]["weights"] == 2 * 1_251_014_160
    done = CliRunner().invoke(app, ["plan", "--controlnet", "canny-sdx", "-q"])
    assert "did you mean" in done.stderr and done.exit_code
    done = CliRunner().invoke(app, ["plan", "--controlnet", "canny-sdxl", "--no-controlnet", "-q"])
    assert "give one of them" in done.stderr and done.exit_code
