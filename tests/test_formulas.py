"""Formulas of the methods against references that are written out here, on networks small enough to
follow."""

import types
import diffusers, pytest, torch
import torch.nn.functional as F
from fastedit.denoise import (
    Control,
    CrossAttention,
    Rule,
    SelfAttention,
    WordRegion,
    align,
    as_map,
    controlled,
    tie_nearest,
)
from fastedit.denoise import Denoiser, Noise, Text
from fastedit.methods.base import Job, check_options, cost, find_method, pairs, posterior
from fastedit.methods.ddcm import window
from fastedit.methods.instant_edit import disentangled
from fastedit.methods.renoise import backward, corrected, forward, regularised
from fastedit.models import LCM_SCHEDULER, clip_tokenizer, load_model, random_model
from fastedit.denoise import NoiseSchedule, lcm_grid, share_of, time_of

torch.set_num_threads(1)
SRC, TGT = "a red ball on a meadow", "a blue ball on a meadow"


class Toy:
    """A denoiser whose prediction is a smooth function of the latents, the time and a number for
    the prompt."""

    def __init__(self):
        self.schedule, self.asked = NoiseSchedule(), []

    def eps(self, x, t, text, guidance=1.0, control=0.0):
        self.asked += [t] * len(x)
        return torch.sin(x * 2 + text) * 0.4 + x * (0.3 + t / 4000)

    def eps_x0(self, x, t, text, guidance=1.0, control=0.0):
        return self.schedule.split(self.eps(x, t, text), x, t)


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    return load_model(str(random_model(tmp_path_factory.mktemp("m") / "sdxl")), device="cpu")


@pytest.fixture(scope="session")
def double_parts(tmp_path_factory):
    parts = load_model(str(random_model(tmp_path_factory.mktemp("m") / "double")), device="cpu")
    for network in parts.modules().values():
        if network is not None:
            network.double()
    return parts


@pytest.fixture(scope="session")
def tok(tmp_path_factory):
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tok")
    clip_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


