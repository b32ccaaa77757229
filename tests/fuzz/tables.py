"""Data sets, results folders and run.json that a disk, a program or a person changed: read, passed
over by name, or refused in words."""

import json, random, shutil
from functools import lru_cache
from pathlib import Path
import tempfile
from tests.fuzz import Case

TEXTS = (
    "",
    " ",
    "x",
    "mini",
    "null",
    "1",
    "NaN",
    "\ud800",
    "a\udcffb",
    "\0",
    "a\0b",
    "a" * 5000,
    "\u202eabc",
    "\u2028",
    "\x1b[31m",
    "~",
    "..",
    "/",
    "../../etc/passwd",
    "/etc/passwd",
    "{}",
    "9" * 5000,
    "-",
    "a\nb",
    "|",
    "=1+1",
    "<script>",
    "$\\frac$",
    "\ufeff",
    "images/x.png",
    ".",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    64,
    2**53 + 1,
    2**63,
    10**400,
    10**4000,
    0.0,
    -0.0,
    0.5,
    -0.5,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    -float("inf"),
    True,
    False,
)
PLAIN = (
    None,
    [],
    {},
    [None],
    ["a"],
    [1, 2],
    [[1]],
    {"a": 1},
    {"": None},
    {"a": {"b": [1]}},
    ["\ud800"],
    {"\ud800": 1},
    [float("nan")],
)


def plain_value(rng):
    return rng.choice(rng.choice((TEXTS, NUMBERS, PLAIN)))


N, SMALL = 2500, 120


@lru_cache(1)
def whole():
    "A results folder with its data set: two pictures, two lines; made once, copied for each case."
    import atexit
    from PIL import Image
    from fastedit.measure import read_data
    from fastedit.measure.folders import file_hash
    from fastedit.studies.bench import RowFile
    from fastedit.world import write_benchmark

    root = (
        Path(tempfile.gettempdir()).parents[0] / f"fuzz-tables-{random.Random().getrandbits(48):x}"
    )
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    write_benchmark(root / "data", per_type={1: 1, 6: 1}, quiet=True)
    entries = list(read_data(root / "data"))
    file = RowFile(root / "rows.jsonl")
    runs = []
    for label in ("identity", "turbo"):
        line = dict(
            label=label,
            method=label,
            model="mini",
            settings={},
            knob=None,
            value=None,
            oracle=False,
            control=label == "identity",
        )
        runs.append(line)
        for k, e in enumerate(entries):
            path = root / f"images/{label}/{e.id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (80 * k, 90, 20)).save(path)
            file.add(
                dict(
                    line,
                    row=f"{label}{k}",
                    key=f"{label}{k}",
                    id=e.id,
                    entry="-",
                    type=e.edit_type,
                    seed=0,
                    profile="drawn",
                    request={},
                    revision="-",
                    versions=dict(fastedit="1"),
                    metrics={"drawn/psnr-bg": 30.0 + k, "drawn/reader-success": 1.0},
                    seconds=0.5,
                    network_seconds=0.4,
                    nfe=4,
                    control_nfe=0,
                    steps=4,
                    timesteps=[1, 2],
                    image=f"images/{label}/{e.id}.png",
                    picture=file_hash(path.read_bytes()),
                    error=None,
                    notes=[],
                    shard="1/1",
                    session="s",
                    threads=1,
                )
            )
    file.close()
    (root / "run.json").write_text(
        json.dumps(
            dict(
                dataset="picturebook",
                data="data",
                size=64,
                skipped=0,
                problems=[],
                profile="drawn",
                precision="fp32",
                seeds=[0],
                entries={e.id: "-" for e in entries},
                runs=runs,
                refused=[],
                unavailable={},
                metrics=[
                    dict(
                        name=f"drawn/{m}",
                        what="",
                        region="whole",
                        backbone="",
                        better="more",
                        source="",
                        state="ready",
                    )
                    for m in ("psnr-bg", "reader-success")
                ],
                versions=dict(fastedit="1"),
                revisions=dict(mini="-"),
            )
        )
    )
    return root


SECONDS = 30  # on a busy machine a report alone takes a few


def warm():
    from fastedit.studies.report import report

    report(whole(), draws=100).html()


def spoil_value(rng, v):
    "Change one thing somewhere in plain data."
    if isinstance(v, dict) and v and rng.random() < 0.85:
        k = rng.choice(sorted(v))
        d = dict(v)
        if rng.random() < 0.15:
            d.pop(k)
        else:
            d[k] = spoil_value(rng, d[k])
        return d
    if isinstance(v, list) and v and rng.random() < 0.7:
        i = rng.randrange(len(v))
        return [*v[:i], spoil_value(rng, v[i]), *v[i + 1 :]]
    return plain_value(rng)


