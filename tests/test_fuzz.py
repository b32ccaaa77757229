"A few faults of every kind, made from a seed; `python -m tests.fuzz` makes thousands."

import os, subprocess, sys
from pathlib import Path
import pytest
from tests.fuzz import KINDS, bad_names, kind_of, run_here, try_case


@pytest.mark.parametrize("kind", KINDS)
def test_faults_are_refused_in_words(kind):
    counts, bad = run_here(kind, kind_of(kind).SMALL)
    assert not bad, "\n".join(
        f"{f.index} {f.outcome}: {f.words[:200]}\n{f.detail}" for f in bad[:5]
    )
    assert (
        counts["used"]
        and (counts["refused"] or kind == "kills")
        and not any(counts[k] for k in bad_names(kind))
    )


# ---- the driver itself


def test_what_goes_wrong_is_noticed():
    wanted = [
        "used",
        "refused",
        "raw errors",
        "raw errors",
        "raw errors",
        "hangs",
        "leaks",
        "leaks",
        "over memory",
        "used",
    ]
    if not os.access("/proc/self/clear_refs", os.W_OK):
        wanted[8] = "used"
    found = [try_case("faulty", 0, i) for i in range(10)]
    assert [f.outcome for f in found] == wanted
    assert found[9].counts == {"rows lost": 1} and bad_names("faulty")[-1] == "rows lost"


def test_a_crash_is_counted_and_the_rest_is_done():
    p = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--kind", "faulty", "--n", "5"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "FUZZ_CRASH": "1"},
    )
    assert (
        p.returncode == 1 and "used 1, refused 1; raw errors 2, crashes 1, hangs 0" in p.stdout
    ), p.stdout + p.stderr
