"Intervals, Holm, power, Pareto: invariants and bad input."
import csv, io, math
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from fastedit.core import DataError, OptionError
from fastedit.stats import (Difference, Interval, Table, boot_means, compare, difference_interval, fmt, holm, images_needed, mean_interval,
                            minimal_difference, pareto_front, scores, standard_error, summary, trade_off, _strata)

numbers = st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=2, max_size=30)

@given(numbers, st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_interval_holds_its_mean_inside_the_data_and_repeats(xs, seed):
    y = mean_interval(xs, draws=200, seed=seed)
    assert min(xs) - 1e-9 <= y.low <= y.high <= max(xs) + 1e-9
    assert y == mean_interval(xs, draws=200, seed=seed) and y.n == len(xs) and y.mean == pytest.approx(np.mean(xs))

@given(numbers)
@settings(max_examples=30, deadline=None)
def test_shift_scale_and_sign(xs):
    zero = [0.]*len(xs)
    y, up, twice = (difference_interval(v, zero, draws=200) for v in (xs, [x + 5 for x in xs], [2*x for x in xs]))
    assert up.low == pytest.approx(y.low + 5, abs=1e-6) and twice.high == pytest.approx(2*y.high, abs=1e-6)
    back = difference_interval(zero, xs, draws=200)
    assert back.low == pytest.approx(-y.high, abs=1e-6) and back.p == pytest.approx(y.p)

def test_known_variance_of_the_stratified_mean():
    rng = np.random.default_rng(0); kinds = np.repeat(list("abc"), [5, 20, 50]); x = rng.normal(size=75) + np.repeat([0, 50, 100], [5, 20, 50])
    assert boot_means(x, kinds, 20_000).std() == pytest.approx(standard_error(x, kinds), rel=.02)
    plain = math.sqrt(sum((len(r)/75)**2 * x[r].var()/len(r) for r in _strata(kinds, 75)))
    assert boot_means(x, kinds, 20_000, unbiased=False).std() == pytest.approx(plain, rel=.02)
    assert standard_error(x) > 5*standard_error(x, kinds)  # the levels of the types are no uncertainty

def test_memory_blocks_do_not_change_the_result():
    x = np.random.default_rng(1).normal(size=3000)
    rng = np.random.default_rng([4, 0])
    whole = x[rng.integers(3000, size=(1500, 2999))].mean(1)
    assert np.array_equal(boot_means(x, None, 1500, seed=4), whole)

def test_single_pictures_are_pooled():
    assert [list(g) for g in _strata(list("abccc"), 5)] == [[2, 3, 4], [0, 1]]
    assert [list(g) for g in _strata(list("accbb"), 5)] == [[0, 3, 4], [1, 2]]
    assert [list(g) for g in _strata(list("abc"), 3)] == [[0, 1, 2]]
    y = mean_interval([1., 5, 9], list("abc"), draws=500)
    assert y.low < y.mean < y.high

def test_missing_values_are_left_out_and_counted():
    y = difference_interval([1, 2, None, float("inf"), 5], [0, 1, 1, 1, float("nan")], list("aabbb"))
    assert (y.n, y.mean, y.low, y.high) == (2, 1, 1, 1) and y.excludes_zero
    assert mean_interval([]).n == 0 and math.isnan(mean_interval([]).mean)
    one = difference_interval([3.], [1.]); assert one.mean == 2 and math.isnan(one.low) and not one.excludes_zero and one.p == 1

def test_identical_methods_show_no_difference():
    y = difference_interval([1., 2, 3], [1., 2, 3])
    assert (y.low, y.high, y.p) == (0, 0, 1) and y.verdict == "no difference shown"

def test_p_agrees_with_the_interval():
    rng = np.random.default_rng(2)
    for shift in np.linspace(-.6, .6, 25):
        y = difference_interval(rng.normal(shift, 1, 40), np.zeros(40), draws=2000)
        if y.p < .045: assert y.excludes_zero
        if y.p > .055: assert not y.excludes_zero

@pytest.mark.parametrize("call, kind, word", [
    (lambda: mean_interval([1, 2], ["a"]), OptionError, "1 types"),
    (lambda: mean_interval([1, 2], level=1.5), OptionError, "level=1.5"),
    (lambda: difference_interval([1, 2], [1]), OptionError, "2 values against 1"),
    (lambda: boot_means([1, math.nan]), DataError, "not finite"),
    (lambda: boot_means([]), DataError, "at least one"),
    (lambda: boot_means([1, 2], draws=0), OptionError, "draws=0"),
    (lambda: holm([.5, 1.2]), OptionError, "between 0 and 1"),
    (lambda: standard_error([1.]), DataError, "at least 2"),
    (lambda: minimal_difference([1, 2], power=1), OptionError, "power=1"),
    (lambda: images_needed(0, 1), OptionError, "zero"),
])
def test_bad_input_is_refused_in_words(call, kind, word):
    with pytest.raises(kind, match=word): call()

def test_holm_by_hand():
    assert holm([.01, .02, .03, .005]).tolist() == pytest.approx([.03, .04, .04, .02])
    out = holm([.9, math.nan, .001]); assert math.isnan(out[1]) and out[[0, 2]].tolist() == pytest.approx([.9, .002])

@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_bounded_monotone_and_never_below_p(p):
    q = holm(p)
    assert (q >= np.array(p) - 1e-12).all() and (q <= 1).all() and q.max() <= min(1, max(max(p), len(p)*max(p))) + 1e-12
    assert (np.diff(q[np.argsort(p, kind="stable")]) >= -1e-12).all()

def test_power_against_a_textbook_value():
    assert images_needed(.5, 1) == 32  # (1.96 + .8416)^2 / .25 = 31.4
    d = np.r_[np.ones(50), -np.ones(50)]
    assert minimal_difference(d) == pytest.approx(2.8016*math.sqrt(100/99)/10, rel=1e-3)
    assert minimal_difference(d, tests=10) > minimal_difference(d)

ROWS = [dict(image=f"{i:02}", type=t, method=m, seed=s, psnr=10*i + (m == "a") + s) for i, t in enumerate("xxxyyy") for m in "ab" for s in (0, 1)]

def test_seeds_are_averaged_within_a_picture():
    s = scores(ROWS, "psnr")
    assert s.images == tuple(f"{i:02}" for i in range(6)) and s.types == tuple("xxxyyy") and s.values["b"].tolist() == [10*i + .5 for i in range(6)]
    assert scores(ROWS[::-1], "psnr").values["a"].tolist() == s.values["a"].tolist()

def test_a_missing_seed_or_picture_stays_visible():
    rows = [r | ({"psnr": None} if r["image"] == "01" and r["method"] == "a" else {}) for r in ROWS if r["image"] != "05" or r["method"] == "b"]
    s = scores(rows, "psnr"); assert np.isnan(s.values["a"]).tolist() == [False, True, False, False, False, True]
    c = compare(s, "a", "b"); assert c.overall.n == 4 and summary(s)["n"] == [4, 6]
    assert [d.n for _, d, _ in c.types] == [2, 2]

def test_compare_finds_the_constant_gain():
    c = compare(scores(ROWS, "psnr"), "a", "b")
    assert c.overall.mean == c.overall.low == c.overall.high == 1 and c.table()["verdict"] == ["a higher"]*3
    assert compare(scores(ROWS, "psnr"), "b", "a").overall.mean == -1

def test_rows_that_contradict_each_other_are_refused():
    with pytest.raises(DataError, match="stands twice"): scores(ROWS + ROWS[:1], "psnr")
    with pytest.raises(DataError, match="has the types"): scores(ROWS + [dict(image="00", type="y", method="c", psnr=1)], "psnr")
    with pytest.raises(DataError, match="no field 'method'"): scores([dict(image="00")], "psnr")
    with pytest.raises(OptionError, match="choose among 'a', 'b'"): compare(scores(ROWS, "psnr"), "a", "z")
    assert list(scores([r | {"k": 1} for r in ROWS], "psnr", method=("method", "k")).values) == ["a 1", "b 1"]

def brute_front(pts): return [not any(all(u >= v for u, v in zip(q, p)) and any(u > v for u, v in zip(q, p)) for q in pts) for p in pts]

@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=15))
def test_front_equals_the_definition(pts):
    assert pareto_front(pts).tolist() == brute_front(pts)
    assert pareto_front([(x, -y) for x, y in pts], up=(True, False)).tolist() == brute_front(pts)

