"""The one caller of the networks: guidance, counts, control scales, noise, parameterisations; on
small random networks."""

from dataclasses import replace
import pytest, torch
from fastedit.core import ModelError, NumericalError, OptionError, PromptError
from fastedit.denoise import (
    Count,
    Denoiser,
    Memo,
    Noise,
    Store,
    Text,
    fingerprint,
    finite,
    guidance_embedding,
    switched_off,
)
from fastedit.models import load_model, random_model

KW = dict(channels=(16, 32, 32), width=16)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    d = tmp_path_factory.mktemp("models")
    return dict(
        cfg=random_model(d / "cfg", **KW),
        w=random_model(d / "w", w_embedding=True, **KW),
        sd15=random_model(d / "sd15", "sd15", **KW),
    )


@pytest.fixture(scope="module")
def parts(folders):
    return {k: load_model(f) for k, f in folders.items()}


def x(n=1, seed=0):
    return torch.randn(n, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


EDGES = (torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(9)) > 0.8).float()


@pytest.mark.parametrize("kind", ["cfg", "w", "sd15"])
def test_text_is_stock_text(folders, parts, kind):
    import diffusers

    d = Denoiser(parts[kind])
    t = d.text("a red ball on a meadow")
    if kind == "sd15":
        p = diffusers.StableDiffusionPipeline.from_pretrained(
            folders[kind], safety_checker=None, controlnet=None
        )
        want = p.encode_prompt("a red ball on a meadow", "cpu", 1, False)[0], None
    else:
        p = diffusers.StableDiffusionXLControlNetImg2ImgPipeline.from_pretrained(folders[kind])
        want = p.encode_prompt("a red ball on a meadow", do_classifier_free_guidance=False)[::2]
    assert torch.equal(t.states, want[0]) and (want[1] is None or torch.equal(t.pooled, want[1]))
    with pytest.raises(PromptError):
        d.text(None)
    assert d.cut("ball") == 0 and d.cut("ball " * 200) > 0


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a",
        "a " * 40,
        "(" * 30,
        "x1" * 15,
        "<|endoftext|>" * 2,
        "é" * 30,
        "a, b; c! " * 4,
        "word " * 15,
    ],
)
def test_cut_is_what_the_tokenizer_drops(parts, prompt):
    for p in parts.values():
        tok = p.tokenizer
        d = Denoiser(p)
        for text in (
            prompt,
            prompt[: tok.model_max_length - 2],
            (prompt * 9)[: tok.model_max_length - 1],
        ):
            assert d.cut(text) == max(
                0, len(tok(text, truncation=False).input_ids) - tok.model_max_length
            )


def test_only_guided_rows_cost_a_pair(parts):
    d = Denoiser(parts["cfg"])
    t = d.text("a ball")
    d.negative
    seen = []
    hook = parts["cfg"].unet.register_forward_hook(
        lambda m, a, k, o: seen.append(len(a[0])), with_kwargs=True
    )
    try:
        e1, e2, mixed = (
            d.output(x(2), 500, t, 1.0),
            d.output(x(2), 500, t, 2.0),
            d.output(x(2), 500, t, [1.0, 2.0]),
        )
    finally:
        hook.remove()
    assert (
        seen == [2, 4, 3] and d.count.nfe == 9 and d.count.calls == 3 and d.count.control_nfe == 0
    )
    assert (
        torch.allclose(mixed[:1], e1[:1], atol=1e-5)
        and torch.allclose(mixed[1:], e2[1:], atol=1e-5)
        and not torch.allclose(e1, e2, atol=1e-3)
    )
    neg = d.output(x(2), 500, d.negative, 1.0)
    assert torch.allclose(e2, neg + 2 * (e1 - neg), atol=1e-4)


