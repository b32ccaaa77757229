"Intervals, Holm, power, Pareto: invariants and bad input."

import csv, io, math
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from fastedit.core import DataError, OptionError
from fastedit.measure import (
    Difference,
    Interval,
    Table,
    boot_t,
    compare,
    difference_interval,
    fmt,
    holm,
    images_needed,
    mean_interval,
    minimal_difference,
    pareto_front,
    Scores,
    scores,
    standard_error,
    summary,
    trade_off,
)
from fastedit.measure.resampling import strata

numbers = st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=2, max_size=30)


@given(numbers, st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_interval_holds_its_mean_and_repeats(xs, seed):
    y = mean_interval(xs, draws=200, seed=seed)
    assert (
        y.n == len(xs)
        and y.mean == pytest.approx(np.mean(xs))
        and repr(y) == repr(mean_interval(xs, draws=200, seed=seed))
    )
    if len(xs) < 4 and not set(xs) <= {0.0, 1.0}:
        assert math.isnan(y.low) and math.isnan(y.high)
    else:
        assert not y.low > y.mean + 1e-9 and not y.high < y.mean - 1e-9


@given(
    st.lists(st.integers(-500, 500).map(lambda v: v / 8), min_size=2, max_size=30).filter(
        lambda xs: len(set(xs)) > 2
    )
)
@settings(max_examples=30, deadline=None)
def test_shift_scale_and_sign(xs):
    zero, near = [0.0] * len(xs), lambda v: pytest.approx(v, abs=1e-6, nan_ok=True)
    y, up, twice = (
        difference_interval(v, zero, draws=200)
        for v in (xs, [x + 5 for x in xs], [2 * x for x in xs])
    )
    assert up.low == near(y.low + 5) and twice.high == near(2 * y.high)
    back = difference_interval(zero, xs, draws=200)
    assert back.low == near(-y.high) and back.p == near(y.p)


def test_studentised_resamples_of_even_values_agree_with_students_table():
    x = np.random.default_rng(0).normal(size=400)
    assert np.percentile(boot_t(x, draws=20_000), [2.5, 16, 84, 97.5]) == pytest.approx(
        [-1.96, -1, 1, 1.96], abs=0.1
    )
    skew = np.random.default_rng(0).exponential(size=200)
    low, high = np.percentile(boot_t(skew, draws=20_000), [2.5, 97.5])
    assert -low > 2.05 and high < 1.95  # a skewed mean strays further below than above


def test_levels_of_the_types_are_no_uncertainty():
    rng = np.random.default_rng(0)
    kinds = np.repeat(list("abc"), [5, 20, 50])
    x = rng.normal(size=75) + np.repeat([0, 50, 100], [5, 20, 50])
    se = math.sqrt(
        sum((n / 75) ** 2 * x[kinds == k].var(ddof=1) / n for k, n in zip("abc", (5, 20, 50)))
    )
    assert standard_error(x, kinds) == pytest.approx(se) and standard_error(x) > 5 * se
    y = mean_interval(x, kinds)
    assert 1.9 * se < (y.high - y.low) / 2 < 2.6 * se


def test_small_types_are_pooled():
    assert [list(g) for g in strata(list("abccccc"), 7)] == [[0, 1, 2, 3, 4, 5, 6]]
    assert [list(g) for g in strata(list("abbaacccc"), 9)] == [[5, 6, 7, 8], [0, 1, 2, 3, 4]]
    assert [list(g) for g in strata(list("accccbbbbb"), 10)] == [[5, 6, 7, 8, 9], [0, 1, 2, 3, 4]]
    assert [list(g) for g in strata(list("abc"), 3)] == [[0, 1, 2]]


def test_missing_values_are_left_out_and_counted():
    y = difference_interval(
        [1, 2, None, float("inf"), 5, *range(6)],
        [0, 1, 1, 1, float("nan"), *range(-1, 5)],
        list("aabbbcccccc"),
    )
    assert (y.n, y.mean, y.low, y.high) == (8, 1, 1, 1) and y.excludes_zero and y.p == 2 / 2**8
    assert mean_interval([]).n == 0 and math.isnan(mean_interval([]).mean)
    one = difference_interval([3.0], [1.0])
    assert one.mean == 2 and math.isnan(one.low) and not one.excludes_zero and one.p == 1


def test_identical_methods_show_no_difference():
    y = difference_interval([*range(2, 9)], [*range(2, 9)])
    assert (y.low, y.high, y.p) == (0, 0, 1) and y.verdict == "no difference shown"
    y = difference_interval([1.0, 2, 3], [1.0, 2, 3])
    assert math.isnan(y.low) and y.p == 1 and y.verdict == "no difference shown"


@pytest.mark.parametrize("law", ["normal", "shares", "ties", "seeds"])
def test_p_and_interval_are_one_calculation(law):
    rng = np.random.default_rng(2)
    seen = set()
    for n in (4, 7, 13, 40):
        for shift in np.linspace(-1.2, 1.2, 40):
            a, b = {
                "normal": (rng.normal(shift, 1, n), np.zeros(n)),
                "shares": (rng.random((2, n)) < [[0.5 + shift / 3], [0.5 - shift / 3]]).astype(
                    float
                ),
                "ties": (np.round(rng.normal(shift, 1, n)), np.zeros(n)),
                "seeds": (
                    rng.random((2, 2, n))
                    < np.reshape([0.5 + shift / 3, 0.5 - shift / 3], (2, 1, 1))
                ).mean(1),
            }[law]
            y = difference_interval(a, b, draws=2000, level=0.9)
            seen.add(y.excludes_zero)
            assert y.excludes_zero == (y.p <= 0.1), (n, shift, y)
    assert seen == {True, False}


def test_four_of_four_prove_nothing_and_eight_of_eight_do():
    say = lambda a, b: difference_interval(a, b).verdict
    for n, want in (
        (2, "no difference shown"),
        (4, "no difference shown"),
        (5, "no difference shown"),
        (8, "a is higher"),
    ):
        assert say([1] * n, [0] * n) == want and say([30.5] * n, [30.0] * n) == want
    y = difference_interval([1] * 8, [0] * 8)
    assert y.p == pytest.approx(2 / 2**8) or y.p > 2 / 2**8
    y = difference_interval([1, 0] * 10, [1, 0] * 10)
    assert y.low < -0.1 and y.high > 0.1  # twenty that agree leave room for rare ones that do not


def test_shares_get_exact_limits():
    y = mean_interval([1] * 15 + [0] * 5)
    assert (y.low, y.high) == pytest.approx((0.5090, 0.9134), abs=1e-4)  # Clopper and Pearson's
    y = mean_interval([True] * 20)
    assert y.low == pytest.approx(0.025 ** (1 / 20)) and y.high == 1
    y = mean_interval([0, 0])
    assert y.low == 0 and y.high == pytest.approx(1 - 0.025**0.5)
    y = mean_interval([1, 1, 0.5, 1, 1, 1], within=(0, 1))
    assert y.high == 1 and y.low < 0.9


def test_shares_over_seeds_have_limits_although_few_differ():
    y = mean_interval([1.0] * 10 + [0.5] * 2)
    assert 0.5 < y.low < y.mean < y.high <= 1
    y = difference_interval([1.0] * 10 + [0.5] * 2, [1.0] * 12)
    assert -1 <= y.low < y.mean < 0 <= y.high < 1 and y.verdict == "no difference shown"


LAWS = {
    "normal": lambda r, n: (r.normal(size=n), np.zeros(n)),
    "skewed": lambda r, n: (r.exponential(size=n), np.ones(n)),
    "skewed down": lambda r, n: (np.ones(n), r.exponential(size=n)),
    "shares": lambda r, n: (r.random((2, n)) < 0.6).astype(float),
    "rare": lambda r, n: (r.random((2, n)) < 0.05).astype(float),
    "two seeds": lambda r, n: (r.random((2, 2, n)) < 0.6).mean(1),
    "mostly equal": lambda r, n: (np.where(r.random(n) < 0.3, r.normal(size=n), 0), np.zeros(n)),
}


@pytest.mark.parametrize("n", [4, 5, 8, 20, 40, 80])
def test_simulated_coverage_and_family_of_ten(n):
    """95% intervals of a true difference of 0, and the risk of a false verdict among ten types, as
    `compare` gives it."""
    families, types, kinds = 40, 10, tuple(str(k) for k in range(10) for _ in range(n))
    names = tuple(map(str, range(10 * n)))
    for law, draw in LAWS.items():
        rng, held, wrong = np.random.default_rng(n), 0, 0
        for _ in range(families):
            a, b = (np.concatenate(v) for v in zip(*(draw(rng, n) for _ in range(types))))
            c = compare(Scores("m", names, kinds, dict(a=a, b=b)), "a", "b", draws=2000)
            held += sum(not d.excludes_zero for _, d, _ in c.types)
            wrong += any(v != "no difference shown" for v in c.table()["verdict"][1:])
        trials = families * types
        assert held / trials >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / trials), (law, held / trials)
        # at a risk of 5%, 40 families show more than 6 false ones once in 300
        assert wrong <= 6, (
            law,
            wrong,
        )