def as_text(v):
    try:
        return json.dumps(v)
    except (ValueError, RecursionError):
        return '{"id": ' + "9" * 5000 + "}"


def spoil_bytes(rng, data):
    "What a disk or an editor does to bytes."
    kind, i = rng.randrange(9), rng.randrange(len(data) + 1)
    if kind == 0:
        return data[:i]
    if kind == 1:
        return (
            data[:i] + bytes(rng.randrange(256) for _ in range(rng.choice((1, 5, 300)))) + data[i:]
        )
    if kind == 2:
        return data[:i] + rng.choice(TEXTS).encode("utf-8", "surrogatepass") + data[i:]
    if kind == 3:
        return data[:i] + b"[" * rng.choice((5, 1000, 100_000)) + data[i:]
    if kind == 4:
        return data[:i] + b"9" * rng.choice((5, 400, 5000)) + data[i:]
    if kind == 5:
        return data[:i] + b"\0" * rng.choice((1, 4096)) + data[i:]
    if kind == 6:
        return data.replace(
            rng.choice((b"\n", b'"', b"1", b"{", b",")),
            rng.choice((b"", b"\r", b"\n", b'"', b"NaN", b"\xff", "\u2028".encode())),
        )
    if kind == 7:
        return (
            data
            + b'{"a": 1,'
            + b",".join(b'"k": 1' for _ in range(rng.choice((2, 30_000))))
            + b"}\n"
        )
    return rng.choice((b"", b"null", b"[]", b"{}", b"\xff\xfe", data * 2))


def spoil(rng, path):
    "Change a file, in its meaning or in its bytes."
    if rng.random() < 0.5 or path.suffix in (".csv", ".png"):
        return path.write_bytes(spoil_bytes(rng, path.read_bytes()))
    if path.suffix == ".jsonl":
        rows = [json.loads(x) for x in path.read_text().splitlines()]
        i = rng.randrange(len(rows))
        rows[i] = spoil_value(rng, rows[i])
        if rng.random() < 0.5 and isinstance(rows[i], dict):
            rows[i].pop("check", None)
        return path.write_text("".join(as_text(r) + "\n" for r in rows))
    path.write_text(as_text(spoil_value(rng, json.loads(path.read_text()))))


def shorter(call, *a, **k):
    "A list of every bad entry may be long; each of its lines is looked at by itself."
    from fastedit.core import DataError

    try:
        return call(*a, **k)
    except DataError as e:
        assert all(str(p).isprintable() and len(str(p)) < 1000 for p in getattr(e, "problems", ()))
        raise DataError(str(e)[:2500]) from e


def data_set(rng, folder):
    from fastedit.measure import read_data

    shutil.copytree(whole() / "data", folder / "data")
    root, kind = folder / "data", rng.randrange(3)
    at = root / "mapping_file.json"
    if kind:
        entries = json.loads(at.read_text())
        rows = [
            dict(
                id=k,
                image="annotation_images/" + v["image_path"],
                source_prompt=v["original_prompt"],
                target_prompt=v["editing_prompt"],
                type=v["editing_type_id"],
            )
            for k, v in entries.items()
        ]
        at.unlink()
        at = root / ("t.jsonl", "t.csv")[kind - 1]
        at.write_text(
            "".join(json.dumps(r) + "\n" for r in rows)
            if kind == 1
            else "\n".join([",".join(rows[0]), *(",".join(map(str, r.values())) for r in rows), ""])
        )
    pictures = sorted(root.rglob("*.png"))
    spoil(rng, rng.choice((at, at, at, *pictures[:1])))
    return Case(
        f"read_data of a spoilt {at.name}",
        seconds=SECONDS,
        run=lambda: (
            [
                e.id
                for e in shorter(
                    read_data, root, skip_bad=rng.random() < 0.8, size=None if kind == 0 else 64
                )
            ]
            and None
        ),
    )


def results(rng, folder):
    from fastedit.studies.bench import merge_runs, read_bench

    shutil.copytree(whole(), out := folder / "out")
    what = rng.choice(
        ("rows.jsonl", "rows.jsonl", "run.json", "run.json", "data/mapping_file.json", "images")
    )
    path = rng.choice(sorted(out.rglob("images/**/*.png"))) if what == "images" else out / what
    spoil(rng, path)
    way = rng.random()

    def run():
        if way < 0.3:
            return merge_runs(folder / "merged", out) and None
        if way < 0.6:
            found = read_bench(out)
            repr(found), found.types, found.to_dict()
            return
        from fastedit.studies.report import report

        text = report(out, draws=100, pictures=way > 0.75).html()
        assert "<script" not in text

    return Case(f"a results folder with a spoilt {what}", run, seconds=SECONDS)


def case(rng, folder, i):
    return data_set(rng, folder) if rng.random() < 0.4 else results(rng, folder)
