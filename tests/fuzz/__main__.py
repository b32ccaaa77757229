"The large run: cases in a child process that may crash or hang, and is replaced when it does."

import argparse, faulthandler, json, os, select, signal, subprocess, sys, tempfile, time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from tests.fuzz import (
    BAD,
    BUSY,
    KINDS,
    SECONDS,
    Found,
    _resident,
    bad_names,
    kind_of,
    try_case,
    warm,
)

GRACE = 20  # seconds that a case may take beyond its alarm before the child is killed
WARM = 120  # seconds that a child may take to begin


def child(kind, seed, first, last):
    """Say 'i' before each case and its `Found` after it, one JSON a line on the real standard
    output."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    faulthandler.enable()
    resident = None
    warm(kind)
    for i in range(first, last):
        print(json.dumps(i), file=out)
        f = try_case(kind, seed, i)
        print(json.dumps(asdict(f), default=str), file=out)
        if i == min(first + 200, last - 1):
            resident = _resident("VmRSS")  # warm
    print(json.dumps(["end", resident, _resident("VmRSS")]), file=out)


def _start(kind, seed, first, last):
    command, errors = (
        [sys.executable, "-m", "tests.fuzz", "--child", kind, str(seed), str(first), str(last)],
        tempfile.TemporaryFile(),
    )
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, cwd=Path(__file__).parents[2]
    ), errors


def _lines(process, seconds):
    "Yield the child's lines; None when it says nothing for `seconds()`, counted one by one."
    fd, rest = process.stdout.fileno(), b""
    while True:
        if not any(select.select([fd], [], [], 1)[0] for _ in range(seconds())):
            yield None
            return
        if not (data := os.read(fd, 65536)):
            return
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield json.loads(line)


class Run:
    "What has come of a run so far."

    def __init__(self, kind, first):
        self.kind, self.first, self.at = kind, first, first
        self.counts, self.bad, self.growth = Counter(), [], 0

    def keep(self, f):
        self.at = f.index + 1
        self.counts[f.outcome] += 1
        self.counts.update(f.counts)
        if f.outcome in BAD or any(f.counts.get(k) for k in bad_names(self.kind)):
            self.bad.append(f)

    def listen(self, process):
        "Take in what a child says; the case that it did not end, or None."
        running, limit = None, BUSY * getattr(kind_of(self.kind), "SECONDS", SECONDS) + GRACE
        for said in _lines(process, lambda: WARM if running is None else limit):
            if said is None:
                process.kill()
            elif isinstance(said, int):
                running = said
            elif isinstance(said, list):
                self.growth = (said[2] or 0) - (said[1] or 0)
            else:
                self.keep(Found(**said))
                running = None
        return running


def large(kind, n, seed, first=0):
    "Run `n` cases, or as many as there is time for before Ctrl-C."
    run = Run(kind, first)
    while run.at < first + n:
        process, errors = _start(kind, seed, run.at, first + n)
        try:
            running, code = run.listen(process), process.wait()
            if running is not None or code:
                errors.seek(0)
                words = errors.read()[-1500:].decode(errors="replace")
                what = "hangs" if code == -9 else "crashes"
                run.keep(Found(run.at, f"exit code {code}", what, words))
        except KeyboardInterrupt:
            process.kill()
            process.wait()
            break
        finally:
            process.stdout.close()
            errors.close()
    return run


def main():
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    for name in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore the first
        signal.signal(name, signal.default_int_handler)
    p = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    p.add_argument("--kind", action="append", choices=(*KINDS, "faulty"), help="default: all")
    p.add_argument("--n", type=int, help="default: the kind's own")
    p.add_argument("--seed", default="0")
    p.add_argument("--first", type=int, default=0)
    p.add_argument("--only", type=int, help="run this case alone, here")
    p.add_argument("--show", type=int, default=20, help="bad cases that are shown")
    a = p.parse_args()
    failed = False
    for kind in a.kind or KINDS:
        if a.only is not None:
            warm(kind)
            print(kind, try_case(kind, a.seed, a.only))
            continue
        begun = time.time()
        run = large(kind, a.n or kind_of(kind).N, a.seed, a.first)
        failed |= bool(run.bad)
        tell(run, a.seed, time.time() - begun, a.show)
    return int(failed)


def tell(run, seed, seconds, most):
    "Print counts, and the bad cases."
    counts, bad = run.counts, bad_names(run.kind)
    rest = {k: v for k, v in counts.items() if k not in ("used", "refused", *BAD, *bad)}
    print(
        f"{run.kind}: {run.at - run.first} cases of seed {seed} in {seconds:.0f} s: "
        f"used {counts['used']}, refused {counts['refused']}; "
        + ", ".join(f"{k} {counts[k]}" for k in bad)
        + "".join(f", {k} {v}" for k, v in rest.items())
        + f"; memory grew by {run.growth / 2**20:.0f} MiB",
        flush=True,
    )
    for f in run.bad[:most]:
        print(
            f"  case {f.index} ({f.outcome}, {f.seconds:.1f} s): {f.words[:300]}\n    "
            + f.detail.strip().replace("\n", "\n    ")
        )


if __name__ == "__main__":
    sys.exit(main())
