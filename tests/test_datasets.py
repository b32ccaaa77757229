"Data sets: masks, checks of outside input, filters."

import json, os, zlib
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from fastedit.core import DataError, MaskError, OptionError
from fastedit.world import mask_to_runs, write_benchmark
from fastedit.measure.folders import (
    PICTURES,
    file_hash,
    folder_picture,
    inside,
    picture_bytes,
    printable,
    read_json,
)
from fastedit.measure import (
    COUNTS,
    FOLDERS,
    DataSet,
    Entry,
    decode_mask,
    encode_mask,
    read_data,
    strip_brackets,
    write_standin,
)


def reference_decode(runs, h, w):
    "PIE-Bench's own decoder, as published: pixel by pixel."
    n = h * w
    flat = np.zeros(n)
    for i in range(0, len(runs), 2):
        for j in range(min(runs[i + 1], n - runs[i])):
            flat[runs[i] + j] = 1
    m = flat.reshape(h, w)
    m[0] = m[-1] = 1
    m[:, 0] = m[:, -1] = 1
    return m


@given(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 90)), max_size=8))
def test_decoding_equals_the_published_decoder(pairs):
    runs = [v for p in pairs for v in p]
    assert np.array_equal(decode_mask(runs, (7, 9)), reference_decode(runs, 7, 9))


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_encoding_round_trips(h, w, data):
    m = np.array(data.draw(st.lists(st.booleans(), min_size=h * w, max_size=h * w))).reshape(h, w)
    runs = encode_mask(m)
    assert np.array_equal(decode_mask(runs, (h, w), border=False), m) and runs == mask_to_runs(m)
    assert (
        all(r >= 0 for r in runs)
        and len(runs) % 2 == 0
        and encode_mask(decode_mask(runs, (h, w), border=False)) == runs
    )


def test_full_mask_and_border():
    assert (
        decode_mask([0, 262144]).min() == 1
        and decode_mask([]).sum() == 4 * 511
        and decode_mask([], border=False).sum() == 0
    )
    assert decode_mask([]).dtype == np.float32 and decode_mask([]).shape == (512, 512)


@pytest.mark.parametrize(
    "runs", [[1], [-1, 3], [3, -1], [1.0, 2], [True, 2], ["1", 2], "ab", None, [0, 1] * 50]
)
def test_what_is_no_run_is_refused(runs):
    with pytest.raises(MaskError):
        decode_mask(runs, (4, 4))


def test_absurd_runs_cost_nothing():
    assert decode_mask([0, 10**30, 10**30, 5], (4, 4)).min() == 1
    with pytest.raises(MaskError, match="shape"):
        encode_mask(np.zeros(4))


def test_brackets_are_stripped_and_nothing_else():
    assert strip_brackets(" a [red]  [big car] ") == " a red  big car "


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_standin(tmp_path_factory.mktemp("pie") / "PIE", share=0.02)


@pytest.fixture
def folder(whole, tmp_path):
    import shutil

    return shutil.copytree(whole, tmp_path / "pie")


def change(folder, edit):
    f = folder / "mapping_file.json"
    m = json.loads(f.read_text())
    edit(m, list(m))
    f.write_text(json.dumps(m))


def found(folder, **kw):
    with pytest.raises(DataError) as e:
        read_data(folder, **kw)
    return [(p.id, p.field, p.reason) for p in e.value.problems], str(e.value)


