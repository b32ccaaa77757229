"""Every method against what its formula promises, on small models with random weights: SDXL- and
SD1.5-shaped, with a guidance embedding, epsilon and v prediction."""

import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from fastedit.core import Cancelled, FastEditError, ModelError, OptionError
from fastedit.denoise import Denoiser, Noise
from fastedit.editor import FastEditor
from fastedit.methods import DEFAULT_METHOD
from fastedit.methods.base import (
    STEPPERS,
    Job,
    changed_region,
    check_model,
    check_options,
    cost,
    find_method,
    many_grid,
    method_names,
    pairs,
    posterior,
    work,
)
from fastedit.methods import check_files
from fastedit.models import ARCHITECTURES, MODELS, find_spec, load_model, random_model
from fastedit.denoise import NoiseSchedule, even_grid, lcm_grid
from shared import instruct_folder

torch.set_num_threads(1)
SRC, TGT = "a red ball on a meadow", "a blue ball on a meadow"


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    "Loaded random models by name."
    d = tmp_path_factory.mktemp("models")
    teacher = dict(_class_name="DDIMScheduler")
    m = {
        k: load_model(str(random_model(d / k, **kw)), device="cpu")
        for k, kw in dict(sdxl={}, sd15=dict(family="sd15"), w=dict(w_embedding=True)).items()
    }
    for k in ("sdxl", "sd15"):
        m[f"{k}-many"] = replace(m[k], scheduler=dict(m[k].scheduler, **teacher))
    m["v"] = replace(m["sdxl"], scheduler=dict(m["sdxl"].scheduler, prediction_type="v_prediction"))
    m["v-many"] = replace(m["v"], scheduler=dict(m["v"].scheduler, **teacher))
    return m


def z0_of(n=1, seed=5):
    return torch.randn(n, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.8


def make_job(
    parts,
    key,
    src=SRC,
    tgt=TGT,
    z0=None,
    seeds=(3,),
    steps=None,
    strength=None,
    guidance=1.0,
    source_guidance=1.0,
    edges=None,
    control=0.0,
    mask=None,
    on_step=None,
    **options,
):
    m = find_method(key)
    d = Denoiser(parts, edges)
    z0 = z0_of(len(seeds)) if z0 is None else z0
    o = check_options(m, options)
    grid = m.times(steps or m.steps, strength or m.strength, d.consistent, **o)
    return m, Job(
        d,
        z0,
        d.text(tgt),
        d.text(src),
        grid,
        Noise(seeds, z0.shape[1:]),
        [guidance] * len(grid),
        source_guidance,
        [control] * len(grid),
        mask,
        o,
        on_step,
        (src, tgt),
    )


@torch.no_grad()
def run(parts, key, **kw):
    m, job = make_job(parts, key, **kw)
    return m(job), job


def edges_of(seed=0):
    return (torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) > 0.8).float()


# ---- shared arithmetic


def test_posterior_equals_diffusers_and_is_exact_on_the_forward_process():
    from diffusers import DDPMScheduler

    s = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="leading",
    )
    s.set_timesteps(10)
    g = torch.Generator().manual_seed(0)
    x, e = torch.randn(1, 4, 4, 4, generator=g), torch.randn(1, 4, 4, 4, generator=g)
    sched = NoiseSchedule()
    x0 = sched.split(e, x, 500)[1]
    mu, sigma = posterior(sched, x, x0, 500, 400)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(
        s.step(e, 500, x, generator=torch.Generator().manual_seed(9)).prev_sample,
        mu + sigma * noise,
        rtol=1e-4,
        atol=1e-4,
    )
    # averaged over x ~ q(x|x0), the posterior has the deviation of the earlier time
    for sched in (
        NoiseSchedule(),
        NoiseSchedule(beta_schedule="flow", prediction="flow"),
    ):
        z = torch.zeros(4000, 1, 1, 1)
        n = torch.randn(z.shape, generator=g)
        mu, sigma = posterior(sched, sched.noised(z, n, 699), z, 699, 299)
        assert (
            abs((mu + sigma * torch.randn(z.shape, generator=g)).std() - sched.levels(299)[1])
            < 0.03
        )


