"""What the README shows runs, and what it claims in figures is in a committed measurement."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import fusedtrain as ft
from fusedtrain import rules

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
FIGURES = re.findall(r"^\| ([^|]+?) \|[^|]*\| \*\*([\d.,]+)x\*\*[^|]*\|", README, re.M)
RESULTS = [json.loads(path.read_text("utf-8")) for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_code_runs(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})  # noqa: S102


def test_there_is_code() -> None:
    assert BLOCKS


@pytest.mark.parametrize(("name", "ratio"), FIGURES)
def test_figures_are_those_of_a_committed_measurement(name: str, ratio: str) -> None:
    measured = [
        f"{row['ratio']:.2f}" for result in RESULTS for row in result["rows"] if row["name"] == name and "ratio" in row
    ]
    assert ratio in measured


def test_names_in_the_readme_exist() -> None:
    for dotted in set(re.findall(r"`ft\.([\w.]+)", README)):
        thing = ft
        for part in dotted.split("."):
            thing = getattr(thing, part)
    listed = re.search(r"^Activations: (.*?)\. Dtypes", README, re.M)
    assert listed is not None
    assert re.findall(r"`(\w+)`", listed[1]) == list(rules.ACTIVATIONS)


def test_links_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / name).read_text("utf-8")):
            assert (ROOT / target).exists(), f"{name}: {target}"
