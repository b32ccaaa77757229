"""The world at 128 pixels: exact to the pixel, said in known words, alike however it is drawn."""

import random
from dataclasses import replace
import pytest
from hypothesis import given, settings, strategies as st
from fastedit import world as W
from fastedit.core import OptionError

SUMS = (1984240, 1557189, 975987)
SEEDS = st.integers(0, 10**6)


@given(st.integers(0, 9), SEEDS)
@settings(max_examples=25)
def test_outside_its_mask_an_edit_changes_nothing(kind, seed):
    e = W.sample_large_edit(kind, seed)
    before, after, mask = W.render(e.source, 64), W.render(e.target, 64), e.mask(64)
    assert (before[~mask] == after[~mask]).all()
    assert (before != after).any()
    assert (e.target_image(64) == after).all()
    assert e.source_prompt != e.target_prompt


@given(st.integers(0, 9), SEEDS)
@settings(max_examples=60)
def test_an_edit_changes_what_its_kind_says_and_nothing_else(kind, seed):
    name, changed = W.LARGE_KINDS[kind], W.sample_large_edit(kind, seed).changed
    if name == "swap":  # each stands where the other stood, so all that tells them apart changes
        assert "noun" in changed
        assert set(changed) <= {"noun", "pose", "colour", "material"}
    else:
        other = dict(tilt="pose", add="things", delete="things")
        assert changed == (other.get(name, name),)


def test_what_is_added_in_front_is_asked_for_there():
    edits = [W.sample_large_edit(W.LARGE_KINDS.index("add"), i) for i in range(40)]
    for e in edits:
        assert (" in front of the " in e.instruction) == W.in_front(e.target)
    assert any(W.in_front(e.target) for e in edits)


@pytest.mark.parametrize("kind", ["add", "delete"])
def test_two_of_three_are_never_said_to_stand_in_front(kind):
    from fastedit.world.large_words import _change

    near = W.LargeScene(
        [W.LargeThing(n, "red", size="small", x=x) for n, x in zip(W.LARGE_NOUNS, (0.2, 0.48, 0.8))]
    )
    assert _change(kind, near, random.Random(0)) is None
    wide = replace(near, things=(near.things[0], replace(near.things[1], x=0.5), near.things[2]))
    assert _change(kind, wide, random.Random(0)) is not None


def test_two_of_a_kind_among_three_are_said_one_by_one():
    a = W.LargeThing("fish", "red", size="small", x=0.2)
    b = W.LargeThing("hat", "blue", size="small", x=0.8)
    said = W.large_caption(W.LargeScene((a, replace(a, x=0.5), b)))
    assert said.count("a small red fish") == 2 and "a small blue hat" in said


@given(SEEDS)
@settings(max_examples=60)
def test_every_word_is_known_and_fits(seed):
    words, s = set(W.large_words()), W.sample_large_scene(seed)
    texts = [W.large_caption(s), W.large_training_caption(s, seed)]
    texts.append(W.sample_large_edit(seed % 10, seed).instruction)
    for text in texts:
        assert set(text.split()) <= words and len(text.split()) <= 38
        for a, b in zip(text.split(), text.split()[1:]):
            assert a not in ("a", "an") or (a == "an") == (b[0] in "aeiou")


def test_how_two_things_stand_is_said():
    a = W.LargeThing("apple", "red", "plain", "small", 0.0, 0.25, 0.5)
    b = W.LargeThing("hat", "blue", "plain", "small", 0.0, 0.75, 0.5)
    tree = W.LargeThing("tree", "green", "plain", "large", 0.0, 0.5, 0.4)
    front = W.LargeThing("hat", "blue", "plain", "small", 0.0, 0.7, 0.55)
    assert W.large_caption(W.LargeScene((a, b))) == (
        "a drawing of a small red apple to the left of a small blue hat on a meadow"
    )
    scene = W.LargeScene((tree, front))
    assert W.in_front(scene)
    assert "hat in front of a large green tree" in W.large_caption(scene)
    three = W.LargeScene((a, W.LargeThing("bird", "pink", size="small"), b))
    assert three.things[1].noun == "bird"
    assert W.large_caption(three).endswith("from left to right on a meadow")


def test_shadows_fall_and_masks_know_them():
    thing = W.LargeThing("ball", "red", "plain", "small", 0.0, 0.5, 0.5)
    bright, dark = (
        W.render(k((t,), "snow"), 128).astype(int)
        for k, t in (
            (W.Scene, W.Thing("ball", "red", "plain", "small", 0.0, 0.5, 0.5)),
            (W.LargeScene, thing),
        )
    )
    assert (dark <= bright).all() and (dark < bright).any()
    mask = W.object_masks(W.LargeScene((thing,), "snow"), 128)[0]
    assert (mask[(dark != bright).any(-1)] > 0).all() and mask.max() == 1


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: W.LargeThing("dog", "red"), "noun 'dog' is not in the picture book"),
        (lambda: W.LargeThing("bird", "red", "woolly"), "material 'woolly'"),
        (lambda: W.Thing("bird", "red"), "noun 'bird'"),
        (lambda: W.LargeScene(()), "0 objects"),
        (lambda: W.LargeScene((W.Thing("ball", "red"),)), "give one to three LargeThings"),
        (lambda: W.sample_large_scene(-1), "seed=-1"),
    ],
)
def test_what_cannot_be_drawn(make, word):
    with pytest.raises(OptionError, match=word):
        make()


def test_chunks_depend_on_seeds_alone():
    words = W.Words({w: i for i, w in enumerate(W.large_words())}, 500, 501, 40)
    form = dict(size=64, cells=8, words=words, cores=0)
    whole = W.drawn_within(W.scene_chunk, 0, 9, 60, chunk=4, **form)
    part = W.drawn_within(W.scene_chunk, 3, 4, 60, chunk=2, **form)
    for k, v in whole.items():
        assert len(v) == 9 and (v[3:7] == part[k]).all()
    back = {i: w for w, i in words.numbers.items()}
    said = " ".join(back[i] for i in whole["tokens"][2, 0] if i in back)
    assert said == W.large_caption(W.sample_large_scene(2))
    edits = W.drawn_within(W.edit_chunk, 0, 5, 0, chunk=2, **form)
    assert len(edits["told"]) == 2  # no time: one chunk


def test_scenes_do_not_drift():
    "What is trained on them depends on them."
    r = random.Random(0)
    sums = tuple(
        int(W.render(W.sample_large_scene(r.randrange(10**6)), 64).sum()) for _ in range(3)
    )
    assert sums == SUMS
