"""The runner: nothing lost, nothing twice, whatever stops it; shares give the tables of one; what
cannot be is refused in words. Random weights: figures mean nothing, bytes do."""

import errno, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from typer.testing import CliRunner
from fastedit import world as pb
from fastedit.cli import app
from fastedit.core import DataError, FastEditError, ModelError, OptionError, PromptError
from fastedit.editor import FastEditor
from fastedit.images import read_metadata
from fastedit.methods.base import method_names
from fastedit.models import random_model
from fastedit.measure import Entry, write_standin
from fastedit.studies.bench import (
    HEADLINE,
    PRESETS,
    Judge,
    RowFile,
    bench_request,
    draw_trade_off,
    make_runs,
    merge_runs,
    open_dataset,
    read_bench,
    read_config,
    read_rows,
    read_run,
    run_bench,
    structure_error,
)
from shared import bench_command

TABLES = ("table.md", "table.csv", "table.json", "types.md")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("model") / "tiny", channels=(16, 32, 32), width=16)


@pytest.fixture(scope="module")
def editor(model):
    return FastEditor(model)


@pytest.fixture(scope="module")
def judge():
    return Judge("drawn", only=("reader-success", "reader-ignored", "psnr-bg", "psnr-truth"))


@pytest.fixture
def go(editor, judge, model):
    "Run the bench of these tests in a folder: 2 pictures, 2 methods and the controls."
    base = dict(
        methods=["ddcm", "img2img"],
        models=str(model),
        settings=dict(steps=1, strength=1.0),
        per_type=1,
        types=["1", "6"],
        seed=3,
        quiet=True,
        make_editor=lambda m: editor,
        judge=judge,
    )
    return lambda out, **kw: run_bench(out=out, **{**base, **kw})


@pytest.fixture(scope="module")
def whole(tmp_path_factory, editor, judge, model):
    out = tmp_path_factory.mktemp("whole")
    run_bench(
        out=out,
        methods=["ddcm", "img2img"],
        models=str(model),
        settings=dict(steps=1, strength=1.0),
        per_type=1,
        types=["1", "6"],
        seed=3,
        quiet=True,
        make_editor=lambda m: editor,
        judge=judge,
    )
    return out


def tables(out):
    return [(Path(out) / t).read_bytes() for t in TABLES]


def lines(out):
    return [
        line for p in sorted(Path(out).glob("rows*.jsonl")) for line in p.read_bytes().splitlines()
    ]


def unique(out):
    "All rows of a folder, each of which must stand there once, with its picture."
    rows = [json.loads(line) for line in lines(out)]
    assert len({r["row"] for r in rows}) == len(rows)
    assert all((Path(out) / r["image"]).is_file() for r in rows if r["image"])
    return rows


# --- what a run leaves


def test_rows_pictures_and_tables(whole, model):
    rows, found = unique(whole), read_bench(whole)
    assert len(rows) == 2 * 4 == found.expected == len(found.rows) and not found.failed
    for r in rows:
        assert {
            "row",
            "key",
            "id",
            "entry",
            "type",
            "method",
            "label",
            "model",
            "settings",
            "request",
            "knob",
            "value",
            "oracle",
            "control",
            "seed",
            "profile",
            "metrics",
            "seconds",
            "network_seconds",
            "nfe",
            "control_nfe",
            "steps",
            "timesteps",
            "image",
            "picture",
            "check",
            "error",
            "notes",
            "revision",
            "versions",
            "shard",
            "session",
            "threads",
            "turn",
        } == set(r)
        im = Image.open(whole / r["image"])
        assert (
            im.format == "PNG"
            and im.size == (64, 64)
            and read_metadata(whole / r["image"])["request"] == r["request"]
        )
    assert {r["method"]: r["steps"] for r in rows} == dict(ddcm=1, img2img=1, identity=0, vae=0)
    same = next(r for r in rows if r["method"] == "identity")
    assert (
        same["metrics"]["drawn/psnr-bg"] == 100
        and same["metrics"]["drawn/reader-structure"] < 1e-9
        and same["nfe"] == 0
    )
    got = json.loads((whole / "table.json").read_text())
    assert [r["method"] for r in got["rows"]] == ["ddcm", "img2img", "identity", "vae"]
    for r in got["rows"]:
        assert {
            "method",
            "model",
            "steps",
            "nfe",
            "success",
            "ignored",
            "background_psnr",
            "structure_error",
            "target_psnr",
            "n",
            "success_low",
            "success_high",
            "structure_error_low",
            "target_psnr_high",
        } <= set(r)
        assert r["n"] == 2 and not any("second" in k or k == "overhead" for k in r)
    full = found.to_dict()["rows"][0]
    assert {"seconds", "seconds_low", "seconds_high", "network_seconds"} <= set(full) and full[
        "seconds"
    ] > full["network_seconds"] > 0
    assert (
        not b"".join(tables(whole)).count(b"second")
        and "seconds" in (whole / "times.csv").read_text()
    )
    assert (
        "ddcm" in repr(found)
        and "identity (control)" in repr(found.table())
        and [e.id for e in found.data] == list(found.run["entries"])
    )
    assert found.pictures().width > 4 * 128 and found.run["revisions"] == {
        "tiny": rows[0]["revision"]
    }


def test_the_noise_of_a_picture_depends_on_its_id_and_the_seed(whole):
    data = read_bench(whole).data
    run = make_runs("ddcm")[0]
    r = lambda e, s: bench_request(run, e, s).seed
    assert len({r(e, s) for e in data for s in range(3)}) == 6 and r(data[0], 1) == r(data[0], 1)
    assert bench_request(make_runs("ddcm", settings=dict(seed=5))[0], data[0], 3).seed == 5


