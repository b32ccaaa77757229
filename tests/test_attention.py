"""Attention control: token alignment, each rule against a direct computation, maps as pictures, and
nothing left behind."""

import pytest, torch
from fastedit.denoise import (
    Alignment,
    CrossAttention,
    Features,
    Rule,
    SelfAttention,
    Share,
    WordMaps,
    WordRegion,
    align,
    as_picture,
    controlled,
    find_words,
    sites,
    token_spans,
    word_pictures,
)
from fastedit.core import OptionError
from fastedit.denoise import Denoiser, Text
from fastedit.models import clip_tokenizer, load_model, random_model

torch.set_num_threads(1)
A, B = "a red ball on a meadow", "a blue ball on a snowy meadow"


@pytest.fixture(scope="session")
def tok(tmp_path_factory):
    from transformers import CLIPTokenizer

    d = tmp_path_factory.mktemp("tok")
    clip_tokenizer(d)
    return CLIPTokenizer.from_pretrained(d)


@pytest.fixture(scope="session", params=["sdxl", "sd15"])
def parts(request, tmp_path_factory):
    return load_model(
        str(random_model(tmp_path_factory.mktemp("m"), family=request.param)), device="cpu"
    )


def batch(parts, n=2, guidance=1.0, size=(16, 16)):
    d = Denoiser(parts)
    x = torch.randn(n, 4, *size, generator=torch.Generator().manual_seed(0))
    return d, x, Text.stack(d.text(A), d.text(B)), [guidance] * n


def test_words_of_several_tokens_are_aligned(tok):
    long = len(tok("watercolour", add_special_tokens=False).input_ids)
    assert long > 1  # this vocabulary knows few whole words
    words, spans, end = token_spans(tok, A)
    assert words == tuple(A.split()) and [i for s in spans for i in s] == list(range(1, end))
    assert end == len(tok(A).input_ids) - 1
    al = align(tok, A, B)
    T = tok.model_max_length
    for w in ("ball", "on", "meadow"):
        for i, j in zip(al.source_spans[al.source.index(w)], al.target_spans[al.target.index(w)]):
            assert al.mapper[i, j] == 1 and al.same[j] == 1
    blue = list(al.target_spans[1])
    red = list(al.source_spans[1])
    assert (
        (al.same[blue] == 0).all()
        and torch.allclose(al.mapper[:, blue].sum(0), torch.ones(len(blue)))
        and abs(al.mapper[red][:, blue].sum() - len(blue)) < 1e-5
    )
    assert (al.same[list(al.target_spans[al.target.index("snowy")])] == 0).all() and al.mapper[
        :, list(al.target_spans[al.target.index("snowy")])
    ].sum() == 0
    assert set(al.changed[0]) == set(red) and set(al.changed[1]) == set(blue) | set(
        al.target_spans[al.target.index("snowy")]
    )
    assert al.mapper.shape == (T, T) and al.mapper[0, 0] == 1 and al.mapper[:, -1].sum() == 1


@pytest.mark.parametrize(
    "a,b",
    [
        ("", ""),
        ("", "a ball"),
        ("a ball", ""),
        ("ball " * 100, "star " * 100),
        ("a, b!", "A B"),
        ("ein Bär läuft", "ein Hund läuft"),
    ],
)
def test_alignment_of_odd_prompts(tok, a, b):
    al = align(tok, a, b)
    s = al.mapper.sum(0)
    assert ((s - 1).abs().lt(1e-5) | s.abs().lt(1e-6)).all() and torch.isfinite(al.mapper).all()
    assert all(0 < i < tok.model_max_length - 1 for g in al.changed for i in g)


def test_equal_prompts_align_as_identity(tok):
    al = align(tok, B, B)
    assert (
        torch.equal(al.mapper, torch.eye(tok.model_max_length))
        and al.changed == ((), ())
        and al.same.all()
    )
    assert align(tok, "a, b!", "A B").changed == ((), ())  # punctuation and case are not an edit


