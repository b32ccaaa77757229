"Timestep grids against diffusers' own, what strength means, curves, noise levels."

import math
import diffusers, numpy as np, pytest, torch
from hypothesis import assume, given, strategies as st
from fastedit.core import OptionError
from fastedit.models import LCM_SCHEDULER
from fastedit.denoise import (
    NoiseSchedule,
    boundary,
    continuous_grid,
    curve,
    even_grid,
    lcm_grid,
    stock_grid,
)


def scheduler(**kw):
    return diffusers.LCMScheduler.from_config(
        {**{k: v for k, v in LCM_SCHEDULER.items() if k[0] != "_"}, **kw}
    )


def theirs(steps, strength=1.0, original=50):
    s = scheduler(original_inference_steps=original)
    s.set_timesteps(steps, strength=strength)
    return tuple(s.timesteps.tolist())


@given(st.integers(1, 50), st.integers(2, 100))
def test_full_grid_is_the_schedulers(steps, original):
    assume(steps <= original)
    assert lcm_grid(steps, original) == theirs(steps, original=original)


@given(st.integers(1, 50), st.integers(1, 50))
def test_continuous_grid_is_the_schedulers_with_strength(steps, k):
    strength = k / 50
    own = int(50 * strength)  # at .58 a time less than one would think, as diffusers has it
    if own < steps:
        with pytest.raises(OptionError, match="fewer than steps"):
            continuous_grid(steps, strength)
    else:
        grid = continuous_grid(steps, strength)
        assert len(grid) == steps and list(grid) == sorted(set(grid), reverse=True)
        assert grid[0] == own * 20 - 1  # it starts where the strength says
        assert grid == theirs(steps, strength)


@given(st.integers(1, 50), st.floats(0, 1))
def test_stock_grid_is_what_the_stock_pipeline_runs(steps, strength):
    s = scheduler()
    s.set_timesteps(steps)
    run = min(int(steps * strength), steps)
    # StableDiffusionXLControlNetImg2ImgPipeline.get_timesteps
    want = tuple(s.timesteps[max(steps - run, 0) * s.order :].tolist())
    if not want:
        with pytest.raises(OptionError, match="no step at all"):
            stock_grid(steps, strength)
    else:
        assert stock_grid(steps, strength) == want


def test_the_published_bands():
    assert stock_grid(4, 0.25) == stock_grid(4, 0.49) == (259,) and stock_grid(
        4, 0.5
    ) == stock_grid(4, 0.74) == (499, 259)
    assert stock_grid(4, 0.75) == stock_grid(4, 0.99) == (759, 499, 259) and stock_grid(4, 1.0) == (
        999,
        759,
        499,
        259,
    )
    assert continuous_grid(4, 0.5) != continuous_grid(4, 0.6) and len(continuous_grid(4, 0.5)) == 4
    for s in (0.2, 0.0):
        with pytest.raises(OptionError):
            stock_grid(4, s)


@given(st.integers(1, 1000))
def test_even_grids(steps):
    trailing, leading = even_grid(steps), even_grid(steps, spacing="leading")
    s = diffusers.DDIMScheduler(timestep_spacing="trailing")
    s.set_timesteps(steps)
    t = diffusers.DDIMScheduler(steps_offset=1)
    t.set_timesteps(steps)
    assert len(trailing) == len(leading) == steps and trailing[0] == 999
    # halves are rounded either way; diffusers adds a time of -1 at some counts
    assert np.abs(np.array(trailing) - s.timesteps.numpy()[:steps]).max() <= 1
    assert leading == tuple(t.timesteps.tolist())


