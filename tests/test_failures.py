"Drift, repair and diagnosis: invariants on small pictures, and bad input."

import json
import cv2
import numpy as np
import pytest
from fastedit import ImageError, MaskError, OptionError
from fastedit.drift import (
    bend,
    colour_change,
    compress,
    edited_region,
    measure_drift,
    move,
    onto_source,
    register,
    repair,
    seam_score,
    smooth,
    tint,
)
from fastedit.drift.region import closed, dilated, disc, opened
from fastedit.failures import KINDS, diagnose, limits
from fastedit.failures.calibration import drawn_base
from fastedit.measure import psnr
from PIL import Image
from skimage import data


@pytest.fixture(scope="module")
def cat():
    return data.chelsea()[20:260, 60:380]


@pytest.fixture(scope="module")
def edited(cat):
    "The cat with a red box, and the box."
    box = np.zeros(cat.shape[:2], bool)
    box[130:190, 40:110] = True
    return np.where(box[..., None], data.coffee()[100:340, 100:420], cat), box


@pytest.mark.parametrize(
    "shift,scale",
    [((0.25, 0), 1), ((0, 0.5), 1), ((8, -8), 0.98), ((-3, 2), 1.02), ((0, 0), 1.004)],
)
def test_register_finds_shift_and_scale_past_an_edit(edited, cat, shift, scale):
    found = register(cat, compress(tint(move(edited[0], shift, scale), lightness=-4), 88))
    assert np.abs(np.subtract(found.shift, shift)).max() < 0.1
    assert abs(found.scale / scale - 1) < 0.001


@pytest.fixture(scope="module")
def half(cat):
    "The cat whose left half is another photograph, and that half."
    left = np.zeros(cat.shape[:2], bool)
    left[:, :150] = True
    return np.where(left[..., None], data.coffee()[100:340, 100:420], cat), left


def test_an_edit_of_half_of_the_picture_is_sound_without_a_mask(cat, half):
    found = diagnose(cat, half[0])
    assert found.ok and found.evidence.drift.registration.reliable


def test_a_movement_beside_an_edit_of_half_of_the_picture_is_found_without_a_mask(cat, half):
    found = diagnose(cat, compress(tint(move(half[0], (3, -1)), b=6), 90))
    assert {"shift", "colour"} <= set(found.found) and "overedited" not in found.found
    assert np.abs(np.subtract(found.evidence.drift.registration.shift, (3, -1))).max() < 0.1


def test_a_recoloured_half_is_no_cast_of_the_whole(cat, half):
    blue = np.where(half[1][..., None], cat[..., ::-1], cat)
    assert measure_drift(cat, blue).colours.cast < 0.7
    found = measure_drift(cat, tint(blue, b=6)).colours
    assert abs(found.yellow - 6) < 0.5 and abs(found.red) < 0.5


def test_a_repair_beside_an_edit_of_half_of_the_picture_needs_no_mask(cat, half):
    after = compress(tint(move(half[0], (3, -1)), b=6), 90)
    away = np.zeros(cat.shape[:2], bool)
    away[10:-10, 170:-10] = True
    mended = np.asarray(repair(cat, after).image)
    assert psnr(cat, mended, away) > psnr(cat, after, away) + 10


def test_a_movement_is_found_though_another_photograph_covers_nearly_half(cat):
    left = np.arange(cat.shape[1]) < 0.48 * cat.shape[1]
    other = np.where(left[:, None], data.coffee()[100:340, 200:520], cat)
    after = compress(tint(move(other, (3, -1)), b=5), 90)
    found = measure_drift(cat, after)
    assert found.moved and np.abs(np.subtract(found.registration.shift, (3, -1))).max() < 0.1


def test_register_of_equal_pictures_is_no_movement(cat):
    found = register(cat, cat)
    assert np.abs(found.shift).max() < 1e-6 and abs(found.scale - 1) < 1e-6


def test_register_of_unrelated_pictures_is_not_reliable(cat):
    assert not register(cat, data.coffee()[:240, :320]).reliable