def test_w_embedding_is_an_input_and_costs_nothing(parts):
    from diffusers import LatentConsistencyModelPipeline as P

    d = Denoiser(parts["w"])
    t = d.text("a ball")
    a, b = d.output(x(), 500, t, 2.0), d.output(x(), 500, t, 5.0)
    assert d.uses_w and d.count.nfe == 2 and not torch.allclose(a, b, atol=1e-4)
    assert torch.allclose(
        d.output(x(2), 500, t, [2.0, 5.0]),
        torch.cat([d.output(x(2), 500, t, 2.0)[:1], d.output(x(2), 500, t, 5.0)[1:]]),
        atol=1e-5,
    )
    w = torch.tensor([0.0, 0.5, 7.0])
    for dim in (32, 33, 256):
        assert torch.allclose(
            guidance_embedding(w, dim),
            P.get_guidance_scale_embedding(None, w, embedding_dim=dim),
            atol=1e-4,
        )
    stock = Denoiser(parts["w"], drop_w=True)
    stock.output(x(), 500, t, 2.0)
    assert not stock.uses_w and stock.count.nfe == 2


@pytest.mark.parametrize("kind", ["cfg", "w", "sd15"])
def test_control_residuals(parts, kind):
    d = Denoiser(parts[kind], EDGES)
    t = d.text("a ball")
    plain, half, full = (d.output(x(), 500, t, 1.0, c) for c in (0.0, 0.5, 1.0))
    assert (
        d.count.control_nfe == 2
        and d.count.nfe == 3
        and not torch.allclose(plain, half, atol=1e-4)
        and not torch.allclose(half, full, atol=1e-4)
    )
    n = len(parts[kind].controlnet.controlnet_down_blocks) + 1
    assert torch.allclose(
        d.output(x(), 500, t, 1.0, [0.5] * n), half, atol=1e-5
    ) and torch.allclose(d.output(x(), 500, t, 1.0, [0.0] * n), plain, atol=1e-5)
    for i in (0, n - 1):
        assert not torch.allclose(
            d.output(x(), 500, t, 1.0, [float(k == i) for k in range(n)]), plain, atol=1e-5
        )
    with pytest.raises(OptionError, match=f"1 values: this model takes .* or {n} "):
        d.output(x(), 500, t, 1.0, [1.0])
    with pytest.raises(ModelError, match="no ControlNet"):
        Denoiser(replace(parts[kind], controlnet=None), EDGES)


def test_stem_runs_once_and_is_put_back(parts):
    p = parts["cfg"]
    stem, runs = p.controlnet.controlnet_cond_embedding, []
    hook = stem.register_forward_hook(lambda *a: runs.append(1))
    d = Denoiser(p, EDGES)
    t = d.text("a ball")
    try:
        for s in (900, 500, 100):
            d.output(x(), s, t, 2.0, 0.5)
        with pytest.raises(RuntimeError):
            d.output(torch.randn(1, 3, 16, 16), 500, t, 1.0, 0.5)
    finally:
        hook.remove()
    assert len(runs) == 1 and p.controlnet.controlnet_cond_embedding is stem


def test_books(parts):
    c = Count()
    d = Denoiser(parts["cfg"], EDGES, count=c)
    d.decode(d.encode(torch.zeros(1, 3, 64, 64)))
    t = d.text("a")
    d.output(x(3), 500, t, 2.0, 1.0)
    assert (
        (c.nfe, c.control_nfe, c.calls) == (6, 6, 1)
        and set(c.seconds) == {"vae", "text", "unet", "controlnet"}
        and c.network_seconds == sum(c.seconds.values()) > 0
    )


def test_mismatched_batches(parts):
    d = Denoiser(parts["cfg"])
    two = Text.stack(d.text("a"), d.text("b"))
    assert len(two) == 2 and len(two[[0, 0, 1]]) == 3
    for args in ((x(3), 500, two), (x(2), 500, two, [1.0, 1.0, 1.0])):
        with pytest.raises(OptionError, match="latents came with"):
            d.output(*args)


