"""kill -9 of a benchmark, at a random time or at a random write, and the same command again: no row
is lost or doubled, and the tables are those of a run that nobody disturbed."""

import atexit, os, shutil, signal, tempfile, time, traceback
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from fastedit.core import FastEditError
from tests.fuzz import Case
from tests.fuzz.tables import TABLES, bench, rows_of

N, SMALL = 40, 2
SECONDS = 60  # an edit, thrice
BAD_OF = ("rows lost", "rows doubled", "tables that differ", "leftovers")


@contextmanager
def one_thread():
    "Sums of another order have other last digits; and a forked process has no other threads."
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(out, workers=0):
    with one_thread():
        bench(out, seeds=(0, 1, 2), workers=workers)


@lru_cache(1)
def whole():
    "(Folder of a run that nobody disturbed, seconds that it took, its writes)."
    root = Path(tempfile.mkdtemp(prefix="fuzz-kills-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    run(root / "warm")
    begun = time.perf_counter()
    with dying(10**9) as done:
        run(root / "out")
    return root / "out", time.perf_counter() - begun, done[0]


def warm():
    whole()


WRITES = ("write", "fsync", "replace", "open", "truncate", "unlink", "rename", "mkdir")


@contextmanager
def dying(n):
    "Count what is done to files, and die at the n-th; of bytes to be written, half are."
    done, real = [0], {k: getattr(os, k) for k in WRITES}

    def dies(name):
        def call(*a, **k):
            done[0] += 1
            if done[0] == n:
                if name == "write":
                    real["write"](a[0], bytes(a[1])[: len(a[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real[name](*a, **k)

        return call

    for k in WRITES:
        setattr(os, k, dies(k))
    try:
        yield done
    finally:
        for k, f in real.items():
            setattr(os, k, f)


def killed(out, after, at):
    "Run in a child that is killed after some seconds or at a write (None: not); whether it was."
    said = out.parent / "said"
    child = os.fork()
    if child == 0:
        _die(out, said, at)
    begun, ended = time.monotonic(), None
    try:
        while not (found := os.waitpid(child, os.WNOHANG))[0]:
            if after is not None and time.monotonic() - begun > after:
                os.kill(child, signal.SIGKILL)
                after = None
            time.sleep(0.002)
        ended = os.waitstatus_to_exitcode(found[1])
    finally:
        if ended is None:  # this process is told to give up
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert ended in (0, -signal.SIGKILL), f"the killed run ended by itself: {said.read_text()}"
    return ended != 0


def _die(out, said, at):
    "What the child does; it says what else went wrong, and never returns."
    try:
        with dying(at or 10**9):
            run(out, workers=1)
        os._exit(0)
    except BaseException:
        said.write_text(traceback.format_exc())
    finally:
        os._exit(3)


def compare(out, root):
    "What is wrong with a folder, against one that nobody disturbed."
    wanted = [r["row"] for r in rows_of(root / "rows.jsonl")]
    found = [r["row"] for r in rows_of(out / "rows.jsonl")]
    pictures = sum(not (out / r["image"]).is_file() for r in rows_of(out / "rows.jsonl"))
    lost = len(set(wanted) - set(found)) + pictures
    left = [p for p in out.rglob("*") if p.name.startswith(".")]
    differ = [t for t in TABLES if (out / t).read_bytes() != (root / t).read_bytes()]
    counts = (lost, len(found) - len(set(found)), len(differ), len(left))
    return dict(zip(BAD_OF, counts))


def case(rng, folder, index):
    root, seconds, writes = whole()
    ends = [
        (rng.uniform(0, seconds), None) if rng.random() < 0.5 else (None, rng.randint(1, writes))
        for _ in range(rng.choice((1, 1, 2, 3)))
    ]
    said = ", ".join(f"{t:.2f} s" if w is None else f"write {w} of {writes}" for t, w in ends)

    def go():
        kills = sum(killed(folder / "out", *end) for end in ends)
        try:
            run(folder / "out")
        except FastEditError as e:  # a refusal is no way to go on
            raise AssertionError("the same command does not go on") from e
        return {"kills": kills, **compare(folder / "out", root)}

    return Case(f"killed at {said}", go, seconds=SECONDS)