def latents(seed=5, n=1):
    return torch.randn(n, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.8


def job_of(
    dn,
    key,
    grid=None,
    z0=None,
    seeds=(3,),
    source=None,
    target=None,
    guidance=1.0,
    source_guidance=1.0,
    **options,
):
    m, z0 = find_method(key), latents(n=len(seeds)) if z0 is None else z0
    o = check_options(m, options)
    grid = tuple(grid or m.times(m.steps, m.strength, True, **o))
    n = len(grid)
    source, target = (dn.text(SRC), dn.text(TGT)) if source is None else (source, target)
    return m, Job(
        dn,
        z0,
        target,
        source,
        grid,
        Noise(seeds, z0.shape[1:]),
        [guidance] * n,
        source_guidance,
        [0.0] * n,
        None,
        o,
        None,
        (SRC, TGT),
    )


# ---- times


def test_the_grid_is_the_schedulers_at_every_strength_and_number_of_steps():
    scheduler = diffusers.LCMScheduler.from_config(
        {k: v for k, v in LCM_SCHEDULER.items() if k[0] != "_"}
    )
    for hundredth in range(2, 101):
        for steps in range(1, int(50 * (hundredth / 100)) + 1):
            scheduler.set_timesteps(steps, strength=hundredth / 100)
            assert lcm_grid(steps, strength=hundredth / 100) == tuple(
                scheduler.timesteps.tolist()
            ), (steps, hundredth)


def test_a_refused_number_of_steps_gets_a_strength_that_works():
    import re
    from fastedit.core import OptionError

    for steps in range(2, 51):
        with pytest.raises(OptionError) as e:
            lcm_grid(steps, strength=(steps - 1) / 50)
        assert (
            len(
                lcm_grid(
                    steps, strength=float(re.search(r"at least ([\d.]+)", str(e.value)).group(1))
                )
            )
            == steps
        )


def test_shares_and_times():
    assert [time_of(s) for s in (0.0, 0.3, 0.75, 0.9, 1.0)] == [0, 300, 749, 899, 999]
    assert all(time_of(share_of(t, T), T) == t for T in (1000, 40, 2) for t in range(T))
    assert all(share_of(time_of(k / 100)) == k / 100 for k in range(101))


# ---- chord


@pytest.mark.parametrize(
    "steps, t, d",
    [
        (1, 0.9, 0.15),
        (3, 0.9, 0.15),
        (2, 0.62, 0.2),
        (1, 0.3, 0.9),
        (1, 0.004, 0.5),
        (1, 0.7, 0.0004),
    ],
)
@torch.no_grad()
def test_chord_is_its_formula(parts, steps, t, d):
    dn = Denoiser(parts)
    m = find_method("chord")
    grid = m.times(steps, t, True, **check_options(m, dict(d=d)))
    _, job = job_of(dn, "chord", grid, d=d)
    found = m(job)
    low, end = max(t - d, 1 / 999), min(0.3, t)
    early, late, last = (round(999 * s) for s in (t, low, end))
    late = min(late, early - 1)
    assert grid == (early, late) * steps + (last,)
    noise, z, sc, move, first = Noise((3,), (4, 16, 16)), job.z0, dn.schedule, 0.0, None
    f = lambda x, time, text: dn.clean(x, time, text)
    D = lambda n, time: (
        f(sc.noised(z, n, time), time, job.target) - f(sc.noised(z, n, time), time, job.source)
    )
    d = min(d, t - 1 / 999)
    for _ in range(steps):
        n = noise()
        first = n if first is None else first
        move = move + (d * D(n, early) + t * D(n, late)) / (t + d) / steps
    z = z + move
    want = f(sc.noised(z, first, last), last, job.target)
    assert (found - want).abs().max() < 2e-5 * max(1, want.abs().max())
    assert (
        dn.count.nfe - 2 * 2 * steps - 1 == cost(m, steps, False, **job.options)[0] == 4 * steps + 1
    )


@torch.no_grad()
def test_chord_single_is_one_difference_at_one_time_and_a_proximal_step(parts):
    m, dn = find_method("chord-single"), Denoiser(parts)
    _, job = job_of(dn, "chord-single")
    found, n, sc = m(job), Noise((3,), (4, 16, 16))(), dn.schedule
    assert job.grid == (749, 300) and dn.count.nfe == cost(m, m.steps, False)[0] == 3
    x = sc.noised(job.z0, n, 749)
    z = job.z0 + dn.clean(x, 749, job.target) - dn.clean(x, 749, job.source)
    want = dn.clean(sc.noised(z, n, 300), 300, job.target)
    assert (found - want).abs().max() < 2e-5 * max(1, want.abs().max())


# ---- instant_edit


def at_right_angles(e0, src, tgt):
    "Per picture and channel, what of `tgt-e0` is at right angles to `src-e0`."
    out = torch.zeros_like(tgt)
    for i in range(len(tgt)):
        for c in range(tgt.shape[1]):
            a, b = (tgt - e0)[i, c].flatten(), (src - e0)[i, c].flatten()
            out[i, c] = (a - (a @ b) / (b @ b) * b).view(tgt.shape[2:])
    return out


@pytest.mark.parametrize("g, w", [(1.1, 3.0), (1.0, 0.0), (2.0, 0.7)])
@torch.no_grad()
def test_instant_edit_is_its_formula(double_parts, g, w):
    dn, z0 = Denoiser(double_parts), latents(n=2).double()
    kw = dict(grid=(999, 499), z0=z0, seeds=(3, 4), guidance=g, dpg=w, region="given")
    m, job = job_of(dn, "instant_edit", **kw)
    found, sc, none = m(job), dn.schedule, dn.unconditional()
    assert dn.count.nfe == 2 * cost(m, 2, g != 1)[0] == 20
    e = lambda x, t, text: dn.eps(x, t, text)
    level = lambda t: sc.levels(t, z0)

    def step(x, noise, t, prev):
        (a, s), (a1, s1) = level(t), level(prev)
        return a1 * (x - s * noise) / a + s1 * noise

    low = step(z0, e(z0, 499, none), -1, 499)
    top = step(low, e(low, 999, none), 499, 999)
    x = top
    for t, prev, was, then in ((999, 499, top, low), (499, -1, low, z0)):
        e0, src, tgt = (e(x, t, text) for text in (none, job.source, job.target))
        new = e0 + g * (tgt - e0) + w * at_right_angles(e0, src, tgt)
        own = e0 + g * (e(was, t, job.source) - e0)
        x = then + step(x, new, t, prev) - step(was, own, t, prev)
    assert (found - x).abs().max() < 1e-6 * max(1, x.abs().max())
    assert (found - z0).abs().max() > 1e-3


def test_guidance_by_what_is_new_leaves_alone_what_the_source_asks_for_too():
    e0, src, tgt = (latents(s, 2) for s in (1, 2, 3))
    p = disentangled(e0, src, tgt, 1.0, 1.0) - tgt
    assert ((p * (src - e0)).sum((-2, -1))).abs().max() < 1e-3  # at right angles to the source
    torch.testing.assert_close(disentangled(e0, src, src, 1.3, 5.0), e0 + 1.3 * (src - e0))
    torch.testing.assert_close(disentangled(e0, src, tgt, 1.0, 0.0), tgt)
    # a source prompt that asks for nothing takes nothing away
    torch.testing.assert_close(disentangled(e0, e0, tgt, 1.0, 1.0), e0 + 2 * (tgt - e0))


# ---- turbo


@pytest.mark.parametrize("limit", [0.0, 0.12])
@pytest.mark.parametrize(
    "grid, shift",
    [
        ((799, 599, 399, 199), 200 * 4 / 799),
        ((999, 759, 499, 259), 0.8),
        ((200, 100), 1.0),
        ((150, 99), 1.5),
    ],
)
@torch.no_grad()
def test_turbo_is_inversion_then_sampling(double_parts, grid, shift, limit):
    d = Denoiser(double_parts)  # in double precision: rounding cannot hide a wrong term
    m, job = job_of(
        d,
        "turbo",
        grid,
        latents().double(),
        shift=shift,
        limit=limit,
        source=d.text(SRC),
        target=d.text(TGT),
    )
    job.noise = Noise((3,), (4, 16, 16), dtype=torch.float64)
    found = m(job)
    noise, sc, delta = (
        Noise((3,), (4, 16, 16), dtype=torch.float64),
        d.schedule,
        round(shift * grid[0] / len(grid)),
    )
    path = [sc.noised(job.z0, noise(), t - delta) if t - delta > 0 else job.z0 for t in grid] + [
        job.z0
    ]
    mean = lambda x, t, prev, text: posterior(sc, x, d.clean(x, t, text), t, prev)[0]
    stored = [
        path[i + 1] - mean(path[i], t, prev, job.source) for i, (t, prev) in enumerate(pairs(grid))
    ]
    if limit:
        norm, most = stored[-1].norm(), limit * job.z0.numel() ** 0.5
        stored[-1] = stored[-1] * min(1.0, float(most / norm))
    x = path[0]
    for (t, prev), z in zip(pairs(grid), stored):
        source, target = mean(x, t, prev, job.source), mean(x, t, prev, job.target)
        x = source + z + 1.5 * (target - source)
    assert found.dtype == torch.float64
    assert (found - x).abs().max() < 1e-10 * max(1, x.abs().max())


def test_a_clean_point_of_the_path_is_the_source_itself(parts, monkeypatch):
    seen, real = [], NoiseSchedule.noised
    monkeypatch.setattr(
        NoiseSchedule, "noised", lambda self, z, n, t: (seen.append(t), real(self, z, n, t))[1]
    )
    m, job = job_of(Denoiser(parts), "turbo", (799, 599, 399, 199), shift=200 * 4 / 799)
    m(job)
    assert seen == [599, 399, 199]


# ---- renoise


def inverted(d, z0, t, prev, K, text):
    """One step of the reference without regularisation and noise: average of predictions 0 to 4
    below 250, of 8 and 9 above."""
    sc = d.schedule
    (a, s), (a1, s1) = sc.levels(t, z0), sc.levels(prev, z0)
    x, kept = z0, []
    for i in range(K + 1 if t >= 250 else min(K, 5) + 1):
        e = d.eps(x, t, text)
        if (0 <= i < 5) if t < 250 else (8 <= i < 10):
            kept.append(e)
        x = a * (z0 - s1 * e) / a1 + s * e
    if kept:
        e = torch.stack(kept).mean(0)
        x = a * (z0 - s1 * e) / a1 + s * e
    return x


@pytest.mark.parametrize("K", [0, 1, 3, 4, 5, 7, 8, 9])
@pytest.mark.parametrize("grid", [(249,), (250,), (199,), (900, 600, 240, 100)])
def test_renoise_averages_what_the_reference_averages(K, grid):
    d, text = Toy(), torch.tensor(0.3)
    m, job = job_of(d, "renoise", grid, source=text, target=text * 2, iterations=K)
    seen = []
    job.on_step = seen.append
    m(job)
    x = job.z0
    for t, prev in reversed(pairs(grid)):
        x = inverted(Toy(), x, t, prev, K, text)
    last = [s for s in seen if s["phase"] == "inversion"][-1]["latents"]
    assert (last - x).abs().max() < 1e-5 * max(1, x.abs().max())
    assert len(d.asked) == cost(m, len(grid), False, times=grid, **job.options)[0]
    for t in grid:  # a sixth prediction below 250 would be thrown away
        assert d.asked.count(t) == min(K + 1, 5 if t < 250 else 10) + 1


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(regularise=2),
        dict(ancestral=True),
        dict(ancestral=True, correct=False, regularise=1),
        dict(iterations=2, ancestral=True),
    ],
)
@pytest.mark.parametrize("grid", [(999, 759, 499, 259), (699, 459, 219, 99)])
def test_renoise_costs_what_it_says(options, grid):
    d, text = Toy(), torch.tensor(0.3)
    m, job = job_of(d, "renoise", grid, source=text, target=text * 2, **options)
    m(job)
    exact, (low, high) = (
        cost(m, 4, False, times=grid, **job.options),
        cost(m, 4, False, **job.options),
    )
    assert exact == (len(d.asked),) * 2 and low <= exact[0] <= high