def test_simulated_coverage_of_stratified_means_and_shares():
    for per_type in (1, 2, 4, 9):
        rng, held = (
            np.random.default_rng(per_type),
            dict.fromkeys(("mean", "skewed", "share", "difference"), 0),
        )
        kinds = np.repeat(range(10), per_type)
        for _ in range(300):
            p = 0.04 + 0.1 * kinds
            ok = rng.random((2, len(p))) < p
            level = kinds.astype(float)
            for k, y, truth in (
                ("mean", mean_interval(level + rng.normal(size=len(p)), kinds, 1000), 4.5),
                ("skewed", mean_interval(level + rng.exponential(size=len(p)), kinds, 1000), 5.5),
                ("share", mean_interval(ok[0], kinds), p.mean()),
                (
                    "difference",
                    difference_interval(ok[0].astype(float), ok[1].astype(float), kinds),
                    0,
                ),
            ):
                held[k] += y.low - 1e-9 <= truth <= y.high + 1e-9
        assert min(held.values()) >= 300 * 0.95 - 3 * math.sqrt(300 * 0.05 * 0.95), (per_type, held)


@pytest.mark.parametrize(
    "call, kind, word",
    [
        (lambda: mean_interval([1, 2], ["a"]), OptionError, "1 types"),
        (lambda: mean_interval([1, 2], level=1.5), OptionError, "level=1.5"),
        (lambda: difference_interval([1, 2], [1]), OptionError, "2 values against 1"),
        (lambda: boot_t([1, math.nan]), DataError, "not finite"),
        (lambda: boot_t([]), DataError, "at least two"),
        (lambda: boot_t([1, 2], draws=0), OptionError, "draws=0"),
        (lambda: holm([0.5, 1.2]), OptionError, "between 0 and 1"),
        (lambda: standard_error([1.0]), DataError, "at least 2"),
        (lambda: minimal_difference([1, 2], power=1), OptionError, "power=1"),
        (lambda: images_needed(0, 1), OptionError, "zero"),
    ],
)
def test_bad_input_is_refused_in_words(call, kind, word):
    with pytest.raises(kind, match=word):
        call()