@pytest.mark.parametrize(
    "prediction, beta",
    [
        ("epsilon", "scaled_linear"),
        ("v_prediction", "scaled_linear"),
        ("flow_prediction", "scaled_linear"),
    ],
)
def test_every_parameterisation_gives_eps_and_x0(parts, prediction, beta):
    p = replace(
        parts["cfg"],
        scheduler=dict(
            parts["cfg"].scheduler, _class_name="DDIMScheduler", prediction_type=prediction
        ),
    )
    d = Denoiser(p)
    t = d.text("a")
    for s in (100, 800):
        e, z = d.eps_x0(x(), s, t)
        a, b = d.schedule.levels(s, z)
        assert torch.allclose(a * z + b * e, x(), atol=1e-4)
        assert torch.equal(d.clean(x(), s, t), z) and torch.equal(d.eps(x(), s, t), e)
    lcm = Denoiser(parts["cfg"])
    skip, out = 0.25 / ((5000) ** 2 + 0.25), 5000 / ((5000) ** 2 + 0.25) ** 0.5
    assert torch.allclose(
        lcm.clean(x(), 500, t), out * lcm.eps_x0(x(), 500, t)[1] + skip * x(), atol=1e-5
    )


def test_noise_of_a_picture_is_its_own():
    alone, batch, other = (
        Noise([7], (4, 2, 3)),
        Noise([3, 7, 9], (4, 2, 3)),
        Noise([7, 3], (4, 2, 3)),
    )
    for _ in range(3):
        a, b, c = alone(), batch(), other()
        assert (
            torch.equal(a[0], b[1])
            and torch.equal(a[0], c[0])
            and torch.equal(b[0], c[1])
            and not torch.equal(b[0], b[1])
        )
    assert not torch.equal(alone(), a)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(parts, bad):
    z = torch.zeros(1, 4, 16, 16)
    z[0, 1, 2, 3] = bad
    with pytest.raises(NumericalError, match="1 of 1024 values in the latents before decoding"):
        Denoiser(parts["cfg"]).decode(z)
    assert finite("x", torch.ones(2)).sum() == 2


# --- a memo


def asked(parts, memo, plan, edges=EDGES):
    "Ask the same list of questions, each with a fresh denoiser."
    out = []
    for seed, t, prompt, g, c in plan:
        d = Denoiser(parts, edges, memo=memo)
        with torch.no_grad():
            out.append(d.output(x(1, seed), t, d.text(prompt), g, c))
    return out


PLAN = [
    (0, 500, "a ball", g, c) for g in (1.0, 1.5, 3.0) for c in (0.0, 0.5, 1.0, (0.5, 1.0, 0.2, 0.1))
] + [(0, 480, "a ball", 1.5, 0.5), (1, 500, "a ball", 1.5, 0.5), (0, 500, "a cup", 1.5, 0.5)]


@pytest.mark.parametrize("kind", ["cfg", "w", "sd15"])
def test_a_memo_gives_the_same_bits_for_fewer_calls(parts, kind):
    memo, seen = Memo(), []
    handles = [
        net.register_forward_hook(
            lambda m, a, k, o, n=n: seen.append((n, len(a[0]))), with_kwargs=True
        )
        for n, net in (("unet", parts[kind].unet), ("controlnet", parts[kind].controlnet))
    ]
    try:
        shared = asked(parts[kind], memo, PLAN)
    finally:
        for h in handles:
            h.remove()
    alone = asked(parts[kind], None, PLAN)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared)) and len(
        {a.numpy().tobytes() for a in alone}
    ) == len(PLAN)
    for n in ("unet", "controlnet"):
        assert memo.ran[n] == sum(rows for name, rows in seen if name == n)
    pair = 1 if kind == "w" else 2
    if kind == "w":
        # w is an input of the UNet, not of the ControlNet
        assert memo.ran["unet"] == 15 and memo.saved["unet"] == 0 and memo.ran["controlnet"] == 4
    else:
        assert (
            memo.ran["unet"] == 4 * 1 + 4 * 2 + 3 * 2
            and memo.saved["unet"] == 4 * 2
            and memo.ran["controlnet"] == 1 + 2 + 3 * 2
        )
    # SDXL's folder takes zeros where no negative prompt is given, and asks nothing
    assert memo.ran["text"] == (3 if kind == "sd15" else 2)
    again = asked(parts[kind], memo, PLAN)
    assert all(torch.equal(a, b) for a, b in zip(alone, again)) and memo.saved["unet"] >= sum(
        pair if p[3] != 1 else 1 for p in PLAN
    )