def test_grids():
    assert pairs((9, 5)) == [(9, 5), (5, -1)]
    assert (
        many_grid(4, 1.0, True) == lcm_grid(4)
        and many_grid(4, 1.0) == even_grid(4)
        and many_grid(64, 0.64) == tuple(range(639, -1, -10))
    )
    with pytest.raises(OptionError, match="fewer than"):
        many_grid(50, 0.01)


def test_changed_region_finds_the_change_and_nothing_in_nothing():
    m = torch.zeros(2, 1, 8, 8)
    m[0, :, 2:5, 2:5] = 1
    r = changed_region(m)
    assert r[0, 0, 3, 3] == 1 and r[0, 0, 7, 7] == 0 and r[1].sum() == 0


# ---- few-step methods

FEW = ("ddcm", "chord", "turbo", "edit_friendly")
SMALL = dict(edit_friendly=dict(steps=4, strength=1.0), chord=dict(proximal=False))


@pytest.mark.parametrize("model", ["sdxl", "sd15", "w", "v"])
@pytest.mark.parametrize("key", FEW)
@pytest.mark.parametrize("guidance", [1.0, 1.7])
def test_equal_prompts_return_the_source(models, key, model, guidance):
    z, job = run(
        models[model],
        key,
        tgt=SRC,
        guidance=guidance,
        source_guidance=guidance,
        **SMALL.get(key, {}),
    )
    assert (z - job.z0).abs().max() < 1e-4
    other, _ = run(
        models[model], key, guidance=guidance, source_guidance=guidance, **SMALL.get(key, {})
    )
    assert (other - job.z0).abs().max() > 1e-3  # the prompts do matter


@pytest.mark.parametrize("key", FEW)
def test_equal_prompts_with_controlnet(models, key):
    kw = dict(SMALL.get(key, {}), edges=edges_of(), control=0.7)
    z, job = run(models["sdxl"], key, tgt=SRC, **kw)
    assert (z - job.z0).abs().max() < 1e-4 and job.d.count.control_nfe == job.d.count.nfe
    a, _ = run(models["sdxl"], key, **kw)
    b, _ = run(models["sdxl"], key, **dict(kw, control=0.0))
    assert (a - b).abs().max() > 1e-4


def test_edit_friendly_is_turbo_without_shift_and_guidance(models):
    for m in ("sdxl", "sd15", "w", "v"):
        a, _ = run(models[m], "edit_friendly", steps=4, strength=1.0)
        b, _ = run(models[m], "turbo", steps=4, shift=0.0, w=1.0)
        assert (a - b).abs().max() < 1e-4


def test_turbo_limit_gives_up_the_source_and_w_scales_the_edit(models):
    z, job = run(models["sdxl"], "turbo", tgt=SRC, limit=0.01)
    assert (z - job.z0).abs().max() > 1e-3
    z, job = run(models["sdxl"], "turbo", w=0.0)
    assert (z - job.z0).abs().max() < 1e-4


def test_chord_without_length_asks_at_one_time(models):
    z, job = run(models["sdxl"], "chord", d=0.0, proximal=False)
    d, n = job.d, Noise((3,), (4, 16, 16))()
    x = d.schedule.noised(job.z0, n, 899)
    want = job.z0 + d.clean(x, 899, job.target) - d.clean(x, 899, job.source)
    assert job.grid == (899,) and (z - want).abs().max() < 1e-4
    z, job = run(models["sdxl"], "chord", proximal=False)
    assert job.grid == (899, 749)
    x, y = (d.schedule.noised(job.z0, n, t) for t in job.grid)
    D = [d.clean(v, t, job.target) - d.clean(v, t, job.source) for v, t in ((x, 899), (y, 749))]
    assert (z - (job.z0 + (0.15 * D[0] + 0.9 * D[1]) / 1.05)).abs().max() < 1e-4