def test_holm_by_hand():
    assert holm([0.01, 0.02, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.04, 0.04, 0.02])
    out = holm([0.9, math.nan, 0.001])
    assert math.isnan(out[1]) and out[[0, 2]].tolist() == pytest.approx([0.9, 0.002])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_bounded_monotone_and_never_below_p(p):
    q = holm(p)
    assert (
        (q >= np.array(p) - 1e-12).all()
        and (q <= 1).all()
        and q.max() <= min(1, max(max(p), len(p) * max(p))) + 1e-12
    )
    assert (np.diff(q[np.argsort(p, kind="stable")]) >= -1e-12).all()


def test_power_against_a_textbook_value():
    assert images_needed(0.5, 1) == 32  # (1.96 + .8416)^2 / .25 = 31.4
    d = np.r_[np.ones(50), -np.ones(50)]
    assert minimal_difference(d) == pytest.approx(2.8016 * math.sqrt(100 / 99) / 10, rel=1e-3)
    assert minimal_difference(d, tests=10) > minimal_difference(d)


ROWS = [
    dict(image=f"{i:02}", type=t, method=m, seed=s, psnr=10 * i + (m == "a") + s)
    for i, t in enumerate("xxxyyy")
    for m in "ab"
    for s in (0, 1)
]


def test_seeds_are_averaged_within_a_picture():
    s = scores(ROWS, "psnr")
    assert (
        s.images == tuple(f"{i:02}" for i in range(6))
        and s.types == tuple("xxxyyy")
        and s.values["b"].tolist() == [10 * i + 0.5 for i in range(6)]
    )
    assert scores(ROWS[::-1], "psnr").values["a"].tolist() == s.values["a"].tolist()


def test_a_missing_seed_or_picture_stays_visible():
    rows = [
        r | ({"psnr": None} if r["image"] == "01" and r["method"] == "a" else {})
        for r in ROWS
        if r["image"] != "05" or r["method"] == "b"
    ]
    s = scores(rows, "psnr")
    assert np.isnan(s.values["a"]).tolist() == [False, True, False, False, False, True]
    c = compare(s, "a", "b")
    assert c.overall.n == 4 and summary(s)["n"] == [4, 6]
    assert [d.n for _, d, _ in c.types] == [2, 2]


