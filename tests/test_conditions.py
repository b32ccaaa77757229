"""Control maps: equal to the stock recipe, steady under what auto promises, refused in words; and
the score that judges outlines."""

import math
import cv2, numpy as np, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from fastedit.pictures import (
    CONDITIONS,
    auto_thresholds,
    canny,
    control_map,
    edge_f1,
    edge_match,
    hybrid,
    soft_edges,
    tile,
)
from fastedit.core import ImageError, OptionError

quick = settings(deadline=None, max_examples=60, derandomize=True, database=None)
seeds, small = st.integers(0, 2**32 - 1), st.integers(8, 40)


def square(contrast=200, size=64, at=16):
    a = np.full((size, size, 3), 30, np.uint8)
    a[at:-at, at:-at] = 30 + contrast
    return a


def random_edges(seed, w, h, share=0.1):
    return np.random.default_rng(seed).random((h, w)) < share


def white(m):
    return (np.asarray(m) > 127).any(-1)


@quick
@given(seeds, small, small, st.integers(0, 1000), st.integers(1, 1000))
def test_canny_is_cv2_canny_in_three_channels(seed, w, h, low, more):
    a = cv2.blur(np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8), (3, 3))
    e = cv2.Canny(a, low, low + more)
    got = canny(Image.fromarray(a), low, low + more)
    assert got.mode == "RGB" and np.array_equal(np.asarray(got), np.stack([e] * 3, -1))


def test_defaults_are_the_stock_recipe():
    a = np.asarray(Image.radial_gradient("L").convert("RGB").resize((64, 64))) // 64 * 64
    e = cv2.Canny(a, 100, 200)
    assert e.any() and np.array_equal(np.asarray(canny(a)), np.stack([e] * 3, -1))


@pytest.mark.parametrize(
    "low, high", [(200, 100), (100, 100), (-1, 100), (math.nan, 100), (1, math.nan), (1, math.inf)]
)
def test_impossible_thresholds(low, high):
    with pytest.raises(OptionError, match="low must be below high"):
        canny(square(), low, high)


def test_blur_removes_a_fine_texture_and_keeps_the_outline():
    a = square()
    a[::2, ::2] = np.minimum(a[::2, ::2].astype(int) + 60, 255)
    sharp, soft = canny(a), canny(a, blur=1.5)
    assert (
        white(soft).sum() < white(sharp).sum() / 2 and edge_match(soft, canny(square()), 2)[1] > 0.9
    )
    assert canny(a, blur=0) == sharp
    for bad in (-1, math.nan, math.inf):
        with pytest.raises(OptionError, match="blur="):
            canny(a, blur=bad)


@pytest.mark.parametrize("contrast", [20, 60, 120, 200])
def test_auto_follows_the_contrast(contrast):
    assert edge_f1(canny(square(contrast), auto=True), canny(square())) == 1
    low, high = auto_thresholds(square(contrast))
    assert 0 < low == high / 2 and high <= 4 * contrast


def test_fixed_thresholds_lose_what_auto_finds():
    assert not white(canny(square(20))).any() and white(canny(square(20), auto=True)).any()