@pytest.mark.parametrize("region", ["given", "model", "words"])
@pytest.mark.parametrize("model", ["sdxl", "sd15", "v", "sd15-many"])
def test_instant_edit_returns_the_source_under_equal_prompts(models, model, region):
    kw = dict(guidance=1.7, edges=edges_of(), control=0.4, region=region)
    z, job = run(models[model], "instant_edit", tgt=SRC, **kw)
    assert (z - job.z0).abs().max() < 1e-4 and job.d.count.control_nfe == job.d.count.nfe == 20
    other, _ = run(models[model], "instant_edit", **kw)
    assert (other - job.z0).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(dgp=1.0), "no option 'dgp'.*dpg"),
        (dict(dpg=-1.0), "dpg=-1.0.*from 0"),
        (dict(region="word"), "region='word'.*words"),
        (dict(threshold=1.5), "threshold=1.5"),
    ],
)
def test_instant_edit_refuses_bad_options_in_words(options, words):
    with pytest.raises(OptionError, match=words):
        check_options(find_method("instant_edit"), options)


def test_instant_edit_needs_the_unconditional_half(models):
    with pytest.raises(ModelError, match="unconditional half"):
        check_model(find_method("instant_edit"), models["w"])


@pytest.mark.parametrize("key", (*FEW, "instant_edit"))
def test_regions(models, key):
    kw = SMALL.get(key, {})
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    for region in ("given", "model", "words"):
        z, job = run(models["sdxl"], key, mask=mask, region=region, **kw)
        assert (
            torch.allclose(z[..., 8:], job.z0[..., 8:], atol=1e-5)
            and (z - job.z0).abs().max() > 1e-3
        ), region
        if region != "given":
            assert (
                job.found is not None
                and ((z - job.z0).abs().amax(1, keepdim=True) * (job.found == 0)).max() < 1e-4
            )
    assert all(
        type(p).__name__ == "AttnProcessor2_0" for p in models["sdxl"].unet.attn_processors.values()
    )


# ---- many-step methods

OFF = dict(cross_until=0.0, self_until=0.0, weight=1.0, blend=False)
MANY = ("ddim", "p2p", "direct", "negative_prompt_inversion", "null_text", "masactrl", "pnp")


@pytest.mark.parametrize("model", ["sdxl-many", "sd15-many", "v-many", "w"])
def test_p2p_without_control_is_ddim(models, model):
    kw = dict(steps=3, guidance=3.0)
    a, ja = run(models[model], "ddim", **kw)
    b, _ = run(models[model], "p2p", **kw, **OFF)
    assert (a - b).abs().max() < 1e-4 * a.abs().max()
    c, _ = run(models[model], "p2p", **kw, cross_until=0.8, self_until=0.8)
    assert (a - c).abs().max() > 1e-2
    d, _ = run(models[model], "direct", **kw, **OFF)
    assert (a - d).abs().max() < 1e-4 * a.abs().max()  # the target branch is left alone


@pytest.mark.parametrize("model", ["sdxl-many", "sd15-many", "v-many"])
def test_null_text_with_no_iterations_is_p2p(models, model):
    a, ja = run(models[model], "p2p", steps=3, guidance=3.0)
    b, jb = run(models[model], "null_text", steps=3, guidance=3.0, iterations=0)
    assert torch.equal(a, b) and ja.d.count.nfe == jb.d.count.nfe
    c, _ = run(models[model], "null_text", steps=3, guidance=3.0, iterations=3)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("model", ["sdxl-many", "sd15-many"])