def test_an_inverted_step_leads_back():
    sc, g = NoiseSchedule(), torch.Generator().manual_seed(0)
    x, e, n = (torch.randn(2, 4, 8, 8, generator=g) for _ in range(3))
    for t, prev in ((999, 759), (259, 99), (259, -1)):
        for noise in (None, n):
            y = backward(sc, x, e, noise, t, prev)
            back = forward(sc, y, e, sc.split(e, y, t)[1], noise, t, prev)
            assert (back - x).abs().max() < 2e-4 * y.abs().max()


def test_the_ancestral_step_is_diffusers():
    s = diffusers.EulerAncestralDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
    )
    s.set_timesteps(4)
    sc, g = NoiseSchedule(), torch.Generator().manual_seed(0)
    x, e = torch.randn(1, 4, 8, 8, generator=g), torch.randn(1, 4, 8, 8, generator=g)
    t, prev = (int(v) for v in s.timesteps[1:3])
    a, a1 = sc.levels(t)[0], sc.levels(prev)[0]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    s._step_index, s.is_scale_input_called = 1, True
    # there latents are not scaled down
    want = (
        s.step(e, s.timesteps[1], x / a, generator=torch.Generator().manual_seed(9)).prev_sample
        * a1
    )
    assert (forward(sc, x, e, sc.split(e, x, t)[1], noise, t, prev) - want).abs().max() < 1e-4


