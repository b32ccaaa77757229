"Requests, from Python, JSON, a picture and the command line: used, or refused in words."

import json
from importlib import import_module
from dataclasses import fields
from functools import lru_cache
from tests.fuzz import Case
from tests.fuzz.values import NUMBERS, TEXTS, any_value, plain_value

N, SMALL = 5000, 100


@lru_cache(1)
def editor():
    from fastedit.editor import FastEditor

    return FastEditor("mini", device="cpu")


@lru_cache(1)
def picture():
    from PIL import Image
    import numpy as np

    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def names():
    from fastedit.editor import EditRequest

    return [f.name for f in fields(EditRequest)]


LIKELY = dict(
    prompt=("a red ball", "a cup", "a (red:1.5) ball", "(((a", "a " * 200),
    source_prompt=("a blue ball", None),
    negative_prompt=("", None),
    steps=(1, 2, 4),
    strength=(0.5, 1, 1.0),
    guidance=(1.5, "linear:3:1", 8),
    source_guidance=(1, 2.0),
    control=("canny", "none", "canny-auto"),
    control_scale=(0.5, [0.5, 0.2], "interval:1:0:0.5"),
    schedule=("continuous", "stock"),
    scheduler=(None, "own", "dpmpp", "euler_a"),
    clip_skip=(None, 0, 1),
    prompt_weights=(True, False),
    long_prompts=(True, False),
    size=([64, 64], [128, 64], [63, 64]),
    precision=("fp32", "auto", None),
    feather=(0, 2.0, 1e9),
    repair=(False, True),
    seed=(0, 5, 2**63 - 1),
    options=({}, {"region": "model"}, {"eta": 0.5}, {"threshold": 0.3}),
    image=(None, "ab"),
    mask=(None, "ab"),
    model=("mini", "mini-s"),
    loras=(
        None,
        [],
        [{"file": "a", "hash": "b", "weight": 1}],
        ["a.safetensors"],
        [["a.safetensors", 0.5]],
    ),
    method=("ddcm", "img2img", "ddim", "p2p", "turbo", "identity", "ddcm", "edit_friendly-4"),
)


def some_fields(rng, value):
    "A few fields, most of them as they should be, one or two of anything."
    known = names()
    out = {"prompt": "a red ball", "steps": rng.choice((1, 2))}
    for k in rng.sample(known, rng.randint(0, 5)):
        out[k] = rng.choice(LIKELY.get(k, (None,)))
    for k in rng.sample(known, rng.choice((0, 1, 1, 1, 2))):
        out[k] = value(rng)
    if rng.random() < 0.3:  # the method's own options with anything
        from fastedit.methods import find_method

        try:
            own = list(find_method(out.get("method", "ddcm")).options)
        except Exception:
            own = []
        out["options"] = {rng.choice([*own, "x", "\ud800"]): value(rng)}
    if rng.random() < 0.05:
        out[str(rng.choice(TEXTS))[:50] or "x"] = value(rng)
    return out


def shown(x, n=300):
    try:
        return repr(x)[:n]
    except Exception:
        return f"<{type(x).__name__} that cannot be shown>"


# ---- what is done with a request that was read


def look_into(r):
    "All that is asked of a request before it runs."
    from fastedit.editor import EditRequest, check_request
    from fastedit.models import find_spec

    r.json, r.hash
    assert EditRequest.from_json(r.json).json == r.json, "its JSON form does not come back"
    assert hash(r.hash) and repr(r)
    check_request(r, find_spec(r.model), (64, 64))


def edit(given):
    "Ask an editor, and stop it at its first step."
    from fastedit.core import Cancelled

    def stop(said):
        raise Cancelled("enough")

    try:
        editor()(picture(), on_step=stop, **given)
    except Cancelled:
        pass


def python(rng, folder):
    from fastedit.editor import EditRequest

    given = some_fields(rng, any_value)
    if rng.random() < 0.3:
        given["steps"] = rng.choice((1, 2)) if rng.random() < 0.9 else given.get("steps")
        given.pop("model", None)
        given.pop("image", None)
        given.pop("mask", None)
        return Case("editor(picture, **" + shown(given) + ")", lambda: edit(given))
    return Case("EditRequest(**" + shown(given) + ")", lambda: look_into(EditRequest(**given)))


# ---- JSON and pictures


def spoilt(rng, text):
    "JSON that another program, a disk or a person changed."
    kind = rng.randrange(12)
    if kind == 0:
        return text[: rng.randrange(len(text) + 1)]
    if kind == 1:
        i = rng.randrange(len(text))
        return text[:i] + rng.choice(TEXTS) + text[i + 1 :]
    if kind == 2:
        return "[" * rng.choice((5, 1000, 200_000)) + text
    if kind == 3:
        return '{"prompt":' * rng.choice((5, 2000, 100_000)) + "1"
    if kind == 4:
        return text[:-1] + ',"steps":' + "9" * rng.choice((5, 20, 400, 5000)) + "}"
    if kind == 5:
        return text[:-1] + ',"prompt":"\\ud800"}'
    if kind == 6:
        return (
            text[:-1]
            + ',"guidance":'
            + rng.choice(("NaN", "Infinity", "-Infinity", "1e999", "-0", "00", ".5", "0x1"))
            + "}"
        )
    if kind == 7:
        return (
            text[:-1]
            + ',"options":{"eta":'
            + "[" * rng.choice((50, 900, 5000))
            + "]" * rng.choice((50, 900, 5000))
            + "}}"
        )
    if kind == 8:
        return rng.choice(
            (
                "",
                " ",
                "null",
                "[]",
                "1",
                '"a"',
                "{}",
                "NaN",
                "\ufeff" + text,
                text + text,
                text + "\0",
                "\ud800",
            )
        )
    if kind == 9:
        return (
            text[:-1]
            + ","
            + ",".join(f'"x{i}":1' for i in range(rng.choice((1, 50, 20_000))))
            + "}"
        )
    if kind == 10:
        return (
            text[:-1]
            + ',"loras":'
            + rng.choice(
                (
                    "[{}]",
                    '[{"file":1}]',
                    '{"file":"a"}',
                    "[[1,2,3]]",
                    "[null]",
                    '"a"',
                    '[{"file":"a","hash":"b","weight":"c"}]',
                    '[{"file":"a","weight":1e400}]',
                )
            )
            + "}"
        )
    return text


