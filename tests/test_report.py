"""The report: every number from its rows and linked to them, one page that needs nothing else, the
same bytes for the same rows. Rows and pictures are made up."""

import csv, io, json, math, random, shutil
from html.parser import HTMLParser
import numpy as np, pytest
from PIL import Image
from typer.testing import CliRunner
from fastedit import report as R
from fastedit.core import DataError, OptionError
from fastedit.world import write_benchmark
from fastedit.measure import read_data
from fastedit.measure import difference_interval, holm, mean_interval, minimal_difference

METRICS = {
    "drawn": (
        ("reader-success", "more"),
        ("reader-ignored", "less"),
        ("psnr-bg", "more"),
        ("psnr-truth", "more"),
        ("mse-truth", "less"),
    ),
    "pnp": (("clip-vit-l14", "more"), ("psnr-bg", "more")),
}
SKILL = dict(identity=0, vae=0, plain=0.2, good=0.9)


def write_run(
    out,
    profile="drawn",
    seeds=(0, 1),
    labels=("identity", "vae", "plain", "good"),
    per_type=3,
    types=(1, 6, 9),
    fail=("good", 2),
    dataset="picturebook",
    knobs=(None,),
    **more,
):
    "A results folder as the runner writes it, with made-up numbers; one row of `fail` failed."
    if not (out / "data").exists():
        write_benchmark(out / "data", per_type={t: per_type for t in types}, quiet=True)
    entries, rows, runs, rng = (
        list(read_data(out / "data")),
        [],
        [],
        np.random.default_rng(len(profile)),
    )
    for label in labels:
        for value in knobs if label in ("plain", "good") else (None,):
            run = dict(
                label=label if value is None else f"{label} strength={value}",
                method=label,
                model="mini",
                settings={} if value is None else {"strength": value},
                knob=None if value is None else "strength",
                value=value,
                oracle=False,
                control=label in ("identity", "vae"),
            )
            runs.append(run)
            for k, e in enumerate(entries):
                for seed in seeds:
                    bad = fail == (run["label"], k) and seed == seeds[0]
                    path = f"images/{run['label']}/{e.id}-{seed}.png"
                    win = float(rng.random() < SKILL[label])
                    noise = rng.normal(0, 0.01)
                    found = {
                        "reader-success": win,
                        "reader-ignored": 1 - win,
                        "psnr-bg": None
                        if e.edit_type == "9"
                        else 100.0
                        if label == "identity"
                        else 30 - 5 * SKILL[label] + 100 * noise,
                        "psnr-truth": 20 + 5 * win + noise,
                        "mse-truth": 0.01 - 0.005 * win,
                        "clip-vit-l14": 20 + win,
                    }
                    if not bad:
                        (out / path).parent.mkdir(parents=True, exist_ok=True)
                        Image.fromarray(
                            np.full((16, 16, 3), (40 + 20 * k + seed) % 256, np.uint8)
                        ).save(out / path)
                    rows.append(
                        dict(
                            row=f"{profile}{len(rows):04}",
                            key=f"k{len(rows)}",
                            entry="-",
                            id=e.id,
                            type=e.edit_type,
                            **run,
                            seed=seed,
                            request={},
                            profile=profile,
                            metrics={}
                            if bad
                            else {f"{profile}/{m}": found[m] for m, _ in METRICS[profile]},
                            seconds=None if bad else 0.5,
                            network_seconds=None if bad else 0.4,
                            nfe=None if bad else 4,
                            control_nfe=None if bad else 0,
                            steps=4,
                            timesteps=[],
                            image=None if bad else path,
                            error="NumericalError: <b>not</b> a number" if bad else None,
                            notes=[],
                            revision="-",
                            versions=dict(fastedit="1"),
                            shard="1/1",
                            session="s",
                            threads=1,
                        )
                    )
    (out / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (out / "run.json").write_text(
        json.dumps(
            dict(
                dataset=dataset,
                data="data",
                size=64,
                skipped=0,
                problems=[],
                profile=profile,
                precision="fp32",
                seeds=list(seeds),
                entries={e.id: "-" for e in entries},
                runs=runs,
                refused=[],
                unavailable={},
                metrics=[
                    dict(
                        name=f"{profile}/{m}",
                        what=f"what {m} is",
                        region="whole",
                        backbone="none",
                        range="",
                        better=b,
                        source="nobody",
                        state="ready",
                    )
                    for m, b in METRICS[profile]
                ],
                versions=dict(fastedit="1"),
                revisions={"mini": "-"},
            )
            | more
        )
    )
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def found(run):
    return R.report(run, draws=500, published=True)


@pytest.fixture(scope="module")
def page(found):
    return found.html()


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


class Page(HTMLParser):
    "Collects ids, links, sources, tables (cells as text, link) and style texts."

    def __init__(self, text):
        super().__init__()
        (
            self.ids,
            self.links,
            self.sources,
            self.tags,
            self.styles,
            self.tables,
            self.cell,
            self.open,
        ) = [], [], [], [], [], [], None, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.tags.append(tag)
        self.open.append(tag)
        if "id" in a:
            self.ids.append(a["id"])
        self.links += [v for k, v in a.items() if k.split(":")[-1] == "href"]
        self.sources += [a[k] for k in ("src", "srcset", "data", "poster", "action") if k in a]
        self.styles.append(a.get("style") or "")
        if tag == "table":
            self.tables.append(dict(look=a.get("class", ""), caption="", rows=[]))
        if tag == "tr" and self.tables:
            self.tables[-1]["rows"].append([])
        if tag in ("td", "th"):
            self.cell = dict(text="", to=None, look=a.get("class"))
            self.tables[-1]["rows"][-1].append(self.cell)
        if tag == "a" and self.cell:
            self.cell["to"] = a.get("href")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None
        if tag in self.open:
            del self.open[len(self.open) - 1 - self.open[::-1].index(tag) :]

    def handle_data(self, data):
        if self.cell:
            self.cell["text"] += data
        elif "caption" in self.open and self.tables:
            self.tables[-1]["caption"] += data
        if "style" in self.open:
            self.styles.append(data)


def test_the_page_needs_nothing_else_and_every_link_has_its_target(page):
    p = Page(page)
    ids = set(p.ids)
    assert (
        p.sources
        and all(s.startswith("data:image/") for s in p.sources)
        and not {"script", "link", "iframe", "object", "embed", "base"} & set(p.tags)
    )
    assert (
        p.links
        and all(h.startswith(("#", "data:image/")) for h in p.links)
        and {h[1:] for h in p.links if h.startswith("#")} <= ids
        and len(ids) == len(p.ids)
    )
    assert (
        not any("@import" in s or "url(" in s.replace("url(#", "") for s in p.styles)
        and "default-src 'none'" in page
    )


def test_every_number_of_ours_links_to_its_rows_and_none_of_the_published(page):
    p = Page(page)
    ours = [
        t
        for t in p.tables
        if t["caption"].startswith(("Means", "Difference", "Power", "Runs"))
        or "per edit type" in t["caption"]
    ]
    other = [t for t in p.tables if t["look"] == "published"]
    assert len(ours) >= 8 and len(other) == 2
    for t in ours:
        for r in t["rows"][1:]:
            assert all(c["to"] for c in r[1:] if any(ch.isdigit() for ch in c["text"])), t[
                "caption"
            ]
    assert not any(c["to"] for t in other for r in t["rows"] for c in r)
    names = {r[0]["text"] for t in ours for r in t["rows"][1:]}
    assert not names & {r[0]["text"] for t in other for r in t["rows"][1:]}  # never in one ranking


def test_each_mean_follows_from_the_rows_that_it_links_to(found):
    rows, numbers = rows_of(found.rows_csv()), rows_of(found.summary_csv())
    assert len(numbers) > 60
    for m in numbers:
        mine = [
            r
            for r in rows
            if (
                r["rows"] == m["rows"]
                if m["type"] != "all"
                else r["rows"].startswith(m["rows"] + "-")
            )
            and r[m["metric"]]
        ]
        pictures = {}
        for r in mine:
            assert r["method"] == m["method"]
            pictures.setdefault(r["id"], []).append(float(r[m["metric"]]))
        assert int(m["n"]) == len(pictures) and (
            not pictures
            or float(m["mean"]) == pytest.approx(np.mean([np.mean(v) for v in pictures.values()]))
        )


def test_differences_are_paired_and_corrected_over_the_methods(tmp_path):
    r = R.report(write_run(tmp_path, knobs=(0.4, 0.8)), draws=400, baseline="plain strength=0.4")
    s, ms = r.sections[0], r.numbers[0]
    metric = "drawn/psnr-truth"
    v = s.scores(metric)
    rivals = ["plain strength=0.8", "good strength=0.4", "good strength=0.8"]
    want = {n: difference_interval(v.values[n], v.values[s.baseline], v.types, 400) for n in rivals}
    got = {m.name: m for m in ms if m.metric == metric and m.type == "all"}
    p = holm([want[n].p for n in rivals])
    for n, q in zip(rivals, p):
        m, d = got[n], want[n]
        assert (m.difference, m.diff_low, m.diff_high, m.p, m.p_holm) == (
            d.mean,
            d.low,
            d.high,
            d.p,
            q,
        )
        assert m.smallest == minimal_difference(
            v.values[n] - v.values[s.baseline], v.types, tests=3
        ) and m.verdict == (
            "no difference shown"
            if not d.excludes_zero or q >= 0.05
            else "higher"
            if d.mean > 0
            else "lower"
        )
    assert (
        got["identity"].verdict == ""
        and math.isfinite(got["identity"].difference)
        and math.isnan(got["identity"].p_holm)
        and math.isnan(got[s.baseline].difference)
    )
    assert got[rivals[1]].low == mean_interval(v.values[rivals[1]], v.types, 400).low


def test_the_same_rows_give_the_same_bytes_in_any_order(run, found, tmp_path):
    other = tmp_path / run.name
    shutil.copytree(run, other)
    lines = (other / "rows.jsonl").read_text().splitlines(True)
    random.Random(1).shuffle(lines)
    (other / "rows.jsonl").write_text("".join(lines) + '{"row": "torn')
    a, b = (
        found.write(tmp_path / "a"),
        R.report(other, draws=500, published=True).write(tmp_path / "b"),
    )
    assert [p.name for p in a] == ["report.html", "report.md", "summary.csv", "rows.csv"] and all(
        x.read_bytes() == y.read_bytes() for x, y in zip(a, b)
    )


def test_failures_are_counted_and_listed(found, page):
    assert (
        found.failures == 1
        and "1 of 72 rows failed" in page
        and "NumericalError: &lt;b&gt;not&lt;/b&gt; a number" in page
        and "<b>not</b>" not in page
    )
    bad = next(r for r in rows_of(found.rows_csv()) if r["error"])
    assert (
        bad["method"] == "good"
        and f'href="#row-{bad["row"]}"' in page
        and bad["row"] in found.markdown()
    )
    runs = next(t for t in Page(page).tables if t["caption"] == "Runs")
    at = [c["text"] for c in runs["rows"][0]].index("failed")
    assert [r[at]["text"] for r in runs["rows"][1:]] == ["0", "1", "0", "0"]


def test_controls_are_in_every_table_or_missed_in_words(found, tmp_path):
    for b in found.blocks()[0]:
        if b.title.startswith("Means") or "per edit type" in b.title:
            assert {"identity", "vae"} <= {r[0] for r in b.rows}
    r = R.report(
        write_run(
            tmp_path, labels=("identity", "plain", "good"), per_type=1, seeds=(0,), fail=None
        ),
        draws=200,
    )
    assert (
        "The control vae was not run" in r.html()
        and r.sections[0].missing_controls == ("vae",)
        and any(row[0] == "vae (not run)" for b in r.blocks()[0] for row in b.rows)
    )


def test_profiles_and_data_sets_have_tables_of_their_own(run, tmp_path):
    pnp = write_run(tmp_path / "pnp", profile="pnp", dataset="pie", seeds=(0,), fail=None)
    r = R.report(run, pnp, draws=200, published=True, pictures=False)
    assert [(s.dataset, s.profile) for s in r.sections] == [
        ("picturebook", "drawn"),
        ("pie", "pnp"),
    ]
    for s, bs in zip(r.sections, r.blocks()):
        assert {m.split("/")[0] for m in s.metrics} == {s.profile} and [
            b.title for b in bs if b.published
        ] == (["Published elsewhere, profile pnp"] if s.profile == "pnp" else [])
        assert (
            s.headline["success"]
            == {"drawn": "drawn/reader-success", "pnp": "pnp/clip-vit-l14"}[s.profile]
        )
    assert (
        "## Published under other protocols" in r.markdown()
        and "FireFlow" in r.html()
        and "DDIM+P2P" not in R.report(run, draws=200, pictures=False).html()
    )


def test_folders_of_one_run_count_once_and_the_same_label_elsewhere_is_told_apart(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    assert len(R.gather(run, tmp_path / "copy")[0].rows) == len(R.gather(run)[0].rows) == 72
    other = write_run(tmp_path / "second", seeds=(0, 1), fail=None)
    text = (other / "rows.jsonl").read_text().replace('"row": "drawn', '"row": "again')
    (other / "rows.jsonl").write_text(text)
    s = R.gather(run, other)[0]
    assert (
        len(s.rows) == 144
        and f"good ({run.name})" in s.names
        and "good (second)" in s.names
        and len(s.names) == 8
    )


def test_the_gallery_follows_its_rule(found, page):
    s = found.sections[0]
    chosen = R.picks(s, 0)
    assert (
        chosen == R.picks(s, 0)
        and [w for _, w, _ in chosen] == ["best", "median", "worst"] * 3
        and len({i for *_, i in chosen}) == 9
    )
    score = lambda id: np.mean(
        [
            r["metrics"]["drawn/reader-success"]
            for r in s.rows
            if r["id"] == id and r["name"] in ("plain", "good") and not r["error"]
        ]
    )
    for t in s.types:
        best, median, worst = (score(i) for k, _, i in chosen if k == t)
        assert best >= median >= worst
    assert page.count("<figure") == 9 * (2 + 4) and page.count("<figcaption>right answer") == 9
    lone = [r for r in s.rows if r["id"] == chosen[0][2]]
    assert [
        w
        for _, w, _ in R.picks(
            R.Section(
                s.dataset,
                s.profile,
                tuple(lone),
                s.names,
                s.controls,
                s.metrics,
                s.baseline,
                s.runs,
            )
        )
    ] == ["best"]


def test_a_picture_or_data_set_that_is_gone_is_said(run, tmp_path):
    other = tmp_path / "gone"
    shutil.copytree(run, other)
    shutil.rmtree(other / "data")
    next((other / "images" / "good").iterdir()).unlink()
    for p in (other / "images" / "vae").iterdir():
        p.write_bytes(b"no picture")
    text = R.report(other, draws=200).html()
    assert "sources are not shown" in text and "cannot be read" in text


def test_curves_have_a_front_and_points_that_link(tmp_path):
    s = R.gather(write_run(tmp_path, knobs=(0.4, 0.8), seeds=(0,)))[0]
    c = R.curves(s, 200)
    assert (
        set(c.curves()) == {"plain over strength", "good over strength", "identity", "vae"}
        and [p.knob for p in c.curves()["good over strength"]] == [0.4, 0.8]
        and any(p.front for p in c.points)
    )
    svg = R.figures.svg(R.plot_tradeoff(s, c, 3), "x")
    assert (
        svg == R.figures.svg(R.plot_tradeoff(s, c, 3), "x") and svg.count('xlink:href="#s3-') == 6
    )


def test_bad_requests_are_refused_in_words(run, tmp_path):
    for call, error, word in (
        (lambda: R.report(), OptionError, "no results folder"),
        (lambda: R.report(tmp_path / "no"), DataError, "results folder"),
        (lambda: R.report(run, baseline="best"), OptionError, "choose among plain"),
        (lambda: R.report(tmp_path), DataError, "results folder"),
    ):
        with pytest.raises(error, match=word):
            call()
    empty = write_run(tmp_path / "empty", per_type=1, fail=None)
    (empty / "rows.jsonl").write_text("")
    with pytest.raises(DataError, match="no row"):
        R.report(empty)


def test_one_picture_and_no_values_still_give_a_report(tmp_path):
    one = write_run(
        tmp_path / "one", per_type=1, types=(9,), labels=("plain",), seeds=(0,), fail=None
    )
    r = R.report(one, draws=100)
    assert "psnr-truth" in r.html() and r.sections[0].baseline == "plain"
    none = write_run(
        tmp_path / "none", per_type=1, types=(1,), labels=("plain",), seeds=(0,), fail=("plain", 0)
    )
    r = R.report(none, draws=100)
    assert r.failures == 1 and "Failures" in r.markdown() and "Gallery" in r.html()


def test_command_line(run, tmp_path):
    from fastedit.cli import app

    out = tmp_path / "out"
    r = CliRunner().invoke(
        app, ["report", str(run), "--out", str(out), "--draws", "200", "--published", "-q"]
    )
    assert (
        r.exit_code == 0
        and "reader-success" in r.output
        and sorted(p.name for p in out.iterdir())
        == ["report.html", "report.md", "rows.csv", "summary.csv"]
        and "SwiftEdit" in (out / "report.html").read_text()
    )
    r = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere"), "--out", str(out)])
    assert r.exit_code and "nowhere" in r.output and "Traceback" not in r.output


# --- results from elsewhere

EVIL = '"><script>alert(1)</script>'


def test_texts_of_rows_reach_the_page_escaped(tmp_path):
    out = write_run(tmp_path / "r", per_type=1, types=(1,), seeds=(0,), fail=("good", 0))
    run = json.loads((out / "run.json").read_text())
    rows = [json.loads(x) for x in (out / "rows.jsonl").read_text().splitlines()]
    label = EVIL + "\n| a $\\frac$ [x](javascript:y)"
    for r in (*rows, *run["runs"]):
        r["label"] = label if r["label"] == "good" else r["label"]
    for r in rows:
        r.update(row=r["row"] + EVIL, type=EVIL)
    (out / "run.json").write_text(json.dumps(run | dict(dataset="a\n# b" + EVIL)))
    (out / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    r = R.report(out, draws=100)
    p, md = Page(r.html()), r.markdown()
    assert "script" not in p.tags and {h[1:] for h in p.links if h.startswith("#")} <= set(p.ids)
    assert (
        "<script" not in md
        and "\n# b" not in md
        and "](javascript" not in md
        and len(
            {line.count(" | ") for line in md.splitlines() if line.startswith("| method | psnr")}
        )
        <= 1
    )


def test_no_cell_of_a_csv_is_a_formula(tmp_path):
    from fastedit.measure import Table

    bad = ("=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1")
    got = list(csv.reader(io.StringIO(Table(("=a", "n"), tuple((b, -1.5) for b in bad)).csv())))
    assert got[0][0] == "'=a" and all(c[0] == "'" and float(n) == -1.5 for c, n in got[1:])


def test_pictures_and_data_from_outside_stay_outside(run, tmp_path):
    out = tmp_path / "r"
    shutil.copytree(run, out)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "secret.png")
    shutil.copytree(out / "data", tmp_path / "data")
    rows = [json.loads(x) for x in (out / "rows.jsonl").read_text().splitlines()]
    for i, r in enumerate(rows):
        if r["image"]:
            r["image"] = (str(tmp_path / "secret.png"), "../secret.png", "images/link.png")[i % 3]
    (out / "images/link.png").symlink_to(tmp_path / "secret.png")
    (out / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run_json = json.loads((out / "run.json").read_text())
    for data in ("../data", str(tmp_path / "data")):  # of the second no entry fits its hash
        (out / "run.json").write_text(json.dumps(run_json | dict(data=data)))
        text = R.report(out, draws=100).html()
        assert "<img" not in text and "leads outside" in text and "not at hand" in text


def test_what_went_wrong_and_who_chose(tmp_path):
    write_run(tmp_path / "a")
    rows = [json.loads(line) for line in (tmp_path / "a/rows.jsonl").read_text().splitlines()]
    for r in rows:
        r["failures"] = ["shift", "colour"] if r["label"] == "plain" else []
        r["request"] = {"repair": r["label"] == "good"}
        r["notes"] = ["repair: moved back (...)"] if r["label"] == "good" else []
    (tmp_path / "a/rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run = json.loads((tmp_path / "a/run.json").read_text()) | dict(diagnosed=True)
    run["runs"] = [
        r | (dict(selected_by="reader") if r["label"] == "good" else {}) for r in run["runs"]
    ]
    for m in run["metrics"]:
        if "reader" in m["name"]:
            m["backbone"] = "the drawn world's reader"
    (tmp_path / "a/run.json").write_text(json.dumps(run))
    text = R.report(tmp_path / "a", draws=200, pictures=False).markdown()
    assert "What went wrong" in text and "| plain | 100%" in text
    assert "(shift)" in text and " of 17 |" in text.replace("](report.html", " |")
    assert "settings of good were selected with the drawn world's reader" in text
    assert "plain were selected" not in text


def test_a_report_says_what_it_cannot_vouch_for(run, tmp_path):
    from fastedit.measure.folders import file_hash
    from fastedit.studies.bench.checks import checksum

    out = tmp_path / "r"
    shutil.copytree(run, out)

    def write(rows):
        (out / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        return R.report(out, draws=100, pictures=False)

    rows = [json.loads(x) for x in (out / "rows.jsonl").read_text().splitlines()]
    for r in rows:
        r["picture"] = r["image"] and file_hash((out / r["image"]).read_bytes())
        r["check"] = checksum(r)
    said = write(rows).html()
    assert "checksum" not in said and "as they were written" not in said
    pictures = sorted({r["image"] for r in rows if r["image"]})
    Image.new("RGB", (64, 64), "red").save(out / pictures[0])
    (out / pictures[1]).unlink()
    rows[0].pop("check")
    rows[1]["nfe"] = 99
    found = write(rows)
    assert any("hash differs" in x for x in found.sections[0].changed)
    for text in (found.html(), found.markdown()):
        assert "1 damaged rows were passed over" in text and "line 2 does not fit" in text
        assert f"1 of {len(rows) - 1} rows hold no checksum" in text
        assert "pictures are missing or not as they were written" in text
