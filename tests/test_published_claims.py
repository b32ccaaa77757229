"The re-analysis runs with and without the published files, and its committed outputs are complete."

import json
from pathlib import Path
import pytest

PATH = Path(__file__).parents[1] / "nbs" / "experiments" / "published_claims.ipynb"
CELLS = [
    c for c in json.loads(PATH.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"
]


def run_cells(monkeypatch, folder):
    "Run all code cells in one namespace; gives the namespace and what was displayed."
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    monkeypatch.setenv("FASTEDIT_PUBLISHED", str(folder))
    shown = []
    space = {"display": lambda *xs: shown.extend(xs)}
    for c in CELLS:
        exec("".join(c["source"]), space)
    plt.close("all")
    return space, shown


def test_without_the_files_it_says_so_and_the_arithmetic_still_holds(monkeypatch, tmp_path, capsys):
    space, shown = run_cells(monkeypatch, tmp_path)
    assert space["S"] is None and shown == [] and "are not here" in capsys.readouterr().out
    low, high = space["ratios"]["50-step null-text + P2P"]
    assert 32.5 < low < 33.5 and 43.5 < high < 44.5
    assert space["total"](space["fast"]()) == pytest.approx(
        4 * (4.21 + 0.57) + 4.88 + 10.47 + 0.111
    )


def test_an_incomplete_folder_counts_as_absent(monkeypatch, tmp_path):
    (tmp_path / "sdxl_fp16.csv").write_text("image_id\n")
    assert run_cells(monkeypatch, tmp_path)[0]["S"] is None


def test_committed_outputs_hold_the_analysis_and_no_local_paths():
    text = "".join(json.dumps(c["outputs"]) for c in CELLS)
    assert "2800 rows" in text and text.count("image/png") >= 4 and '"error"' not in text
    assert not any(root in text for root in ("/home/", "/root/", "/work/", "/tmp/", "C:\\\\"))
