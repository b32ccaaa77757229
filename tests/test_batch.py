"""Many edits: the bytes of single ones, errors in their places, runs that go on, a page that needs
nothing."""

import json, os, re
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from typer.testing import CliRunner
from fastedit import EditRequest, FastEditor
from fastedit.cli import app
from fastedit.core import Cancelled, DataError, ImageError, OptionError
from fastedit.editor import check_request
from fastedit.editor.many import ROWS, done_before, is_done, plan_edits, read_edits, run_many
from fastedit.editor.together import Edits, flags, in_chunks, read_jobs
from fastedit.models import find_spec, load_model, random_ip_folder, random_model
from fastedit.models.networks import load_network
from fastedit.world import render, sample_scene


def picture(seed, size=64):
    return Image.fromarray(render(sample_scene(seed), size))


def apart(a, b):
    return np.abs(np.asarray(a.image).astype(int) - np.asarray(b.image)).max()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("m") / "tiny", channels=(16, 32, 32), width=16)


@pytest.fixture(scope="module")
def ed(folder):
    return FastEditor(load_model(folder))


JOBS = [
    dict(image=picture(i), prompt=f"a {w}", source_prompt="a ball")
    for i, w in enumerate(("cup", "star", "tree"))
]


def test_a_batch_gives_the_bytes_of_single_edits(ed):
    edits = ed.batch(JOBS, steps=2)
    assert isinstance(edits, Edits) and [e.image.tobytes() for e in edits] == [
        ed(**j, steps=2).image.tobytes() for j in JOBS
    ]


@pytest.mark.parametrize(
    "kw",
    [
        dict(),
        dict(method="img2img", guidance=1.5),
        dict(method="img2img", schedule="stock", steps=4),
        dict(control="canny", control_scale=0.8),
        dict(
            method="img2img",
            control="canny",
            control_scale=(1.0, 0.5, 0.2, 0.7),
            guidance="linear:2:1",
        ),
        dict(options=dict(region="model")),
    ],
)
def test_several_in_one_call_come_within_one_step(ed, kw):
    kw = dict(steps=2) | kw
    seen = []
    hook = ed.parts.unet.register_forward_hook(lambda m, a, o: seen.append(len(a[0])))
    try:
        together = ed.batch(JOBS, at_once=3, **kw)
    finally:
        hook.remove()
    alone = [ed(**j, **kw) for j in JOBS]
    assert all(apart(a, b) <= 1 for a, b in zip(alone, together)) and len(seen) < sum(
        len(e.timesteps) for e in alone
    )
    assert [(e.nfe, e.control_nfe, e.request) for e in alone] == [
        (e.nfe, e.control_nfe, e.request) for e in together
    ]


def test_masks_and_seeds_go_together_and_stay_exact(ed):
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    jobs = [dict(j, mask=mask, seed=s) for s, j in enumerate(JOBS)]
    for e, j in zip(ed.batch(jobs, at_once=2, steps=2, method="img2img"), jobs):
        assert (
            np.asarray(e.image)[mask == 0] == np.asarray(j["image"])[mask == 0]
        ).all() and e.request.seed == j["seed"]


def test_what_cannot_go_together_runs_by_itself(ed):
    jobs = [
        JOBS[0],
        dict(JOBS[1], steps=3),
        dict(JOBS[2], method="p2p"),
        dict(JOBS[0], image=picture(4, 96)),
    ]
    for e, j in zip(ed.batch(jobs, at_once=4, steps=2), jobs):
        assert e.image.tobytes() == ed(**dict(steps=2) | j).image.tobytes()


@pytest.mark.parametrize("at_once", [1, 3])
def test_one_bad_edit_spoils_nothing(ed, at_once):
    edits = ed.batch(
        [
            JOBS[0],
            dict(image="gone.png", prompt="a cup"),
            dict(image=picture(2), prompt=" "),
            JOBS[1],
        ],
        at_once=at_once,
        steps=2,
    )
    assert [type(e).__name__ for e in edits] == [
        "EditResult",
        "ImageError",
        "PromptError",
        "EditResult",
    ] and set(edits.errors) == {1, 2}
    assert (
        edits.cost["failed"] == 2 and edits.flags[1][0].startswith("failed") and edits.grid().width
    )