def test_null_text_and_direct_hold_the_source_better_than_ddim(models, model):
    from fastedit.methods.base import ddim as step_to
    from fastedit.methods.ddim import invert
    from fastedit.methods.null_text import optimise_null

    with torch.no_grad():
        _, job = make_job(models[model], "null_text", tgt=SRC, steps=6, strength=0.6, guidance=3.0)
        path = invert(job)
        nulls = optimise_null(job, path)

        def back(negatives=None, restore=False):
            x = path[0]
            for i, (t, prev) in enumerate(pairs(job.grid)):
                if restore:
                    x = path[i]
                e, z = job.d.eps_x0(
                    x,
                    t,
                    job.source,
                    3.0,
                    **({} if negatives is None else dict(negative=negatives[i][[0]])),
                )
                x = step_to(job.d.schedule, z, e, prev)
            return (x - job.z0).pow(2).mean().item()

        plain, null, direct = back(), back(nulls), back(restore=True)
    assert null < plain and direct < plain
    kw = dict(tgt=SRC, steps=6, strength=0.6, guidance=3.0)
    e = {
        k: (run(models[model], k, **kw)[0] - job.z0).pow(2).mean().item()
        for k in ("ddim", "null_text", "direct")
    }
    # as a user calls them: no word differs, so the source branch comes back
    assert e["null_text"] < e["ddim"] and e["direct"] < 1e-8


def test_negative_prompt_inversion_cancels_guidance_on_the_source_branch(models):
    a, _ = run(
        models["sdxl-many"], "negative_prompt_inversion", tgt=SRC, steps=4, guidance=7.0, **OFF
    )
    b, _ = run(models["sdxl-many"], "ddim", tgt=SRC, steps=4, guidance=1.0)
    assert (a - b).abs().max() < 1e-3 * b.abs().max()


def test_renoise_solves_its_step(models):
    def residual(k):
        _, job = run(models["sdxl"], "renoise", tgt=SRC, steps=2, strength=0.3, iterations=k)
        return job

    errors = []
    for k in (0, 9):
        z, job = run(models["sdxl"], "renoise", tgt=SRC, steps=2, strength=0.2, iterations=k)
        errors.append((z - job.z0).pow(2).mean().item())
    assert errors[1] < errors[0]


def test_masactrl_and_pnp_share_what_they_say(models):
    base, _ = run(models["sdxl-many"], "masactrl", steps=4, guidance=2.0, from_step=4)
    assert (
        run(models["sdxl-many"], "masactrl", steps=4, guidance=2.0, from_step=0)[0] - base
    ).abs().max() > 1e-3
    base, _ = run(models["sdxl-many"], "pnp", steps=4, guidance=2.0, features=0.0, attention=0.0)
    for kw in (dict(features=0.8, attention=0.0), dict(features=0.0, attention=0.5)):
        assert (
            run(models["sdxl-many"], "pnp", steps=4, guidance=2.0, **kw)[0] - base
        ).abs().max() > 1e-3


def test_uac_returns_the_source_for_equal_prompts_and_differs_from_ddcm(models):
    for m in ("sdxl", "sd15", "w"):
        z, job = run(models[m], "ddcm", uac=True, tgt=SRC)
        assert (z - job.z0).abs().max() < 1e-4
        a, b = run(models[m], "ddcm", uac=True, blend=False)[0], run(models[m], "ddcm")[0]
        assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", ["dpmpp", "tcd", "lcm", "ddpm"])
def test_samplers_reach_a_known_answer(models, sampler):
    "With a network that knows the answer, every sampler ends at it."
    sc, z0, noise, x, memory = NoiseSchedule(), z0_of(), Noise((1,), (4, 16, 16)), None, None
    grid = even_grid(8)
    x = sc.noised(z0, noise(), grid[0])
    for t, prev in pairs(grid):
        a, s = sc.levels(t)
        x, memory = STEPPERS[sampler](sc, x, (x - a * z0) / s, z0, t, prev, memory, noise)
        if prev >= 0:
            a, s = sc.levels(prev)
            assert abs(((x - a * z0) / s).std() - 1) < 0.12  # the noise level is that of the time
    assert (x - z0).abs().max() < 1e-4


