"""Results folders that a disk, a program or a person changed: read, merged, reported and taken up
again, what is damaged passed over by name, or refused in words; what is whole stays."""

import atexit, json, os, shutil, tempfile
from functools import lru_cache
from pathlib import Path
from tests.fuzz import Case
from tests.fuzz.requests import editor
from tests.fuzz.spoil import as_json, spoil_bytes, spoil_value

N, SMALL = 2500, 100
SECONDS = 10  # a report alone takes a few
BAD_OF = ("rows lost",)
TABLES = ("table.md", "table.csv", "table.json", "types.md")


def bench(out, **more):
    "The command that made the folder, and goes on in it."
    from fastedit.studies.bench import run_bench

    asked = dict(methods=["turbo"], models="mini", settings=dict(steps=1))
    data = dict(per_type=1, types=["1", "6"])
    how = dict(make_editor=lambda model: editor(), judge=judge(), workers=0, quiet=True)
    return run_bench(out=out, **asked, **data, **(how | more))


@lru_cache(1)
def judge():
    from fastedit.studies.bench import Judge

    return Judge("drawn", only=("reader-success", "psnr-bg"))


@lru_cache(1)
def whole():
    "A results folder of two pictures and three lines, made once and copied for each case."
    root = Path(tempfile.mkdtemp(prefix="fuzz-tables-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    bench(root)
    return root


def warm():
    from fastedit.studies.report import report

    report(whole(), draws=100).html()


# ---- what happens to a folder


def rows_of(path):
    return [json.loads(x) for x in path.read_text().splitlines()]


def change_row(rng, out):
    "One row says something else; whether its checksum still tells."
    path = out / "rows.jsonl"
    rows = rows_of(path)
    i = rng.randrange(len(rows))
    rows[i] = spoil_value(rng, rows[i])
    signed = not isinstance(rows[i], dict) or "check" in rows[i] and rng.random() < 0.5
    if not signed:
        rows[i].pop("check", None)
    path.write_text("".join(as_json(r) + "\n" for r in rows))
    return "one row of rows.jsonl changed", signed


def change_run(rng, out):
    path = out / "run.json"
    path.write_text(as_json(spoil_value(rng, json.loads(path.read_text()))))
    return "run.json changed", True


def change_bytes(rng, out):
    "A file with other bytes; pictures of the data set are inputs, and no result comes of them."
    results = ("rows.jsonl", "run.json", "table.json", "table.csv")
    name = rng.choice((*results[:2], *results, "mapping", "images", "images"))
    if name == "mapping":
        path = next(out.glob("data/*/mapping_file.json"))
    else:
        path = out / name if name != "images" else a_picture(rng, out)
    path.write_bytes(spoil_bytes(rng, path.read_bytes()))
    return f"other bytes in {path.relative_to(out)}", name != "mapping"


def a_picture(rng, out):
    return rng.choice(sorted(out.glob("images/*/*.png")))


def change_place(rng, out):
    "A file that is gone, a folder, a link to elsewhere, a pipe, or one that lies there twice."
    name = rng.choice(("rows.jsonl", "run.json", "images", "images", "table.md", "times.csv"))
    path = out / name if name != "images" else a_picture(rng, out)
    how, data = rng.choice(("gone", "folder", "link", "ring", "pipe", "twice")), path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    if how == "link":
        (out.parent / "elsewhere").write_bytes(data)
        path.symlink_to(out.parent / "elsewhere")
    if how == "ring":
        path.symlink_to(path.name)
    if how == "pipe":
        os.mkfifo(path)
    if how == "twice":
        path.write_bytes(data)
        path.with_name("rows-0002-of-0003.jsonl").write_bytes(data)
    return f"{path.relative_to(out)}: {how}", True


def torn(rng, out):
    "A last line that a killed process has not finished."
    path = out / "rows.jsonl"
    path.write_bytes(path.read_bytes()[: -rng.randrange(1, 200)])
    return "a torn last line", True


# ---- what is done with it


def read(out):
    from fastedit.studies.bench import read_bench

    found = read_bench(out)
    repr(found), found.types, found.to_dict()


def merge(out):
    from fastedit.studies.bench import merge_runs

    merge_runs(out.parent / "merged", out)
    assert merge_runs(out.parent / "merged", out) == 0, "merging again changes something"


def page(out):
    from fastedit.studies.report import report

    assert "<script" not in report(out, draws=100).html()


def go_on(out):
    "The same command again: all rows there, each once, and the tables of an undisturbed run."
    bench(out)
    from fastedit.studies.bench import read_rows

    wanted = {r["row"] for r in read_rows(whole())}
    found = [r["row"] for r in read_rows(out) if r["row"] in wanted]
    same = all((out / t).read_bytes() == (whole() / t).read_bytes() for t in TABLES)
    return {"rows lost": len(wanted) - len(set(found)), "tables that differ": int(not same)}


def files_of(folder, but):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in but}


def copied(source, target):
    "Copy a file; pictures of the data set, which nothing writes, are the same ones."
    drawn = "annotation_images" in source or "target_images" in source
    (os.link if drawn else shutil.copy2)(source, target)


def case(rng, folder, index):
    shutil.copytree(whole(), out := folder / "out", copy_function=copied)
    damage = rng.choice((change_row, change_row, change_run, change_bytes, change_place, torn))
    said, noticed = damage(rng, out)
    use = rng.choice((read, merge, page, go_on))
    lines = damage in (change_row, torn)
    outside = files_of(folder, but=("out", "merged"))

    def run():
        try:
            return look()
        finally:
            assert files_of(folder, but=("out", "merged")) == outside, "a file elsewhere changed"

    def look():
        if use is go_on:
            counts = go_on(out)
            if not noticed:  # a row without a checksum is believed, as those of old versions are
                return {"rows lost": 0}
            assert not counts["tables that differ"], "the tables differ from an undisturbed run's"
            return counts
        use(out)
        if lines:
            from fastedit.studies.bench import read_rows

            lost = len(rows_of(whole() / "rows.jsonl")) - len(read_rows(out))
            return {"rows lost": max(0, lost - 1)}

    return Case(f"{use.__name__}: {said}", run, seconds=SECONDS)