def test_onto_source_says_what_was_cut_off(cat):
    _, covered = onto_source(move(cat, (10, 0)), register(cat, move(cat, (10, 0))))
    assert covered[:, :300].all() and not covered[:, -8:].any()


def test_an_edit_is_no_change_of_colour(cat, edited):
    assert colour_change(cat, edited[0]).cast < 0.7


def test_compression_is_no_edit(cat):
    assert not edited_region(cat, compress(cat, 70)).any()


def test_repair_brings_the_background_back_and_keeps_the_edit(cat, edited):
    after, box = compress(tint(move(edited[0], (2.6, -3.3), 1.01), b=7), 92), edited[1]
    mended = np.asarray(repair(cat, after).image)
    far = np.ones(box.shape, bool)
    far[122:198, 32:118] = False
    assert psnr(cat, mended, far) > psnr(cat, after, far) + 10
    assert psnr(edited[0], mended, box) > psnr(edited[0], after, box)


def test_repair_leaves_a_clean_edit_alone(cat, edited):
    assert psnr(edited[0], np.asarray(repair(cat, edited[0]).image)) > 45


def test_repair_of_the_source_is_the_source(cat):
    assert np.array_equal(np.asarray(repair(cat, cat).image), cat)


def test_repair_with_a_mask_gives_the_source_outside_of_it(cat, edited):
    out = np.asarray(repair(cat, move(edited[0], (1, 0)), mask=edited[1], feather=0).image)
    assert np.array_equal(out[~edited[1]], cat[~edited[1]])


def test_repair_of_another_size_has_the_source_s_size(cat, edited):
    smaller = np.ascontiguousarray(edited[0][::2, ::2])
    assert repair(cat, smaller).image.size == cat.shape[1::-1]


def test_a_seam_is_scored_and_a_picture_without_one_is_not(cat, edited):
    box = edited[1]
    assert seam_score(cat, np.where(box[..., None], tint(cat, a=14), cat), box) > 6
    assert seam_score(cat, cat, box) == 0


def test_what_is_painted_anew_over_the_old_picture_is_no_seam(cat, edited):
    box = edited[1]
    pasted = np.where(box[..., None], tint(cat, a=14), cat)
    other = (cat * 0.3 + tint(data.coffee()[100:340, 100:420], a=14) * 0.7).astype(np.uint8)
    painted = np.where(box[..., None], other, cat)
    assert seam_score(cat, pasted, box) > 8 > 3 > seam_score(cat, painted, box)


def test_contrast_and_a_picture_faded_into_another_are_no_cast(cat):
    faded = (cat * 0.4 + np.roll(cat[:, ::-1], 80, 0) * 0.6).astype(np.uint8)
    for a in (tint(cat, contrast=1.3), faded):
        assert diagnose(cat, a)["colour"].number < 1
    assert abs(diagnose(cat, tint(cat, a=6))["colour"].number - 6) < 0.5


def test_a_clean_edit_has_no_failure(cat, edited):
    assert diagnose(cat, edited[0]).ok


@pytest.mark.parametrize(
    "kind,fault",
    [
        ("shift", lambda a: move(a, (1.5, 0))),
        ("scale", lambda a: move(a, scale=1.015)),
        ("colour", lambda a: tint(a, b=8)),
        ("contrast", lambda a: tint(a, contrast=0.75)),
        ("smoothed", lambda a: smooth(a, 2)),
        ("structure", lambda a: bend(a, 4)),
    ],
)
def test_each_fault_is_named_alone(cat, edited, kind, fault):
    assert diagnose(cat, compress(fault(edited[0]), 92)).found == (kind,)


def test_doing_nothing_is_ignored(cat):
    assert diagnose(cat, compress(cat, 90)).found == ("ignored",)


@pytest.mark.parametrize(
    "after", [np.full((240, 320, 3), np.nan), np.zeros((240, 320, 3), np.uint8)]
)
def test_what_is_no_picture_is_broken_and_nothing_else(cat, after):
    assert diagnose(cat, after).found == ("broken",)


def test_without_a_mask_what_needs_one_is_not_judged(cat, edited):
    assert diagnose(cat, edited[0])["partial"].found is None


