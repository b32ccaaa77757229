"What people, files and programs put where a value belongs."

import datetime, decimal, enum, fractions
from pathlib import Path
import numpy as np


class Silent:
    "An object that cannot even be shown."

    def __repr__(self):
        raise RuntimeError("no words")


class Colour(enum.Enum):
    RED = 1


class Word(str):
    "A text of a kind of its own."


class Number(int):
    "A number of a kind of its own."


def deep(n, kind=list):
    x = kind()
    for _ in range(n):
        x = [x] if kind is list else {"a": x}
    return x


def ring():
    x = []
    x.append(x)
    return x


TEXTS = (
    "",
    " ",
    "x",
    "mini",
    "ddcm",
    "none",
    "null",
    "canny",
    "linear:3:1",
    "interval:1:0:0.5",
    "linear:nan:1",
    "linear:",
    "linear:1:2:3:4:5:6:7:8",
    "stock",
    "fp16",
    "true",
    "1",
    "1e999",
    "NaN",
    "\ud800",
    "a\udcffb",
    "\0",
    "a\0b",
    "a" * 5000,
    "\u202eabc",
    "\u2028",
    "é",
    "\x1b[31m",
    "~nosuchuser/x",
    "~",
    "..",
    "/",
    "a/b",
    "../../etc/passwd",
    "x.py:NAME",
    "x.py",
    "\ud800.py:X",
    "\0.py:X",
    "'",
    '"',
    "{}",
    "[]",
    "9" * 5000,
    "-",
    "a\nb",
    "%s",
    "{0}",
    "http://a/b",
    "|",
    ",",
    "a|b",
    "=",
    "<script>",
    "LPT1",
    "\ufeff",
    "0x10",
    "١",
    "linear:9999999999999999999999999:1",
    "cosine:1e400:2",
    "interval:1:nan:2",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    4,
    8,
    64,
    1000,
    1001,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    10**400,
    10**5000,
    -(10**5000),
    0.0,
    -0.0,
    0.5,
    1.0,
    1.5,
    7.5,
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
    [64, 64],
    [0.5] * 7,
    [[1]],
    {"a": 1},
    {"": None},
    {"a": {"b": [1]}},
    [float("nan")],
    [10**5000],
    ["\ud800"],
    {"\ud800": 1},
    {"a": 10**5000},
    ["linear:3:1", None],
)

ODD = (
    lambda: b"",
    lambda: b"\xff",
    lambda: bytearray(b"a"),
    lambda: memoryview(b"a"),
    lambda: (),
    lambda: (1, 2),
    lambda: (64, 64),
    set,
    lambda: {1},
    lambda: {"a"},
    frozenset,
    object,
    lambda: print,
    lambda: int,
    lambda: ValueError("x"),
    lambda: Ellipsis,
    lambda: NotImplemented,
    lambda: range(3),
    lambda: 1j,
    lambda: np.zeros(3),
    lambda: np.zeros(0),
    lambda: np.zeros((2, 2)),
    lambda: np.float32("nan"),
    lambda: np.float32(0.5),
    lambda: np.float64(0.5),
    lambda: np.int64(4),
    lambda: np.int64(-1),
    lambda: np.uint8(3),
    lambda: np.bool_(True),
    lambda: np.str_("canny"),
    lambda: np.array(3),
    lambda: np.array(0.5),
    lambda: np.array("x"),
    lambda: np.array(None, dtype=object),
    lambda: np.array([None]),
    lambda: np.datetime64("2020"),
    lambda: np.ma.masked,
    lambda: torch().tensor(3),
    lambda: torch().tensor([1.0, 2.0]),
    lambda: torch().zeros(0),
    lambda: torch().float16,
    lambda: torch().device("cpu"),
    lambda: torch().tensor(3, device="meta"),
    lambda: decimal.Decimal("0.5"),
    lambda: decimal.Decimal("NaN"),
    lambda: fractions.Fraction(1, 2),
    lambda: datetime.date(2020, 1, 1),
    lambda: Path("a"),
    lambda: Path("a\0b"),
    lambda: Path("x" * 5000),
    lambda: Path("~nosuchuser"),
    Silent,
    lambda: Silent,
    lambda: Colour.RED,
    lambda: Word("canny"),
    lambda: Number(3),
    lambda: (x for x in ()),
    lambda: {}.keys(),
    lambda: {1: 2}.items(),
    lambda: {1: 2},
    lambda: {None: 1},
    lambda: {(1, 2): 3},
    lambda: {"a": object()},
    lambda: {"a": {1, "b"}},
    lambda: {"a": {1, None}},
    lambda: {"a": Silent()},
    lambda: [Silent()],
    lambda: {Silent(): 1},
    ring,
    lambda: deep(50),
    lambda: deep(2000),
    lambda: deep(100_000),
    lambda: deep(2000, dict),
    lambda: [b"a"],
    lambda: [{1}],
    lambda: (None,),
    lambda: (1,) * 10_000,
    lambda: slice(1),
    lambda: Exception,
    lambda: type(None),
    lambda: iter([1]),
)


def torch():
    import torch

    return torch


def odd_objects(rng):
    "A value that only Python can give."
    return rng.choice(ODD)()


def plain_value(rng):
    "A value that JSON can hold, or nearly."
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(TEXTS)
    if kind < 0.75:
        return rng.choice(NUMBERS)
    return rng.choice(PLAIN)


def any_value(rng):
    return plain_value(rng) if rng.random() < 0.5 else odd_objects(rng)