def test_a_failed_call_for_several_is_made_again_one_by_one(ed, monkeypatch):
    real = type(ed.parts.unet).forward

    def small(self, x, *a, **k):
        if len(x) > 4:
            raise RuntimeError("CUDA out of memory")
        return real(self, x, *a, **k)

    monkeypatch.setattr(type(ed.parts.unet), "forward", small)
    assert not ed.batch(JOBS, at_once=3, steps=2).errors


def test_cancelling_stops_the_batch(ed):
    def stop(state):
        raise Cancelled("enough")

    for n in (1, 3):
        with pytest.raises(Cancelled):
            ed.batch(JOBS, at_once=n, steps=2, on_step=stop)


def test_seeds_and_numbers_of_one_call(ed):
    some = ed(**JOBS[0], seeds=[5, 3], steps=2)
    assert [e.request.seed for e in some] == [5, 3]
    assert some[1].image.tobytes() == ed(**JOBS[0], seed=3, steps=2).image.tobytes()
    assert [e.request.seed for e in ed(**JOBS[0], num_images=2, seed=7, steps=2)] == [7, 8]
    assert [
        e.request.seed
        for e in ed(
            picture(1),
            request=EditRequest("a cup", model=ed.spec.key, seed=4, steps=2),
            num_images=2,
        )
    ] == [4, 5]
    for bad in (
        dict(seeds=[]),
        dict(seeds="12"),
        dict(seeds=[1.5]),
        dict(num_images=0),
        dict(num_images=True),
        dict(seeds=[1], num_images=2),
    ):
        with pytest.raises(OptionError):
            ed(**JOBS[0], **bad)
    with pytest.raises(ImageError):
        ed("gone.png", "a cup", seeds=[1, 2])


def test_results_are_told_as_they_come(ed):
    seen = []
    ed.batch(JOBS, steps=1, on_result=lambda i, e: seen.append(i))
    assert sorted(seen) == [0, 1, 2]


@pytest.mark.parametrize(
    "jobs", ["a.png", dict(image="a.png"), 3, [("a.png",)], ["a.png"], [dict(prompt="a")]]
)
def test_what_is_no_batch_is_refused(ed, jobs):
    with pytest.raises(OptionError, match="batch"):
        ed.batch(jobs)
    assert ed.batch([]) == []


def test_pictures_of_one_size_lie_together():
    jobs = read_jobs([(picture(1), "a"), (picture(2, 96), "b"), (picture(3), "c")], {})
    assert sorted(map(sorted, in_chunks(jobs, 2))) == [[0, 2], [1]]


def test_flags(ed):
    e = ed(picture(1), "a cup", method="identity")
    assert flags(e) == ("nothing changed",)
    e.image = Image.new("RGB", (64, 64), (9, 9, 9))
    assert "the picture is flat" in flags(e)


# --- folders and tables


@pytest.fixture
def place(tmp_path, monkeypatch):
    d = tmp_path / "in"
    d.mkdir()
    for i in (1, 2):
        picture(i).save(d / f"p{i}.png")
    (d / "p1.txt").write_text("a cup")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_gives_prompts_and_masks(place):
    Image.new("L", (64, 64), 255).save(place / "in" / "p2-mask.png")
    rows = read_edits(place / "in", "a star")
    assert [(r["image"].name, r["prompt"], "mask" in r) for r in rows] == [
        ("p1.png", "a cup", False),
        ("p2.png", "a star", True),
    ]
    with pytest.raises(DataError, match="p2.txt"):
        read_edits(place / "in")


def test_a_table_gives_settings(place):
    (place / "t.csv").write_text(
        (
            "image,prompt,strength,options,seed\n"
            'in/p1.png,a cup,.5,"{""sampler"": ""lcm""}",3\n'
            "in/p2.png,2,,,\n"
        ),
        encoding="utf-8",
    )
    a, b = plan_edits(read_edits(place / "t.csv"), method="img2img")
    assert (a.request.strength, a.request.options, a.request.seed) == (
        0.5,
        dict(sampler="lcm"),
        3,
    ) and (b.request.prompt, b.request.strength) == ("2", None)


