"""The CLIP of the drawn world: its loss, its near misses, a training that resumes, and what the
shipped one can do on scenes nobody trained on."""

import csv
import numpy as np, pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from fastedit import world as pb
from fastedit.training import clip as tc
from fastedit.measure import Clip, Pair, Scorer, load_backbone
from fastedit.models import weights_dir
from fastedit.training import caption_words, held_out, load_tokenizer, write_tokenizer


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tok"), caption_words(300)))


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=40)
def test_a_near_miss_is_wrong_in_one_thing(seed, other):
    text = pb.training_caption(pb.sample_scene(seed), seed)
    wrong = tc.near_miss(text, np.random.default_rng(other))
    assert wrong != text
    a, b = (f" {t} " for t in (text, wrong))
    kinds = [
        k
        for k in tc._KINDS
        if sorted(w for w in k for _ in range(a.count(f" {w} ")))
        != sorted(w for w in k for _ in range(b.count(f" {w} ")))
    ]
    assert len(kinds) == 1 and pb.read_prompt(wrong) != pb.read_prompt(text)
    assert all(
        (n[:1] in "aeiou") == (d == "an")
        for d, n in zip(wrong.split(), wrong.split()[1:])
        if d in ("a", "an")
    )


def test_the_loss_is_cross_entropy_both_ways_and_misses_count():
    g = torch.Generator().manual_seed(0)
    a, b, c = (F.normalize(torch.randn(5, 8, generator=g), dim=-1) for _ in range(3))
    s = torch.tensor(3.0)
    rows, cols = (
        torch.log_softmax(s * torch.cat([a @ b.T, a @ c.T], 1), 1).diag(),
        torch.log_softmax(s * a @ b.T, 0).diag(),
    )
    assert tc.contrast(a, b, c, s) == pytest.approx(
        -(rows.mean() + cols.mean()).item() / 2, abs=1e-6
    )
    assert tc.contrast(a, a, -a, torch.tensor(50.0)) < tc.contrast(a, a, a, torch.tensor(50.0))


def test_the_input_is_what_metrics_prepares(tok):
    shown = held_out(1)[1]
    mine = tc.clip_input(torch.tensor(shown).permute(0, 3, 1, 2).float() / 127.5 - 1)[0]
    assert torch.allclose(mine, Clip(tc.new_clip(tok), None, 64).prepare(shown[0]), atol=1e-5)


def test_accuracy_of_a_model_that_knows_and_one_that_guesses():
    scenes, shown = held_out(12)
    texts = [pb.caption(s) for s in scenes]
    one = torch.eye(12)

    class Knows:
        def images(self, x):
            return one

        def texts(self, ts):
            return torch.stack([one[texts.index(t)] if t in texts else torch.zeros(12) for t in ts])

    assert tc.clip_accuracy(Knows(), scenes, shown) == dict(
        text_top1=1, text_top5=1, picture_top1=1, near_miss=1
    )


def test_training_resumes_and_writes_what_metrics_loads(tmp_path, monkeypatch):
    np.save(
        tmp_path / "pictures-40.npy",
        np.stack([pb.render(pb.sample_scene(i), 64) for i in range(40)]),
    )

    def run(steps):
        return tc.train_clip(tmp_path, steps=steps, batch=8, n=40, every=2, quiet=True)

    before = {
        k: v.clone()
        for k, v in tc.new_clip(load_tokenizer(write_tokenizer(tmp_path / "t", caption_words())))
        .state_dict()
        .items()
    }
    run(2)
    model = run(4)
    assert [int(r["step"]) for r in csv.DictReader(open(tmp_path / "clip.csv"))] == [2, 4]
    assert any(
        not torch.equal(v, before[k])
        for k, v in model.state_dict().items()
        if v.is_floating_point()
    )
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(tmp_path / "models"))
    (tmp_path / "models" / "clip").rename(tmp_path / "models" / "mini-clip")
    load_backbone.cache_clear()
    mine = load_backbone("clip-mini")
    load_backbone.cache_clear()
    x = held_out(1)[1]
    want = F.normalize(
        model(tc.clip_input(torch.tensor(x).permute(0, 3, 1, 2).float() / 127.5 - 1))[0], dim=-1
    )
    assert (
        mine.side == 64
        and (mine.images(x) - want.detach()).abs().max() < 0.01
        and mine.texts(["a red ball"]).shape == (1, tc.EMBED)
    )


# ---- the shipped one


@pytest.fixture(scope="module")
def clip():
    load_backbone.cache_clear()
    return load_backbone("clip-mini")


def test_the_shipped_weights_are_small_and_read_every_caption():
    folder = weights_dir() / "mini-clip"
    assert sum(p.stat().st_size for p in folder.iterdir()) < 1e6
    tok = load_tokenizer(folder)
    assert max(len(tok(pb.caption(pb.sample_scene(i))).input_ids) for i in range(200)) <= tc.WORDS


def test_the_right_caption_beats_wrong_ones(clip):
    scenes, shown = held_out(64, 70_000)
    found = tc.clip_accuracy(clip, scenes, shown)
    print(found)
    assert (
        found["text_top1"] > 0.6
        and found["picture_top1"] > 0.6
        and found["text_top5"] > 0.95
        and found["near_miss"] > 0.7
    )


def test_scores_run_through_the_code_of_the_full_clips(clip):
    edits = [pb.sample_edit(i % 10, 5000 + i) for i in range(30)]
    scorer = Scorer("drawn", only=["clip-mini", "clip-mini-dir"])
    plain = lambda t: t.replace("[", "").replace("]", "")

    def mean(pictures, key):
        v = [
            r[f"drawn/{key}"]
            for r in scorer(
                [
                    Pair(
                        e.source_image(),
                        p,
                        e.mask().astype(np.float32),
                        plain(e.source_prompt),
                        plain(e.target_prompt),
                    )
                    for e, p in zip(edits, pictures)
                ]
            )
        ]
        return np.mean([x for x in v if x is not None]) if any(x is not None for x in v) else None

    right, same, other = (
        [e.target_image() for e in edits],
        [e.source_image() for e in edits],
        [e.target_image() for e in edits[1:] + edits[:1]],
    )
    assert (
        mean(right, "clip-mini") > mean(same, "clip-mini") > mean(other, "clip-mini")
        and mean(right, "clip-mini-dir") > 0.1 > abs(mean(other, "clip-mini-dir")) - 0.1
        and mean(same, "clip-mini-dir") is None
    )
    p = Pair(edits[0].source_image(), right[0], None, "", plain(edits[0].target_prompt))
    assert scorer(p)[0]["drawn/clip-mini"] == pytest.approx(
        100 * float(clip.images([right[0]]) @ clip.texts([p.target_prompt]).T), abs=1e-3
    )
