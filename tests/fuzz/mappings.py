"""Lists of edits: PIE-Bench's mapping file, drawn benchmarks, JSONL, CSV, and what `fastedit batch`
takes. What is bad is listed entry by entry, and what is good stays."""

import csv, io, json, os
from functools import lru_cache
from PIL import Image
from tests.fuzz import Case
from tests.fuzz.pictures import encoded, spoilt
from tests.fuzz.spoil import as_json, spoil_bytes
from tests.fuzz.values import TEXTS, plain_value

N, SMALL = 5000, 250
BAD_OF = ("rows lost",)


@lru_cache(1)
def png():
    out = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(out, "PNG")
    return out.getvalue()


def warm():
    import fastedit.editor.many, fastedit.measure  # noqa: F401


# ---- entries

PIE = dict(
    id="id",
    image="image_path",
    source="original_prompt",
    target="editing_prompt",
    told="editing_instruction",
    type="editing_type_id",
    word="blended_word",
    mask="mask",
)
TABLE = dict(
    id="id",
    image="image",
    source="source_prompt",
    target="target_prompt",
    told="instruction",
    type="type",
    word="blended_word",
    mask="mask",
)


def entry(k):
    return dict(
        id=f"{k:012}",
        image=f"a{k}.png",
        source=f"a [round] cup {k}",
        target="a [square] cup, of [glass]",
        told="make it square",
        type=str(k % 10),
        word="round square",
        mask=[10, 20, 700, 40],
    )


def bad_mask(rng):
    return rng.choice(
        (
            [1],
            [-1, 5],
            [0, 10**30],
            [5, 5, None, 1],
            [0.5, 1],
            [True, False],
            [[1, 2]],
            ["0", "1"],
            [4000, 200],
            [0, 1] * 5000,
            "mask.png",
            {},
            "[0, 1]",
            [float("nan"), 1],
            [0] * 200_000,
            [2**63, 1],
        )
    )


def bad_path(rng, root):
    "A path that leads outside, nowhere, or to what is no picture."
    (root / "sub").mkdir(exist_ok=True)
    outside = root.parent / "secret.png"
    if not outside.exists():
        outside.write_bytes(png())
    name = f"b{rng.getrandbits(40)}.png"
    how = rng.randrange(7)
    if how == 0:
        (root / name).symlink_to(outside)
    elif how == 1:
        os.mkfifo(root / name)
    elif how == 2:
        fmt, data = encoded(rng)
        (root / name).write_bytes(spoilt(rng, fmt, data))
    elif how == 3:
        (root / name).symlink_to(name)
    else:
        return rng.choice(
            (
                "../secret.png",
                str(outside),
                "sub",
                "sub/../../secret.png",
                "no.png",
                "a\0.png",
                "x" * 5000,
                "~/a.png",
                "/dev/zero",
                "/proc/self/mem",
                "\\\\server\\a.png",
                "",
                *TEXTS,
            )
        )
    return name


def bad_entry(rng, root, e):
    "Change one field of an entry, or take it away."
    e, field = dict(e), rng.choice((*e, "image", "mask"))
    how = rng.random()
    if how < 0.12:
        e.pop(field)
    elif field == "image" and how < 0.8:
        e[field] = bad_path(rng, root)
    elif field == "mask" and how < 0.8:
        e[field] = bad_mask(rng)
    elif field == "id" and how < 0.3:
        e[field] = rng.choice((".", "..", "a/b", "-", "x" * 121, "a b", "é", "CON", 7, "twice"))
    else:
        e[field] = plain_value(rng)
    return e


def whole_value(rng):
    "What stands in the place of a whole entry."
    return rng.choice((plain_value(rng), "deep", "twice", "digits", "many keys"))


# ---- the files