@pytest.mark.parametrize(
    "text, says",
    [
        ("image,promt\na,b\n", "prompt"),
        ("prompt\na\n", "no column 'image'"),
        ("image,prompt\na.png,\n", "line 2: no prompt"),
        ("image,prompt\n,a\n", "line 2: no image"),
        ("image,prompt\na,b,c\n", "more cells"),
        ("image,prompt\n", "no rows"),
    ],
)
def test_a_wrong_table_is_said(place, text, says):
    (place / "t.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        read_edits(place / "t.csv")


def test_names_are_their_own(place):
    plan = plan_edits(
        [dict(image="a/x.png", prompt="a"), dict(image="b/x.png", prompt="b")],
        seeds=(0, 1),
        methods=("ddcm", "img2img"),
    )
    assert len({p.name for p in plan}) == 8 and plan[0].name == "x-ddcm-seed0"


def test_a_run_goes_on_and_makes_the_same(place, ed):
    plan = plan_edits(read_edits(place / "in", "a star"), model=ed.spec.key, steps=1, seeds=(0, 1))

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_many(ed, plan, place / "out", on_row=stop)
    (place / "out" / ROWS).open("a").write('{"name": "torn')
    assert (place / "out" / "index.html").is_file() and len(done_before(place / "out")) == 1
    first = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (place / "out").glob("*.png")}
    rows = run_many(ed, plan, place / "out")
    assert len(rows) == 4 and len(first) == 1
    for n, (t, _) in first.items():
        assert (place / "out" / n).stat().st_mtime_ns == t
    run_many(ed, plan, place / "other")
    for p in (place / "out").glob("*.png"):
        assert p.read_bytes() == (place / "other" / p.name).read_bytes()


def test_what_changed_is_made_again(place, ed):
    def plan(**kw):
        return plan_edits(read_edits(place / "in", "a star"), model=ed.spec.key, steps=1, **kw)

    run_many(ed, plan(), place / "out")
    seen = []
    picture(9).save(place / "in" / "p2.png")
    (place / "out" / "p1.png").unlink()
    real = ed.batch

    class Watched:
        spec = ed.spec

        def batch(self, jobs, *a, **k):
            seen.extend(Path(j["image"]).name for j in jobs)
            return real(jobs, *a, **k)

    run_many(Watched(), plan(), place / "out")
    assert sorted(seen) == ["p1.png", "p2.png"]
    seen.clear()
    run_many(Watched(), plan(), place / "out")
    assert not seen


# --- hostile folders


class Counting:
    "An editor that makes nothing, and counts what it is asked for."

    class spec:
        key = "mini"

    def __init__(self):
        self.asked = 0

    def batch(self, jobs, at_once=1, on_result=None):
        self.asked += len(jobs)
        for i, _ in enumerate(jobs):
            on_result(i, OptionError("nothing\ud800 is made"))


def written(p, **kw):
    return dict(
        dict(name=p.name, key=p.key, flags=[], summary="", nfe=1, seconds=0.5, method="ddcm"), **kw
    )


def asked_again(plan, out, lines):
    "How many of the edits that a folder speaks of are made again."
    out.mkdir()
    for p in plan:
        picture(0).save(out / f"{p.name}.png")
    (out / ROWS).write_bytes(b"\n".join(lines))
    ed = Counting()
    assert len(run_many(ed, plan, out)) == len(plan)
    return ed.asked


@pytest.mark.parametrize(
    "bad",
    [
        dict(flags=None),
        dict(nfe="1"),
        dict(seconds=[]),
        dict(name=["red"]),
        dict(summary=3),
        dict(summary="\ud800"),
        dict(picture="0" * 64),
        dict(more=1),
    ],
)
def test_a_row_that_says_something_else_is_made_again(place, tmp_path, bad):
    plan = plan_edits(read_edits(place / "in", "a cup"))
    lines = [json.dumps(written(p)).encode() for p in plan]
    assert asked_again(plan, tmp_path / "a", lines) == 0
    lines[1] = json.dumps(written(plan[1], **bad)).encode()
    assert asked_again(plan, tmp_path / "b", lines) == 1


@pytest.mark.parametrize("bad", [b"\xff", b"[" * 100_000, b"9" * 5000, b"null", b'{"name": "r'])
def test_a_damaged_row_costs_itself_only(place, tmp_path, bad):
    plan = plan_edits(read_edits(place / "in", "a cup"))
    lines = [json.dumps(written(p, prompt="a\u2028b"), ensure_ascii=False).encode() for p in plan]
    assert asked_again(plan, tmp_path / "a", [bad, *lines, bad]) == 0
    assert (tmp_path / "a" / ROWS).read_bytes().startswith(bad)