def test_dpmpp_equals_diffusers(models):
    from diffusers import DPMSolverMultistepScheduler

    s = DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    s.set_timesteps(6)
    grid, sc, memory = even_grid(6), NoiseSchedule(), None
    assert tuple(s.timesteps.tolist()) == grid
    x = y = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    f = lambda x, t: torch.tanh(x) * (t / 1000)
    for t, prev in pairs(grid):
        e, z = sc.split(f(x, t), x, t)
        x, memory = STEPPERS["dpmpp"](sc, x, e, z, t, prev, memory, None)
        y = s.step(f(y, t), t, y).prev_sample
    torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)


# ---- every method

ALL = method_names()


def small(key):
    return (
        dict(steps=3, strength=1.0)
        if find_method(key).steps > 5
        else dict(steps=2)
        if key == "renoise"
        else {}
    )


def model_for(models, key, kind):
    name = kind + (
        "-many" if not find_method(key).few_step and kind in ("sdxl", "sd15", "v") else ""
    )
    return models[name]


OPTIONS = dict(null_text=dict(iterations=2), renoise=dict(iterations=2))


@pytest.fixture(scope="session")
def instruct_model(tmp_path_factory):
    "A random 8-channel model."
    from fastedit.models import tiny_configs, clip_tokenizer

    d = tmp_path_factory.mktemp("instruct")
    c = tiny_configs("sdxl", vocab=clip_tokenizer(d / "tok"))
    c["unet"] = c["unet"][0], dict(c["unet"][1], in_channels=8)
    c.pop("controlnet")
    p = load_model(str(random_model(d / "m", configs=c)), device="cpu", controlnet=False)
    return replace(p, scheduler=dict(p.scheduler, _class_name="DDIMScheduler"))


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_models_own_files_say_which_methods_it_takes(tmp_path, form):
    from safetensors.torch import save_file

    place = Path(instruct_folder(tmp_path))
    for f in place.rglob("*.safetensors"):
        f.write_bytes(b"")  # no weight can be read
    if form == "file":  # with the folder of its name beside it
        place = place.with_suffix(".safetensors")
        keys = "model.diffusion_model.a", "conditioner.embedders.0.transformer.a"
        save_file({k: torch.ones(1) for k in keys}, place)
    spec = find_spec(place)
    check_files(find_method("instruct"), spec)
    with pytest.raises(ModelError, match="needs a UNet with 4 input channels.* has 8: use 'inst"):
        check_files(find_method("ddcm"), spec)