def test_with_a_mask_a_change_beside_it_is_background(cat, edited):
    worse = edited[0].copy()
    worse[20:70, 220:300] = 30, 200, 60
    assert "background" in diagnose(cat, worse, mask=edited[1]).found


def test_half_an_edit_is_partial(cat, edited):
    half = np.where((edited[1] & (np.arange(240) < 148)[:, None])[..., None], edited[0], cat)
    assert "partial" in diagnose(cat, half, mask=edited[1]).found


def test_a_diagnosis_is_plain_data_and_shows_itself(cat, edited):
    found = diagnose(cat, edited[0], mask=edited[1])
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(again["findings"]) == set(KINDS) == set(limits())
    assert found._repr_png_().startswith(b"\x89PNG") and "<table>" in found._repr_html_()


def test_a_drawn_edit_brings_its_prompts_and_mask():
    from fastedit.world import sample_edit

    edit = sample_edit(6, 1_000_000_007)
    source, target = edit.source_image(128), edit.target_image(128)
    assert diagnose(source, target, edit=edit).ok
    assert diagnose(source, source, edit=edit).found == ("ignored",)


def test_unknown_limits_are_refused(cat):
    with pytest.raises(OptionError, match="colours"):
        diagnose(cat, cat, at=dict(colours=1))


def test_a_mask_of_another_shape_is_refused(cat):
    with pytest.raises(MaskError, match="shapes differ"):
        diagnose(cat, cat, mask=np.ones((100, 300), bool))


def test_a_missing_file_is_named():
    with pytest.raises(ImageError, match="nowhere.png"):
        repair("nowhere.png", "nowhere.png")


# --- what a fault of the whole picture explains


def test_a_thing_that_moved_is_no_movement_of_the_picture(cat):
    before = np.full((160, 200, 3), 200, np.uint8)
    before[120:] = 90, 160, 80
    before[30:36, 140:190] = 40, 60, 160
    thing = cat[60:100, 100:140]
    after = before.copy()
    before[50:90, 40:80] = thing
    after[53:93, 44:84] = thing
    r = register(before, after)
    assert r.shift == (0.0, 0.0) and r.scale == 1.0


def test_edges_inside_the_edit_are_not_asked(cat):
    before, after = cat.copy(), move(cat, (2, -1))
    box = np.zeros(cat.shape[:2], bool)
    box[20:220, 30:230] = True  # most of the picture is replaced
    after[box] = data.coffee()[100:340, 100:420][box]
    r = register(before, after, where=~box)
    assert np.allclose(r.shift, (2, -1), atol=0.1)


@pytest.mark.parametrize("seed", (11, 16, 18))
def test_a_drawing_moved_past_an_edit_that_holds_most_edges_is_brought_back(seed):
    base = drawn_base(7_000_500 + seed)
    rng = np.random.default_rng(seed)
    grain = (base.edited + rng.normal(0, 8, base.edited.shape)).clip(0, 255).astype(np.uint8)
    edit = np.where(base.mask[..., None], grain, base.before)
    moved = compress(tint(move(edit, (-4.5, 2.3), 1.012), a=3, b=-4), 92)
    found, mended = register(base.before, moved), repair(base.before, moved)
    assert np.abs(np.subtract(found.shift, (-4.5, 2.3))).max() < 0.3
    far = cv2.dilate(base.mask.astype(np.uint8), np.ones((9, 9))) == 0
    assert psnr(base.before, np.asarray(mended.image), far) > 35
    assert found.reliable and not register(base.before, moved[::-1, ::-1]).reliable


@pytest.mark.parametrize("seed,shift,scale", [(42, (-2.1, 1.9), 0.99), (67, (4.8, -3.2), 1.016)])
def test_a_movement_beside_the_one_thing_with_edges_is_found_without_a_mask(seed, shift, scale):
    base = drawn_base(7_000_000 + seed)
    drift = measure_drift(base.before, compress(move(base.edited, shift, scale), 92))
    assert np.abs(np.subtract(drift.registration.shift, shift)).max() < 0.5
    assert abs(drift.registration.scale - scale) < 0.005


