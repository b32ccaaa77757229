"""Ablations: themes that can run, rows that say what they hold, choices that look at tuning
pictures alone."""

import pytest
from fastedit.core import DataError, OptionError
from fastedit.studies.ablation import (
    SETS,
    THEMES,
    Ablation,
    Panel,
    Theme,
    ablate,
    edits_of,
    find_theme,
    read_ablation,
    read_rows,
)
from fastedit.studies.ablation.ablating import FIGURES, jobs_of, lent_maps
from fastedit.studies.sweep import listed, request_of
from fastedit.pictures import CONDITIONS


def made(success, background, usual=1):
    """An ablation of one panel: {value: list per picture}, the first half of the pictures tuning
    ones."""
    n = len(next(iter(success.values())))
    panel = Panel("p", "steps", usual, {v: dict(steps=v) for v in success}, dict(method="ddcm"))
    lines = {
        ("p", str(v)): dict(panel="p", value=v, **{f: [None] * n for f in FIGURES})
        | dict(success=success[v], background=background[v])
        for v in success
    }
    return Ablation(
        Theme("t", "?", (panel,)),
        dict(
            types=[1] * n,
            set=["tuning"] * (n // 2) + ["held-out"] * (n // 2),
            sets=SETS,
            rounds=1,
            seconds=1.0,
            alone=2,
            ran=1,
            command="x",
        ),
        lines,
    )


@pytest.mark.parametrize("key", THEMES)
def test_every_value_of_every_theme_is_a_request(key):
    with lent_maps(edits_of("tuning", 0, (1,))):
        for jobs in jobs_of(find_theme(key)).values():
            for _, s in jobs:
                assert request_of(s, prompt="a cup")


def test_lent_maps_are_gone_afterwards():
    before = dict(CONDITIONS)
    with pytest.raises(ZeroDivisionError), lent_maps(edits_of("tuning", 0, (1,))):
        assert "own" in CONDITIONS
        1 / 0
    assert CONDITIONS == before


def test_tuning_and_held_out_pictures_have_nothing_in_common():
    seen = [{(e.edit_type, e.seed) for k in range(3) for e in edits_of(s, k)} for s in SETS]
    assert len(seen[0]) == 30 and not seen[0] & seen[1]


def test_a_choice_does_not_look_at_held_out_pictures():
    a = made({1: [0] * 8, 2: [1] * 4 + [0] * 4}, {1: [20.0] * 8, 2: [10.0] * 8})
    assert a.choices("p") == {"obeys most": 2, "keeps most": 1}
    b = made({1: [0] * 4 + [1] * 4, 2: [1] * 4 + [0] * 4}, {1: [20.0] * 8, 2: [10.0] * 8})
    assert b.choices("p") == a.choices("p")


def test_what_keeps_most_may_not_obey_less():
    a = made({1: [1] * 8, 2: [0] * 8}, {1: [20.0] * 8, 2: [90.0] * 8})
    assert a.choices("p")["keeps most"] == 1


def test_a_knob_without_effect_explains_nothing_and_one_that_is_all_explains_all():
    x = [0, 1] * 4
    assert made({1: x, 2: x}, {1: x, 2: x}).explained("p") == 0
    assert (
        made({1: [0] * 8, 2: [1] * 8}, {1: x, 2: x}).explained("p") == 1
        and made({1: [0] * 8, 2: [1] * 8}, {1: x, 2: x}).reach("p") == 1
    )


def test_what_is_not_there_is_said_in_words(tmp_path):
    with pytest.raises(OptionError, match="strength"):
        find_theme("strenght")
    with pytest.raises(OptionError, match="n=0"):
        ablate("strength", 0, tmp_path)
    with pytest.raises(DataError, match="fastedit ablate"):
        read_ablation("strength", tmp_path)
    with pytest.raises(OptionError, match="held"):
        edits_of("test", 0)
    a = made({1: [1] * 8}, {1: [1.0] * 8})
    with pytest.raises(OptionError, match="speed"):
        a.values("p", 1, "speed")
    with pytest.raises(DataError, match="no rows"):
        a.values("p", 7, "success")


def test_listed_settings_are_filled_in_and_refused_where_they_cannot_be():
    names, found = listed([dict(strength=0.5), dict(control="none")], dict(seed=3))
    assert (
        set(names) == {"strength", "control"}
        and found[1]["strength"] is None
        and all(s["seed"] == 3 for s in found)
    )
    for bad in (
        [],
        [{"options.region": "words"}, {}],
        [dict(prompt="a cup"), {}],
        [dict(nonsense=1)],
    ):
        with pytest.raises(OptionError):
            listed(bad, {})


def test_the_rows_that_the_pages_read_are_whole():
    from pathlib import Path

    folder = Path(__file__).parents[1] / "nbs" / "experiments" / "data"
    files = sorted(folder.glob("ablation_*.jsonl"))
    assert len(files) >= 10
    for f in files:
        head, lines = read_rows(f)
        assert len(head["types"]) == len(head["set"])
        assert len(head["set"]) == 10 * len(head["sets"]) * head["rounds"]
        assert all(len(x[k]) == len(head["types"]) for x in lines for k in FIGURES)