def as_json(rng):
    given = some_fields(rng, plain_value)
    try:
        text = json.dumps(given)
    except (ValueError, RecursionError):
        text = '{"prompt":"a","steps":' + "9" * 5000 + "}"
    return spoilt(rng, text) if rng.random() < 0.6 else text


def from_json(rng, folder):
    from fastedit.editor import EditRequest

    text = as_json(rng)
    given = (
        rng.choice(
            (
                text,
                text,
                text,
                bytes(text, "utf-8", "surrogatepass"),
                bytearray(b"x"),
                None,
                3,
                [text],
                [["prompt", "a"]],
            )
        )
        if rng.random() < 0.2
        else text
    )
    return Case(
        "EditRequest.from_json(" + shown(given) + ")",
        lambda: look_into(EditRequest.from_json(given)),
    )


def from_png(rng, folder):
    from PIL import Image, PngImagePlugin
    from fastedit.editor import EditRequest
    from fastedit.editor.again import prepare

    text = '{"request":' + as_json(rng) + "}" if rng.random() < 0.9 else as_json(rng)
    if rng.random() < 0.3:
        text = (
            text[:-1]
            + ","
            + rng.choice(
                (
                    '"mask":"!!"',
                    '"mask":5',
                    '"versions":3',
                    '"machine":[]',
                    '"notes":{}',
                    '"mask":"' + "A" * 100 + '"',
                )
            )
            + "}"
        )
    info = PngImagePlugin.PngInfo()
    path = folder / "edit.png"
    if rng.random() < 0.5:
        info.add_itxt("fastedit", text.encode("utf-8", "replace").decode(), zip=rng.random() < 0.5)
    else:
        info.add_text("fastedit", text.encode("utf-8", "replace").decode())
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)

    def run():
        if rng.random() < 0.3:
            prepare(path, rng.choice((None, path)))
        look_into(EditRequest.from_png(path))

    return Case("EditRequest.from_png of " + shown(text), run)


# ---- the command line

OPTIONS = {
    "--steps": "steps",
    "--strength": "strength",
    "--guidance": "guidance",
    "--control": "control",
    "--control-scale": "control_scale",
    "--schedule": "schedule",
    "--size": "size",
    "--seed": "seed",
    "--method": "method",
    "--model": "model",
    "--feather": "feather",
    "--precision": "precision",
    "--option": "options",
    "--lora": "loras",
    "--source-prompt": "source_prompt",
    "--negative-prompt": "negative_prompt",
    "--device": "",
    "--residency": "",
    "--budget": "",
    "--mask": "",
}


def word(rng):
    v = rng.choice(
        (
            *TEXTS,
            *NUMBERS,
            "eta=.5",
            "eta=[[",
            "a=1",
            "eta=" + "[" * 5000,
            "eta=" + "9" * 5000,
            "region=model",
            "64x64",
            "0x0",
            "9" * 30 + "x1",
            ".5,.5",
            "nan,nan",
            "cpu",
            "64",
            "seed=1",
        )
    )
    try:
        return str(v)
    except ValueError:
        return "9" * 5000


def from_cli(rng, folder):
    import fastedit.cli as cli, fastedit.cli.editing as editing
    from typer.testing import CliRunner
    from fastedit.core import Cancelled, FastEditError

    source = folder / "a.png"
    picture().save(source)
    args = [
        "edit",
        str(source),
        rng.choice(("a red ball", *TEXTS[:3], "a\udcffb")),
        "-o",
        str(folder / "b.png"),
    ]
    if rng.random() < 0.1:
        args[rng.choice((1, 4))] = word(rng)
    for k in rng.sample(list(OPTIONS), rng.randint(1, 3)):
        good = [v for v in LIKELY.get(OPTIONS[k], ("cpu",)) if isinstance(v, (str, int, float))]
        args += [k, str(rng.choice(good)) if good and rng.random() < 0.3 else word(rng)]

    def stop(*a, **k):
        raise Cancelled("enough")

    def run():
        bring, editing.bring = editing.bring, stop
        try:
            found = CliRunner().invoke(cli.app, args)
        finally:
            editing.bring = bring
        assert found.exit_code in (0, 1, 2), found.exit_code
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        assert "Traceback" not in found.output and "fault of fastedit" not in found.output, (
            found.output[-2000:]
        )
        if found.exit_code:
            raise FastEditError(found.output[-2500:])

    return Case("fastedit " + shown(args), run)


def warm():
    edit(dict(prompt="a red ball", steps=1))
    import_module("fastedit.cli.editing")


def case(rng, folder, index):
    way = rng.random()
    make = python if way < 0.45 else from_json if way < 0.7 else from_png if way < 0.8 else from_cli
    return make(rng, folder)
