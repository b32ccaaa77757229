"""Words beyond a plain prompt: pieces, weights, clip skip, and prompts that come encoded."""

import pytest, torch
from PIL import Image
from typer.testing import CliRunner
from fastedit import EditRequest, FastEditor
from fastedit.cli import app
from fastedit.core import FastEditError, OptionError, PromptError
from fastedit.denoise import Text, Wording, in_pieces, pieces_needed, weigh, weighed_words
from fastedit.world import render, sample_scene
from shared import stock_pipeline

A = Image.fromarray(render(sample_scene(5), 64))
SAME = dict(method="img2img", schedule="stock", steps=4, strength=0.75, guidance=6.0, seed=3)
LONG = "a (dark red:1.4) ball on a meadow, " * 9


def apart(edit, other):
    """Largest difference of latents: random models move pixels little."""
    return (edit.latents - getattr(other, "latents", other)).abs().max().item()


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("m") / request.param
    pipe = stock_pipeline(folder, request.param, "Img2ImgPipeline")
    return pipe, FastEditor(pipe)


def stock(pipe, prompt=None, **kw):
    asked = dict(image=A, strength=0.75, guidance_scale=6.0, num_inference_steps=4) | kw
    seed = torch.Generator().manual_seed(3)
    return pipe(prompt, generator=seed, output_type="latent", **asked).images


def named(text, empty):
    found = dict(prompt_embeds=text.states, negative_prompt_embeds=empty.states)
    if text.pooled is None:
        return found
    return found | dict(
        pooled_prompt_embeds=text.pooled, negative_pooled_prompt_embeds=empty.pooled
    )


def test_long_weighted_prompts_are_stocks_with_their_embeddings(both):
    pipe, editor = both
    d = editor.denoiser()
    d.wording = Wording(long=True, weights=True)
    d.pieces = pieces_needed(pipe.tokenizer, LONG, d.wording)
    tensors = named(d.text(LONG), d.unconditional())
    assert d.pieces > 1 and tensors["prompt_embeds"].shape[1] == 77 * d.pieces
    want = stock(pipe, **tensors)
    words = editor(A, LONG, long_prompts=True, prompt_weights=True, **SAME)
    given = editor(A, **tensors, **SAME)
    assert apart(words, want) < 1e-4 and apart(given, want) < 1e-4
    assert apart(editor(A, LONG, **SAME), want) > 1e-3
    assert given.request.prompt.startswith("embeds:")
    assert not any("did not fit" in n for n in words.notes)
    assert any("long_prompts" in n for n in editor(A, LONG, **SAME).notes)


def test_clip_skip_is_stocks(both):
    pipe, editor = both
    got = editor(A, "a red ball", clip_skip=1, **SAME)
    assert apart(got, editor(A, "a red ball", **SAME)) > 1e-3
    if hasattr(pipe.text_encoder, "text_model") or "tokenizer_2" in pipe.components:
        assert apart(got, stock(pipe, "a red ball", clip_skip=1)) < 1e-4
        return
    # diffusers looks for the last norm where this version of transformers has it no more
    pipe.text_encoder.__dict__["text_model"] = pipe.text_encoder
    try:
        assert apart(got, stock(pipe, "a red ball", clip_skip=1)) < 1e-4
    finally:
        del pipe.text_encoder.__dict__["text_model"]


def test_without_wishes_nothing_changes(both):
    _, editor = both
    plain = editor(A, "a (red:1.3) ball", **SAME)
    weighed = editor(A, "a (red:1.3) ball", prompt_weights=True, **SAME)
    one = editor(A, "a (red:1) ball", prompt_weights=True, **SAME)
    bare = editor(A, "a red ball", **SAME)
    assert min(apart(plain, weighed), apart(weighed, bare)) > 1e-3
    assert apart(one, bare) == 0
    assert (
        editor(A, "a red ball", long_prompts=True, **SAME).image.tobytes() == bare.image.tobytes()
    )


def test_a_method_that_compares_takes_both_encoded(both):
    _, editor = both
    d = editor.denoiser()
    a, b = d.text("a red ball"), d.text("a blue ball")
    how = dict(method="ddcm", steps=2, guidance=1.0)
    words = editor(A, "a blue ball", source_prompt="a red ball", **how)
    given = editor(A, prompt_embeds=b, source_prompt_embeds=a, **how)
    assert given.image.tobytes() == words.image.tobytes()
    assert EditRequest.from_json(given.request.json) == given.request
    again = editor(A, request=given.request, prompt_embeds=b, source_prompt_embeds=a)
    assert again.image.tobytes() == given.image.tobytes()
    for other in (dict(), dict(prompt_embeds=a, source_prompt_embeds=b, negative_prompt_embeds=b)):
        if other:
            other["negative_prompt_embeds"] = Text(
                b.states + 1, None if b.pooled is None else b.pooled
            )
        with pytest.raises(FastEditError, match="embeds|not those"):
            editor(A, request=given.request, **other)


@pytest.mark.parametrize(
    "kw, says",
    [
        (dict(prompt_embeds=torch.zeros(1, 77, 8)), "are 8 wide|pooled"),
        (dict(prompt_embeds=torch.zeros(77, 8)), "give a tensor"),
        (dict(prompt_embeds="a cup"), "give a tensor"),
        (dict(prompt="a cup", prompt_embeds=torch.zeros(1, 77, 8)), "both given"),
        (dict(prompt="a cup", clip_skip=9), "layers can be left out"),
        (dict(prompt="a (cup:9)", prompt_weights=True), "weight in"),
        (dict(prompt=LONG, method="p2p", long_prompts=True), "one piece"),
    ],
)
def test_what_cannot_be_is_said(both, kw, says):
    with pytest.raises(PromptError, match=says):
        both[1](A, **(dict(SAME, schedule=None) | kw))


@pytest.mark.parametrize("kw", [dict(clip_skip=-1), dict(clip_skip=1.5), dict(long_prompts="yes")])
def test_fields_have_their_types(kw):
    with pytest.raises(OptionError):
        EditRequest("a cup", **kw)


def test_weights_are_read():
    assert weighed_words("a (b c:1.2) d") == [("a ", 1.0), ("b c", 1.2), (" d", 1.0)]
    assert weighed_words("no (weights) here: 3") == [("no (weights) here: 3", 1.0)]
    states = torch.rand(1, 77, 4)
    w = torch.ones(1, 77)
    assert weigh(states, w) is states
    w[0, 3] = 2.0
    assert weigh(states, w).abs().mean() == pytest.approx(states.abs().mean().item())


def test_pieces_hold_every_token(both):
    tok = both[0].tokenizer
    n = pieces_needed(tok, LONG, Wording(long=True))
    ids, _ = in_pieces(tok, LONG, Wording(long=True), n)
    inner = [i for row in ids[:, 1:-1].tolist() for i in row]
    want = tok(LONG, add_special_tokens=False).input_ids
    assert inner[: len(want)] == want and ids.shape == (n, 77)


def test_the_command_line_takes_them(tmp_path):
    A.save(tmp_path / "a.png")
    words = "a drawing of a (red:1.2) ball " * 6
    call = ["edit", str(tmp_path / "a.png"), words, "-o", str(tmp_path / "b.png"), "--method"]
    run = CliRunner().invoke(
        app, [*call, "img2img", "--steps", "1", "--long-prompts", "--prompt-weights", "-q"]
    )
    assert run.exit_code == 0, run.output
    r = EditRequest.from_png(tmp_path / "b.png")
    assert r.long_prompts and r.prompt_weights and r.clip_skip is None
