"""The demonstration: what it measures, what it reports, what it refuses. Random weights: the
figures mean nothing, their form does."""

import json, math
import numpy as np, pytest, torch
from PIL import Image
from fastedit import world as pb
from fastedit.core import ModelError, OptionError
from fastedit.demo import METHODS, comparison, demo_edits, measure, psnr, run_demo
from fastedit.models import random_weights
from fastedit.measure import Reader, Reading, reading_of
from shared import DEMO_ROW


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def _home(weights, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(weights))
    monkeypatch.setenv("FASTEDIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    return Reader().eval()


def test_edits_cycle_over_the_types_and_seeds_share_none():
    a, b = demo_edits(23, 1), demo_edits(23, 2)
    assert (
        [e.edit_type for e in a] == [i % 10 for i in range(23)]
        and a == demo_edits(23, 1)
        and not set(a) & set(b)
    )


@pytest.mark.parametrize(
    "n, seed", [(0, 0), (-1, 0), (True, 0), (1.5, 0), (1, -1), (1, "x"), (10**7, 0)]
)
def test_bad_numbers(n, seed):
    with pytest.raises(OptionError):
        demo_edits(n, seed)


def test_psnr_against_its_formula():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
    m = rng.random((16, 16)) < 0.3
    assert psnr(a, b, m) == pytest.approx(
        10 * math.log10(255**2 / np.mean((a[m].astype(float) - b[m]) ** 2))
    )
    assert (
        psnr(a, a) == 100
        and psnr(a, b, np.zeros((16, 16))) is None
        and psnr(np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)) == 0
    )


def test_background_counts_only_what_the_edit_must_not_touch():
    e = pb.sample_edit(6, 3)
    inside = e.source_image().copy()
    inside[e.mask()] = 0
    m = measure(e, Image.fromarray(inside), reading_of(e.target))
    assert m["background_psnr"] == 100 and m["success"] and m["target_psnr"] < 40
    outside = np.where(e.mask()[..., None], e.source_image(), 0).astype(np.uint8)
    assert measure(e, Image.fromarray(outside), reading_of(e.source))["background_psnr"] < 20
    assert (
        measure(pb.sample_edit(9, 3), Image.fromarray(inside), Reading((), "snow", "flat"))[
            "background_psnr"
        ]
        is None
    )
    assert measure(e, Image.fromarray(e.target_image()), reading_of(e.target))["target_psnr"] == 100


def test_run(reader):
    d = run_demo(3, 7, reader=reader, quiet=True)
    e = demo_edits(3, 7)
    assert [(r["model"], r["method"]) for r in d.rows] == [
        (m, k) for m in ("mini", "mini-s") for k in METHODS
    ]
    for r in d.rows:
        assert DEMO_ROW | {"success_low", "success_high"} <= set(r)
        assert (
            r["n"] == 3
            and 0 <= r["success_low"] <= r["success"] <= r["success_high"] <= 1
            and 0 < r["network_seconds"] < r["seconds"]
        )
        assert r["background_n"] == sum(not x.mask().all() for x in e)
    nfe = {(r["model"], r["method"]): r["nfe"] for r in d.rows}
    assert (
        nfe["mini", "img2img stock"] == 4
        and nfe["mini", "img2img continuous"] == 8
        and nfe["mini-s", "img2img continuous"] == 4
    )
    assert [c["method"] for c in d.checks] == [
        "right answers",
        "right answers after the VAE",
        "sources, unchanged",
    ]
    assert (
        d.checks[0]["background_psnr"] == d.checks[2]["background_psnr"] == 100
        and d.checks[0]["target_psnr"] == 100
    )
    assert (
        sum(t["n"] for t in d.types if t["model"] == "mini" and t["method"] == "ddcm") == 3
        and len(d.type_table) == 3
    )
    json.dumps(d.to_dict(), allow_nan=False)
    assert "ddcm" in repr(d.table) and d.picture.width == 10 * 138 + 10


def test_same_seed_same_figures(reader):
    kw = dict(models="mini", methods={"ddcm": METHODS["ddcm"]}, reader=reader, quiet=True)
    a, b = run_demo(2, 5, **kw), run_demo(2, 5, **kw)
    assert a.picture.tobytes() == b.picture.tobytes()
    same = lambda r: {k: v for k, v in r.items() if "seconds" not in k and k != "overhead"}
    assert (
        same(a.rows[0]) == same(b.rows[0])
        and run_demo(2, 6, **kw).picture.tobytes() != a.picture.tobytes()
    )


def test_comparison_shows_at_most_so_many_rows():
    e = demo_edits(3)
    cell = [(Image.new("RGB", (64, 64)), dict(success=i == 0, ignored=i == 1)) for i in range(3)]
    tall, short = comparison(e, {"x": cell}), comparison(e, {"x": cell}, most=1)
    assert tall.width == short.width and tall.height > short.height + 2 * 128


def test_no_weights(reader, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(tmp_path))
    with pytest.raises(ModelError, match="mini"):
        run_demo(1, reader=reader, quiet=True)
    with pytest.raises(ModelError, match="reader"):
        run_demo(1, quiet=True)


def test_the_table_carries_intervals_and_the_types_count():
    from fastedit.demo import Demo, average_row, gap
    from fastedit.measure import difference_interval, mean_interval

    kinds, steps = [0, 0, 1, 1, 2, 2, 3, 3], iter(range(99))
    one = lambda ok: dict(
        success=bool(ok),
        ignored=False,
        background_psnr=20.0 + ok + next(steps) / 8,
        target_psnr=15.0,
        nfe=4,
        seconds=1.0,
        network_seconds=0.9,
    )
    first, other = [one(k % 2) for k in range(8)], [one(1) for _ in range(8)]
    rows = (
        average_row("a", "m", first, kinds) | gap(first, first, kinds),
        average_row("b", "m", other, kinds) | gap(other, first, kinds),
    )
    types = tuple(
        dict(type=t, **average_row("a", "m", [p for p, k in zip(first, kinds) if k == t], None))
        for t in (0, 1)
    )
    d, y = (
        difference_interval([1.0] * 8, [k % 2 for k in range(8)]),
        mean_interval([k % 2 for k in range(8)]),
    )
    table = Demo(rows, types, rows[:1], None, 0, 8, {}).table
    assert table["success"] == [f"50% [{100 * y.low:.0f}, {100 * y.high:.0f}]", "100% [63, 100]"]
    assert (
        table["points more than the first"]
        == ["-", f"+50 [{100 * d.low:+.0f}, {100 * d.high:+.0f}]"]
        and rows[1]["gap_p"] == d.p
        and d.low < 0
    )
    assert table["background dB"][0].startswith("20.9 [") and table["background dB"][1].startswith(
        "22.4 ["
    )
    found = Demo(rows, types, rows[:1], None, 0, 8, {})
    assert (
        found.type_table["m a"] == ["1 of 2", "1 of 2"]
        and "50% [" in found.check_table["success"][0]
    )
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))