def test_a_start_that_fits_nothing_is_no_error():
    flat = np.full((120, 160, 3), 90, np.uint8)
    dot = flat.copy()
    dot[40:60, 40:60] = 200
    nothing = np.zeros(flat.shape[:2], bool)
    assert not register(dot, flat).reliable and not register(flat, dot).reliable
    assert register(dot, move(dot, (3, 1)), where=nothing).shift == (0, 0)


def test_a_photograph_is_never_its_own_donor(monkeypatch):
    from fastedit.failures import calibration

    pairs = []
    monkeypatch.setattr(calibration, "photo_base", lambda *given: pairs.append(given[:2]))
    monkeypatch.setattr(calibration, "make_case", lambda *given: None)
    calibration.cases(per_kind=9, drawn=0)
    assert pairs and all(name != donor for name, donor in pairs)


def test_a_cast_and_a_blur_are_no_movement(cat):
    for after in (tint(cat, lightness=-6, a=8), smooth(cat, 2)):
        assert register(cat, after).shift == (0, 0)


def test_a_colour_change_forwards_and_back(cat):
    warm = tint(cat, b=9, contrast=0.85)
    change = colour_change(cat, warm)
    assert np.abs(change.apply(cat).astype(int) - warm).mean() < 3
    assert np.abs(change.undo(change.apply(cat)).astype(int) - cat).mean() < 1.5


@pytest.mark.parametrize(
    "fault",
    [lambda a: smooth(a, 1.8), lambda a: tint(a, lightness=14), lambda a: tint(a, contrast=1.3)],
    ids=["blur", "brightness", "contrast"],
)
def test_a_fault_of_the_whole_is_no_change_of_the_background(cat, edited, fault):
    found = diagnose(cat, fault(edited[0]), mask=edited[1]).found
    assert found and not {"background", "objects", "overedited"} & set(found)


def test_bent_shapes_are_told_from_another_picture(cat, edited):
    assert "structure" in diagnose(cat, bend(edited[0], 4), mask=edited[1]).found
    other = data.coffee()[100:340, 100:420]
    mixed = (cat * 0.3 + other * 0.7).astype(np.uint8)
    assert diagnose(cat, mixed).found == ("overedited",)


def test_a_faint_edit_of_half_of_a_picture_is_told_from_its_noise(cat):
    rng = np.random.default_rng(4)
    grain = rng.normal(0, 3, cat.shape)
    left = np.zeros(cat.shape[:2], bool)
    left[:, :160] = True
    faint = np.where(left[..., None], tint(cat, a=9, b=6), cat)
    found = edited_region(cat, (faint + grain).round().clip(0, 255).astype(np.uint8))
    assert (found & left).sum() > 0.9 * left.sum() and (found & ~left).mean() < 0.02


def _signed(a, words):
    a = np.ascontiguousarray(a)
    cv2.rectangle(a, (20, 180), (200, 208), (240, 235, 220), -1)
    cv2.putText(a, words, (26, 201), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (30, 30, 40), 2)
    return a


def test_letters_that_run_on_past_the_lost_ones_are_no_other_change(cat):
    where = np.zeros(cat.shape[:2], bool)
    where[20:80, 200:290] = True
    new = np.where(where[..., None], data.coffee()[100:340, 100:420], cat)
    found = diagnose(_signed(cat, "OPEN 24"), _signed(new, "WXKZQMRBEWK"), mask=where)
    assert set(found.found) == {"text"}


def test_without_a_mask_lost_writing_is_not_taken_for_the_edit(cat):
    where = np.zeros(cat.shape[:2], bool)
    where[20:50, 200:230] = True
    new = np.where(where[..., None], 255 - cat, cat)
    found = diagnose(_signed(cat, "OPEN 24"), _signed(new, "WXKZQMRBEWK"))
    assert set(found.found) == {"text"} and (found.evidence.expected & where).any()
    assert not found.evidence.expected[180:208].any()