def test_find_words(tok):
    words, spans, _ = token_spans(tok, A)
    assert find_words(words, spans, "ball sun") == spans[2] and find_words(words, spans, "") == ()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_rule_that_does_nothing_changes_nothing(parts, guidance):
    d, x, text, g = batch(parts, guidance=guidance)
    want = d.eps(x, 499, text, g)

    class Looks(Rule):
        def wants(self, site, positions, c):
            return True

    for rules in ([], [Rule()], [Looks()]):
        with controlled(d, rules):
            assert (d.eps(x, 499, text, g) - want).abs().max() < 1e-4


def test_whatever_happens_the_unet_is_as_it_was(parts):
    d, x, text, g = batch(parts)
    unet = parts.unet
    before = dict(unet.attn_processors)
    with pytest.raises(RuntimeError):
        with controlled(d, [Features(), WordMaps()]):
            raise RuntimeError

    class Broken(Rule):
        def qkv(self, *_):
            raise ValueError

    with pytest.raises(ValueError):
        with controlled(d, [Features(), Broken()]):
            d.eps(x, 499, text)
    assert all(unet.attn_processors[k] is p for k, p in before.items()) and not any(
        m._forward_hooks for m in unet.modules()
    )


def test_sites_are_found_by_name(parts):
    s = sites(parts.unet)
    assert {x.place for x in s} == {"down", "mid", "up"} and sum(x.cross for x in s) * 2 == len(s)
    for cross in (True, False):
        for place in ("down", "mid", "up"):
            g = [x for x in s if x.cross == cross and x.place == place]
            assert [x.index for x in g] == list(range(len(g))) and all(x.of == len(g) for x in g)


class Spy(Rule):
    "Keep what later rules made of the maps."

    def __init__(self):
        self.seen = []

    def wants(self, site, positions, c):
        return True

    def maps(self, site, p, c):
        self.seen.append((site, p.clone(), list(c.denoiser.rows)))
        return p


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_cross_attention_replaces_refines_and_reweights(parts, tok, guidance):
    d, x, text, g = batch(parts, guidance=guidance)
    al = align(tok, A, B)
    for mode in ("refine", "replace"):
        before, after = Spy(), Spy()
        j = al.target_spans[2][0]
        with controlled(d, [before, CrossAttention(al, 1.0, mode, {j: 3.0}), after]):
            d.eps(x, 499, text, g)
        for (site, p, rows), (_, q, _) in zip(before.seen, after.seen):
            src, tgt = [
                [i for i, (neg, r) in enumerate(rows) if not neg and r == k][0] for k in (0, 1)
            ]
            others = [i for i in range(len(p)) if i != tgt]
            assert torch.equal(p[others], q[others])
            if not site.cross:
                assert torch.equal(p, q)
                continue
            have = al.same if mode == "refine" else (al.shares.sum(0) > 0).float()
            if mode == "refine":
                want = (p[src] @ al.mapper) * have + p[tgt] * (1 - have)
            else:
                own = p[tgt] * (1 - have)
                kept = p[src] @ al.shares
                want = kept / kept.sum(-1, keepdim=True) * (1 - own.sum(-1, keepdim=True)) + own
                assert torch.allclose(want.sum(-1), torch.ones(want.shape[:-1]), atol=1e-5)
            want[..., j] *= 3
            assert torch.allclose(q[tgt], want, atol=1e-5)


def test_self_attention_is_replaced_by_resolution_and_time(parts):
    d, x, text, g = batch(parts)
    for largest, step in ((1024, 0), (20, 0), (1024, 7)):
        before, after = Spy(), Spy()
        with controlled(d, [before, SelfAttention(0.6, largest), after]) as c:
            c.begin(step, 10)
            d.eps(x, 499, text, g)
        for (site, p, _), (_, q, _) in zip(before.seen, after.seen):
            if not site.cross and p.shape[2] <= largest and step < 6:
                assert torch.equal(q[1], p[0]) and torch.equal(q[0], p[0])
            else:
                assert torch.equal(p, q)


