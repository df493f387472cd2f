"""The README's figures, made from the committed measurements: ``make readme-tables``. A test holds them to match."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fusedtrain.bench.budgets import CUDA, TRITON
from fusedtrain.bench.measure import ratio, share_of_copy, timed

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- figures -->\n", "<!-- /figures -->"
_WORDS = {1: "one thread", 2: "two threads", 4: "four threads", 8: "eight threads"}
_HOST_ROW = "clip + AdamW, 1000 tensors of 100"
_BASELINES = {"torch-fused": "`clip_grad_norm_ + AdamW(fused=True)`", "torch-eager": "the activation, `F.dropout`"}
_IN_LOOP = " (loop)"
_HOW = (
    "`make bench` measures yours. Each row is checked against fp64 before it is timed, both sides are timed in turn, "
    "and the ratio is the median of the rounds.\n"
)
_BOUND_BY_MEMORY = 0.2
"""Share of the bandwidth of a copy; what is below waits for the host."""


def figures(folder: Path) -> str:
    """What stands between the markers: a table for each machine whose ratios `ratios.py` recorded and for each run on a
    GPU, and a link to each report of a whole run on a CPU."""
    ratios = []
    parts = []
    links = []
    for path in sorted(folder.glob("*.json")):
        measured = json.loads(path.read_text("utf-8"))
        name = path.relative_to(folder.parent.parent).as_posix()
        if measured.get("kind") != "fusedtrain-bench":
            ratios.append(_table(measured, name))
        elif measured["machine"].get("gpus"):
            parts.append(_gpu_table(measured, name))
        else:
            reports = [p for p in (path.with_suffix(".md"), path.with_suffix(".html")) if p.exists()]
            shown = ", ".join(f"[{p.suffix[1:]}]({p.relative_to(folder.parent.parent).as_posix()})" for p in reports)
            what = f"{', '.join(measured['options']['suites'])} on {_machine(measured)}, {len(measured['rows'])} rows"
            links.append(f"- {what}: [JSON]({name})" + f", {shown}" * bool(shown))
    if ratios:
        ratios.append(_HOW)
    if links:
        told = "Whole runs of `python -m fusedtrain bench`, with what others' optimizers take, scaling and memory:"
        parts.append("\n".join([told, "", *links]) + "\n")
    return "\n".join(ratios + parts)


def _machine(measured: dict[str, Any]) -> str:
    threads = measured.get("threads") or measured.get("options", {}).get("threads")
    machine = measured["machine"]
    gpus = [gpu["name"] for gpu in machine.get("gpus", [])]
    vectors = machine["cpu_capability"].replace("AVX512", "AVX-512")  # torch's name for it
    what = gpus[0] if gpus else f"a shared {machine['cpu']} ({vectors})"
    return what if gpus else f"{_WORDS.get(threads, f'{threads} threads')} of {what}"


def _table(measured: dict[str, Any], name: str) -> str:
    lines = ["| workload | against | ratio: median (rounds) |", "|---|---|---|"]
    for row in measured["rows"]:
        if row["target"] is not None and "ratio" in row:
            spread = f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f}"
            missed = f"; {row['target']}x was aimed at" if row["ratio"] < row["target"] else ""
            lines.append(f"| {row['name']} | `{row['baseline']}` | **{row['ratio']:.2f}x** ({spread}){missed} |")
    told = f"On {_machine(measured)}, torch {_torch(measured)}: [`{name}`]({name})."
    host = next((row for row in measured["rows"] if row["name"] == _HOST_ROW and "ours_us" in row), None)
    if host is not None:
        told += (
            " Steps of many small tensors are bound by the host's work, here "
            f"{host['ours_us'] / 1000:.1f} us for each of 1000 tensors."
        )
    return "\n".join([*lines, "", told, ""])


def _gpu_table(measured: dict[str, Any], name: str) -> str:
    """How much faster ours are than the row's baseline, and how much of the bandwidth of a copy they reach, where
    memory is what binds."""
    lines = [
        "| workload | against | `cuda` | `triton` | `cuda`: share of a copy's bandwidth |",
        "|---|---|---|---|---|",
    ]
    for row in measured["rows"]:
        baseline = row["baseline"]
        faster = [
            f"{ratio(row, ours, baseline):.2f}x" if timed(row, ours) and timed(row, baseline) else "not measured"
            for ours in (CUDA, TRITON)
        ]
        share = share_of_copy(row, CUDA, measured["copy_bandwidth"]) if timed(row, CUDA) else None
        bound = f"{share:.0%}" if share and share > _BOUND_BY_MEMORY else "the host binds" if share else ""
        in_loop = _IN_LOOP if row["clock"] == "wall" else ""
        lines.append(
            f"| {row['name']}{in_loop} | {_BASELINES.get(baseline, baseline)} | {' | '.join(faster)} | {bound} |"
        )
    loops = any(row["clock"] == "wall" for row in measured["rows"])
    told = (
        f"On one {_machine(measured)}, torch {_torch(measured)}: [`{name}`]({name}). Time of the device, caches cold"
        + f";{_IN_LOOP} of calls one after the other, host and device together." * loops
        + "." * (not loops)
    )
    return "\n".join([*lines, "", told, ""])


def _torch(measured: dict[str, Any]) -> str:
    return ".".join(measured["versions"]["torch"].split(".")[:2])


def updated(readme: str, folder: Path) -> str:
    """The README with the figures in their place.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"the README must have {BEGIN.strip()!r} and {END!r} once each, in this order")
    before, rest = readme.split(BEGIN)
    return before + BEGIN + figures(folder) + END + rest.split(END)[1]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the README is not so")
    check = options.parse_args().check
    path = ROOT / "README.md"
    readme = path.read_text("utf-8")
    wanted = updated(readme, ROOT / "benchmarks" / "results")
    if check and wanted != readme:
        print("README.md: its figures are not those of benchmarks/results; make readme-tables")
        return 1
    if wanted != readme:
        path.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