def test_auto_ignores_noise_that_fixed_thresholds_draw():
    a = (
        (square() + np.random.default_rng(0).normal(0, 15, (64, 64, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    )
    truth = canny(square())
    assert (
        edge_match(canny(a, auto=True), truth)[0] > 0.9 > edge_match(canny(a), truth)[0] * 2
        and edge_match(canny(a, auto=True), truth)[1] > 0.9
    )


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_wall_stays_empty(value):
    flat = np.full((32, 32, 3), value, np.uint8)
    faint = flat.copy()
    faint[:, 16:] = abs(value - 5)
    for a in (flat, faint):
        assert not white(canny(a)).any() and not white(canny(a, auto=True)).any()
    assert np.asarray(soft_edges(flat)).max() == 0 and np.asarray(soft_edges(faint)).max() <= 128


@quick
@given(seeds, small, small, st.integers(0, 3), st.floats(0, 0.5))
def test_score_rules(seed, w, h, tolerance, share):
    a, b = random_edges(seed, w, h, share), random_edges(seed + 1, w, h, share)
    f = edge_f1(a, b, tolerance)
    assert edge_f1(a, a, tolerance) == 1 and 0 <= f <= 1 and f == edge_f1(b, a, tolerance)
    assert edge_match(a, b, tolerance) == edge_match(b, a, tolerance)[::-1]
    assert f <= edge_f1(a, b, tolerance + 1) + 1e-12 or not (a.any() and b.any())


def test_score_by_hand():
    a, b = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    a[5, :10] = True
    b[6, :5] = True
    b[15, :15] = True
    # a: 6 of 10, b: 5 of 20
    assert (
        edge_match(a, b, 1) == (0.6, 0.25)
        and edge_match(a, b, 0) == (0, 0)
        and edge_f1(a, b, 0) == 0
    )
    assert edge_f1(a, b, 1) == pytest.approx(2 * 0.6 * 0.25 / 0.85)
    assert edge_f1(a * 0, a * 0) == 1 and edge_f1(a, a * 0) == 0 and edge_f1(a * 0, a) == 0
    assert edge_f1(np.roll(a, 1, 0), a) == 1 and edge_f1(np.roll(a, 2, 0), a) == 0 == edge_f1(
        np.roll(a, 1, 0), a, 0
    )


def test_score_refuses():
    with pytest.raises(ImageError, match="one size"):
        edge_f1(np.zeros((20, 20), bool), np.zeros((20, 21), bool))
    with pytest.raises(OptionError, match="tolerance"):
        edge_f1(square(), square(), -1)


def test_soft_edges_grow_with_the_step():
    a = square(200)
    a[:, :8] = 80
    m = np.asarray(soft_edges(a))
    assert (
        m.max() == 255
        and 0 < m[2, 7:9].max() < 100
        and (m[..., 0] == m[..., 2]).all()
        and m[30, 30].max() == 0
    )


@quick
@given(small, small, st.floats(1, 100))
def test_tile_keeps_size_and_mean(w, h, factor):
    a = np.random.default_rng(0).integers(60, 196, (h, w, 3), np.uint8)
    t = np.asarray(tile(a, factor))
    assert t.shape == a.shape and np.abs(t.mean((0, 1)) - a.mean((0, 1))).max() < 8
    flat = np.full_like(a, 77)
    assert np.array_equal(np.asarray(tile(flat, factor)), flat)


def test_tile_blurs_and_refuses():
    a = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert (
        np.array_equal(np.asarray(tile(a, 1)), a)
        and np.asarray(tile(a, 8)).std() < np.asarray(tile(a, 2)).std() < a.std()
    )
    for bad in (0, 0.5, -3, math.nan, math.inf):
        with pytest.raises(OptionError, match="factor="):
            tile(a, bad)


def test_hybrid():
    a, b = canny(square()), soft_edges(square())
    A, B = (np.asarray(m).astype(float) for m in (a, b))
    assert hybrid([a], [1]) == a and np.array_equal(
        np.asarray(hybrid([a, b], [0.5, 0.25])), np.round(0.5 * A + 0.25 * B)
    )
    assert np.asarray(hybrid([a, b], [9, 9])).max() == 255
    for maps, weights in (
        ([], []),
        ([a], [1, 2]),
        ([a, b], [1]),
        ([a], [-1]),
        ([a], [math.nan]),
        ([a], [math.inf]),
    ):
        with pytest.raises(OptionError, match="weight"):
            hybrid(maps, weights)
    with pytest.raises(ImageError, match="make one size"):
        hybrid([a, a.resize((32, 32))], [1, 1])


@pytest.mark.parametrize("kind", CONDITIONS)
def test_every_named_map_keeps_the_size_and_is_deterministic(kind):
    a = cv2.blur(np.random.default_rng(1).integers(0, 256, (24, 40, 3), np.uint8), (5, 5))
    m = control_map(a, kind)
    assert (m is None) == (kind == "none")
    if m:
        assert m.size == (40, 24) and m.mode == "RGB" and m == control_map(Image.fromarray(a), kind)


def test_named_maps_take_options_and_refuse_others():
    assert control_map(square(), low=300, high=700) == canny(square(), 300, 700) and control_map(
        square(), "canny-auto"
    ) == canny(square(), auto=True)
    for kind, options in (
        ("depth", {}),
        ("canny", dict(factor=2)),
        ("none", dict(low=1)),
        ("tile", dict(low=1)),
    ):
        with pytest.raises(OptionError, match=kind):
            control_map(square(), kind, **options)
    with pytest.raises(ImageError):
        control_map(None, "canny")
