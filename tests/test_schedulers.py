"""Schedulers of diffusers by name: stock's own pictures, honest steps, and refusals where they
could not step."""

import diffusers, numpy as np, pytest, torch
from PIL import Image
from typer.testing import CliRunner
from fastedit import EditRequest, FastEditor
from fastedit.cli import app
from fastedit.core import OptionError
from fastedit.denoise import SCHEDULERS, Sampler, make_scheduler, scheduler_key
from fastedit.models import random_model
from fastedit.world import render, sample_scene

A = Image.fromarray(render(sample_scene(5), 64))
SAME = dict(method="img2img", steps=5, strength=0.6, guidance=3.0, seed=3)
OWN = dict(pndm=("PNDMScheduler", {}), deis=("DEISMultistepScheduler", {}))


def apart(a, b):
    return np.abs(np.asarray(a).astype(int) - np.asarray(b)).max()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_model(
        tmp_path_factory.mktemp("m") / "sd", "sd15", channels=(16, 32, 32), width=16
    )


@pytest.fixture(scope="module")
def pipe(folder):
    diffusers.logging.disable_progress_bar()
    p = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None)
    p.set_progress_bar_config(disable=True)
    return p


@pytest.fixture(scope="module")
def editor(folder):
    return FastEditor(folder, controlnet=False)


def stock(pipe, **kw):
    asked = dict(image=A, strength=0.6, guidance_scale=3.0, num_inference_steps=5) | kw
    return pipe("a cup", generator=torch.Generator().manual_seed(3), **asked).images[0]


@pytest.mark.parametrize("key", [*SCHEDULERS, *OWN])
def test_a_swapped_scheduler_is_the_one_that_steps_as_in_the_stock_pipeline(
    pipe, editor, folder, key
):
    cls, more = (SCHEDULERS | OWN)[key]
    lcm = diffusers.LCMScheduler.from_pretrained(folder / "scheduler")
    pipe.scheduler = getattr(diffusers, cls).from_config(lcm.config, **more)
    want = stock(pipe)
    lent = FastEditor(pipe)(A, "a cup", schedule="stock", **SAME)
    assert apart(lent.image, want) <= 1
    assert lent.request.scheduler == (None if key == "lcm" else "own")
    if key in OWN:
        return
    named = editor(A, "a cup", schedule="stock", scheduler=key, **SAME)
    assert apart(named.image, want) <= 1 and named.timesteps == lent.timesteps


def test_eta_is_stocks(pipe, editor, folder):
    config = diffusers.LCMScheduler.from_pretrained(folder / "scheduler").config
    pipe.scheduler = diffusers.DDIMScheduler.from_config(config)
    got = editor(A, "a cup", schedule="stock", scheduler="ddim", options=dict(eta=0.7), **SAME)
    assert apart(got.image, stock(pipe, eta=0.7)) <= 1 < apart(got.image, stock(pipe))


@pytest.mark.parametrize("key", SCHEDULERS)
def test_honest_steps_run_as_many_as_were_asked_for(editor, key):
    e = editor(A, "a cup", scheduler=key, **SAME)
    assert len(e.timesteps) == 5 and e.nfe == 10 and e.timesteps[0] <= 620
    assert list(e.timesteps) == sorted(e.timesteps, reverse=True)


def test_a_mask_keeps_the_rest(editor):
    mask = np.zeros((64, 64), np.float32)
    mask[16:48, 16:48] = 1
    e = editor(A, "a cup", scheduler="dpmpp", mask=mask, **SAME)
    got, source = np.asarray(e.image), np.asarray(e.source)
    assert (got[:16] == source[:16]).all() and (got[20:44, 20:44] != source[20:44, 20:44]).any()


def test_several_in_one_call_are_the_single_ones(editor):
    how = dict(SAME, scheduler="euler_a", seed=0)
    both = editor(A, "a cup", seeds=[1, 2], at_once=2, **{k: how[k] for k in how if k != "seed"})
    for e, seed in zip(both, (1, 2)):
        assert apart(e.image, editor(A, "a cup", **(how | dict(seed=seed))).image) <= 1


@pytest.mark.parametrize("method", ["ddcm", "edit_friendly", "ddim", "turbo"])
def test_a_method_with_steps_of_its_own_refuses(editor, method):
    with pytest.raises(OptionError, match="formula of its own.*img2img"):
        editor(A, "a cup", method=method, scheduler="dpmpp")


@pytest.mark.parametrize(
    "kw, says",
    [
        (dict(scheduler="dpmp"), "meant.*dpmpp|unknown.*dpmpp"),
        (dict(scheduler=3), "scheduler=3"),
        (dict(scheduler="ddim", options=dict(sampler="dpmpp")), "both say who steps"),
        (dict(scheduler="ddim", schedule="stock", strength=0.1), "no step at all"),
        (dict(scheduler="lcm", steps=60), "no 60 times"),
    ],
)
def test_what_cannot_be_is_said(editor, kw, says):
    with pytest.raises(OptionError, match=says):
        editor(A, "a cup", **(SAME | kw))


def test_a_pipelines_scheduler_that_cannot_step_is_named_in_a_note(pipe, folder):
    config = diffusers.LCMScheduler.from_pretrained(folder / "scheduler").config
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config)
    e = FastEditor(pipe)(A, "a cup", method="ddcm", steps=2)
    assert any("DPMSolverMultistepScheduler does not step" in n for n in e.notes)
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(config)
    with pytest.raises(OptionError, match="twice a step"):
        FastEditor(pipe)(A, "a cup", **SAME)
    chosen = FastEditor(pipe)(A, "a cup", options=dict(sampler="dpmpp"), **SAME)
    assert chosen.request.scheduler is None


def test_class_names_are_read_and_a_request_keeps_it(editor, tmp_path):
    assert scheduler_key("EulerDiscreteScheduler") == "euler"
    e = editor(A, "a cup", scheduler="TCDScheduler", **SAME)
    e.save(tmp_path / "a.png")
    assert EditRequest.from_png(tmp_path / "a.png") == e.request and e.request.scheduler == "tcd"
    assert editor(A, request=e.request).image.tobytes() == e.image.tobytes()


def test_settings_of_the_own_scheduler_count():
    base = dict(_class_name="EulerDiscreteScheduler", beta_start=0.00085, beta_end=0.012)
    a, b = (
        Sampler(base | dict(timestep_spacing=s), "own", 4).times for s in ("leading", "trailing")
    )
    assert a != b and make_scheduler(base | dict(strange=1), "dpmpp").config.beta_end == 0.012


def test_the_command_line_takes_it(tmp_path):
    A.save(tmp_path / "a.png")
    call = ["edit", str(tmp_path / "a.png"), "a cup", "-o", str(tmp_path / "b.png"), "--method"]
    run = CliRunner().invoke(app, [*call, "img2img", "--scheduler", "unipc", "--steps", "2", "-q"])
    assert run.exit_code == 0, run.output
    assert EditRequest.from_png(tmp_path / "b.png").scheduler == "unipc"
    assert CliRunner().invoke(app, [*call, "ddcm", "--scheduler", "unipc"]).exit_code == 2
