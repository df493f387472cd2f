"""The README's figures are those of the committed measurements, to the letter."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "benchmarks"))
import readme_tables  # noqa: E402

sys.path.pop(0)


def test_the_readme_is_as_made_from_the_results() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme_tables.updated(readme, RESULTS) == readme, "make readme-tables"


def test_another_measurement_makes_another_table(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    source, *_ = [path for path in sorted(RESULTS.glob("*.json")) if "ratio" in json.loads(path.read_text())["rows"][0]]
    measured = json.loads(source.read_text("utf-8"))
    measured["rows"][0] |= {"ratio": 7.25, "ratios": [7.0, 7.25, 8.0], "target": 7.0}
    measured["rows"][1] |= {"ratio": 6.5, "ratios": [6.0, 6.5, 7.0], "target": 7.0}
    (folder / "new.json").write_text(json.dumps(measured))
    readme = f"before\n{readme_tables.BEGIN}old{readme_tables.END}\nafter\n"
    found = readme_tables.updated(readme, folder)
    assert found.startswith("before\n") and found.endswith("after\n") and "old" not in found
    assert "**7.25x** (7.00 to 8.00) |" in found
    assert "**6.50x** (6.00 to 7.00); 7.0x was aimed at |" in found
    assert "benchmarks/results/new.json" in found
    assert readme_tables.updated(found, folder) == found


def test_a_whole_run_is_linked_with_its_report(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    run = {
        "kind": "fusedtrain-bench",
        "machine": {"cpu": "Abacus", "cpu_capability": "beads"},
        "options": {"threads": 2, "suites": ["optim", "act"]},
        "rows": [{}, {}, {}],
    }
    (folder / "suite.json").write_text(json.dumps(run))
    (folder / "suite.md").write_text("# report")
    found = readme_tables.figures(folder)
    assert "- optim, act on two threads of a shared Abacus (beads), 3 rows: [JSON]" in found
    assert "[md](benchmarks/results/suite.md)" in found


def test_a_run_on_a_gpu_has_a_table_also_where_not_everything_ran(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    ours, triton, torch = {"seconds": [2.0, 2.0]}, {"why_not": "no"}, {"seconds": [5.0, 5.0]}
    row = {"bytes": 8, "baseline": "torch-fused", "clock": "device"}
    rows = [
        {**row, "name": "all", "providers": {"fusedtrain-cuda": ours, "fusedtrain-triton": ours, "torch-fused": torch}},
        {**row, "name": "some", "providers": {"fusedtrain-cuda": ours, "fusedtrain-triton": triton}, "clock": "wall"},
        {**row, "name": "none", "providers": {}, "baseline": "another"},
    ]
    machine = {"cpu": "Abacus", "cpu_capability": "beads", "gpus": [{"name": "GPU 9000"}]}
    run = {"kind": "fusedtrain-bench", "machine": machine, "versions": {"torch": "2.11.0"}, "rows": rows}
    (folder / "gpu.json").write_text(json.dumps({**run, "copy_bandwidth": 8.0}))
    found = readme_tables.figures(folder)
    assert "| all | `clip_grad_norm_ + AdamW(fused=True)` | 2.50x | 2.50x | 50% |" in found
    assert "| some (loop) | `clip_grad_norm_ + AdamW(fused=True)` | not measured | not measured | 50% |" in found
    assert "| none | another | not measured | not measured |  |" in found
    assert "On one GPU 9000, torch 2.11: [`benchmarks/results/gpu.json`]" in found


@pytest.mark.parametrize("readme", ["", "<!-- /figures -->\n<!-- figures -->\n", "<!-- figures -->\n"])
def test_a_readme_without_its_markers_is_left_alone(readme: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        readme_tables.updated(readme, RESULTS)