@pytest.mark.parametrize("kind", ["cfg", "sd15"])
def test_halves_asked_apart_are_the_pair_and_the_unconditional_one_is_asked_once(parts, kind):
    def ask(halves, prompt, t=500, c=0.5, seed=0, **kw):
        d = Denoiser(parts[kind], EDGES, keep_negative=halves)
        with torch.no_grad():
            return d.output(x(1, seed), t, d.text(prompt), 3.0, c, **kw), d.count

    class Kept(dict):
        def __call__(self, key, make):
            return self[key] if key in self else self.setdefault(key, make())

    halves = Kept()
    (a, n), (b, m) = (ask(halves, p) for p in ("a ball", "a cup"))
    assert [(c.nfe, c.control_nfe, c.calls, c.reused) for c in (n, m)] == [
        (2, 2, 2, 0),
        (2, 2, 1, 1),
    ], "what an edit takes does not depend on what is known; what ran does"
    for y, p in ((a, "a ball"), (b, "a cup")):
        assert torch.allclose(y, ask(None, p)[0], atol=1e-4) and torch.equal(y, ask(Kept(), p)[0])
    for other in (dict(t=480), dict(c=0.25), dict(seed=1), dict(c=0.0)):
        # everything that went in is part of the question
        assert ask(halves, "a cup", **other)[1].reused == 0, other
    assert (
        ask(halves, "a dog", c=0.0)[1].reused == 1
        and ask(halves, "a dog", c=0.0)[1].control_nfe == 0
    )
    # one plain question, the first pair apart, the next one in one batch; then the same with its
    # first half known
    for want in ((5, 4, 0), (5, 3, 1)):
        d = Denoiser(parts[kind], EDGES, keep_negative=halves)
        t = d.text("a ball")
        with torch.no_grad():
            for time, g in ((500, 1.0), (470, 3.0), (460, 3.0)):
                d.output(x(1, 0), time, t, g, 0.5)
        assert (d.count.nfe, d.count.calls, d.count.reused) == want
    y, n = ask(halves, "a cup", cross_attention_kwargs={})
    # further keywords may look across the batch
    assert n.calls == 1 and n.nfe == 2 and torch.equal(y, ask(None, "a cup")[0])


def test_what_leaves_is_an_ordinary_tensor(parts):
    """Inside, gradients and views are not kept account of; what comes out can be part of a gradient
    again, also what is kept between edits."""
    kept = []
    d = Denoiser(parts["cfg"], EDGES, stem=lambda make: kept.append(make()) or kept[0])
    with torch.no_grad():
        t = d.text("a ball")
        z = d.encode(torch.zeros(1, 3, 64, 64))
        e = d.output(z, 500, t, 2.0, 1.0)
        pixels = d.decode(z)
    assert not any(y.is_inference() for y in (t.states, t.pooled, z, e, pixels, *kept))
    states = t.states.clone().requires_grad_()
    d.output(e, 500, Text(states, t.pooled), 1.0, 1.0).square().sum().backward()
    assert states.grad.abs().sum() > 0