def test_a_row_is_not_written_behind_a_torn_one(place, tmp_path):
    plan = plan_edits(read_edits(place / "in", "a cup"))
    assert asked_again(plan, tmp_path / "a", [b'{"name": "red']) == len(plan)
    *rows, end = (tmp_path / "a" / ROWS).read_bytes().split(b"\n")
    assert end == b"" and len(rows) == 1 + len(plan) and all(json.loads(r) for r in rows[1:])


@pytest.mark.skipif(os.name == "nt", reason="names are no bytes there")
def test_a_picture_whose_name_is_no_text_is_made_once(ed, tmp_path):
    picture(0).save(tmp_path / os.fsdecode(b"a\xff.png"))
    plan = plan_edits(read_edits(tmp_path, "a cup"), steps=1, method="img2img")
    (row,) = run_many(ed, plan, tmp_path / "out")
    assert row["image"].endswith("a\\udcff.png") and "error" not in row
    again = Counting()
    assert run_many(again, plan, tmp_path / "out") == [row] and not again.asked


@pytest.mark.parametrize("kind", ["pipe", "ring"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    for name in ("a.png", "a.txt"):
        if kind == "pipe":
            os.mkfifo(tmp_path / name)
        else:
            (tmp_path / name).symlink_to(name)
    ed = Counting()
    (row,) = run_many(ed, plan_edits(read_edits(tmp_path, "a cup")), tmp_path / "out")
    assert ed.asked == 1 and "error" in row


@pytest.mark.parametrize("name", [ROWS, "index.html", "a.png"])
def test_a_pipe_in_the_results_is_refused(tmp_path, name):
    (source := tmp_path / "in").mkdir()
    (out := tmp_path / "out").mkdir()
    picture(0).save(source / "a.png")
    os.mkfifo(out / name)
    with pytest.raises(DataError, match="no ordinary file"):
        run_many(Counting(), plan_edits(read_edits(source, "a cup")), out)


@pytest.mark.parametrize(
    "text, says",
    [
        ("image,prompt\n" + "a" * 200_000 + ",a cup\n", "no CSV"),
        ("image,image,prompt\na.png,b.png,a cup\n", "twice"),
        ("image,prompt\n~nosuchuser/a.png,a cup\n", "line 2"),
        ("image,prompt\na\0.png,a cup\n", "line 2"),
        (
            'image,prompt,options\na.png,a cup,"{""eta"": 0.5, ""eta"": 1}"\n',
            "line 2: options=.*'eta' stands twice",
        ),
    ],
    ids=["long", "twice", "nobody", "zero", "cell"],
)
def test_a_hostile_table_is_refused_in_words(tmp_path, text, says):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        read_edits(tmp_path / "t.csv")


def test_a_key_twice_in_a_line_of_json_is_refused_with_key_and_line(tmp_path):
    line = '{"image": "a.png", "prompt": "a cup", "options": {"eta": 1}, "prompt": "a star"}'
    (tmp_path / "t.jsonl").write_text('{"image": "b.png", "prompt": "a cup"}\n' + line)
    with pytest.raises(DataError, match="t.jsonl, line 2: the name 'prompt' stands twice"):
        read_edits(tmp_path / "t.jsonl")


def test_names_of_files_are_text(tmp_path):
    (tmp_path / "t.csv").write_text("image,prompt\n01,a cup\nnull,a cup\n")
    assert [r["image"].name for r in read_edits(tmp_path / "t.csv")] == ["01", "null"]


def test_the_page_escapes_and_asks_for_nothing(place, ed):
    rows = [dict(image=place / "in" / "p1.png", prompt="<script>alert(1)</script> & more")]
    run_many(ed, plan_edits(rows, model=ed.spec.key, steps=1), place / "out")
    text = (place / "out" / "index.html").read_text("utf-8")
    assert (
        "<script>alert" not in text
        and not re.search(r"(src|href)=[\"']?(https?:)?//", text)
        and 'type="range"' in text
    )


# --- the command


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def test_a_method_that_does_not_suit_the_model_is_refused_before_it_is_loaded(
    place, folder, monkeypatch
):
    monkeypatch.setattr("fastedit.cli.batching.load_editor", lambda *a, **k: pytest.fail("loaded"))
    done = run(
        "batch", "in", "-o", "out", "--prompt", "a star", "--model", folder, "--method", "instruct"
    )
    assert done.exit_code and "8 input channels" in done.output and not (place / "out").exists()


def test_the_command_runs_goes_on_and_counts_failures(place, folder):
    (place / "in" / "bad.png").write_bytes(b"no")
    args = (
        "batch",
        "in",
        "-o",
        "out",
        "--prompt",
        "a star",
        "--model",
        folder,
        "--steps",
        1,
        "--quiet",
    )
    r = run(*args)
    assert r.exit_code == 1 and "2 edits, 1 failed" in r.stdout, r.output
    (place / "in" / "bad.png").unlink()
    r = run(*args, "--json")
    assert r.exit_code == 0 and json.loads(r.stdout)["totals"]["edits"] == 2
    assert sorted(p.name for p in Path("out").iterdir()) == [ROWS, "index.html", "p1.png", "p2.png"]


@pytest.mark.parametrize(
    "args, says",
    [
        (("in", "-o", "o"), "no prompt"),
        (("gone", "-o", "o"), "no folder of pictures"),
        (("in", "-o", "o", "--prompt", "a", "--method", "ddmc"), "did you mean"),
        (("in", "-o", "in/p1.png", "--prompt", "a"), "is a file"),
        (("in", "-o", "o", "--prompt", "a", "--seeds", "x"), "whole numbers"),
        (("in", "-o", "o", "--prompt", "a", "--strength", "2"), "strength"),
    ],
)
def test_the_command_refuses_in_words(place, args, says):
    r = run("batch", *args)
    assert (
        r.exit_code in (1, 2)
        and says in r.output
        and "Traceback" not in r.output
        and not Path("o").exists()
    )


@pytest.mark.parametrize("steps", ["2", "auto"])
def test_numbers_are_typed_as_for_one_edit(tmp_path, steps):
    from PIL import Image
    from typer.testing import CliRunner
    from fastedit.cli import app
    from fastedit.editor import EditRequest

    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 64), (90, 120, 60)).save(tmp_path / "in" / "a.png")
    asked = ["--prompt", "a ball", "--method", "img2img", "--strength", ".5", "--steps", steps]
    r = CliRunner().invoke(
        app, ["batch", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-q", *asked]
    )
    assert r.exit_code == 0, r.output
    (made,) = (tmp_path / "out").glob("*.png")
    assert EditRequest.from_png(made).strength == 0.5


@pytest.fixture(scope="module")
def seeing(folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("ip")
    random_ip_folder(home, load_network("UNet2DConditionModel", folder / "unet"))
    return FastEditor(folder, ip_adapter=home), home


STYLED = dict(method="img2img", steps=2, control="none")


def test_a_batch_takes_references(seeing):
    own, _ = seeing
    jobs = [dict(JOBS[i], reference=picture(7 + i % 2)) for i in range(3)]
    singles = [own(**j, **STYLED, reference_scale=0.7) for j in jobs]
    batch = own.batch(jobs, **STYLED, reference_scale=0.7)
    assert [e.image.tobytes() for e in batch] == [e.image.tobytes() for e in singles]
    together = own.batch(jobs, at_once=3, **STYLED, reference_scale=0.7)
    assert all(apart(a, b) <= 1 for a, b in zip(together, singles))
    for_all = own.batch(JOBS, reference=picture(7), **STYLED)
    assert for_all[0].request.reference == singles[0].request.reference
    with pytest.raises(OptionError, match="IP-Adapter.*wants to see"):
        own(**JOBS[0], **STYLED)


def test_a_table_names_references(place, seeing):
    own, _ = seeing
    for i in (7, 8):
        picture(i).save(place / f"s{i}.png")
    (place / "t.csv").write_text(
        "image,prompt,reference,reference_scale\n"
        "in/p1.png,a cup,s7.png,.6\nin/p2.png,a star,s8.png,\n"
    )
    (place / "t.jsonl").write_text(
        '{"image": "in/p1.png", "prompt": "a cup", "reference": "s7.png", '
        '"reference_scale": 0.6}\n\n'
        '{"image": "in/p2.png", "prompt": "a star", "reference": "s8.png", "mask": null}\n'
    )
    how = dict(STYLED, model=own.spec.key)
    plans = [plan_edits(read_edits(place / n), **how) for n in ("t.csv", "t.jsonl")]
    assert plans[0] == plans[1] and len({p.request.reference for p in plans[0]}) == 2
    rows = run_many(own, plans[0], place / "out")
    assert not any("error" in r for r in rows)
    for p in plans[0]:
        single = own(p.image, request=p.request, reference=p.given["reference"])
        assert np.array_equal(Image.open(place / "out" / f"{p.name}.png"), single.image)
    picture(9).save(place / "s8.png")
    again = plan_edits(read_edits(place / "t.csv"), **how)
    done = done_before(place / "out")
    assert [is_done(p, done, place / "out") for p in again] == [True, False]


def test_a_reference_that_is_missing_is_refused_before_anything_runs(place):
    (place / "t.csv").write_text("image,prompt,reference\nin/p1.png,a cup,away.png\n")
    with pytest.raises(ImageError, match="away.png"):
        plan_edits(read_edits(place / "t.csv"))


def test_a_table_names_control_pictures(place, ed):
    picture(7).save(place / "map.png")
    (place / "t.jsonl").write_text(
        '{"image": "in/p1.png", "prompt": "a cup", "control": "depth:map.png"}\n'
        '{"image": "in/p2.png", "prompt": "a cup", "control": "canny"}\n'
    )
    plan = plan_edits(read_edits(place / "t.jsonl"), model=ed.spec.key, method="img2img", steps=1)
    assert [p.request.control[:14] for p in plan] == ["depth:picture:", "canny"]
    assert not any("error" in r for r in run_many(ed, plan, place / "out"))


@pytest.mark.parametrize(
    "text, says",
    [
        ('{"image": "a.png"}\n', "line 1: no prompt"),
        ("[1]\n", "line 1 is no JSON object"),
        ('{"image": "a.png", "promt": "a"}\n', "line 1 has a column 'promt'.*prompt"),
        ("{\n", "line 1"),
        ("\n", "no rows"),
    ],
)
def test_wrong_json_lines_are_said(place, text, says):
    (place / "t.jsonl").write_text(text)
    with pytest.raises(DataError, match=says):
        read_edits(place / "t.jsonl")


def test_references_can_be_typed(place, folder, seeing):
    picture(7).save(place / "s7.png")
    line = ["batch", "in", "-o", "out", "--prompt", "a star", "--model", folder, "-q"]
    line += ["--method", "img2img", "--steps", "1", "--control", "none", "--ip-adapter", seeing[1]]
    line = [str(x) for x in line]
    done = CliRunner().invoke(app, [*line, "--reference", "s7.png", "--reference-scale", "0.5"])
    assert done.exit_code == 0, done.output
    r = EditRequest.from_png("out/p1.png")
    assert r.reference.startswith("picture:") and r.reference_scale == 0.5
    for bad, words in (([], "--reference PICTURE"), (["--reference", "no.png"], "no.png")):
        done = CliRunner().invoke(app, [*line, *bad])
        assert done.exit_code and words in " ".join(done.output.split())
    without = [x for x in line if x not in ("--ip-adapter", str(seeing[1]))]
    done = CliRunner().invoke(app, [*without, "--reference", "s7.png"])
    assert done.exit_code == 2 and "--ip-adapter ip-sdxl" in " ".join(done.output.split())


def test_one_file_may_be_reference_and_control(tmp_path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    rows = [dict(image=picture, prompt="a ball", reference=picture, control=str(picture))]
    (planned,) = plan_edits(rows)
    assert planned.given == dict(reference=picture, control=str(picture))
    assert planned.request.reference and planned.request.control != str(picture)


def test_lines_of_json_may_hold_any_character_and_take_the_common_prompt(tmp_path):
    file = tmp_path / "edits.jsonl"
    rows = [dict(image="a.png", prompt="a\u2028ball\u0085"), dict(image="b.png", prompt="")]
    text = "\r\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
    file.write_text(text, "utf-8", newline="")
    assert [r["prompt"] for r in read_edits(file, "a cup")] == ["a\u2028ball\u0085", "a cup"]


def test_a_flow_model_edits_a_batch_in_its_own_way(tmp_path):
    picture(1).save(tmp_path / "a.png")
    words = ["batch", tmp_path, "-o", tmp_path / "out", "--prompt", "a ball"]
    done = CliRunner().invoke(app, list(map(str, [*words, "--model", "flux2-klein"])))
    assert done.exit_code and "method" not in done.output and "fastedit fetch" in done.output


def test_a_control_file_that_is_not_there_is_called_that(tmp_path):
    with pytest.raises(OptionError, match="no such file is here"):
        check_request(EditRequest("a ball", control="zz.png"), find_spec("mini"))
