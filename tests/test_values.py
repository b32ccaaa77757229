"What a word of the command line says about a setting."

import subprocess, sys
from dataclasses import fields
import pytest
from fastedit.core import OptionError
from fastedit.editor import EditRequest
from fastedit.values import NAMES, NUMBERS, SWITCHES, TEXTS, Span, read_settings, read_values


def test_every_field_of_an_edit_has_a_kind():
    assert sorted((*TEXTS, *NUMBERS, *NAMES, *SWITCHES)) == sorted(
        f.name for f in fields(EditRequest) if f.name not in ("image", "mask", "options")
    )


@pytest.mark.parametrize(
    "field, text, want",
    [
        ("negative_prompt", "blurry, dark, noisy", ["blurry, dark, noisy"]),
        ("negative_prompt", "blurry, dark|plain", ["blurry, dark", "plain"]),
        ("prompt", "a red ball, large|a cup, blue", ["a red ball, large", "a cup, blue"]),
        ("prompt", "a cup", ["a cup"]),
        ("prompt", "5", ["5"]),
        ("prompt", "true|null", ["true", "null"]),
        ("prompt", "a ball.. and a cup", ["a ball.. and a cup"]),
        ("prompt", "0.3..0.7/5", ["0.3..0.7/5"]),
        ("source_prompt", "[a ball], red", ["[a ball], red"]),
        ("negative_prompt", '"blurry, dark","plain"', ["blurry, dark", "plain"]),
        ("negative_prompt", '"blurry, dark"|plain', ["blurry, dark", "plain"]),
        ("negative_prompt", '"a|b","c"', ["a|b", "c"]),
        ("negative_prompt", '"","blurry"', ["", "blurry"]),
        ("prompt", '"a ""stop"" sign, red"', ['a "stop" sign, red']),
        ("prompt", 'a 5" plate, an 8" plate', ['a 5" plate, an 8" plate']),
        ("prompt", "it's a cup|a ball's shadow", ["it's a cup", "a ball's shadow"]),
        ("prompt", "a cup, größer|杯子", ["a cup, größer", "杯子"]),
        ("prompt", r"a \| b", ["a | b"]),
        ("prompt", r"a \| b|c", ["a | b", "c"]),
        ("prompt", r"a\, b, c", ["a, b, c"]),
        ("prompt", r'"a \| b","c"', [r"a \| b", "c"]),
        ("prompt", r"a \(cup\)|\ball", [r"a \(cup\)", r"\ball"]),
        ("model", r"a\,b,mini", ["a,b", "mini"]),
        ("model", r"a\|b,mini", ["a|b", "mini"]),
        ("strength", "0.3,0.5", [0.3, 0.5]),
        ("repair", "true,false", [True, False]),
        ("clip_skip", "1,2", [1, 2]),
        ("strength", ".3|.5", [0.3, 0.5]),
        ("strength", "0.3..0.7/5", [0.3, 0.4, 0.5, 0.6, 0.7]),
        ("strength", "0.3..0.7", Span(0.3, 0.7)),
        ("strength", "0..1", Span(0, 1)),
        ("steps", "2..4/3", [2, 3, 4]),
        ("steps", "2..4", Span(2, 4, True)),
        ("seed", "0,1.0,2", [0, 1, 2]),
        ("seed", "7", [7]),
        ("guidance", "1,linear:3:1", [1, "linear:3:1"]),
        ("guidance", "linear:3:.5|2", ["linear:3:.5", 2]),
        ("control_scale", "[.8,.7,.5,1],1", [(0.8, 0.7, 0.5, 1), 1]),
        ("control_scale", "[.8,.7]|[1,1]", [(0.8, 0.7), (1, 1)]),
        ("size", "64x64|96X48", [(64, 64), (96, 48)]),
        ("size", "96", [(96, 96)]),
        ("size", "[96,64]", [(96, 64)]),
        ("control", "canny,none", ["canny", "none"]),
        ("control", "null,canny", [None, "canny"]),
        ("method", "ddcm, img2img", ["ddcm", "img2img"]),
        ("model", "a,b|mini", ["a,b", "mini"]),
        ("options.uac", "true,false", [True, False]),
        ("options.threshold", "0.2..0.4/3", [0.2, 0.3, 0.4]),
        ("options.words", '"red, blue"|ball', ["red, blue", "ball"]),
        ("options.words", '"a..b"', ["a..b"]),
        ("options.iterations", "0..9", Span(0, 9, True)),
    ],
)
def test_values(field, text, want):
    got = read_values(text, field)
    assert got == want and (
        isinstance(got, Span) or [type(v) for v in got] == [type(v) for v in want]
    )


@pytest.mark.parametrize(
    "field, text, word",
    [
        ("strength", "0.3,,0.5", "empty"),
        ("strength", "0.3,", "empty"),
        ("prompt", "a cup|", "empty"),
        ("prompt", '"a cup" or so, red', "closing quote"),
        ("negative_prompt", '"blurry, dark" and red', "closing quote"),
        ("strength", ".5,.5", "twice"),
        ("size", "64x64,96x64,64", "twice"),
        ("prompt", "a cup|a cup", "twice"),
        ("strength", "0.3..0.7/0", "1 to"),
        ("seed", "0..9/1000000000", "1 to"),
        ("strength", "0.7..0.3", "smaller"),
        ("guidance", "1..2/two", "no range"),
        ("strength", "0.1..0.3/3,0.9", "no range"),
        ("size", "64by64", "WIDTHxHEIGHT"),
        ("size", "0x64", "WIDTHxHEIGHT"),
        ("options.words", "a..b", "quotes"),
    ],
)
def test_slips_are_refused_in_words(field, text, word):
    with pytest.raises(OptionError, match=word):
        read_values(text, field)


def test_settings_of_a_command():
    got = read_settings(
        ["control-scale=.8,.7,1,1", "negative_prompt=blurry, dark", "steps=2"],
        ["prompt=a cup|a ball", "option.threshold=.2,.4"],
        method="img2img",
        source_prompt=None,
    )
    assert got == {
        "control_scale": (0.8, 0.7, 1, 1),
        "negative_prompt": "blurry, dark",
        "steps": 2,
        "prompt": ["a cup", "a ball"],
        "options.threshold": [0.2, 0.4],
        "method": "img2img",
    }
    for kw, word in (
        (dict(vary=["seed=1", "seed=2"]), "twice"),
        (dict(keep=["seed=1"], vary=["seed=2"]), "twice"),
        (dict(vary=["method=ddcm,img2img"], method="ddcm"), "twice"),
        (dict(vary=["strenght=.5"]), "did you mean 'strength'"),
        (dict(vary=["strength"]), "FIELD=VALUE"),
        (dict(vary=["strength="]), "FIELD=VALUE"),
        (dict(keep=["strength=.3,.5"]), "2 values"),
        (dict(keep=["seed=0..9"]), "range"),
    ):
        with pytest.raises(OptionError, match=word):
            read_settings(**kw)


def test_it_needs_no_heavy_library():
    code = (
        "import sys, fastedit.values; sys.exit(any(m in sys.modules for m in "
        "('torch', 'diffusers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_switch_can_be_typed():
    assert read_settings(["repair=true"], ["long_prompts=true,false"]) == dict(
        repair=True, long_prompts=[True, False]
    )