def test_a_memo_forgets_what_no_one_wants_and_what_is_too_much(parts):
    memo = Memo(1)
    assert (
        all(
            torch.equal(a, b)
            for a, b in zip(asked(parts["cfg"], None, PLAN), asked(parts["cfg"], memo, PLAN))
        )
        and len(memo.items) == 1
    )
    memo = Memo()
    memo.wanted_again = {"unet": iter([1, 0, 0]), "controlnet": iter([0] * 9), "text": iter([])}
    two = asked(parts["cfg"], memo, [(0, 500, "a ball", 1.0, 0.0)] * 2)
    assert (
        torch.equal(*two)
        and memo.ran["unet"] == memo.saved["unet"] == 1
        and not memo.items
        and memo.bytes == 0 < memo.peak
    )


def test_a_memo_stays_out_where_an_answer_depends_on_more(parts):
    from fastedit.denoise import Share, controlled

    p, memo = parts["cfg"], Memo()
    d = Denoiser(p, memo=memo)
    t = d.text("a ball")
    d.output(x(), 500, t)
    assert memo.ran["unet"] == 0  # gradients may be wanted
    with torch.no_grad(), controlled(d, [Share("kv", source=0, target=1)], 1):
        d.output(x(2), 500, t)
    assert memo.ran["unet"] == 0 and d.memo is memo
    with torch.no_grad():
        d.output(x(), 500, t, cross_attention_kwargs={})
        assert memo.ran["unet"] == 0
        d.output(x(), 500, t)
        assert memo.ran["unet"] == 1


def test_encoding_draws_anew_from_a_shared_posterior(parts):
    memo, pixels = (
        Memo(),
        torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1,
    )
    g = lambda s: torch.Generator().manual_seed(s)
    want = [Denoiser(parts["cfg"]).encode(pixels, s and g(s)) for s in (1, 2, None)]
    got = [Denoiser(parts["cfg"], memo=memo).encode(pixels, s and g(s)) for s in (1, 2, None)]
    assert (
        all(torch.equal(a, b) for a, b in zip(want, got))
        and memo.ran["encode"] == 1
        and not torch.equal(*want[:2])
    )
    assert (
        torch.equal(
            Denoiser(parts["cfg"], memo=memo).decode(want[0]),
            Denoiser(parts["cfg"]).decode(want[0]),
        )
        and memo.ran["decode"] == 1
    )


def test_fingerprints_tell_apart_shapes_types_and_order():
    a = torch.arange(4.0)
    things = [
        (a,),
        (a.view(2, 2),),
        (a.double(),),
        (a.int(),),
        (a, 1),
        (1, a),
        (a.bfloat16(),),
        (a.flip(0),),
        ("a", "b"),
        ("ab",),
        (1,),
        (1.0,),
        (None,),
        (torch.tensor(1),),
    ]
    assert len({fingerprint(*t) for t in things}) == len(things) and fingerprint(
        a.view(2, 2).T.contiguous().T
    ) == fingerprint(a.view(2, 2))


# --- the store


def test_a_store_lets_go_what_was_not_used_for_longest():
    s = Store(3000)
    made = []
    for k in "abacab":
        s.get(k, lambda k=k: made.append(k) or torch.zeros(256))
    assert (
        made == ["a", "b", "c", "b"]
        and (s.hits, s.misses, s.bytes, s.peak) == (2, 4, 2048, 3072)
        and "a" in s
        and "c" not in s
    )
    s.clear()
    assert s.bytes == 0 and not s.items and "a" not in s


def test_a_store_keeps_the_last_value_however_large_it_is():
    s = Store(1)
    assert torch.equal(s.get("a", lambda: torch.ones(9)), torch.ones(9)) and "a" in s


def test_what_is_kept_depends_on_networks_and_on_the_trick_that_moves_bits():
    s = Store()
    s.get("a", lambda: 1)
    s.stamp = 7
    assert "a" not in s
    s.stamp = None
    assert "a" in s
    with switched_off("weights"):
        assert "a" not in s
    with switched_off("layers", "versions"):
        assert "a" in s
