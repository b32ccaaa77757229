"""Settings that choose themselves: a strength for a stated change, settings by the words."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastedit import EditRequest, FastEditor, OptionError
from fastedit.adaptive import (
    STRENGTHS,
    change_share,
    edit_and_check,
    edit_kind,
    resolve_auto,
)
from fastedit.editor.change import NEAR, TRIES, search
from fastedit.studies.sweep import Sweep
from fastedit.world import sample_edit

EDIT = sample_edit(6, 3)
WORDS = dict(prompt=EDIT.target_prompt, source_prompt=EDIT.source_prompt)


@pytest.fixture(scope="module")
def editor():
    return FastEditor("mini", device="cpu")


@pytest.fixture(scope="module")
def source():
    return Image.fromarray(EDIT.source_image(64))


# --- change


@given(
    curve=st.lists(st.floats(0, 1), min_size=1, max_size=60).map(sorted),
    asked=st.floats(0.01, 0.99),
    start=st.integers(0, 59),
)
def test_a_search_makes_few_tries_and_each_place_once(curve, asked, start):
    seen = []
    found = search(lambda i: seen.append(i) or curve[i], len(curve), asked, start % len(curve))
    assert seen == list(found) and 1 <= len(seen) == len(set(seen)) <= TRIES
    assert all(0 <= i < len(curve) for i in seen)


@given(asked=st.floats(0.05, 0.45), bend=st.floats(0.6, 1.7), start=st.integers(10, 49))
def test_a_search_on_a_rising_curve_comes_near(asked, bend, start):
    curve = [0.5 * ((i + 1) / 50) ** bend for i in range(50)]
    found = search(curve.__getitem__, 50, asked, start)
    best = min(found.values(), key=lambda c: abs(c - asked))
    grain = max(b - a for a, b in zip(curve, curve[1:]))
    assert abs(best - asked) <= max(NEAR * asked, 2 * grain)


def test_a_search_goes_to_the_end_that_is_nearest_where_nothing_reaches():
    curve = [0.1 + i / 100 for i in range(10)]
    assert 9 in search(curve.__getitem__, 10, 0.9, 5)
    assert 0 in search(curve.__getitem__, 10, 0.01, 5)


def test_change_counts_where_the_mask_is():
    pixels = [[[0, 0, 0], [0, 0, 0]]], [[[255] * 3, [0] * 3]]
    assert change_share(*np.float32(pixels)[:, 0], [[1, 0]]) == 1
    assert change_share(*np.float32(pixels)[:, 0]) == 0.5
    with pytest.raises(OptionError, match="mask is empty"):
        change_share([[[0, 0, 0]]], [[[9, 9, 9]]], [[0]])


def test_an_edit_by_change_names_its_strength_and_repeats_to_the_byte(editor, source, tmp_path):
    mask = EDIT.mask(64).astype(np.float32)
    found = editor(source, mask=mask, method="ddcm", change=0.12, **WORDS)
    reached = change_share(found.source, found.image, mask)
    assert abs(reached - 0.12) < 0.02
    assert found.request.change is None and 0 < found.request.strength <= 1
    assert found.nfe == sum(t.nfe for t in found.tries)
    note = found.notes[-1]
    assert f"strength {found.request.strength:g}" in note and "inside the mask" in note
    assert f"{reached:.3f}" in note and f"{found.nfe} UNet evaluations" in note
    assert json.loads(json.dumps(found.to_dict()))["tries"][0]["strength"] > 0
    again = editor(source, mask=mask, request=EditRequest.from_json(found.request.json))
    assert again.image.tobytes() == found.image.tobytes() and again.tries == ()
    saved = EditRequest.from_png(found.save(tmp_path / "edit.png"))
    assert saved == found.request


def test_an_edit_by_change_is_the_same_each_time(editor, source):
    one, two = (editor(source, method="ddcm", change=0.03, **WORDS) for _ in range(2))
    assert one.tries == two.tries and one.image.tobytes() == two.image.tobytes()
    assert "of the whole picture" in one.notes[-1]


def test_change_inside_a_found_region_is_measured_there(editor, source):
    found = editor(source, method="ddcm-words", change=0.1, **WORDS)
    assert found.region is not None and "region that was found" in found.notes[-1]
    best = next(t for t in found.tries if t.strength == found.request.strength)
    share = change_share(found.source, found.image, found.region)
    assert best.change == pytest.approx(share, abs=1e-4)


def test_a_change_that_nothing_reaches_is_said(editor, source):
    found = editor(source, change=0.95, **WORDS)
    assert (
        found.request.strength == 1 and "no strength that was tried comes nearer" in found.notes[-1]
    )


def test_a_change_is_found_within_a_batch(editor, source):
    alone = editor(source, change=0.03, **WORDS)
    jobs = [dict(image=source, change=0.03, **WORDS), dict(image=source, **WORDS)]
    first, second = editor.batch(jobs, at_once=2)
    assert first.image.tobytes() == alone.image.tobytes() and not second.tries


@pytest.mark.parametrize("change", [0, 1, -0.1, "much", True, float("nan")])
def test_a_change_that_is_no_share_is_refused(change):
    with pytest.raises(OptionError, match="change=.*between 0 and 1"):
        EditRequest("a cup", change=change)


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(change=0.2, strength=0.5), "give one of them"),
        (dict(change=0.2, method="vae"), "edits nothing"),
        (dict(chnge=0.2), "change"),
    ],
)
def test_a_change_that_cannot_be_found_is_refused(editor, source, settings, words):
    with pytest.raises(OptionError, match=words):
        editor(source, **WORDS, **settings)


def test_sweeps_and_single_steps_take_no_change(editor, source):
    with pytest.raises(OptionError, match="let strength vary"):
        Sweep(source, editor=editor, change=[0.1, 0.2], **WORDS)
    with pytest.raises(OptionError, match="only an editor"):
        editor.resolve(EditRequest(change=0.2, **WORDS), source)


# --- by the words


def test_kinds_are_read_from_words_and_unknown_outside_of_the_drawn_world():
    said = [
        ("a red ball", "a blue ball", "looks"),
        ("a red ball", "a red cup", "thing"),
        ("a red ball", "a red ball", "same"),
        (None, "a red ball", "unknown"),
        ("", "a red ball", "unknown"),
        ("my aunt", "my uncle", "unknown"),
    ]
    for was, want, kind in said:
        assert edit_kind(was, want) == kind, (was, want)


def test_a_stated_strength_and_other_methods_stay_as_they_are():
    for more in (dict(method="ddcm", strength=0.45), dict(method="turbo")):
        r = EditRequest("a blue ball", "a red ball", **more)
        assert resolve_auto(r) == r
    assert (
        resolve_auto(EditRequest("a blue ball", "a red ball", method="ddcm")).strength
        == STRENGTHS["looks"]
    )


# --- a second try


def test_nothing_to_try_is_refused():
    with pytest.raises(OptionError, match="strengths"):
        edit_and_check(None, None, None, ())
