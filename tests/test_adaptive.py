"""Settings that choose themselves: a strength for a stated change, settings by the words."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from fastedit import EditRequest, FastEditor, OptionError
from fastedit.adaptive import change_share, check_second_try, edit_and_check, fits_better
from fastedit.cli import app
from fastedit.editor import check_request
from fastedit.editor.change import NEAR, TRIES, search
from fastedit.editor.choosing import KINDS, METHODS, ROWS, SETTINGS, choose, edit_kind
from fastedit.measure import Scorer
from fastedit.measure.entries import strip_brackets
from fastedit.measure.metrics import Pair
from fastedit.methods import find_method, register_method
from fastedit.models import find_spec
from fastedit.studies.bench import make_runs
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

WORDS_OF = {
    "colour": ("a red ball", "a blue ball"),
    "material": ("a red ball", "a striped red ball"),
    "size": ("a small ball", "a large ball"),
    "pose": ("an upright cup", "a tilted cup"),
    "object": ("a red ball", "a red cup"),
    "add": ("a red ball", "a red ball and a cup"),
    "remove": ("a red ball and a cup", "a red ball"),
    "count": ("a red ball", "two red balls"),
    "background": ("a ball on a beach", "a ball on a meadow"),
    "style": ("a drawing of a ball", "a watercolour of a ball"),
    "mix": ("a red ball on a beach", "a blue ball on a meadow"),
    "same": ("a red ball", "a [red] ball"),
}


@pytest.mark.parametrize("kind", WORDS_OF)
def test_a_kind_is_read_from_words(kind):
    assert edit_kind(*WORDS_OF[kind]) == kind and kind in KINDS


@pytest.mark.parametrize(
    "was, want", [(None, "a ball"), ("", "a ball"), ("my aunt", "my uncle"), ("embeds:1", "a ball")]
)
def test_what_cannot_be_read_is_unknown(was, want):
    assert edit_kind(was, want) == "unknown"


@given(t=st.integers(0, 9), seed=st.integers(0, 10**6))
def test_drawn_edits_are_never_unknown_nor_the_same(t, seed):
    e = sample_edit(t, seed)
    assert edit_kind(e.source_prompt, e.target_prompt) not in ("unknown", "same")


def asked(kind="colour", **settings):
    was, want = WORDS_OF[kind]
    return EditRequest(want, was, **settings)


def test_a_request_without_auto_comes_back_as_it_is():
    for more in (dict(), dict(method="ddcm", strength=0.45), dict(guidance="linear:3:1")):
        r = asked(**more)
        assert choose(r) == (r, [])


@pytest.mark.parametrize("kind", [k for k in WORDS_OF if ROWS.get(k) in METHODS["mini"]])
def test_a_method_is_chosen_with_its_settings(kind):
    found, notes = choose(asked(kind, method="auto"))
    for name, value in METHODS["mini"][ROWS[kind]].items():
        assert getattr(found, name) == value
    assert KINDS[kind] in notes[0] and found.method in notes[0] and choose(found) == (found, [])


def test_what_is_given_stays():
    kind, row = next((k, r) for k, r in ROWS.items() if len(METHODS["mini"].get(r, "")) > 1)
    name = next(k for k in METHODS["mini"][row] if k != "method")
    value = dict(steps=3, strength=0.44, guidance=2.5, control_scale=0.3)[name]
    found, _ = choose(asked(kind, method="auto", **{name: value}))
    assert getattr(found, name) == value and found.method == METHODS["mini"][row]["method"]


def test_one_setting_is_looked_up_for_the_method_that_is_named():
    for method, own in SETTINGS["mini"].items():
        for name, rows in own.items():
            found, _ = choose(asked("colour", method=method, **{name: "auto"}))
            assert getattr(found, name) == rows["surface"] and found.method == method


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(method="chord", guidance="auto"), "guidance as without"),
        (dict(method="auto", model="sdxl"), "nothing was measured with the model 'sdxl'"),
        (dict(steps="auto", source_prompt=None), "no source prompt"),
    ],
)
def test_without_a_row_a_setting_is_what_it_is_by_itself(settings, words):
    r = EditRequest(**(dict(prompt="a blue ball", source_prompt="a red ball") | settings))
    found, notes = choose(r)
    plain = EditRequest(found.prompt, found.source_prompt)
    assert (found.steps, found.strength, found.guidance) == (None,) * 3 and words in notes[0]
    assert found.method == ("chord" if "guidance" in settings else plain.method)


def test_a_stated_change_stands_for_the_strength():
    found, _ = choose(asked("colour", method="auto", change=0.2))
    assert found.strength is None and found.change == 0.2


def test_words_that_decide_a_start_are_not_said_to_do_nothing(editor, source):
    made = editor(source, method="img2img-4", strength="auto", **WORDS)
    plain = editor(source, method="img2img-4", **WORDS)
    assert made.request.strength == SETTINGS["mini"]["img2img-4"]["strength"]["surface"]
    assert made.nfe == plain.nfe == 4
    assert "the source prompt does nothing" not in " ".join(made.notes)
    assert "the source prompt does nothing" in " ".join(plain.notes)


def test_an_edit_names_what_was_chosen_and_repeats_to_the_byte(editor, source):
    made = editor(source, method="auto", **WORDS)
    assert made.notes[0].startswith("auto: the words ask for another colour")
    assert made.request.method == METHODS["mini"]["surface"]["method"]
    assert "auto" not in made.request.json
    again = editor(source, request=made.request)
    assert again.image.tobytes() == made.image.tobytes()
    assert not any(n.startswith("auto") for n in again.notes)


def test_a_batch_and_a_sweep_choose_for_each_edit(editor, source):
    alone = editor(source, method="auto", **WORDS)
    assert editor.batch([dict(image=source, method="auto", **WORDS)])[0].request == alone.request
    rows = Sweep(EDIT, editor=editor, method=["auto", "ddcm"]).run(quiet=True).rows
    assert rows[0]["nfe"] == alone.nfe


def test_a_benchmark_takes_auto_as_a_method_but_not_among_all():
    assert [r.method for r in make_runs("auto") if not r.control] == ["auto"]
    assert "auto" not in [r.method for r in make_runs("all")]
    with pytest.raises(OptionError, match="there already"):
        register_method(replace(find_method("ddcm"), key="auto"))


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(steps="atuo"), "steps='atuo'.*auto"),
        (dict(strength="automatic"), "strength=.*or 'auto'"),
        (dict(steps=0), "from 1 to 1000, or 'auto'"),
        (dict(control_scale=("auto", 0.5, 0.5, 0.5)), "stands by itself"),
        (dict(method="auot"), "auto"),
    ],
)
def test_a_misspelt_auto_is_refused_in_words(settings, words):
    with pytest.raises(OptionError, match=words):
        check_request(EditRequest("a ball", **settings), find_spec("mini"))


def test_a_strength_that_is_auto_and_a_change_are_one_too_many():
    with pytest.raises(OptionError, match="give one of them"):
        check_request(asked(strength="auto", change=0.2), find_spec("mini"))


# --- a second try


def test_nothing_to_try_is_refused():
    with pytest.raises(OptionError, match="strengths"):
        edit_and_check(None, None, None, ())


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(strength=0.4), "strength=0.4.*leave strength out"),
        (dict(change=0.4), "change=0.4.*leave change out"),
        (dict(seeds=[1, 2]), "seeds=.*judges one picture"),
        (dict(num_images=2), "num_images=2.*judges one picture"),
        (dict(source_prompt=None), "source_prompt"),
        (dict(method="vae"), "edits nothing"),
        (dict(strengths=0.5), "strengths=0.5"),
        (dict(budget="a"), "budget='a'"),
    ],
)
def test_what_cannot_be_tried_again_is_refused_before_an_edit(editor, settings, words):
    with pytest.raises(OptionError, match=words):
        edit_and_check(editor, None, **WORDS | settings)


def test_a_strength_is_refused_beside_a_check_of_ones_own_too(editor, source):
    with pytest.raises(OptionError, match="leave strength out"):
        edit_and_check(editor, source, lambda *_: 1.0, strength=0.4, **WORDS)


def test_a_model_without_a_strength_has_no_second_try():
    with pytest.raises(OptionError, match="edits without a strength"):
        check_second_try(find_spec("flux2-klein"), dict(WORDS))


def test_a_dear_method_is_tried_again_too(editor, source):
    tried = edit_and_check(editor, source, lambda *_: -1.0, method="instant_edit", **WORDS)
    assert len(tried.scores) == 2 and tried.nfe == 40


def test_a_try_that_passes_is_the_only_one(editor, source):
    tried = edit_and_check(editor, source, lambda *_: 0.0, (0.6, 0.8), **WORDS)
    alone = editor(source, strength=0.6, **WORDS)
    assert tried.passed and tried.scores == (0.0,)
    assert tried.result.image.tobytes() == alone.image.tobytes()
    assert tried.nfe == tried.result.nfe == alone.nfe == 8


def test_the_best_of_all_tries_is_given_back_and_all_are_paid(editor, source):
    answers = iter([-2.0, -1.0, -3.0])
    tried = edit_and_check(
        editor, source, lambda *_: next(answers), (0.6, 0.8, 0.96), budget=36, **WORDS
    )
    alone = editor(source, strength=0.8, **WORDS)
    assert not tried.passed and tried.scores == (-2.0, -1.0, -3.0)
    assert tried.result.image.tobytes() == alone.image.tobytes()
    assert tried.result.request.strength == 0.8
    assert tried.nfe == tried.result.nfe == 3 * alone.nfe
    assert "3 tries" in tried.result.notes[-1] and "24 UNet evaluations" in tried.result.notes[-1]


class Cramped:
    "An editor whose tries need the memory, and fall back to, what it is told by strength."

    def __init__(self, editor, needs):
        self.editor, self.needs, self.spec = editor, needs, editor.spec

    def __call__(self, image, strength, **settings):
        made = self.editor(image, strength=strength, **settings)
        peak, *fallbacks = self.needs[strength]
        return replace(made, peak_memory=peak, fallbacks=tuple(fallbacks))


@pytest.mark.parametrize("chosen, peaks", [(0, (5, 9)), (1, (9, 5)), (1, (9, None)), (0, (7, 7))])
def test_the_memory_of_all_tries_is_told(editor, source, chosen, peaks):
    cramped = Cramped(editor, {0.6: [peaks[0], "tiles: a"], 0.8: [peaks[1], "tiles: a", "away: b"]})
    answers = iter([[-1.0, -2.0], [-2.0, -1.0]][chosen])
    r = edit_and_check(cramped, source, lambda *_: next(answers), (0.6, 0.8), **WORDS).result
    assert r.peak_memory == max(p for p in peaks if p is not None)
    assert r.fallbacks == [("tiles: a",), ("tiles: a", "away: b")][chosen]
    told = [n for n in r.notes if n.startswith("trying strength")]
    assert told == [["trying strength 0.8: away: b"], []][chosen]


def test_tries_without_a_meter_have_no_peak(editor, source):
    tried = edit_and_check(editor, source, lambda *_: -1.0, (0.6, 0.8), **WORDS)
    assert tried.result.peak_memory is None and not tried.result.fallbacks


def test_the_memory_of_a_search_is_that_of_its_tries(source, monkeypatch):
    from fastedit.memory import live_tensors

    metered = FastEditor("mini", device="cpu", meter=live_tensors())
    peaks, once = [], metered._edit_once

    def edit_once(*args):
        made = once(*args)
        peaks.append(made.peak_memory)
        return replace(made, fallbacks=("tiles: a",) if len(peaks) == 1 else ())

    monkeypatch.setattr(metered, "_edit_once", edit_once)
    r = metered(source, change=0.05, method="ddcm", steps=2, **WORDS)
    assert len(peaks) > 1 and r.peak_memory == max(peaks)
    first, best = r.tries[0].strength, r.request.strength
    assert r.fallbacks == (("tiles: a",) if first == best else ())
    assert any(f"trying strength {first:g}: tiles: a" in n for n in r.notes) == (first != best)


def test_a_budget_ends_the_tries(editor, source):
    tried = edit_and_check(editor, source, lambda *_: -1.0, (0.6, 0.8, 0.96), budget=16, **WORDS)
    assert len(tried.scores) == 2 and tried.nfe == 16
    assert "the budget of 16 allows no other" in tried.result.notes[-1]


def test_the_check_compares_both_prompts():
    check = fits_better("clip-mini")
    before, after = (Image.fromarray(x) for x in (EDIT.source_image(64), EDIT.target_image(64)))
    words = EDIT.source_prompt, EDIT.target_prompt
    assert check(before, after, *words) > 0 > check(before, before, *words)
    assert check(before, after, *words[::-1]) == pytest.approx(-check(before, after, *words))


def test_the_check_is_the_metric_of_its_name():
    pair = dict(
        source=EDIT.source_image(64),
        edited=EDIT.target_image(64),
        source_prompt=strip_brackets(EDIT.source_prompt),
        target_prompt=strip_brackets(EDIT.target_prompt),
    )
    (row,) = Scorer("drawn", only="clip-mini-contrast")([Pair(**pair)])
    check = fits_better("clip-mini")
    seen = check(None, pair["edited"], pair["source_prompt"], pair["target_prompt"])
    assert row["drawn/clip-mini-contrast"] == pytest.approx(seen, abs=1e-4)
    assert "clip-mini-contrast" not in {m.key for m in Scorer("drawn").metrics}


def test_a_check_of_both_prompts_wants_both():
    with pytest.raises(OptionError, match="source_prompt"):
        fits_better("clip-mini")(None, EDIT.source_image(64), None, EDIT.target_prompt)


def test_the_command_line_tries_again(editor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    edit = sample_edit(8, 5)  # a background, which a late start leaves as it is
    Image.fromarray(edit.source_image(64)).save("a.png")
    words = ["--source-prompt", edit.source_prompt, "-o", "b.png", "--second-try"]
    done = CliRunner().invoke(app, ["edit", "a.png", edit.target_prompt, *words])
    assert done.exit_code == 0, done.output
    assert "2 tries" in done.output and "16 UNet evaluations in all" in done.output
    asked = dict(prompt=edit.target_prompt, source_prompt=edit.source_prompt)
    tried = edit_and_check(editor, Image.open("a.png"), **asked)
    assert np.array_equal(Image.open("b.png").convert("RGB"), tried.result.image)


def test_the_command_line_refuses_a_second_try_before_it_loads(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source.save("a.png")
    monkeypatch.setattr("fastedit.cli.editing.load_editor", lambda *_, **k: pytest.fail("loaded"))
    words = ["edit", "a.png", EDIT.target_prompt, "-o", "b.png", "--second-try"]
    for more in ([], ["--source-prompt", "a ball", "--strength", ".5"]):
        done = CliRunner().invoke(app, [*words, *more])
        assert done.exit_code and "a second try" in done.output


@pytest.mark.parametrize("settings", [dict(strength="auto"), dict(steps="auto")])
def test_a_preset_holds_values(settings):
    from fastedit.methods import register_preset

    with pytest.raises(OptionError, match="has no .*='auto'"):
        register_preset("mine-by-words", "ddcm", **settings)


def test_a_preset_names_a_method():
    from fastedit.methods import register_preset

    with pytest.raises(OptionError, match="name a method"):
        register_preset("mine-by-words", "auto", steps=6)


def test_a_bench_by_words_runs_on_the_measured_model():
    from fastedit.studies.bench import make_runs

    assert make_runs("ddcm", settings=dict(steps="auto"))[0].model == "mini"


@pytest.mark.parametrize("setting", [dict(change=0.1), dict(reference="a.png")])
def test_what_belongs_to_one_edit_is_refused_by_tables(setting):
    from fastedit.studies.bench import make_runs
    from fastedit.studies.sweep import Sweep

    (name,) = setting
    with pytest.raises(OptionError, match=f"{name}="):
        make_runs("edit_friendly-4", settings=setting)
    with pytest.raises(OptionError, match=f"{name}="):
        Sweep(np.zeros((64, 64, 3), np.uint8), "a ball", steps=[1, 2], **setting).plan()