def test_instructions_are_followed_as_by_the_stock_pipeline(instruct_model):
    from diffusers import DDIMScheduler, StableDiffusionXLInstructPix2PixPipeline

    p, told = instruct_model, "make the ball blue"
    kept = "beta_start", "beta_end", "beta_schedule", "set_alpha_to_one"
    times = {k: p.scheduler[k] for k in kept}
    pipe = StableDiffusionXLInstructPix2PixPipeline(
        vae=p.vae,
        text_encoder=p.text_encoder,
        text_encoder_2=p.text_encoder_2,
        tokenizer=p.tokenizer,
        tokenizer_2=p.tokenizer_2,
        unet=p.unet,
        scheduler=DDIMScheduler(**times, timestep_spacing="trailing", clip_sample=False),
        force_zeros_for_empty_prompt=True,
    )
    pipe.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    asked = dict(
        z0=Denoiser(p).encode(picture * 2 - 1), src="", tgt=told, steps=4, image_guidance=1.5
    )
    ours, _ = run(p, "instruct", guidance=3.0, **asked)
    stock = pipe(
        told,
        image=picture,
        latents=make_job(p, "instruct", **asked)[1].noise(),
        num_inference_steps=4,
        guidance_scale=3.0,
        image_guidance_scale=1.5,
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, stock, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("key", ALL)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_counted_cost_is_the_registry_s(models, instruct_model, key, guidance):
    for kind in ("sdxl", "w") if guidance == 2 else ("sd15",):
        parts = instruct_model if key == "instruct" else model_for(models, key, kind)
        m = find_method(key)
        try:
            check_model(m, parts)
        except ModelError:
            continue
        for extra in (
            [{}, dict(uac=True)]
            if key == "ddcm"
            else [{}, dict(regularise=1, ancestral=True, iterations=9)]
            if key == "renoise"
            else [{}, dict(d=0.0), dict(proximal=False)]
            if key == "chord"
            else [{}]
        ):
            for g_src in (1.0, 2.0) if key in ("ddcm", "edit_friendly") else (2.0,):
                z, job = run(
                    parts,
                    key,
                    guidance=guidance,
                    source_guidance=g_src,
                    **small(key),
                    **{**OPTIONS.get(key, {}), **extra},
                )
                pairs_ = not job.d.uses_w
                lo, hi = cost(
                    m,
                    small(key).get("steps", m.steps),
                    pairs_ and guidance != 1,
                    pairs_ and g_src != 1,
                    times=job.grid,
                    **job.options,
                )
                assert lo <= job.d.count.nfe <= hi, (kind, extra, lo, hi, job.d.count.nfe)
                # how soon an optimisation is done, what a pipeline asks for: not known before
                assert lo == hi or key in ("null_text", "leditspp")
                if z is not None:
                    assert torch.isfinite(z).all() and z.shape == job.z0.shape


@pytest.mark.parametrize(
    "key", [k for k in ALL if k not in ("leditspp", "identity", "vae", "instruct")]
)
def test_one_seed_gives_one_picture_alone_or_in_a_batch(models, key):
    parts = model_for(models, key, "sdxl")
    z0 = z0_of(3)
    kw = dict(guidance=1.5, **small(key), **OPTIONS.get(key, {}))
    together, _ = run(parts, key, z0=z0, seeds=(7, 8, 9), **kw)
    for i in (2, 0):  # in whatever order
        alone, _ = run(parts, key, z0=z0[[i]], seeds=((7, 8, 9)[i],), **kw)
        assert (alone - together[[i]]).abs().max() < 1e-4 * max(1, alone.abs().max().item())


def fingerprint(parts):
    "What a method could leave behind in a UNet."
    return (
        {k: id(p) for k, p in parts.unet.attn_processors.items()},
        [
            n
            for n, m in parts.unet.named_modules()
            if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks
        ],
        [n for n, _ in parts.unet.named_parameters()],
        any(p.grad is not None for p in parts.unet.parameters()),
        parts.unet.training,
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("key", [k for k in ALL if k not in ("identity", "vae")])
def test_cancelled_within_one_step_and_nothing_left_behind(models, instruct_model, key):
    parts = instruct_model if key == "instruct" else model_for(models, key, "sdxl")
    kw = dict(guidance=2.0, source_guidance=2.0, **small(key), **OPTIONS.get(key, {}))
    if "region" in find_method(key).options:
        kw["region"] = "words"
    steps = []
    before, (want, _) = fingerprint(parts), run(parts, key, on_step=steps.append, **kw)
    assert steps and {"step", "steps", "t", "latents", "clean", "phase"} <= set(steps[0])
    for stop in sorted({0, len(steps) // 2}):
        seen = []

        def cancel(s):
            seen.append(s)
            if len(seen) == stop + 1:
                raise Cancelled("enough")

        with pytest.raises(Cancelled):
            run(parts, key, on_step=cancel, **kw)
        assert len(seen) == stop + 1 and fingerprint(parts) == before
    after, _ = run(parts, key, **kw)
    assert torch.equal(want, after) and fingerprint(parts) == before


@pytest.mark.parametrize(
    "key", [k for k in ALL if k not in ("identity", "vae", "leditspp", "instruct")]
)
def test_controlnet_reaches_every_method(models, key):
    parts = model_for(models, key, "sdxl")
    kw = dict(guidance=2.0, **small(key), **OPTIONS.get(key, {}))
    a, _ = run(parts, key, **kw)
    b, job = run(parts, key, edges=edges_of(), control=0.8, **kw)
    assert (a - b).abs().max() > 1e-4 and job.d.count.control_nfe > 0 and torch.isfinite(b).all()


@pytest.mark.parametrize("key", [k for k in ALL if k not in ("identity", "vae", "leditspp")])
def test_given_mask_keeps_the_rest(models, instruct_model, key):
    parts = instruct_model if key == "instruct" else model_for(models, key, "sdxl")
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    z, job = run(parts, key, mask=mask, guidance=2.0, **small(key), **OPTIONS.get(key, {}))
    assert (z - job.z0)[..., 8:].abs().max() < 1e-3 and (z - job.z0)[..., :8].abs().max() > 1e-3


def test_leditspp_without_controlnet_only(models):
    with pytest.raises(OptionError, match="ControlNet"):
        run(models["sdxl-many"], "leditspp", edges=edges_of(), control=1.0, steps=3)


# ---- refusals


def test_impossible_combinations_are_refused_with_the_reason(models, instruct_model):
    for key, parts, why in (
        ("leditspp", models["sdxl"], "distilled for LCMScheduler"),
        ("instruct", models["sdxl"], "8 input channels"),
        ("ddcm", instruct_model, "4 input channels"),
        ("null_text", models["w"], "guidance as an input"),
        ("negative_prompt_inversion", models["w"], "guidance as an input"),
    ):
        with pytest.raises(ModelError, match=why):
            check_model(find_method(key), parts)
    assert (
        "no consistency model"
        in check_model(find_method("img2img"), models["sdxl-many"], dict(sampler="lcm"))[0]
        and "distilled for few"
        in check_model(find_method("img2img"), models["sdxl"], dict(sampler="dpmpp"))[0]
    )
    assert (
        "many steps" in check_model(find_method("ddim"), models["sdxl"])[0]
        and check_model(find_method("ddim"), models["sdxl-many"]) == ()
    )


@pytest.mark.parametrize(
    "key,bad",
    [
        ("turbo", dict(w=9.0)),
        ("turbo", dict(w="much")),
        ("turbo", dict(w=True)),
        ("ddcm", dict(region="here")),
        ("ddcm", dict(uac=1)),
        ("p2p", dict(nothing=1)),
        ("null_text", dict(iterations=1.5)),
        ("null_text", dict(iterations=-1)),
        ("ddim", dict(sampler="magic")),
        ("p2p", dict(words=3)),
    ],
)
def test_bad_options_are_refused(key, bad):
    with pytest.raises(OptionError, match=f"method {key!r}"):
        check_options(find_method(key), bad)


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(OptionError, match="null_text"):
        find_method("magic")


def test_registry_is_whole():
    for k in ALL:
        m = find_method(k)
        assert (
            m.key == k
            and m.title
            and check_options(m, {}) == {n: o.default for n, o in m.options.items()}
        )
        assert all(o.low is None or o.low <= o.default <= o.high for o in m.options.values())
        assert m.cite or k in ("identity", "vae")


# ---- through the editor


def test_every_method_through_the_editor(models):
    im = Image.fromarray((np.random.default_rng(0).random((64, 64, 3)) * 255).astype(np.uint8))
    editors = {kind: FastEditor(models[kind]) for kind in ("sdxl", "sdxl-many")}
    for kind, k in [("sdxl", "leditspp"), ("sdxl", "ddim")] + [
        ("sdxl" if find_method(k).few_step else "sdxl-many", k) for k in ALL
    ]:
        ed = editors[kind]
        if k == "instruct" or (k == "leditspp" and kind == "sdxl"):
            with pytest.raises(FastEditError):
                ed(im, TGT, source_prompt=SRC, method=k)
            continue
        r = ed(im, TGT, source_prompt=SRC, method=k, seed=3, **small(k), options=OPTIONS.get(k, {}))
        assert r.image.size == im.size and (k in ("identity", "vae")) == (r.nfe == 0)
        if k == "identity":
            assert np.array_equal(np.asarray(r.image), np.asarray(im))
        m = find_method(k)
        lo, hi = cost(
            m,
            r.request.steps,
            r.request.guidance != 1,
            r.request.source_guidance != 1,
            **r.request.options,
        )
        assert lo <= r.nfe <= hi
        if kind == "sdxl":
            again = ed(im, request=r.request)
            assert np.array_equal(np.asarray(r.image), np.asarray(again.image))


def test_a_found_region_is_pasted_back(models):
    im = Image.fromarray((np.random.default_rng(0).random((64, 64, 3)) * 255).astype(np.uint8))
    ed = FastEditor(models["sdxl"])
    for region, threshold in (("model", 0.95), ("words", 0.9999)):
        r = ed(
            im,
            TGT,
            source_prompt=SRC,
            method="ddcm",
            options=dict(region=region, threshold=threshold),
        )
        same = (np.asarray(r.image) == np.asarray(im)).all(-1)
        assert same.any() and not same.all()
    r = ed(im, SRC, source_prompt=SRC, method="ddcm", guidance=1.0, options=dict(region="model"))
    assert np.array_equal(np.asarray(r.image), np.asarray(im))


# --- what a run asks, told before it begins


@lru_cache
def small_editor(model):
    with tempfile.TemporaryDirectory() as d:
        return FastEditor(instruct_folder(d) if model == "told" else model, device="cpu")


@pytest.mark.parametrize("name", [k for k in method_names() if k not in ("leditspp",)])
@pytest.mark.parametrize("model", ["mini", "mini-s", "mini-teacher", "told"])
def test_the_planner_is_told_what_runs(name, model):
    "Most rows in a call, samples in all, calls, ControlNet: as hooks on the networks count them."
    from fastedit import memory as Q

    m, e = find_method(name), small_editor(model)
    try:
        check_model(m, e.parts)
    except ModelError:
        return
    steps = min(m.steps, 2)
    kw = dict(steps=steps, source_prompt="a red ball" if m.source_prompt else None)
    rows, control = [], []
    hooks = [
        net.register_forward_pre_hook(
            lambda _, a, kw, seen=seen: seen.append(len(a[0] if a else kw["sample"])),
            with_kwargs=True,
        )
        for net, seen in ((e.parts.unet, rows), (e.parts.controlnet, control))
        if net is not None
    ]
    try:
        r = e(np.full((64, 64, 3), 200, np.uint8), "a blue ball", method=name, **kw)
    finally:
        [h.remove() for h in hooks]
    w = work(m, e.spec, steps)
    assert (
        (w.rows, w.nfe, w.calls, w.control_nfe)
        == (
            max(rows, default=1),
            r.nfe,
            len(rows),
            sum(control) if m.key != "null_text" else w.control_nfe,
        )
        == (w.rows, sum(rows), w.calls, r.control_nfe)
    )
    if name == "instruct":
        assert work(m, e.spec) == Q.default_work(e.spec, m.channels)


@pytest.mark.parametrize("model", [k for k, s in MODELS.items() if s.family != "flow"])
def test_where_no_method_is_named_it_is_the_editors(model):
    from fastedit import memory as Q

    conf = Q.configurations(model)["unet"]
    channels = (ARCHITECTURES[conf].config if isinstance(conf, str) else conf[1])["in_channels"]
    method = {8: "instruct", 9: "inpaint"}.get(channels, DEFAULT_METHOD)
    assert Q.default_work(MODELS[model], channels) == work(find_method(method), MODELS[model])