def test_shared_queries_keys_and_values(parts):
    d, x, text, g = batch(parts, guidance=2.0)

    class See(Rule):
        def __init__(self):
            self.seen = {}

        def qkv(self, site, q, k, v, c):
            self.seen[site] = q.clone(), k.clone(), v.clone()
            return q, k, v

    for what, decoder in (("kv", 0.5), ("qk", None)):
        a, b = See(), See()
        with controlled(d, [a, Share(what, decoder=decoder), b]):
            d.eps(x, 499, text, g)
        for site in a.seen:  # rows: both without a prompt, then both with one
            for name, p, q in zip("qkv", a.seen[site], b.seen[site]):
                here = (
                    not site.cross
                    and name in what
                    and (
                        decoder is None or (site.place == "up" and site.index >= int(0.5 * site.of))
                    )
                )
                assert torch.equal(q, p[[0, 0, 2, 2]] if here else p)


def test_features_are_injected(parts):
    d, x, text, g = batch(parts, guidance=2.0)
    seen = []
    blocks = [r for b in parts.unet.up_blocks for r in b.resnets]
    h = blocks[int(len(blocks) / 3 + 1e-6)].norm1.register_forward_hook(lambda *_: None)
    rule = Features(0.8)
    with controlled(d, [rule]) as c:
        k = blocks[int(len(blocks) / 3 + 1e-6)].conv2.register_forward_hook(
            lambda m, i, o: seen.append(o)
        )
        c.begin(0, 10)
        d.eps(x, 499, text, g)
        c.begin(9, 10)
        d.eps(x, 499, text, g)
        k.remove()
    h.remove()
    assert (
        torch.equal(seen[0][1], seen[0][0])
        and torch.equal(seen[0][3], seen[0][2])
        and not torch.equal(seen[1][3], seen[1][2])
    )


def test_word_maps_are_attention(parts, tok):
    d, x, text, g = batch(parts, guidance=2.0)
    maps = WordMaps()
    with controlled(d, [maps]):
        d.eps(x, 499, text, g)
        d.eps(x, 299, text, g)
    assert (
        len(maps.steps) == 2
        and maps.steps[0].shape[::2] == (2, tok.model_max_length)
        and torch.allclose(maps.steps[0].sum(-1), torch.ones(maps.steps[0].shape[:2]), atol=1e-4)
    )
    # the nearest to 16x16 that this UNet has
    assert maps.steps[0].shape[1] == (256 if parts.text_encoder_2 is None else 64)
    assert word_pictures(maps, tok, B, (16, 16), side=32).size[0] > 64


def test_regions_for_pictures_that_are_not_square(parts, tok):
    d, x, text, g = batch(parts, size=(16, 24))
    r = WordRegion(tok, A, B)
    assert r.region((16, 24)).all()  # nothing seen yet
    with controlled(d, [r]):
        d.eps(x, 499, text, g)
    m = r.region((16, 24), 0.9995)
    assert m.shape == (1, 1, 16, 24) and 0 < m.mean() < 1 and set(m.unique().tolist()) == {0.0, 1.0}
    assert WordRegion(tok, A, A).region((16, 24)).sum() == 0  # no word differs: nothing may change
    with pytest.raises(OptionError, match="neither"):
        WordRegion(tok, A, B, words="elephant")
    assert as_picture(torch.arange(96.0)[None], (16, 24)).shape == (1, 1, 16, 24)


def test_pictures_in_a_batch_do_not_see_each_other(parts, tok):
    d, x, text, _ = batch(parts, 4, guidance=2.0)
    al = align(tok, A, B)
    two = text[[0, 0, 1, 1]]
    rules = lambda: [CrossAttention(al, 1.0), SelfAttention(1.0), Share("kv")]
    with controlled(d, rules(), 2):
        both = d.eps(x, 499, two, 2.0)
    for i in (0, 1):
        with controlled(d, rules(), 1):
            one = d.eps(x[[i, i + 2]], 499, text, 2.0)
        assert (both[[i, i + 2]] - one).abs().max() < 1e-4


def test_alignment_is_data():
    assert Alignment(("a",), ("a",), ((1,),), ((1,),), torch.eye(4), torch.ones(4)).changed == (
        (),
        (),
    )