def test_corrected_noise_moves_ten_steps_and_not_past():
    g = torch.Generator().manual_seed(0)
    n, far = torch.randn(2, 4, 64, 64, generator=g), torch.randn(2, 4, 64, 64, generator=g)
    moved = corrected(n, far)
    for i in range(2):
        assert (
            abs((moved[i] - n[i]).norm() - 18) < 1e-2
            and abs((far[i] - moved[i]).norm() - ((far[i] - n[i]).norm() - 18)) < 1e-2
        )
    near = n + 1e-3 * far
    assert ((corrected(n, near) - near).flatten(1).norm(dim=1) < 1.8).all()


def slowly(e, ideal, generator, rounds):
    "The same written out: each patch and channel, each channel and scale by itself."
    for _ in range(rounds):
        x = e.clone().requires_grad_(True)
        total = 0.0
        for c in range(4):
            for i in range(0, x.shape[1], 4):
                for j in range(0, x.shape[2], 4):
                    p, q = x[c, i : i + 4, j : j + 4], ideal[c, i : i + 4, j : j + 4]
                    N = torch.distributions.Normal
                    total = total + 2 * torch.distributions.kl_divergence(
                        N(p.mean(), p.var().sqrt()), N(q.mean(), q.var().sqrt())
                    )
        (grad,) = torch.autograd.grad(total, x)
        e = e - 0.065 * grad.clamp(-100, 100)
        for _ in range(5):
            x, total = e.clone().requires_grad_(True), 0.0
            for c in range(4):
                y = x[c]
                while True:
                    k, h = (
                        int(torch.randint(0, y.shape[0] // 2, (1,), generator=generator)),
                        y.shape[0],
                    )
                    rows = torch.stack([y[(r - k) % h] for r in range(h)])
                    cols = torch.stack([y[:, (r - k) % h] for r in range(h)], 1)
                    total = total + (y * rows).mean() ** 2 + (y * cols).mean() ** 2
                    if h <= 8:
                        break
                    y = F.avg_pool2d(y[None], 2)[0]
            (grad,) = torch.autograd.grad(total, x)
            e = e - 20 / 5 * grad
    return e


def test_noise_is_regularised_as_written_out_and_each_picture_by_itself():
    g = torch.Generator().manual_seed(1)
    e, ideal = (
        torch.randn(2, 4, 16, 16, generator=g) * 0.7 + 0.1,
        torch.randn(2, 4, 16, 16, generator=g),
    )
    seeded = lambda: [torch.Generator().manual_seed(s) for s in (4, 5)]
    both = regularised(e, ideal, seeded(), 2)
    for i in (0, 1):
        assert (both[i] - slowly(e[i], ideal[i], seeded()[i], 2)).abs().max() < 1e-4
        assert (both[[i]] - regularised(e[[i]], ideal[[i]], [seeded()[i]], 2)).abs().max() < 1e-6
    assert regularised(e, ideal, seeded(), 0) is e


@pytest.mark.parametrize("ancestral", [False, True])
def test_renoise_in_a_batch_is_renoise_alone(ancestral):
    def run(z0, seeds):
        m, job = job_of(
            Toy(),
            "renoise",
            (499, 199),
            z0,
            seeds,
            torch.tensor(0.3),
            torch.tensor(0.6),
            ancestral=ancestral,
            regularise=1,
        )
        return m(job)

    z0 = latents(n=2)
    both = run(z0, (7, 8))
    for i in (0, 1):
        assert (both[[i]] - run(z0[[i]], ((7, 8)[i],))).abs().max() < 1e-4


# ---- unified attention control


def test_windows_are_infedits():
    assert [
        window(u, n) for u, n in ((0.7, 12), (0.7, 10), (0.7, 4), (1.0, 5), (0.0, 5), (0.3, 10))
    ] == [8, 7, 2, 5, 0, 3]


class Watch(Rule):
    "Keep queries and keys as they are after all rules."

    def __init__(self):
        self.seen = []

    def qkv(self, site, q, k, v, c):
        if not site.cross:
            self.seen.append((c.step, list(c.denoiser.rows), q.clone(), k.clone(), v.clone()))
        return q, k, v

    def wants(self, *_):
        return False

    def modules(self, unet):
        return []


@pytest.mark.parametrize(
    "guidance, source_guidance, nfe", [(2.3, 1.0, 6), (1.0, 2.0, 6), (1.0, 1.0, 3), (2.0, 2.0, 6)]
)
@torch.no_grad()
def test_each_half_of_a_pair_takes_the_same_half_of_the_source(
    parts, monkeypatch, guidance, source_guidance, nfe
):
    d, watch = Denoiser(parts), Watch()
    import fastedit.denoise as A

    real = A.controlled
    monkeypatch.setattr(A, "controlled", lambda d, rules, b: real(d, [*rules, watch], b))
    m, job = job_of(
        d,
        "ddcm",
        lcm_grid(4),
        guidance=guidance,
        source_guidance=source_guidance,
        uac=True,
        blend=False,
        self_until=0.5,
    )
    m(job)
    assert (
        d.count.nfe == 4 * nfe == cost(m, 4, guidance != 1, source_guidance != 1, **job.options)[0]
    )
    for step, rows, q, k, v in watch.seen:
        assert len(rows) == nfe
        for half in {negative for negative, _ in rows}:
            s, t, mutual = (rows.index((half, i)) for i in range(3))
            assert torch.equal(k[mutual], k[s]) and torch.equal(v[mutual], v[s])
            if step < 2:
                assert (
                    torch.equal(q[t], q[s])
                    and torch.equal(k[t], k[s])
                    and torch.equal(q[mutual], q[s])
                )
            else:
                assert torch.equal(q[mutual], q[t]) and not torch.equal(q[t], q[s])


def test_an_unconditional_half_that_is_only_looked_at_changes_no_number(parts):
    d = Denoiser(parts)
    x, text = latents(n=3), Text.stack(d.text(SRC), d.text(TGT), d.text(SRC))
    with torch.no_grad():
        a, b = (
            d.eps(x, 499, text, [1.0, 2.3, 1.0]),
            d.eps(x, 499, text, [1.0, 2.3, 1.0], whole=True),
        )
    assert (a - b).abs().max() < 1e-5 and d.count.nfe == 4 + 6


def test_a_swapped_token_is_tied_to_the_nearest_one(tok):
    al = align(tok, "a red ball on grass", "a blue ball on grass")
    red, blue = al.source_spans[1], al.target_spans[1]
    a, b = torch.zeros(77, 77), torch.zeros(77, 77)
    a[range(77), range(77)] = b[range(77), range(77)] = 1.0
    b[list(blue)] = 0.0
    b[blue[2]] = a[red[1]] * 0.9 + a[red[0]] * 0.1
    tied = tie_nearest(al, a, b)
    assert tied.same[blue[2]] == 1 and tied.mapper[:, blue[2]].nonzero().flatten().tolist() == [
        red[1]
    ]
    others = [j for j in range(77) if j != blue[2]]
    assert torch.equal(tied.mapper[:, others], al.mapper[:, others]) and torch.equal(
        tied.same[others], al.same[others]
    )
    new = align(tok, "a ball", "a red ball")  # nothing went where the word came
    assert torch.equal(tie_nearest(new, a, b).same, new.same)
    ends = align(tok, "red", "blue")  # the whole prompt
    assert tie_nearest(ends, a, b).same[list(ends.target_spans[0])].sum() == 1


# ---- Prompt-to-Prompt


def test_windows_are_the_references():
    for n in (1, 4, 7, 10, 50):
        for u in (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0):
            c = Control(types.SimpleNamespace(rows=[]), [])
            cross, own, features = (
                sum((c.begin(i, n), rule(c))[1] for i in range(n))
                for rule in (
                    lambda c: CrossAttention(_align(), u).wants(
                        types.SimpleNamespace(cross=True), 1, c
                    ),
                    lambda c: SelfAttention(u).wants(types.SimpleNamespace(cross=False), 1, c),
                    lambda c: c.first(u),
                )
            )
            assert cross == min(int(u * (n + 1)), n) and own == features == int(u * n)


def _align():
    return types.SimpleNamespace(mapper=torch.eye(3), same=torch.ones(3), shares=None)


@pytest.mark.parametrize("mode", ["refine", "replace"])
def test_words_are_weighed_only_while_the_source_is_looked_at(parts, tok, mode):
    d, text = Denoiser(parts), None
    text = Text.stack(d.text(SRC), d.text(TGT))
    rule, x = CrossAttention(align(parts.tokenizer, SRC, TGT), 0.4, mode, {3: 5.0}), latents(n=2)
    with torch.no_grad():
        plain = d.eps(x, 499, text)
        with controlled(d, [rule]) as c:
            c.begin(0, 10)
            inside = d.eps(x, 499, text)
            c.begin(4, 10)
            outside = d.eps(x, 499, text)
    assert (inside[1] - plain[1]).abs().max() > 1e-4 and (outside - plain).abs().max() < 1e-5


@pytest.mark.parametrize(
    "a, b",
    [
        ("a red ball", "a watercolour ball"),
        ("a watercolour ball", "a red ball"),
        (SRC, TGT),
        ("red", "blue green"),
        ("a red ball", "a ball"),
        ("a ball", "a red ball"),
        ("a red ball on grass", "a ball on green grass"),
        ("a ball,", "a ball"),
        ("", "a ball"),
        ("a ball", ""),
        ("ball " * 100, "watercolour " * 100),
    ],
)
def test_replacing_keeps_all_attention(tok, a, b):
    al = align(tok, a, b)
    p, q = (
        torch.rand(
            2, 3, 5, tok.model_max_length, generator=torch.Generator().manual_seed(s)
        ).softmax(-1)
        for s in (0, 1)
    )
    out = CrossAttention(al, 1.0, "replace").replaced(p, q)
    assert torch.allclose(out.sum(-1), torch.ones(2, 3, 5), atol=1e-5) and (out >= 0).all()
    rows = al.shares.sum(1)
    assert ((rows - 1).abs().lt(1e-5) | rows.eq(0)).all()


def test_a_swapped_word_takes_the_attention_of_the_one_before(tok):
    al = align(tok, "a red ball", "a watercolour ball")
    p = torch.rand(
        1, 1, 5, tok.model_max_length, generator=torch.Generator().manual_seed(0)
    ).softmax(-1)
    out = CrossAttention(al, 1.0, "replace").replaced(p, torch.zeros_like(p))
    before, after = list(al.source_spans[1]), list(al.target_spans[1])
    assert len(before) != len(after)
    assert torch.allclose(out[..., after].sum(-1), p[..., before].sum(-1), atol=1e-6)
    assert torch.allclose(
        out[..., after],
        (p[..., before].sum(-1) / len(after))[..., None].expand(-1, -1, -1, len(after)),
        atol=1e-6,
    )
    assert torch.allclose(
        out[..., list(al.target_spans[2])], p[..., list(al.source_spans[2])], atol=1e-6
    )


def test_the_blend_widens_before_it_enlarges(parts):
    tok = parts.tokenizer
    region = WordRegion(tok, SRC, TGT)
    maps = torch.rand(2, 64, tok.model_max_length, generator=torch.Generator().manual_seed(0)) ** 4
    region.steps.append(maps)
    found, want = region.region((16, 16), 0.6), torch.zeros(1, 1, 16, 16)
    for row, tokens in enumerate(region.tokens):
        m = maps[row][:, list(tokens)].sum(-1).view(1, 1, 8, 8)
        m = F.interpolate(F.max_pool2d(m, 3, 1, 1), (16, 16))
        want = torch.maximum(want, (m / m.max() > 0.6).float())
    assert torch.equal(found, want) and 0 < found.mean() < 1
    assert torch.equal(
        as_map(torch.arange(64.0)[None], (16, 16)), torch.arange(64.0).view(1, 1, 8, 8)
    )


def test_the_benchmarks_setting_is_the_default():
    from fastedit.methods.p2p import P2P

    assert {
        k: P2P[k].default
        for k in (
            "mode",
            "cross_until",
            "self_until",
            "largest",
            "weight",
            "blend_from",
            "threshold",
        )
    } == dict(
        mode="refine",
        cross_until=0.4,
        self_until=0.6,
        largest=1024,
        weight=2.0,
        blend_from=0.2,
        threshold=0.3,
    )


def test_sharing_starts_at_its_step():
    for n in range(1, 60):
        for k in range(n):
            c = Control(types.SimpleNamespace(rows=[]), [])
            c.begin(k, n)
            assert not c.first((k + 0.5) / n)
            c.begin(max(k - 1, 0), n)
            assert c.first((k + 0.5) / n) == (k > 0)