def test_what_the_words_decide_is_told_what_the_picture_shows(whole):
    e = read_bench(whole).data[0]
    r = lambda **settings: bench_request(make_runs("img2img-4", settings=settings)[0], e)
    assert r(strength="auto").source_prompt == e.source_prompt
    assert r(strength=0.8).source_prompt is None  # img2img compares with none


def test_a_second_call_does_nothing(whole, go, editor, monkeypatch):
    before, rows = tables(whole), lines(whole)
    monkeypatch.setattr(type(editor), "__call__", lambda *a, **k: pytest.fail("edited again"))
    found = go(whole)
    assert found.session["edits"] == 0 and lines(whole) == rows and tables(whole) == before


# --- stopping


@pytest.mark.parametrize("stop", range(1, 9, 2))
def test_interrupted_anywhere(whole, go, tmp_path, monkeypatch, stop):
    "Ctrl-C in the background and in the foreground, at one row after another."
    add, done = RowFile.add, []

    def interrupted(self, row):
        done.append(row)
        if len(done) == stop:
            raise KeyboardInterrupt
        add(self, row)

    with monkeypatch.context() as m:
        m.setattr(RowFile, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, workers=stop % 4 // 2)
    assert 0 <= len(lines(tmp_path)) < 8
    go(tmp_path)
    assert tables(tmp_path) == tables(whole) and len(unique(tmp_path)) == 8


def test_full_disk(whole, go, tmp_path, monkeypatch):
    """Half a line fits, then none: the run ends in words, the half line goes, and the next run ends
    well."""
    write, n = os.write, [0]

    def full(fd, data):
        n[0] += 1
        if n[0] == 3:
            return write(fd, data[: len(data) // 2])
        if n[0] > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    with monkeypatch.context() as m:
        m.setattr(os, "write", full)
        with pytest.raises(FastEditError, match="No space left.*the same command goes on"):
            go(tmp_path)
    assert len(unique(tmp_path)) == 2 and (tmp_path / "rows.jsonl").read_bytes().endswith(b"\n")
    with monkeypatch.context() as m:
        m.setattr(
            "fastedit.studies.bench.worker.save_image",
            lambda *a: (_ for _ in ()).throw(
                FastEditError("cannot write x.png: No space left on device")
            ),
        )
        with pytest.raises(FastEditError, match="No space"):
            go(tmp_path)
    assert not [r for r in unique(tmp_path) if r["error"]]  # a full disk is no failure of a picture
    go(tmp_path)
    assert tables(tmp_path) == tables(whole) and len(unique(tmp_path)) == 8


@pytest.mark.parametrize("tail", [b'{"row": "5', b"\0" * 5000, b'{"row":"a"}\n{"ro', b"x"])
def test_torn_last_line(whole, go, tmp_path, tail):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "rows.jsonl"
    all_ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(all_[:5]) + tail)
    assert len(read_rows(tmp_path)) == 5
    go(tmp_path)
    assert tables(tmp_path) == tables(whole) and len(read_rows(tmp_path)) == 8


def test_a_lost_picture_is_made_again(whole, go, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    lost = tmp_path / read_rows(tmp_path)[0]["image"]
    was = lost.read_bytes()
    lost.unlink()
    go(tmp_path)
    assert lost.read_bytes() == was and tables(tmp_path) == tables(whole)


def test_two_at_a_time_are_refused(whole, go):
    f = RowFile(whole / "rows.jsonl")
    try:
        with pytest.raises(OptionError, match="another process"):
            go(whole)
    finally:
        f.close()


def files(out):
    return {p: p.read_bytes() for p in Path(out).rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "kw", [dict(methods=["turbo"]), dict(seeds=(0, 1)), dict(seed=4), dict(types=["2"])]
)
def test_a_refused_command_changes_nothing(whole, go, kw):
    """Neither run.json, nor rows, nor tables, nor the drawn pictures of the command that works
    there."""
    before = files(whole)
    f = RowFile(whole / "rows.jsonl")
    try:
        with pytest.raises(OptionError, match="another process"):
            go(whole, **kw)
    finally:
        f.close()
    assert files(whole) == before


def test_rows_are_locked_before_run_json_is_written(whole, go, tmp_path, monkeypatch):
    "Also where the other command came in between: after the first look at its rows."
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("fastedit.studies.bench.running.refuse_if_held", lambda path: None)
    before = files(tmp_path)
    f = RowFile(tmp_path / "rows.jsonl")
    try:
        with pytest.raises(OptionError, match="another process"):
            go(tmp_path, methods=["turbo"])
    finally:
        f.close()
    assert files(tmp_path) == before


def test_shares_of_another_command_are_refused(go, tmp_path):
    """While a share is at work, others of the same command may start; whoever asks for something
    else may not."""
    go(tmp_path, shard="1/2")
    before = files(tmp_path)
    f = RowFile(tmp_path / "rows-0001-of-0002.jsonl")
    try:
        with pytest.raises(OptionError, match="another process"):
            go(tmp_path, methods=["turbo"], shard="2/2")
        assert files(tmp_path) == before
        go(tmp_path, shard="2/2")
    finally:
        f.close()
    assert len(unique(tmp_path)) == 8
    go(tmp_path, methods=["turbo"], shard="2/2")  # nobody is there any more


def _command(model, out, *args):
    return [
        sys.executable,
        "-m",
        "fastedit",
        "bench",
        "--model",
        str(model),
        "--methods",
        "ddcm,img2img",
        "--set",
        "steps=1",
        "--set",
        "strength=1.0",
        "--per-type",
        "1",
        "--types",
        "1,6",
        "--seed",
        "3",
        "--out",
        str(out),
        "--quiet",
        *args,
    ]


def test_kill_9_and_resume(go, editor, model, tmp_path):
    """A process that dies without a word, at some point after its first rows; the rest is done
    here, and equals an uninterrupted run."""
    out, ref = tmp_path / "a", tmp_path / "b"
    more = dict(seeds=list(range(5)), judge=None)
    p = subprocess.Popen(
        _command(model, out, "--seeds", ",".join(map(str, range(5)))),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )
    end = time.monotonic() + 120
    while (
        p.poll() is None and time.monotonic() < end and not (out.is_dir() and len(lines(out)) >= 2)
    ):
        time.sleep(0.002)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert out.is_dir(), p.stderr.read()
    found = len(lines(out))
    assert 2 <= found
    threads = torch.get_num_threads()
    # as in the other process: sums of another order have other last digits
    torch.set_num_threads(1)
    try:
        go(out, **more)
        go(ref, **more)
    finally:
        torch.set_num_threads(threads)
    assert (
        tables(out) == tables(ref)
        and len(unique(out)) == 2 * 4 * 5
        and len({r["session"] for r in read_rows(out)}) == 1 + (found < 2 * 4 * 5)
    )


# --- shares


def test_shards_merge_into_one(whole, go, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    go(a, shard="1/3")
    go(b, shard="2/3")
    go(b, shard="3/3")
    assert (
        read_bench(a).expected == 8
        and len(read_bench(a).rows) == 4
        and "only 4 of 8" in repr(read_bench(a).table())
    )
    assert merge_runs(a, b) == 4 and merge_runs(a, b) == 0 and merge_runs(a, a) == 0
    assert len(unique(a)) == 8
    found = go(a)
    assert found.session["edits"] == 0 and tables(a) == tables(whole)


def test_shards_in_one_folder(whole, go, tmp_path):
    for i in (3, 1, 2):
        go(tmp_path, shard=f"{i}/3")
    assert (
        tables(tmp_path) == tables(whole)
        and len(unique(tmp_path)) == 8
        and len(list(tmp_path.glob("rows*"))) == 3
    )


def test_merging_takes_nothing_from_outside(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "x")
    r = json.loads(lines(tmp_path / "x")[0])
    r.update(row="new", image="../whole/secret.png")
    del r["check"]
    (tmp_path / "x" / "rows.jsonl").write_text(json.dumps(r) + "\n")
    with pytest.raises(DataError, match="outside"):
        merge_runs(tmp_path / "y", tmp_path / "x")


def test_accelerate_with_two_processes(go, model, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        go(tmp_path / "one", judge=None)
    finally:
        torch.set_num_threads(threads)
    args = _command(model, tmp_path / "two", "--json", str(tmp_path / "two.json"))[3:]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            "0",
            "-m",
            "fastedit",
            *args,
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=dict(os.environ, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES=""),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert tables(tmp_path / "two") == tables(tmp_path / "one") and {
        r["shard"] for r in read_rows(tmp_path / "two")
    } == {"1/2", "2/2"}
    assert (
        done.stdout.count("identity (control)") == 1
        and len(json.loads((tmp_path / "two.json").read_text())["rows"]) == 4
    )


# --- damage


def rewrite(out, change):
    "Change the rows of a folder as a program would that knows nothing of checksums."
    rows = [json.loads(line) for line in lines(out)]
    change(rows)
    (out / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r[0]["metrics"].update({"drawn/psnr-bg": 99.0}),
        lambda r: r[0].pop("metrics"),
        lambda r: r[0].update(seconds="fast"),
        lambda r: r.__setitem__(0, ["no", "row"]),
        lambda r: r[0].update(settings={"a": "\ud800"}),
        lambda r: r[0].update(check="0" * 16),
        lambda r: r[0].update(image="../secret.png"),
        lambda r: r[0].update(label=7),
    ],
)
def test_an_edited_row_is_named_and_done_again(whole, go, tmp_path, change):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path, change)
    bad = []
    assert (
        len(read_rows(tmp_path, bad=bad)) == 7 and len(bad) == 1 and "rows.jsonl line 1" in bad[0]
    )
    with pytest.warns(UserWarning, match="1 damaged row in .*done again"):
        go(tmp_path)
    assert tables(tmp_path) == tables(whole) and len(read_rows(tmp_path)) == 8


def test_a_deep_or_endless_line_is_named(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    with open(tmp_path / "rows.jsonl", "ab") as f:
        f.write(
            b"[" * 50_000
            + b"\n"
            + b'{"row": '
            + b"9" * 5000
            + b"}\n"
            + b"\xff\xfe\n"
            + b"x" * (1 << 25)
            + b"\n"
        )
    bad = []
    assert (
        len(read_rows(tmp_path, bad=bad)) == 8
        and len(bad) == 4
        and all(b.isprintable() and len(b) < 300 for b in bad)
    )


def test_a_changed_picture_is_made_again(whole, go, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    path = tmp_path / read_rows(tmp_path)[0]["image"]
    was = path.read_bytes()
    Image.new("RGB", (64, 64), "red").save(path)
    with pytest.warns(UserWarning, match="hash differs"):
        go(tmp_path)
    assert path.read_bytes() == was and tables(tmp_path) == tables(whole)


def test_rows_without_a_checksum_are_still_read(whole, go, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path, lambda rows: [(r.pop("check"), r.pop("picture")) for r in rows])
    assert go(tmp_path).session["edits"] == 0 and tables(tmp_path) == tables(whole)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "{}", "[" * 50_000, '{"runs": 3}', "null", '{"x": NaN}', '"\\ud800"']
)
def test_a_damaged_run_json_is_refused_in_words_and_written_again(whole, go, tmp_path, text):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(DataError, match="give that command again"):
        read_bench(tmp_path)
    assert go(tmp_path).session["edits"] == 0 and tables(tmp_path) == tables(whole)


@pytest.mark.parametrize(
    "field, value",
    [
        ("profile", "mine"),
        ("seeds", "0"),
        ("entries", []),
        ("runs", [{}]),
        ("runs", 3),
        ("revisions", {}),
        ("metrics", [{"name": 3}]),
        ("refused", [{"label": "a"}]),
        ("versions", {"a": []}),
        ("data", None),
        ("problems", [["a"]]),
        ("skipped", "1"),
    ],
)
def test_a_wrong_field_of_run_json_is_named(whole, tmp_path, field, value):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    run = json.loads((tmp_path / "run.json").read_text()) | {field: value}
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(DataError, match=field):
        read_bench(tmp_path)


def test_a_damaged_row_or_picture_is_not_merged(whole, go, tmp_path):
    src = tmp_path / "src"
    shutil.copytree(whole, src)
    rewrite(src, lambda rows: rows[0].update(seconds=1e9))
    Image.new("RGB", (64, 64)).save(src / read_rows(src)[-1]["image"])
    with pytest.warns(UserWarning, match="2 damaged rows"):
        assert merge_runs(tmp_path / "out", src) == 6
    assert len(unique(tmp_path / "out")) == 6
    go(tmp_path / "out")
    assert tables(tmp_path / "out") == tables(whole)


@pytest.mark.parametrize(
    "image",
    [
        "/etc/passwd",
        "images/../../secret.png",
        "run.json",
        "images/.x/a.png",
        "table.md",
        "images/link.png",
    ],
)
def test_merging_takes_pictures_from_among_pictures_only(whole, tmp_path, image):
    src = tmp_path / "src"
    shutil.copytree(whole, src)
    (src / "images/link.png").symlink_to(tmp_path / "secret.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")

    def change(rows):
        rows[0].update(image=image)
        del rows[0]["check"], rows[1:]

    rewrite(src, change)
    with pytest.raises(DataError, match="outside"):
        merge_runs(tmp_path / "out", src)
    assert not lines(tmp_path / "out") and not [
        p for p in (tmp_path / "out").rglob("*") if p.suffix == ".png"
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "run.json", "images", "table.md", "times.csv"])
def test_nothing_is_written_through_a_link_that_leads_out(whole, go, tmp_path, name):
    out, mine = tmp_path / "out", tmp_path / "mine"
    shutil.copytree(whole, out)
    (shutil.rmtree if name == "images" else os.unlink)(out / name)
    mine.mkdir() if name == "images" else mine.write_text("my own")
    (out / name).symlink_to(mine)
    with pytest.raises(DataError, match="outside"):
        go(out)
    assert not list(mine.iterdir()) if name == "images" else mine.read_text() == "my own"


def test_what_killed_processes_have_half_drawn_is_cleared(tmp_path):
    "But not what a living process draws in, nor what is called otherwise."
    from fastedit.studies.bench.sources import _held, open_dataset

    names = (".picturebook-0-1-64.0123abcd", ".picturebook-0-1-64.89abcdef", ".notes")
    for name in names:
        (tmp_path / "data" / name / "annotation_images").mkdir(parents=True)
    with _held(tmp_path / "data" / names[1]) as mine:
        assert mine and len(open_dataset(out=tmp_path, per_type=1)) == 10
    left = {p.name for p in (tmp_path / "data").iterdir()}
    assert left == {"picturebook-0-1-64", *names[1:]}


@pytest.mark.parametrize("name", ["run.json", "table.md", "a picture"])
def test_a_pipe_in_the_folder_is_not_waited_for(whole, go, tmp_path, name):
    shutil.copytree(whole, out := tmp_path / "out")
    path = next(out.glob("images/*/*.png")) if name == "a picture" else out / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="no ordinary file"):
        go(out)


def test_leftovers_are_cleared_at_the_next_start(whole, go, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    places = (tmp_path, tmp_path / "images", tmp_path / "images" / "ddcm")
    for p in places:
        (p / ".fastedit-0123456789ab.tmp").touch()
        (p / ".notes.tmp").touch()
    go(tmp_path)
    assert not list(tmp_path.rglob(".fastedit-*")) and all(
        (p / ".notes.tmp").is_file() for p in places
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_in_words(model, tmp_path, number):
    p = subprocess.Popen(
        _command(model, tmp_path, "--seeds", ",".join(map(str, range(200)))),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a background job ignores some
    )
    end = time.monotonic() + 120
    while p.poll() is None and time.monotonic() < end and len(lines(tmp_path)) < 2:
        time.sleep(0.01)
    p.send_signal(number)
    said = p.communicate(timeout=120)[1]
    assert (
        p.returncode == 128 + number
        and "the same command goes on" in said
        and "Traceback" not in said
        and len(unique(tmp_path)) >= 2
        and (tmp_path / "rows.jsonl").read_bytes().endswith(b"\n")
    )


@pytest.fixture
def heard():
    "Have Ctrl+C heard, which a background job ignores."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_waits_for_the_row_at_work_and_a_second_one_does_not(
    go, tmp_path, monkeypatch, times, heard
):
    from fastedit.studies.bench.worker import Worker

    edit, begun, before = Worker._edit, [], signal.getsignal(signal.SIGINT)

    def interrupted(self, *a):
        begun.append(a)
        for _ in range(times * (len(begun) == 2)):
            signal.raise_signal(signal.SIGINT)
        return edit(self, *a)

    monkeypatch.setattr(Worker, "_edit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, workers=0)
    assert len(begun) == 2 and len(lines(tmp_path)) == 3 - times
    assert signal.getsignal(signal.SIGINT) is before


# --- failures


def test_a_failing_picture_is_a_row(go, tmp_path, editor, monkeypatch):
    call = FastEditor.__call__

    def some(self, image, *a, request=None, **k):
        if request.method == "img2img" and request.prompt == bad:
            raise RuntimeError("the network\nblew up")
        return call(self, image, *a, request=request, **k)

    bad = open_dataset(out=tmp_path, per_type=1, seed=3, types=["1"])[0].target_prompt
    with monkeypatch.context() as m:
        m.setattr(FastEditor, "__call__", some)
        found = go(tmp_path)
        assert go(tmp_path).session["edits"] == 0
    (r,) = found.failed
    assert (
        r["error"] == "RuntimeError: the network blew up"
        and r["image"] is None
        and r["metrics"] == {}
        and r["seconds"] is None
    )
    line = {x["label"]: x for x in found.lines}
    assert (
        line["img2img"]["failed"] == 1
        and line["img2img"]["n"] == 1
        and line["ddcm"]["n"] == 2
        and "failed" in repr(found.table())
    )
    again = go(tmp_path, retry=True)
    assert (
        not again.failed
        and again.session["edits"] == 1
        and len(again.rows) == 8
        and len(read_rows(tmp_path)) == 8
    )


def test_the_command_fails_with_its_pictures(model, tmp_path):
    Image.fromarray(pb.render(pb.sample_scene(5))).save(tmp_path / "a.png")
    (tmp_path / "d.csv").write_text(
        "id,image,source_prompt,target_prompt\none,a.png,a red ball,a blue ball\n"
    )
    args = bench_command(model, tmp_path, "--set", "mask=given")
    r = CliRunner().invoke(app, args)
    assert (
        r.exit_code == 1
        and "1 of 3 edits failed" in r.stderr
        and "has no mask" in r.stderr
        and "--allow-failures" in r.stderr
        and "ddcm (oracle mask)" in r.stdout
    )
    r = CliRunner().invoke(app, [*args, "--allow-failures", "--json", "-"])
    assert r.exit_code == 0 and "failed" in r.stderr
    d = json.loads(r.stdout)
    assert (
        d["failed"] == 1
        and d["failures"][0][0] == "ddcm (oracle mask)"
        and d["rows"][0]["oracle"]
        and d["rows"][0]["n"] == 0
        and d["rows"][0]["success"] is None
    )
    # identity, on a picture without a mask
    assert d["rows"][1]["success"] == 0 and d["rows"][1]["background_psnr"] is None


def test_bad_entries_are_listed_before_anything_runs(model, tmp_path):
    Image.fromarray(pb.render(pb.sample_scene(5))).save(tmp_path / "a.png")
    (tmp_path / "d.csv").write_text(
        (
            "id,image,source_prompt,target_prompt,type\n"
            "one,a.png,a red ball,a blue ball,6\n"
            "two,nowhere.png,a red ball,,6\nthree,a.png,a cup,a car,77\n"
        )
    )
    args = bench_command(model, tmp_path)
    r = CliRunner().invoke(app, args)
    assert (
        r.exit_code == 1
        and all(
            w in r.stderr
            for w in ("two", "nowhere.png", "target_prompt", "three", "77", "--skip-bad")
        )
        and not (tmp_path / "o").exists()
    )
    r = CliRunner().invoke(app, [*args, "--skip-bad"])
    assert (
        r.exit_code == 0
        and "2 bad entries skipped" in r.stdout
        and read_run(tmp_path / "o")["skipped"] == 2
    )


# --- what is compared


def test_presets_are_the_published_settings():
    base = dict(method="img2img", schedule="stock", steps=4, control="canny", control_scale=0.5)
    assert PRESETS["published-as-written"] == dict(base, strength=0.5, guidance=1.5)
    assert PRESETS["published-as-run"] == dict(
        base, strength=0.8, guidance=1.0, brackets=True, jpeg=75
    )
    e = Entry("1", Path("x.png"), "a cat", "a dog", "a [cat]", "a [dog]")
    written, ran = make_runs("published-as-written,published-as-run", settings=dict(steps=9))[:2]
    # general settings leave a preset alone
    assert (
        bench_request(written, e).prompt == "a dog"
        and bench_request(ran, e).prompt == "a [dog]"
        and bench_request(ran, e).steps == 4
    )
    assert (
        make_runs(["published-as-run"], settings={"published-as-run": dict(steps=8)})[0].settings[
            "steps"
        ]
        == 8
    )


def test_presets_run_as_told(go, tmp_path):
    found = go(tmp_path, methods=["published-as-written", "published-as-run"], types=["6"])
    got = {r["label"]: r for r in found.rows}
    assert (
        got["published-as-written"]["timesteps"] == [499, 259]
        and got["published-as-run"]["timesteps"] == [759, 499, 259]
        and "[" in got["published-as-run"]["request"]["prompt"]
    )
    assert (
        got["published-as-written"]["nfe"] == 2 * got["published-as-written"]["steps"]
        and got["published-as-run"]["nfe"] == 3
    )


def test_all_methods_and_their_models():
    runs = make_runs()
    by = {r.label: r for r in runs}
    assert (
        set(method_names()) - {"instruct"} <= set(by)
        and "published-as-written" in by
        and by["ddcm"].model == "mini"
        and by["null_text"].model == by["edit_friendly"].model == "mini-teacher"
        and by["edit_friendly-4"].model == "mini"
    )
    assert (
        "instruct" not in by
        and "instruct" in {r.label for r in make_runs(models="some-folder")}
        and [r.label for r in runs if r.control][:2] == ["identity", "vae"]
        and sum(r.control for r in runs) == 3
        and by["crossfade"].control
        and {r.model for r in make_runs("ddcm", ["mini", "mini-s"]) if r.method == "vae"}
        == {"mini", "mini-s"}
    )


def test_settings_grids_and_knobs():
    runs = make_runs("ddcm,turbo", settings=dict(steps=3, ddcm=dict(guidance=[1.0, 2.0], uac=True)))
    assert (
        [r.label for r in runs]
        == ["ddcm guidance=1", "ddcm guidance=2", "turbo", "identity", "vae"]
        and runs[0].settings == dict(steps=3, guidance=1.0, uac=True)
        and (runs[0].knob, runs[1].value) == ("guidance", 2.0)
    )
    assert (
        runs[2].settings == dict(steps=3)
        and runs[3].settings == {}
        and [r.value for r in make_runs("turbo", curves=True)][:4] == [0.5, 1.0, 1.5, 2.0]
    )
    assert (
        make_runs([dict(method="ddcm", label="mine", steps=2)])[0].label == "mine"
        and make_runs([dict(method="ddcm", steps=2)])[0].label == "ddcm steps=2"
    )


def test_curves_leave_a_table_of_its_own_a_point():
    runs = make_runs(["turbo", dict(method="ddcm", label="mine", strength=0.7)], curves=True)
    assert [r.value for r in runs if r.label.startswith("turbo")] == [0.5, 1.0, 1.5, 2.0] and [
        (r.knob, r.settings) for r in runs if r.method == "ddcm"
    ] == [(None, dict(strength=0.7))]


@pytest.mark.parametrize(
    "kw, says",
    [
        (dict(methods=[3]), "no method"),
        (dict(methods=[dict(method="ddcm", label=3)]), "no method"),
        (dict(methods="x"), "unknown"),
        (dict(methods=""), "no method"),
        (dict(methods="ddcm", settings=dict(flux=1)), "flux"),
        (dict(methods="ddcm,turbo", settings=dict(uac=True)), "METHOD.NAME"),
        (dict(methods="ddcm", settings=dict(steps=0)), "steps"),
        (dict(methods="ddcm", settings=dict(mask="mine")), "mask"),
        (dict(methods="ddcm", settings=dict(turbo=dict(w=1.0))), "takes no part"),
        (dict(methods="ddcm,ddcm"), "twice"),
        (dict(methods=[dict(label="a")]), "no method"),
        (dict(methods="ddcm", settings=dict(guidance=[1.0, -1.0])), "guidance"),
        (dict(methods="ddcm", settings=dict(prompt="x")), "prompt"),
        (dict(methods="ddcm", settings=dict(schedule="stock")), "continuous"),
    ],
)
def test_bad_runs(kw, says):
    with pytest.raises(OptionError, match=says):
        make_runs(**kw)


@pytest.mark.parametrize(
    "kw, error, says",
    [
        (dict(seeds=[]), OptionError, "seeds"),
        (dict(seeds=[1, 1]), OptionError, "seeds"),
        (dict(shard="4/3"), OptionError, "i/n"),
        (dict(shard="x"), OptionError, "i/n"),
        (dict(workers=-1), OptionError, "workers"),
        (dict(types=["77"]), OptionError, "77"),
        (dict(ids=["nobody"]), OptionError, "nobody"),
        (dict(sample=0), OptionError, "sample"),
        (dict(profile="x", judge=None), OptionError, "profile"),
        (dict(methods=["instruct"]), ModelError, "8 input channels"),
        (dict(merge=["nowhere"]), DataError, "nowhere"),
        (dict(dataset="nowhere"), DataError, "nowhere"),
        (dict(models="nowhere"), ModelError, "nowhere"),
    ],
)
def test_bad_calls_leave_nothing(go, tmp_path, kw, error, says):
    with pytest.raises(error, match=says):
        go(tmp_path / "a" / "o", **kw)
    assert not list(tmp_path.iterdir())


def test_a_method_that_the_model_cannot_run(go, tmp_path):
    found = go(tmp_path, methods=["ddcm", "instruct"], types=["6"])
    (r,) = found.run["refused"]
    assert (
        r["label"] == "instruct"
        and "8 input channels" in r["reason"]
        and [x["method"] for x in found.lines] == ["ddcm", "identity", "vae"]
    )
    with pytest.raises(ModelError, match="8 input channels"):
        go(tmp_path / "b", methods=["instruct"])
    with pytest.raises(PromptError, match="instruction"):
        bench_request(make_runs("instruct")[0], Entry("1", Path("x.png"), "a cat", "a dog"))


def test_a_method_that_does_not_suit_a_model_is_refused_before_the_model_is_loaded():
    from fastedit.studies.bench.worker import Editors, possible_runs

    editors = Editors(lambda m: pytest.fail(f"{m} was loaded"), by_name=True)
    runs = make_runs("instruct", models=["ssd-1b"])
    assert [r.method for r in runs] == ["instruct", "identity", "vae"]
    with pytest.raises(ModelError, match="'ssd-1b' has 4"):
        possible_runs(runs, editors, strict=True)


def test_toml(go, tmp_path):
    (tmp_path / "a.toml").write_text(
        (
            'dataset = "picturebook"\nper_type = 1\nseed = 3\n'
            'types = ["6"]\nseeds = [0, 1]\nmethods = "ddcm"\n'
            '[settings]\nsteps = 1\n[[run]]\nmethod = "turbo"\n'
            'label = "turbo, gently"\nw = 0.5\n'
        )
    )
    kw = read_config(tmp_path / "a.toml")
    found = go(tmp_path / "o", **kw)
    assert [(r["label"], r["n"], r["seeds"], r["steps"]) for r in found.lines][:2] == [
        ("ddcm", 1, 2, 1),
        ("turbo, gently", 1, 2, 1),
    ] and len(found.rows) == 8
    for text, says in (
        ("x = 1", "x is unknown"),
        ("run = 3", "two brackets"),
        ("x =", "not readable"),
    ):
        (tmp_path / "b.toml").write_text(text)
        with pytest.raises(OptionError, match=says):
            read_config(tmp_path / "b.toml")


def test_one_picture_under_two_labels_is_edited_once(go, tmp_path):
    found = go(tmp_path, methods=["ddcm", dict(method="ddcm", label="twin")], types=["6"])
    a, b = (next(r for r in found.rows if r["label"] == k) for k in ("ddcm", "twin"))
    assert (
        a["key"] == b["key"]
        and a["image"] == b["image"]
        and a["metrics"] == b["metrics"]
        and a["seconds"] == b["seconds"]
        and found.session["edits"] == 3
    )


def test_settings_of_an_earlier_command_stay_out_of_the_table(go, tmp_path):
    go(tmp_path, types=["6"])
    found = go(tmp_path, types=["6"], settings=dict(steps=2, strength=1.0))
    # the controls are shared
    assert (
        {r["label"]: r["steps"] for r in found.lines}["ddcm"] == 2
        and len(found.rows) == 4
        and len(read_rows(tmp_path)) == 6
    )


def test_a_key_holds_what_is_not_at_its_default():
    "So a field that a later version adds leaves the keys of earlier rows as they are."
    from fastedit.editor import EditRequest
    from fastedit.studies.bench.worker import _said

    assert _said(EditRequest(prompt="a", steps=2, seed=0)) == dict(prompt="a", steps=2)
    assert _said(dict(entry="a")) == dict(entry="a")


def of_an_older_version(out):
    "Rows with keys that no version of today gives."
    rows = [json.loads(line) for line in lines(out)]
    for r in rows:
        r["key"], r["row"] = r["key"][::-1], r["row"][::-1]
        r["request"] = {k: v for k, v in r["request"].items() if k != "reference"}
        r.pop("turn"), r.pop("check"), r["metrics"].update({"drawn/psnr-bg": 99.0})
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (Path(out) / "rows.jsonl").write_text(text)
    return len(rows)


def test_rows_with_other_keys_are_done_again_and_the_later_ones_count(whole, go, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    n = of_an_older_version(tmp_path)
    assert read_bench(tmp_path).lines[0]["background_psnr"] == 99
    found = go(tmp_path)
    assert len(found.rows) == n and len(lines(tmp_path)) == 2 * n
    assert tables(tmp_path) == tables(whole)
    go(tmp_path)
    assert len(lines(tmp_path)) == 2 * n


def test_of_two_pictures_under_one_name_the_last_one_counts(go, tmp_path):
    "Also where it was edited before: its rows are written anew, and nothing is edited."
    (place := tmp_path / "data").mkdir()
    (place / "edits.csv").write_text("id,image,source_prompt,target_prompt\n1,a.png,a cup,a cat\n")
    asked = dict(dataset=place, types=None, settings=dict(steps=1), methods=["img2img"])

    def with_picture(colour):
        Image.new("RGB", (64, 64), colour).save(place / "a.png")
        found = go(tmp_path / "out", **asked, judge=Judge("corrected", only=("psnr-bg",)))
        return found.session["edits"], [r["picture"] for r in found.rows]

    red, blue = with_picture("red"), with_picture("blue")
    again = with_picture("red")
    assert red[0] == blue[0] == 3 and red[1] != blue[1] and again == (0, red[1])
    assert with_picture("red") == again and len(lines(tmp_path / "out")) == 9


def test_another_profile_scores_the_pictures_that_are_there(go, tmp_path):
    go(tmp_path, types=["6"])
    found = go(tmp_path, types=["6"], profile="whole", judge=Judge("whole", only=("psnr", "mse")))
    assert (
        found.session["edits"] == 0
        and len(found.rows) == 4
        and all("whole/psnr" in r["metrics"] for r in found.rows)
        and "success" not in repr(found.table())
    )
    assert (
        HEADLINE["whole"]["background_psnr"] == "whole/psnr"
        and found.lines[0]["success"] is None
        and found.lines[0]["background_psnr"] > 0
    )


def test_pie_bench_layout_runs(go, tmp_path):
    write_standin(tmp_path / "pie", share=0.01)
    found = go(
        tmp_path / "o",
        dataset=tmp_path / "pie",
        types=["3", "9"],
        profile="pnp",
        judge=Judge("pnp", only=("psnr-bg", "mse-bg")),
    )
    assert (
        len(found.rows) == 8
        and found.run["dataset"] == "pie"
        and {r["type"] for r in found.rows} == {"3", "9"}
        and "delete object" in repr(found.types)
    )
    assert all(r["metrics"]["pnp/psnr-bg"] is None for r in found.rows if r["type"] == "9")


def test_curves(go, tmp_path):
    found = go(
        tmp_path, methods=["turbo"], curves=True, settings=dict(turbo=dict(steps=1)), types=["6"]
    )
    t = found.trade_off()
    assert (
        [p.knob for p in t.curves()["turbo"]] == [0.5, 1.0, 1.5, 2.0]
        and any(p.front for p in t.points)
        and (tmp_path / "tradeoff.png").is_file()
    )
    assert draw_trade_off(found, "target_psnr", "structure_error", size=(4, 3)).size == (440, 330)


def test_structure_error_against_its_formula():
    e = pb.sample_edit(1, 4)
    a, b = (Image.fromarray(x) for x in (e.source_image(), e.target_image()))
    from fastedit.measure import load_reader
    from fastedit.images import to_tensor

    f = [
        torch.nn.functional.normalize(load_reader().trunk(to_tensor(x)).flatten(2)[0].T, dim=-1)
        for x in (a, b)
    ]
    assert structure_error(a, b) == pytest.approx(
        float(((f[0] @ f[0].T - f[1] @ f[1].T) ** 2).mean()), rel=1e-4
    ) and structure_error(a, a) == pytest.approx(0, abs=1e-9)


# --- the third control, and what went wrong


def test_crossfade_is_half_the_source(go, tmp_path):
    strong = dict(method="img2img", label="strong", strength=1.0, control="none", steps=1)
    found = go(
        tmp_path, methods=[strong, "crossfade"], types=["6"], settings=dict(crossfade=dict(steps=1))
    )
    rows = {r["label"]: r for r in found.rows}
    source = np.asarray(found.data[rows["strong"]["id"]].load()).astype(float)
    gap = {
        k: np.abs(np.asarray(Image.open(tmp_path / r["image"]).convert("RGB")) - source)
        for k, r in rows.items()
    }
    assert rows["crossfade"]["control"] and not rows["strong"]["control"]
    assert np.abs(gap["crossfade"] * 2 - gap["strong"]).max() <= 2 and gap["strong"].max() > 9
    assert rows["crossfade"]["key"] != rows["strong"]["key"]


def test_diagnosed_rows_count_only_where_they_are_asked_for(go, tmp_path):
    go(tmp_path, types=["6"])
    found = go(tmp_path, types=["6"], diagnose=True)
    assert found.session["edits"] == 0 and len(found.rows) == 4 and found.run["diagnosed"]
    by = {r["label"]: r["failures"] for r in found.rows}
    assert by["identity"] == ["ignored"] and all(isinstance(f, list) for f in by.values())
    assert "ignored" in found.rates.columns and (tmp_path / "failures.md").is_file()
    assert found.rates_by_type.rows[2][2] == "1 of 1 (ignored)"
    plain = go(tmp_path, types=["6"])
    assert len(plain.rows) == 4 and all(r["failures"] is None for r in plain.rows)


def test_lines_say_what_they_were_chosen_with():
    by = {r.label: r.selected_by for r in make_runs("ddcm,img2img,edit_friendly-4")}
    assert by["ddcm"] == by["edit_friendly-4"] == "reader" and by["img2img"] is None
    mine = make_runs([dict(method="turbo", selected_by="clip-vit-b16")])[0]
    assert mine.selected_by == "clip-vit-b16" and mine.settings == {}
    assert make_runs("ddcm", settings=dict(strength=0.5))[0].selected_by is None
    with pytest.raises(OptionError, match="selected_by='eyes'"):
        make_runs([dict(method="turbo", selected_by="eyes")])


@pytest.mark.skipif(os.name == "nt", reason="no such locks")
def test_a_command_that_is_refused_draws_and_merges_nothing(whole, go, tmp_path):
    "Somebody works in the folder: neither another benchmark nor others' rows come into it."
    from fastedit.studies.bench import RowFile

    out, other = tmp_path / "out", tmp_path / "other"
    shutil.copytree(whole, out)
    shutil.copytree(whole, other)
    held = RowFile(out / "rows-0001-of-0002.jsonl")
    try:
        before = sorted(p.relative_to(out) for p in out.rglob("*"))
        for more in (dict(seed=4), dict(per_type=2), dict(seeds=(0, 1))):
            with pytest.raises(OptionError, match="another process is writing"):
                go(out, merge=[other], **more)
        assert sorted(p.relative_to(out) for p in out.rglob("*")) == before
        go(out, shard="2/2")  # the same work, shared, goes on
    finally:
        held.close()


def test_a_run_takes_in_other_folders_before_it_works(whole, go, tmp_path):
    found = go(tmp_path / "out", merge=str(whole))
    assert found.session["merged"] == len(read_rows(whole)) and found.session["edits"] == 0
    assert tables(tmp_path / "out") == tables(whole)
    assert go(tmp_path / "out", merge=[str(whole)]).session["merged"] == 0


def test_flat_rows_are_one_line_an_edit(whole, tmp_path):
    from fastedit.cli.comparing import write_flat

    found = read_bench(whole)
    write_flat(found, tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == len(found.rows) and {"success", "seconds", "nfe", "label"} <= set(rows[0])
    assert "failures" not in rows[0]


def test_a_file_may_ask_for_diagnoses(tmp_path):
    (tmp_path / "a.toml").write_text("diagnose = true\n")
    assert read_config(tmp_path / "a.toml") == dict(diagnose=True)