def json_of(v, rng):
    "An entry as JSON text; surrogates and separators also as the bytes that they are."
    if v == "deep":
        n = rng.choice((900, 100_000))
        return '{"a":' + "[" * n + "]" * n + "}"
    if v == "twice":
        return '{"image": "a0.png", "image": "a1.png"}'
    if v == "digits":
        return '{"mask": [' + "9" * 5000 + "]}"
    if v == "many keys":
        return "{" + ",".join(['"k": 1'] * 30_000) + "}"
    if rng.random() < 0.5:
        try:
            return json.dumps(v, ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
    return as_json(v)


def bytes_of(text):
    return text.encode("utf-8", "surrogatepass")


def mapping_file(rng, root, entries):
    "PIE-Bench's layout, with right answers and a size where it was drawn."
    rows = []
    for k, e in enumerate(entries):
        name = f"{k:012}"
        if isinstance(e, dict):
            e = {PIE.get(f, f): v for f, v in e.items()}
            if isinstance(e.get("id"), str):
                name = e["id"]
            e.pop("id", None)
        rows.append(f"{json.dumps(name)}: {json_of(e, rng)}")
    (root / "annotation_images").symlink_to(".")
    if rng.random() < 0.3:
        (root / "target_images").symlink_to(".")
        size = 64 if rng.random() < 0.8 else plain_value(rng)
        (root / "scenes.json").write_text(as_json(dict(size=size)))
    path = root / "mapping_file.json"
    path.write_bytes(bytes_of("{" + ",\n".join(rows) + "}"))
    return path


def jsonl(rng, root, entries):
    named = [
        {TABLE.get(f, f): v for f, v in e.items()} if isinstance(e, dict) else e for e in entries
    ]
    path = root / "t.jsonl"
    end = rng.choice(("\n", "\r\n", "\n\n"))
    path.write_bytes(bytes_of("".join(json_of(e, rng) + end for e in named)))
    return path


def in_cells(v):
    if isinstance(v, str):
        return v
    try:
        return "" if v is None else str(v)
    except (ValueError, RecursionError):
        return "9" * 5000


def csv_file(rng, root, entries, fields=tuple(f for f in TABLE if f != "mask")):
    "Rows of the right number of cells, but for those that are no entries at all."
    out = io.StringIO()
    write = csv.writer(out, lineterminator=rng.choice(("\n", "\r\n")))
    write.writerow([TABLE.get(f, f) for f in fields])
    for e in entries:
        if isinstance(e, dict):
            write.writerow([in_cells(e.get(f)) for f in fields])
        else:
            write.writerow([in_cells(e)] * rng.choice((1, 2, 20)))
    path = root / "t.csv"
    path.write_bytes(bytes_of(out.getvalue()))
    return path


# ---- a data set


def few(e):
    "Lines of a refusal are looked at one by one: there may be thousands."
    from fastedit.core import DataError

    for p in getattr(e, "problems", ()):
        assert str(p).isprintable() and len(str(p)) < 2000, repr(str(p))[:3000]
    return DataError(str(e)[:2500])


def data_set(rng, folder):
    (root := folder / "data").mkdir()
    entries = [entry(k) for k in range(rng.choice((1, 3, 8)))]
    for k in range(len(entries)):
        (root / f"a{k}.png").write_bytes(png())
    write = rng.choice((mapping_file, jsonl, csv_file))
    good = {e["id"] for e in entries}
    for k in rng.sample(range(len(entries)), rng.choice((0, 1, 1, len(entries) // 2))):
        good.discard(entries[k]["id"])
        whole = rng.random() < 0.2
        entries[k] = whole_value(rng) if whole else bad_entry(rng, root, entries[k])
    path = write(rng, root, entries)
    if all_lost := rng.random() < 0.3:  # also the bytes, so that no entry is sure to be there
        path.write_bytes(spoil_bytes(rng, path.read_bytes()))
    if rng.random() < 0.05:
        (root / rng.choice(("b.csv", "b.jsonl"))).mkdir()
    skip, how = rng.random() < 0.7, dict(overrun=rng.choice(("refuse", "clip")))
    how |= dict(size=rng.choice((64, 64, None)), decode=rng.random() < 0.5)
    at = rng.choice((root, path))
    if "scenes.json" in os.listdir(root) or write is mapping_file and how["size"] is None:
        all_lost = True  # sizes of drawn ones may be spoilt, those of PIE-Bench are 512

    def run():
        from fastedit.core import DataError
        from fastedit.measure import read_data

        found = []
        try:
            found = read_data(at, skip_bad=skip, **how)
        except DataError as e:
            if all_lost or not skip or not good:
                raise few(e) from e
            few(e)
        lost = 0 if all_lost else len(good - {e.id for e in found})
        for e in found:
            use(e, how["decode"])
        if found:
            repr(found), found.summary(), found.counts(), found.pick(sample=1)
        return {"rows lost": lost}

    words = f"read_data({path.name}, skip_bad={skip}, {how}) of {len(good)} good entries"
    return Case(words, run, memory=512 * 2**20)


def use(e, decoded):
    "What a run does with an entry."
    from fastedit.core import FastEditError
    from fastedit.studies.bench.sources import entry_hash

    entry_hash(e), e.type_name, e.blended
    assert "[" not in e.source_prompt and (e.source_prompt + e.target_prompt).encode()
    try:
        e.load(), e.load_target()
        mask = e.load_mask()
        assert mask is None or mask.shape == e.size[::-1]
    except FastEditError:
        assert not decoded, "a picture that was decoded before is refused now"


# ---- a batch


class Stub:
    "An editor that makes nothing, and says so."

    class spec:
        key = "mini"

    def batch(self, jobs, at_once=1, on_result=None):
        from fastedit.core import OptionError

        for k, _ in enumerate(jobs):
            on_result(k, OptionError("nothing \ud800 is \u2028 made"))


def done_row(p):
    from fastedit.editor.many import _shown

    return dict(
        name=p.name,
        key=p.key,
        image=_shown(p.image),
        flags=[],
        prompt="a",
        method="ddcm",
        seed=0,
        summary="",
        nfe=1,
        control_nfe=0,
        notes=[],
        seconds=0.5,
        revision="a",
    )


SETTINGS = ("prompt", "steps", "strength", "guidance", "seed", "method", "options", "size", "loras")


def batch(rng, folder):
    (root := folder / "data").mkdir()
    at = root
    for k in range(3):
        (root / f"a{k}.png").write_bytes(png())
        (root / f"a{k}.txt").write_text("a round cup")
    if rng.random() < 0.6:
        fields = ("image", *rng.sample(SETTINGS, rng.randint(1, 4)))
        rows = [dict(image=f"a{k}.png", prompt="a cup", steps=1) for k in range(3)]
        field = rng.choice(fields)
        rows[1][field] = bad_path(rng, root) if field == "image" else plain_value(rng)
        at = csv_file(rng, root, rows, fields)
        if rng.random() < 0.4:
            at.write_bytes(spoil_bytes(rng, at.read_bytes()))
    else:
        how, name = rng.randrange(4), rng.choice(("a1.txt", "a1.png"))
        if how == 0:
            (root / name).write_bytes(spoil_bytes(rng, (root / name).read_bytes()))
        elif how == 1:
            (root / os.fsdecode(b"\xff\n.png")).write_bytes(png())
        elif how == 2:
            (root / name).unlink()
            os.mkfifo(root / name)
        else:
            (root / name).unlink()
            (root / name).symlink_to(rng.choice((name, "/dev/zero", "no")))
    prompt = rng.choice((None, "a cup"))
    damage = rng.random() < 0.5

    def run():
        from fastedit.editor.many import ROWS, plan_edits, read_edits, run_many

        plan = plan_edits(read_edits(at, prompt), "mini", steps=1)
        (out := folder / "out").mkdir()
        rows = [done_row(p) for p in plan]
        for p in plan:
            (out / f"{p.name}.png").write_bytes(png())
        if damage:
            from tests.fuzz.spoil import spoil_value

            rows[0] = spoil_value(rng, rows[0])
        data = bytes_of("".join(as_json(r) + "\n" for r in rows))
        (out / ROWS).write_bytes(spoil_bytes(rng, data) if damage and rng.random() < 0.5 else data)
        found = run_many(Stub(), plan, out)
        assert len(found) == len(plan)
        assert damage or not any("error" in r for r in found), "what is done is done again"
        again = run_many(Stub(), plan, out)
        return {"rows lost": len(plan) - len(again)}

    return Case(f"a batch of {at.name}{', with damaged rows' * damage}", run, memory=512 * 2**20)


def case(rng, folder, index):
    return data_set(rng, folder) if rng.random() < 0.8 else batch(rng, folder)