def test_standin_has_the_published_layout(whole):
    d = read_data(whole)
    assert isinstance(d, DataSet) and len(d) == sum(-(-n * 2 // 100) for n in COUNTS.values())
    assert sum(COUNTS.values()) == 700 and [COUNTS[t] for t in range(10)] == [
        140,
        80,
        80,
        80,
        40,
        40,
        40,
        40,
        80,
        80,
    ]
    e = d.pick(types="change pose")[0]
    assert (
        e.image.relative_to(whole.resolve()).as_posix()
        == "annotation_images/5_change_attribute_pose_40/1_artificial/1_animal/511000000000.jpg"
    )
    assert (
        e.source_prompt == "a round blob on a plain ground"
        and e.raw_source == "a [round] blob on a plain ground"
        and e.border
        and e.size == (512, 512)
    )
    assert (
        e.load().size == (512, 512)
        and e.load_mask()[0].min() == 1
        and e.load_target() is None
        and e.blended == ("blob", "blob")
    )
    assert [f[0] for f in FOLDERS] == list("0123456789")


@pytest.mark.parametrize(
    "key, value, field, words",
    [
        ("image_path", "../../etc/passwd", "image_path", "leaves the data folder"),
        ("image_path", "/etc/passwd", "image_path", "leaves the data folder"),
        ("image_path", "0_random_140/none.jpg", "image_path", "is missing"),
        ("image_path", None, "image_path", "is missing"),
        ("image_path", 7, "image_path", "not a path"),
        ("image_path", "a\0b.jpg", "image_path", "usable path"),
        ("image_path", "0_random_140", "image_path", "is missing"),
        ("mask", [0, 262145], "mask", "beyond"),
        ("mask", [262144, 1], "mask", "beyond"),
        ("mask", [-1, 4], "mask", "negative"),
        ("mask", [4, -1], "mask", "negative"),
        ("mask", [1, 2, 3], "mask", "odd"),
        ("mask", [1, 2.5], "mask", "whole numbers"),
        ("mask", "1 2", "mask", "not a list"),
        ("mask", [0, 0] * 262145, "mask", "runs for"),
        ("original_prompt", "", "original_prompt", "empty"),
        ("editing_prompt", " [] ", "editing_prompt", "empty"),
        ("editing_prompt", 3, "editing_prompt", "not text"),
        ("editing_type_id", "10", "editing_type_id", "unknown"),
        ("editing_type_id", [1], "editing_type_id", "unknown"),
        ("editing_type_id", "²", "editing_type_id", "unknown"),
    ],
)
def test_each_kind_of_damage_is_named(folder, key, value, field, words):
    def edit(m, ids):
        m[ids[1]][key] = value

    change(folder, edit)
    problems, text = found(folder)
    assert (
        [(i, f) for i, f, _ in problems] == [("000000000001", field)]
        and words in problems[0][2]
        and "1 of" in text
        and "000000000001" in text
    )
    d = read_data(folder, skip_bad=True)
    assert d.skipped == 1 and "1 skipped" in repr(d) and "000000000001" not in [e.id for e in d]


@pytest.mark.parametrize(
    "key", ["image_path", "original_prompt", "editing_prompt", "editing_type_id", "mask"]
)
def test_a_missing_field_is_named(folder, key):
    change(folder, lambda m, ids: m[ids[0]].pop(key))
    assert [(p[1], p[2]) for p in found(folder)[0]] == [(key, "is missing")]


def test_all_problems_come_at_once_and_in_order(folder):
    def edit(m, ids):
        m[ids[2]].update(mask=[1], editing_prompt="")
        m[ids[0]]["image_path"] = "x.jpg"
        m[ids[1]] = "text"
        m["../evil"] = dict(m[ids[3]])

    change(folder, edit)
    problems, text = found(folder)
    assert [(i, f) for i, f, _ in problems] == [
        ("000000000000", "image_path"),
        ("000000000001", "entry"),
        ("000000000002", "editing_prompt"),
        ("000000000002", "mask"),
        ("../evil", "id"),
    ]
    assert text.startswith("4 of") and read_data(folder, skip_bad=True).skipped == 4


def test_symlinks_may_not_lead_out(folder, tmp_path):
    Image.new("RGB", (512, 512)).save(tmp_path / "secret.jpg")
    p = folder / "annotation_images/0_random_140/000000000000.jpg"
    p.unlink()
    os.symlink(tmp_path / "secret.jpg", p)
    q = folder / "annotation_images/0_random_140/000000000001.jpg"
    q.unlink()
    os.symlink(folder / "annotation_images/0_random_140/000000000002.jpg", q)
    r = folder / "annotation_images/0_random_140/000000000002.jpg"
    r.unlink()
    os.symlink("000000000002.jpg", r)
    assert [(i, f) for i, f, _ in found(folder)[0]] == [
        ("000000000000", "image_path"),
        ("000000000001", "image_path"),
        ("000000000002", "image_path"),
    ]
    os.rename(folder, tmp_path / "moved")
    os.symlink(tmp_path / "moved", folder)  # the folder itself may be reached through a link
    r = tmp_path / "moved/annotation_images/0_random_140/000000000002.jpg"
    r.unlink()
    Image.new("RGB", (512, 512)).save(r)
    assert read_data(folder, skip_bad=True).skipped == 1  # only entry 0 leads out


def test_wrong_size_and_damaged_pictures(folder):
    at = lambda i: folder / f"annotation_images/0_random_140/{i:012}.jpg"
    Image.new("RGB", (512, 511)).save(at(0))
    at(1).write_bytes(at(1).read_bytes()[:900])
    assert [(i, f) for i, f, _ in found(folder)[0]] == [("000000000000", "image_path")]
    assert [i for i, _, _ in found(folder, decode=True)[0]] == ["000000000000", "000000000001"]


def test_overrun_can_be_clipped_on_request(folder):
    change(folder, lambda m, ids: m[ids[0]].update(mask=[262140, 50]))
    assert read_data(folder, overrun="clip")[0].load_mask().sum() == 4 * 511
    with pytest.raises(OptionError, match="overrun"):
        read_data(folder, overrun="ignore")
    assert read_data(folder, overrun="clip", border=False)[0].load_mask().sum() == 4


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "readable JSON"),
        ("[]", "not an object"),
        ("{}", "no entries"),
        ("[" * 100_000, "readable JSON"),
        ("\udcff", "UTF-8"),
    ],
)
def test_unreadable_mapping(tmp_path, text, words):
    (tmp_path / "mapping_file.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=words):
        read_data(tmp_path)


def test_an_id_that_stands_twice_is_bad(folder):
    f = folder / "mapping_file.json"
    one = json.dumps(json.loads(f.read_text())["000000000000"])
    f.write_text(f.read_text()[:-1] + f', "000000000000": {one}}}')
    assert found(folder)[0] == [("000000000000", "id", "stands twice in the file")]
    assert "000000000000" not in [e.id for e in read_data(folder, skip_bad=True)]


def test_nothing_left_is_an_error_even_when_skipping(folder):
    def edit(m, ids):
        for i in ids:
            m[i]["mask"] = [1]

    change(folder, edit)
    with pytest.raises(DataError, match="None is left"):
        read_data(folder, skip_bad=True)


def test_drawn_benchmark(tmp_path):
    d = read_data(write_benchmark(tmp_path / "d", per_type=1, seed=3, size=32, quiet=True))
    assert (
        d.kind == "drawn"
        and len(d) == 10
        and all(e.size == (32, 32) and not e.border and e.load_target().size == (32, 32) for e in d)
    )
    e = d.pick(types="add object")[0]
    assert 0 < e.load_mask().mean() < 1 and e.show(32).height == 32
    (tmp_path / "d/target_images").rename(tmp_path / "d/gone")
    assert {f for _, f, _ in found(tmp_path / "d")[0]} == {"target_images"}
    (tmp_path / "d/scenes.json").write_text('{"size": "big"}')
    with pytest.raises(DataError, match="'big'"):
        read_data(tmp_path / "d")


def own(folder, text, name="t.csv"):
    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    Image.new("L", (40, 30), 255).save(folder / "m.png")
    Image.new("L", (30, 40), 255).save(folder / "odd.png")
    Image.new("L", (40, 30), 0).save(folder / "black.png")
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_csv(tmp_path):
    d = read_data(
        own(
            tmp_path,
            (
                "id,image,source_prompt,target_prompt,mask,type,extra\n"
                'x,a.png,"a, [b]",c,m.png,change_style,1\ny,a.png,b,c,,,\n'
            ),
        )
    )
    x, y = d
    assert (x.id, x.source_prompt, x.edit_type, y.edit_type, d.kind) == (
        "x",
        "a, b",
        "9",
        "0",
        "table",
    )
    assert (
        x.load_mask().shape == (30, 40)
        and y.load_mask() is None
        and x.size == (40, 30)
        and d["y"] is y
    )
    assert read_data(tmp_path / "t.csv").entries == d.entries


def test_jsonl_with_runs_and_outcome(tmp_path):
    row = dict(
        image="a.png",
        source_prompt="a",
        target_prompt="b",
        mask=[0, 41],
        target="a.png",
        instruction="do",
        type=3,
    )
    d = read_data(own(tmp_path, json.dumps(row) + "\n\n", "t.jsonl"))
    e = d[0]
    assert (
        (e.id, e.edit_type, e.instruction) == ("line1", "3", "do")
        and e.load_mask().sum() == 41
        and e.load_target().size == (40, 30)
    )
    assert d.summary() == [
        dict(type="3", name="delete object", n=1, mask=1, instruction=1, outcome=1)
    ]


def test_bad_table_rows_are_all_listed(tmp_path):
    rows = [
        "a.png,a,b,m.png,1",
        "a.png,a,b,odd.png,1",
        "none.png,a,b,,1",
        "a.png,,b,,1",
        "a.png,a,b,,nonsense",
        "a.png,a",
        "../a.png,a,b,,1",
        "a.png,a,b,black.png,1",
    ]
    own(tmp_path, "image,source_prompt,target_prompt,mask,type\n" + "\n".join(rows) + "\n")
    got = [(i, f) for i, f, _ in found(tmp_path)[0]]
    assert sorted(got) == sorted(
        [
            ("line3", "mask"),
            ("line4", "image"),
            ("line5", "source_prompt"),
            ("line6", "type"),
            ("line 7", "line"),
            ("line8", "image"),
        ]
    )
    assert ("line9", "mask") in [(i, f) for i, f, _ in found(tmp_path, decode=True)[0]]
    d = read_data(tmp_path, skip_bad=True)
    assert [e.id for e in d] == ["line2", "line9"] and d.skipped == 6


def test_bad_jsonl_rows_are_all_listed(tmp_path):
    own(
        tmp_path,
        (
            '{"image": "a.png", "source_prompt": "a", "target_prompt": "b", "id": "x"}\n'
            "{\n[1]\n"
            '{"image": "a.png", "source_prompt": "a", "target_prompt": "b", "id": "x"}\n'
        ),
        "t.jsonl",
    )
    assert [(i, f) for i, f, _ in found(tmp_path)[0]] == [
        ("line 2", "json"),
        ("line 3", "json"),
        ("x", "id"),
    ]


@pytest.mark.parametrize(
    "text, words",
    [
        ("image,source_prompt\na.png,b\n", "target_prompt"),
        ("", "no column"),
        ("image,source_prompt,target_prompt\n", "no entries"),
    ],
)
def test_unusable_tables(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        read_data(own(tmp_path, text))


def test_folders_that_are_none(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match="neither"):
        read_data(tmp_path)
    (tmp_path / "a.csv").touch()
    (tmp_path / "b.csv").touch()
    with pytest.raises(DataError, match="2 tables"):
        read_data(tmp_path)
    (tmp_path / "x.txt").touch()
    with pytest.raises(DataError, match="no list of edits"):
        read_data(tmp_path / "x.txt")


def test_filters(whole):
    d = read_data(whole)
    assert (
        set(d.pick(types=["1", "change object", 9]).counts()) == {"1", "9"}
        and len(d.pick(limit=4)) == 4
    )
    assert [e.id for e in d.pick(ids=["000000000001"])] == ["000000000001"]
    for bad in (
        dict(types="11"),
        dict(types="dance"),
        dict(ids="7"),
        dict(limit=0),
        dict(sample=-1),
        dict(limit=True),
        dict(types=[]),
    ):
        with pytest.raises(OptionError):
            d.pick(**bad)
    with pytest.raises(OptionError, match="no entry"):
        d["nope"]
    assert d.pick(limit=3).pick(limit=2).entries == d.entries[:2]


@given(st.integers(1, 18), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_samples_are_nested_seeded_and_in_order(n, seed):
    d = DataSet(
        "pie",
        None,
        tuple(Entry(f"{i:03}", None, "a", "b", edit_type=str(i % 3)) for i in range(18)),
    )
    some = d.pick(sample=n, seed=seed)
    ids = [e.id for e in some]
    assert (
        len(ids) == n and ids == sorted(ids) and ids == [e.id for e in d.pick(sample=n, seed=seed)]
    )
    assert (
        set(ids) <= {e.id for e in d.pick(sample=n + 1, seed=seed)}
        and max(some.counts().values())
        - min([*some.counts().values(), *([0] if len(some.counts()) < 3 else [])])
        <= 1
    )


# --- one bad entry is one bad entry

GOOD = dict(image="a.png", source_prompt="a", target_prompt="b")


def as_line(**more):
    return json.dumps(GOOD | more)


@pytest.mark.parametrize(
    "bad, field",
    [
        (as_line(id="bad", source_prompt="a \ud800"), "source_prompt"),
        (
            as_line(id="bad")[:-1]
            + ', "seed": '
            + "9" * 5000
            + ', "mask": [0, '
            + "9" * 5000
            + "]}",
            "mask",
        ),
        ('{"id": "bad", "id": "bad"' + as_line()[1:].replace("{", ",", 1), "json"),
        ("[" * 100_000, "json"),
        (as_line(id="bad")[:-1] + ', "type": ' + "[" * 500 + "]" * 500 + "}", "type"),
        (as_line(id="bad", mask=["[" * 50, [[[]]]]), "mask"),
        (as_line(id=["x"]), "id"),
        (as_line(id=1.5), "id"),
        (as_line(id=True), "id"),
        (as_line(id="bad", target_prompt="b").replace('"b"', '"\udcff"'), "target_prompt"),
        (
            '{"image": "a.png", "image": "a.png", "id": "bad", '
            '"source_prompt": "a", "target_prompt": "b"}',
            "entry",
        ),
    ],
)
def test_a_bad_line_of_jsonl_is_one_bad_entry(tmp_path, bad, field):
    own(tmp_path, "", "t.jsonl")
    text = (
        as_line(id="one", target_prompt="line\u2028end")
        + "\n"
        + bad
        + "\n"
        + as_line(id="two").replace('"b"', '"b\u2028c\x85d"')
        + "\n"
    )
    (tmp_path / "t.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    problems, said = found(tmp_path)
    assert (
        field in {f for _, f, _ in problems}
        and len({i for i, *_ in problems}) == 1
        and said.isprintable() is False
        and "\x1b" not in said
    )
    d = read_data(tmp_path, skip_bad=True)
    assert (
        [e.id for e in d] == ["one", "two"]
        and d.skipped == 1
        and d["two"].target_prompt == "b\u2028c\x85d"
    )


def test_a_bad_line_of_csv_is_one_bad_entry(tmp_path):
    own(tmp_path, "")
    head = b"id,image,source_prompt,target_prompt\n"
    good = b"%s,a.png,a,b\n"
    (tmp_path / "t.csv").write_bytes(
        head
        + good % b"one"
        + b"bad,a.png,caf\xe9,b\n"
        + b"long,a.png,%s,b\n" % (b"x" * 200_000)
        + good % b"two"
    )
    problems, _ = found(tmp_path)
    assert (
        {i for i, *_ in problems} == {"bad", "line 4"}
        and "UTF-8" in problems[0][2] + problems[1][2]
        and [e.id for e in read_data(tmp_path, skip_bad=True)] == ["one", "two"]
    )
    for head, words in (
        (b"id,id,image,source_prompt,target_prompt\n", "twice"),
        (b"caf\xe9,image,source_prompt,target_prompt\n", "UTF-8"),
        ("id,image".encode("utf-16"), "UTF-8"),
    ):
        (tmp_path / "t.csv").write_bytes(head + b"x,y,a.png,a,b\n")
        with pytest.raises(DataError, match=words):
            read_data(tmp_path)


@pytest.mark.parametrize(
    "deep",
    [
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + '"]"' + "}" * 100_000,
        '{"mask": ' + "[" * 5000 + '"\\"[{"' + "]" * 5000 + "}",
    ],
)
def test_a_deep_entry_of_a_mapping_file_is_one_bad_entry(folder, deep):
    f = folder / "mapping_file.json"
    text = f.read_text().rstrip()
    n = len(json.loads(text))
    f.write_text('{"deep": ' + deep + ", " + text[1:])
    assert (
        found(folder)[0] == [("deep", "entry", "is nested too deeply")]
        and len(read_data(folder, skip_bad=True)) == n
    )
    f.write_text('{"deep": ' + deep)
    with pytest.raises(DataError, match="readable JSON"):
        read_data(folder)


def test_what_is_no_file_is_refused_without_waiting(folder, tmp_path):
    os.remove(folder / "mapping_file.json")
    os.mkfifo(tmp_path / "t.csv")
    os.mkdir(tmp_path / "u.jsonl")
    for name in ("t.csv", "u.jsonl"):
        with pytest.raises(DataError):
            read_data(tmp_path / name)


def test_twice_as_many_repeated_keys_take_about_twice_as_long():
    "Counted in comparisons, not in seconds: keys are hashed, never searched for."

    class Key(str):
        n = 0

        def __eq__(self, other):
            Key.n += 1
            return str(self) == str(other)

        __hash__ = str.__hash__

    from fastedit.measure.folders import _object

    def work(n):
        Key.n = 0
        d = _object([(Key(f"k{i % (n // 2)}"), 1) for i in range(n)])
        assert len(d["\0twice"]) == n // 2
        return Key.n

    assert work(4000) < 3 * work(2000)


# --- the gate to a folder from elsewhere


@pytest.fixture
def results(tmp_path):
    (root := tmp_path / "results" / "images").mkdir(parents=True)
    Image.new("RGB", (16, 16), "teal").save(root / "a.png")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "secret.png")
    return root.parent


@pytest.mark.parametrize(
    "name, words",
    [
        ("/etc/passwd", "outside"),
        ("../secret.png", "outside"),
        ("images/../../secret.png", "outside"),
        ("images/link.png", "outside"),
        ("up/secret.png", "outside"),
        ("..\\secret.png", "outside"),
        ("images/none.png", "missing"),
        ("images", "ordinary"),
        ("images/pipe.png", "ordinary"),
        ("a\0b", "usable"),
        ("\ud800", "."),
        ("x" * 5000, "."),
        ("", "no path"),
        (None, "no path"),
        (3, "no path"),
        (["images/a.png"], "no path"),
        ("images/loop.png", "."),
        ("images/a.eps", "no PNG"),
        ("images/fake.png", "no PNG"),
        ("images/tiff.png", "no PNG"),
        ("images/cut.png", "cut short"),
        ("images/huge.png", "more than 8192x8192"),
        ("images/empty.png", "no PNG"),
        ("images/riff.png", "no PNG"),
    ],
)
def test_nothing_else_comes_through_the_gate(results, name, words):
    at = results / "images"
    png = (at / "a.png").read_bytes()
    (at / "link.png").symlink_to("../../secret.png")
    (results / "up").symlink_to("..")
    os.mkfifo(at / "pipe.png")
    (at / "loop.png").symlink_to("loop.png")
    (at / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n")
    (at / "fake.png").write_bytes((at / "a.eps").read_bytes())
    Image.new("RGB", (16, 16)).save(at / "tiff.png", "TIFF")
    (at / "cut.png").write_bytes(png[:60])
    (at / "empty.png").touch()
    (at / "riff.png").write_bytes(b"RIFF\0\0\0\0WAVE")
    (at / "huge.png").write_bytes(
        png[:12]
        + (head := b"IHDR" + (30000).to_bytes(4, "big") * 2 + png[24:29])
        + zlib.crc32(head).to_bytes(4, "big")
        + png[33:]
    )
    with pytest.raises(DataError, match=words) as e:
        folder_picture(results, name)
    assert str(e.value).isprintable() and len(str(e.value)) < 700


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files by /proc")
def test_a_refused_folder_is_closed_again(results):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DataError, match="ordinary"):
        picture_bytes(results, "images")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_picture_is_known_by_its_hash(results):
    data = (results / "images/a.png").read_bytes()
    assert (
        folder_picture(results, "images/a.png", file_hash(data)).getpixel((0, 0)) == (0, 128, 128)
        and picture_bytes(results, "images/a.png") == data
    )
    with pytest.raises(DataError, match="hash differs"):
        folder_picture(results, "images/a.png", file_hash(data + b"x"))
    (results / "alias.png").symlink_to("images/a.png")
    os.symlink(results, results.parent / "named")
    # links that stay inside are followed
    assert inside(results.parent / "named", "alias.png").name == "a.png" and ".png" in PICTURES


@given(
    st.one_of(
        st.text(),
        st.integers(),
        st.floats(),
        st.none(),
        st.binary(),
        st.lists(st.text()),
        st.just(10**6000),
    )
)
def test_whatever_it_is_it_can_be_printed(value):
    text = printable(value)
    assert text.isprintable() and len(text.encode()) < 1300


def test_json_is_read_or_refused_in_words():
    assert read_json("9" * 5000, "x") == float("inf") and read_json('{"a": 1, "a": 2}', "x") == {
        "a": 2,
        "\0twice": ["a"],
    }
    for text in ("[" * 100_000, '{"a":' * 100_000, "", "{", "nul", '"\\x"'):
        with pytest.raises(DataError, match="readable JSON"):
            read_json(text, "x")