@pytest.mark.parametrize(
    "call",
    [
        lambda: lcm_grid(0),
        lambda: lcm_grid(51),
        lambda: lcm_grid(2.0),
        lambda: lcm_grid(True),
        lambda: lcm_grid(4, strength=1.1),
        lambda: lcm_grid(4, strength="x"),
        lambda: lcm_grid(4, strength=math.nan),
        lambda: stock_grid(4, -0.1),
        lambda: even_grid(0),
        lambda: even_grid(1001),
        lambda: even_grid(4, spacing="odd"),
        lambda: NoiseSchedule(prediction="x0"),
        lambda: NoiseSchedule(betas=(0.1, 0.2)),
        lambda: NoiseSchedule(beta_schedule="cosine"),
    ],
)
def test_refused(call):
    with pytest.raises(OptionError):
        call()


def test_noise_levels_are_the_schedulers():
    s = NoiseSchedule.from_config(LCM_SCHEDULER)
    d = scheduler()
    assert torch.equal(s.alphas_cumprod, d.alphas_cumprod)
    z, n = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    for t in (0, 259, 999):
        assert torch.equal(s.noised(z, n, t), d.add_noise(z, n, torch.tensor([t])))
    a, b = s.levels(-1)
    assert a == 1 and b == 0
    lin = NoiseSchedule.from_config(dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02))
    assert torch.allclose(lin.alphas_cumprod, diffusers.DDPMScheduler().alphas_cumprod)


@given(st.integers(0, 998), st.sampled_from(["epsilon", "v_prediction", "flow"]))
def test_split_undoes_each_parameterisation(t, prediction):
    """Whatever the network was trained to predict, the true output gives the true noise and the
    true clean latents back."""
    s = NoiseSchedule(
        beta_schedule="flow" if prediction == "flow" else "scaled_linear", prediction=prediction
    )
    g = torch.Generator().manual_seed(t)
    z, n = (torch.randn(2, 4, 3, 3, generator=g, dtype=torch.float64) for _ in range(2))
    a, b = s.levels(t, z)
    x = s.noised(z, n, t)
    out = dict(epsilon=n, v_prediction=a * n - b * z, flow=n - z)[prediction]
    eps, x0 = s.split(out, x, t)
    assert torch.allclose(eps, n, atol=1e-4) and torch.allclose(x0, z, atol=1e-4)


def test_boundary_is_the_schedulers():
    d = scheduler()
    for t in (0, 19, 499, 999):
        skip, out = d.get_scalings_for_boundary_condition_discrete(torch.tensor(t))
        assert boundary(t) == pytest.approx((skip.item(), out.item()), rel=1e-5)
    assert boundary(0) == (1, 0)


@given(st.floats(-5, 20), st.floats(-5, 20), st.integers(2, 30))
def test_curves(a, b, n):
    for kind in ("linear", "cosine"):
        v = [curve(f"{kind}:{a!r}:{b!r}", i, n) for i in range(n)]
        d = np.diff(v)
        assert (
            v[0] == pytest.approx(a)
            and v[-1] == pytest.approx(b)
            and ((d >= -1e-9).all() or (d <= 1e-9).all())
        )
    assert curve(a, 0, n) == a and curve("linear:3:1", 0, 1) == 3


def test_intervals_and_unreadable_curves():
    assert [curve("interval:2:0.3:0.7", i, 5) for i in range(5)] == [1, 1, 2, 1, 1] and [
        curve("interval:2:0:0.5", i, 3, off=0.0) for i in range(3)
    ] == [2, 2, 0]
    for bad in ("linear", "linear:1", "linear:1:2:3", "step:1:2", "", None, True, "linear:a:b"):
        with pytest.raises(OptionError, match="linear:3:1"):
            curve(bad, 0, 2)


@pytest.mark.parametrize("steps", [2, 3, 6, 7, 9, 11, 13, 49, 50])
def test_the_strength_that_an_error_advises_works(steps):
    import re

    with pytest.raises(OptionError) as e:
        stock_grid(steps, 0.5 / steps)
    assert (
        len(stock_grid(steps, float(re.search(r"at least ([\d.]+\d)", str(e.value)).group(1)))) >= 1
    )
    with pytest.raises(OptionError, match="at most 50 steps"):
        lcm_grid(60)
