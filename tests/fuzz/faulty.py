"What the driver itself is tried on: a kind in which each case does one thing that it must notice."

import os, tempfile, time
from tests.fuzz import Case
from fastedit.core import OptionError

N = SMALL = 10
HELD = []
BAD_OF = ("rows lost",)


def refuse():
    raise OptionError("no")


class Unreadable(OptionError):
    def __str__(self):
        return "\x1b[31m"  # our own errors spell such signs out


def unreadable():
    raise Unreadable("no")


def fault():
    {}["x"]


def leave():
    raise SystemExit(1)


def hang():
    while True:
        try:
            time.sleep(1)
        except Exception:
            pass


def hold():
    HELD.append(open(os.devnull))


def litter():
    tempfile.mkstemp()


def eat():
    return {"bytes": len(b"x" * (64 * 2**20))}


def lose():
    return {"rows lost": 1}


def case(rng, folder, index):
    if os.environ.get("FUZZ_CRASH") and index == 3:
        return Case("crash", os.abort)
    return Case(
        "one of ten",
        (dict, refuse, unreadable, fault, leave, hang, hold, litter, eat, lose)[index],
        memory=32 * 2**20,
        seconds=0.2 if index == 5 else 20,
    )
