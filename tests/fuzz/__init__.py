"""Faults by the thousand, made from a seed.

What is given to fastedit is used or refused in its own words, and nothing else happens.

One module a kind, `tests/fuzz/KIND.py`, with

    N = 5000                  # cases of the large run
    SMALL = 100               # cases of the run in CI: a few seconds
    # -> Case; rng is a random.Random of its own, folder an empty one of its own
    def case(rng, folder, index): ...
    # if there is one: what the first case shall not wait for, such as torch
    def warm(): ...
    # if there is one: those of the counts that `Case.run` gives which must stay 0
    BAD_OF = ("rows lost",)

and the kind's name in `KINDS`. Case i of a seed is the same whatever came before it, so that it
can be run alone:

    # the large run, in processes that may die
    python -m tests.fuzz --kind requests --n 5000 --seed 0
    # one case, with its traceback
    python -m tests.fuzz --kind requests --seed 0 --only 1234
"""

import contextlib, gc, io, os, random, shutil, signal, tempfile
import threading, time, traceback, warnings
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Callable

KINDS = ("requests", "tables", "images", "mappings", "toml", "kills", "configurations")
SECONDS = 5  # of its own time: a case that takes longer hangs
# what must stay 0, beside the bad counts of a kind's own
BAD = (
    "raw errors",
    "crashes",
    "hangs",
    "leaks",
    "over memory",
)


@dataclass
class Case:
    "One thing to try."

    words: str  # what is tried, for a report
    # () -> None, or counts of the kind's own such as {'rows lost': 0}; may raise FastEditError
    run: Callable
    memory: int | None = None  # bytes that it may take beyond what was there; None: not measured
    seconds: float = SECONDS


@dataclass
class Found:
    "What came of one case."

    index: int
    words: str
    outcome: str  # "used", "refused", or one of `BAD`
    detail: str = ""
    counts: dict = field(default_factory=dict)
    seconds: float = 0.0


class Hang(BaseException):
    "Not an Exception: no `except Exception` of the code under test swallows it."


def kind_of(name):
    return import_module(f"tests.fuzz.{name}")


def warm(name):
    getattr(kind_of(name), "warm", lambda: None)()


def bad_names(kind):
    return (*BAD, *getattr(kind_of(kind), "BAD_OF", ()))


# ---- what a process holds


def _open_files():
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def _resident(key):
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(text.split(key + ":")[1].split()[0]) * 1024


def _until(done, seconds=2):
    "Give threads that are told to end a moment to do so."
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.01)


def _reset_peak():
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return True
    except OSError:
        return False


BUSY = 6  # times as long may a case take where the machine gives the time to others


@contextlib.contextmanager
def _alarm(seconds):
    """Raise `Hang` in the main thread after `seconds` of this process's own time, or `BUSY` times
    as long on the clock; C code that never returns is the parent's to kill. The clock is counted
    in rings, so that a machine that stands still for minutes takes one of them and not all."""
    own, every = time.process_time() + seconds, max(0.05, seconds / 10)
    left = [round((BUSY - 1) * seconds / every)]

    def ring(*_):
        left[0] -= 1
        if time.process_time() >= own or left[0] < 0:
            raise Hang
        signal.setitimer(signal.ITIMER_REAL, every)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- one case


def _outcome(case):
    "Run a case: (outcome, detail, counts)."
    from fastedit.core import FastEditError

    try:
        with (
            _alarm(case.seconds),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            return "used", "", case.run() or {}
    except FastEditError as e:
        text = str(e)
        if not text.replace("\n", "").isprintable():
            return "raw errors", f"a message that cannot be printed: {text!r}"[:500], {}
        if len(text) > 3000:
            return "raw errors", f"a message of {len(text)} characters: {text[:300]}", {}
        return "refused", f"{type(e).__name__}: {text}", {}
    except Hang:
        return "hangs", f"more than {case.seconds} s", {}
    except BaseException as e:  # also SystemExit
        if isinstance(e, KeyboardInterrupt):
            raise
        return "raw errors", "".join(traceback.format_exception(e))[-3000:], {}


def try_case(kind, seed, i, leaks=True):
    """Make and run case `i`; leftovers in the folder of temporary files, open files and threads are
    leaks."""
    rng, home = random.Random(f"{seed}/{kind}/{i}"), Path(tempfile.mkdtemp(prefix="fuzz-"))
    (temp := home / "tmp").mkdir()
    (folder := home / "case").mkdir()
    tempdir, tempfile.tempdir = tempfile.tempdir, str(temp)
    try:
        case = kind_of(kind).case(rng, folder, i)
        gc.collect() if leaks and i % 50 == 0 else None
        files, threads, measured = (
            _open_files(),
            threading.active_count(),
            case.memory is not None and _reset_peak(),
        )
        held, begun = _resident("VmRSS") if measured else 0, time.perf_counter()
        outcome, detail, counts = _outcome(case)
        took = time.perf_counter() - begun
        if (
            measured
            and (more := _resident("VmHWM") - held) > case.memory
            and outcome in ("used", "refused")
        ):
            outcome, detail = (
                "over memory",
                f"{more / 2**20:.0f} MiB, allowed {case.memory / 2**20:.0f}; {detail}",
            )
        if leaks and outcome in ("used", "refused"):
            if _open_files() > files:
                gc.collect()
            _until(lambda: threading.active_count() <= threads)
            left = [x for x in temp.rglob("*")]
            if _open_files() > files or threading.active_count() > threads or left:
                outcome, detail = (
                    "leaks",
                    (
                        f"{_open_files() - files} files, {threading.active_count() - threads} "
                        f"threads, left {[x.name for x in left]}; {detail}"
                    ),
                )
        return Found(i, case.words, outcome, detail, counts, took)
    finally:
        tempfile.tempdir = tempdir
        shutil.rmtree(home, ignore_errors=True)


# ---- many


def run_here(kind, n, seed=0, first=0):
    "Run cases in this process, as CI does: (Counter of outcomes and counts, the bad ones)."
    counts, bad = Counter(), []
    warm(kind)
    for i in range(first, first + n):
        f = try_case(kind, seed, i)
        counts[f.outcome] += 1
        counts.update(f.counts)
        if f.outcome in BAD or any(f.counts.get(k) for k in bad_names(kind)):
            bad.append(f)
    return counts, bad