def test_compare_finds_the_constant_gain():
    c = compare(scores(ROWS, "psnr"), "a", "b")
    assert (
        c.overall.mean == c.overall.low == c.overall.high == 1
        and c.table()["verdict"] == ["a higher"] + ["no difference shown"] * 2
    )
    # three pictures of a type are not tested
    assert all(math.isnan(p) and math.isnan(d.low) for _, d, p in c.types)
    assert compare(scores(ROWS, "psnr"), "b", "a").overall.mean == -1


def test_rows_that_contradict_each_other_are_refused():
    with pytest.raises(DataError, match="stands twice"):
        scores(ROWS + ROWS[:1], "psnr")
    with pytest.raises(DataError, match="has the types"):
        scores(ROWS + [dict(image="00", type="y", method="c", psnr=1)], "psnr")
    with pytest.raises(DataError, match="no field 'method'"):
        scores([dict(image="00")], "psnr")
    with pytest.raises(OptionError, match="choose among 'a', 'b'"):
        compare(scores(ROWS, "psnr"), "a", "z")
    assert list(scores([r | {"k": 1} for r in ROWS], "psnr", method=("method", "k")).values) == [
        "a 1",
        "b 1",
    ]


def brute_front(pts):
    return [
        not any(all(u >= v for u, v in zip(q, p)) and any(u > v for u, v in zip(q, p)) for q in pts)
        for p in pts
    ]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=15))
def test_front_equals_the_definition(pts):
    assert pareto_front(pts).tolist() == brute_front(pts)
    assert pareto_front([(x, -y) for x, y in pts], up=(True, False)).tolist() == brute_front(pts)


def test_front_ignores_missing_points():
    assert pareto_front([(1, math.nan), (0, 0)]).tolist() == [False, True]


def test_trade_off_curves_are_ordered_and_interpolated():
    rows = [
        dict(image=i, type="t", method="m", k=k, x=10 - k, y=k + i)
        for i in range(4)
        for k in (2, 10, 1)
    ] + [dict(image=i, type="t", method="identity", k=None, x=20, y=0) for i in range(4)]
    t = trade_off(rows, "x", "y", "k", draws=100)
    assert (
        [p.knob for p in t.curves()["m"]] == [1, 2, 10]
        and t.at("m", 8.5) == pytest.approx(3)
        and math.isnan(t.at("m", 30))
    )
    assert all(p.front for p in t.points) and "identity" in repr(t)
    assert trade_off([], "x", "y", "k").points == ()
    with pytest.raises(DataError, match="no field 'method'"):
        trade_off([dict(image=1)], "x", "y", "k")


def test_tables_escape_and_round_trip():
    t = Table(("a|b", "<i>"), (("x|y", 1 / 3), ("<b>", None)), title="T", note="n")
    assert (
        "x\\|y" in t._repr_markdown_()
        and "<b>" not in t._repr_html_().replace("<caption><b>T", "")
        and "&lt;b&gt;" in t._repr_html_()
    )
    back = list(csv.reader(io.StringIO(t.csv())))
    assert float(back[1][1]) == 1 / 3 and back[2][1] == ""
    assert repr(t).splitlines()[0] == "T" and len(t) == 2 and t["a|b"] == ["x|y", "<b>"]
    assert (fmt(None), fmt(math.nan), fmt(True), fmt(7), fmt(1.23456)) == (
        "-",
        "-",
        "yes",
        "7",
        "1.235",
    )
    assert "n=3" in repr(Interval(1.0, 0.0, 2.0, 3)) and "b is higher" in repr(
        Difference(-1.0, -2.0, -0.5, 3, 0.95, 0.01)
    )


def test_perfect_pictures_count_in_the_mean():
    from fastedit import demo, measure as metrics

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
    found = [
        r["corrected/psnr"]
        for r in metrics.Scorer("corrected", only="psnr")([metrics.Pair(a, a), metrics.Pair(a, b)])
    ]
    assert (
        found == pytest.approx([demo.psnr(a, a), demo.psnr(a, b)], abs=1e-4)
        and found[0] == metrics.BEST_PSNR
    )
    m = mean_interval(found)
    assert m.n == 2 and m.mean == pytest.approx(sum(found) / 2)