def test_a_smooth_picture_faded_into_another_is_overedited():
    base = drawn_base(29_001_206)
    other = tint(np.roll(base.edited[:, ::-1], 85, axis=0), a=15)
    faded = (base.edited * 0.25 + other * 0.75).round().astype(np.uint8)
    found = diagnose(base.before, compress(faded, 90))
    assert "overedited" in found.found and "colour" not in found.found
    assert not {"overedited", "colour"} & set(diagnose(base.before, base.edited).found)


@pytest.mark.parametrize("seed", (27_000_902, 27_000_907))
def test_a_bent_drawing_beside_a_thing_that_holds_most_texture_is_found_without_a_mask(seed):
    base = drawn_base(seed)
    assert "structure" in diagnose(base.before, bend(base.edited, 5, seed=3)).found
    assert "structure" not in diagnose(base.before, base.edited).found


# --- what people hand in


@pytest.mark.parametrize("size", [(8, 8), (11, 11), (8, 12), (30, 9)])
def test_the_smallest_pictures_are_judged(size):
    before = data.astronaut()[: size[0], : size[1]]
    assert "ignored" in diagnose(before, before).found
    assert diagnose(before, 255 - before)["structure"].found is False


def test_a_small_edit_in_a_mask_of_the_whole_picture_is_partial(cat, edited):
    found = diagnose(cat, edited[0], mask=np.ones(cat.shape[:2], bool)).found
    assert found == ("partial",)


@pytest.mark.parametrize("size,stretched", [((160, 120), False), ((320, 120), True)])
def test_a_diagnosis_says_that_the_size_is_another(cat, edited, size, stretched):
    notes = diagnose(cat, cv2.resize(edited[0], size)).notes
    assert f"{size[0]}x{size[1]} pixels" in notes[0] and "source's 320x240" in notes[0]
    assert ("stretched" in notes[0]) == stretched


@pytest.mark.parametrize("by,way", [(1.5, "counterclockwise"), (-1, "clockwise")])
def test_a_diagnosis_says_that_a_picture_is_turned(cat, by, way):
    turned = Image.fromarray(cat).rotate(by, Image.BICUBIC)
    assert diagnose(cat, turned).notes == (f"it is turned by {abs(by):.1f} degrees {way}",)


def test_what_did_not_move_is_said_to_lie_where_it_lay(cat):
    found = diagnose(cat, cat)
    assert found["shift"].reason.startswith("what it shows lies where it lay;")
    assert found["scale"].reason.startswith("it is as large as it was;")


def test_a_movement_to_one_side_names_that_side_alone(cat):
    assert "lies 3.00 px further right;" in diagnose(cat, move(cat, (3, 0)))["shift"].reason


def test_a_repaired_jpeg_is_as_good_as_one_of_an_edit(tmp_path, cat, edited):
    mended = repair(cat, edited[0])
    mended.save(tmp_path / "mended.jpg")
    saved = np.asarray(Image.open(tmp_path / "mended.jpg"))
    assert psnr(saved, np.asarray(mended.image)) > 40


def test_a_repair_of_another_ending_is_refused(tmp_path, cat):
    with pytest.raises(OptionError, match=r"'\.xyz'"):
        repair(cat, cat).save(tmp_path / "mended.xyz")


@pytest.mark.parametrize("radius", (37, 60))
def test_wide_neighbourhoods_are_those_of_a_kernel_but_for_the_border(radius):
    mask = np.zeros((300, 400), bool)
    mask[100:180, 120:250] = mask[150, 300] = True
    kernel = cv2.dilate(mask.astype(np.uint8), disc(radius)) > 0
    assert (dilated(mask, radius) != kernel).mean() < 0.002
    assert not dilated(np.zeros_like(mask), radius).any()


def test_opening_and_closing_take_and_fill_what_is_narrow():
    mask = np.zeros((300, 300), bool)
    mask[50:250, 50:150] = mask[50:250, 160:250] = mask[10:20, 100:200] = True
    assert closed(mask, 40)[150, 155] and closed(mask, 40)[mask].all()
    assert not opened(mask, 40)[15, 150] and opened(mask, 40)[150, 100]