def test_front_ignores_missing_points():
    assert pareto_front([(1, math.nan), (0, 0)]).tolist() == [False, True]

def test_trade_off_curves_are_ordered_and_interpolated():
    rows = [dict(image=i, type="t", method="m", k=k, x=10 - k, y=k + i) for i in range(4) for k in (2, 10, 1)] + [dict(image=i, type="t", method="identity", k=None, x=20, y=0) for i in range(4)]
    t = trade_off(rows, "x", "y", "k", draws=100)
    assert [p.knob for p in t.curves()["m"]] == [1, 2, 10] and t.at("m", 8.5) == pytest.approx(3) and math.isnan(t.at("m", 30))
    assert all(p.front for p in t.points) and "identity" in repr(t)
    assert trade_off([], "x", "y", "k").points == ()
    with pytest.raises(DataError, match="no field 'method'"): trade_off([dict(image=1)], "x", "y", "k")

def test_tables_escape_and_round_trip():
    t = Table(("a|b", "<i>"), (("x|y", 1/3), ("<b>", None)), title="T", note="n")
    assert "x\\|y" in t._repr_markdown_() and "<b>" not in t._repr_html_().replace("<caption><b>T", "") and "&lt;b&gt;" in t._repr_html_()
    back = list(csv.reader(io.StringIO(t.csv()))); assert float(back[1][1]) == 1/3 and back[2][1] == ""
    assert repr(t).splitlines()[0] == "T" and len(t) == 2 and t["a|b"] == ["x|y", "<b>"]
    assert (fmt(None), fmt(math.nan), fmt(True), fmt(7), fmt(1.23456)) == ("-", "-", "yes", "7", "1.235")
    assert "n=3" in repr(Interval(1., 0., 2., 3)) and "b is higher" in repr(Difference(-1., -2., -.5, 3, .95, .01))

def test_perfect_pictures_count_in_the_mean():
    from fastedit import demo, metrics
    rng = np.random.default_rng(0); a, b = rng.integers(0, 256, (2, 16, 16, 3), np.uint8); found = [r["corrected/psnr"] for r in metrics.Scorer("corrected", only="psnr")([metrics.Pair(a, a), metrics.Pair(a, b)])]
    assert found == pytest.approx([demo.psnr(a, a), demo.psnr(a, b)], abs=1e-4) and found[0] == metrics.BEST_PSNR
    m = mean_interval(found); assert m.n == 2 and m.mean == pytest.approx(sum(found)/2)
