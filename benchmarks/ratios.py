"""Speed ratios against PyTorch on this machine, in one run: ``make bench``, or ``python benchmarks/ratios.py --help``.

Each workload is first checked against fp64: a row that is wrong prints no speed. Then both sides are timed in turn,
ours, theirs, ours, theirs; each round gives one ratio, and the table shows their median and their spread. Whatever else
the machine does then touches both sides of a ratio alike; look at the load that is printed all the same.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rows import QUICK, ROWS, Row

import fusedtrain
from fusedtrain import env
from fusedtrain.bench.errors import BenchError, unknown
from fusedtrain.bench.measure import measure, median_seconds, ratios, reason, timed
from fusedtrain.bench.results import check_writable, write_json
from fusedtrain.bench.setting import setting
from fusedtrain.bench.timers import Wall

CPU = torch.device("cpu")


def figures(row: Row, rounds: int, clock: Wall, quick: bool) -> dict[str, Any]:
    """One row: the correctness check, then all rounds."""
    workload = QUICK.get(row.name, row.workload) if quick else row.workload
    ours = row.ours()
    told = {"name": row.name, "baseline": row.baseline, "target": row.target, "budget_us": row.budget}
    found = measure(workload, CPU, clock, providers=[ours, row.theirs], rounds=rounds, observed=False)
    sides = {"ours": ours, "theirs": row.theirs}
    for side in sides.values():
        if "why_not" in found or not timed(found, side):
            return {**told, "wrong": f"{side}: {found.get('why_not') or reason(found['providers'][side])}"}
    of_rounds = ratios(found, ours, row.theirs)
    return {
        **told,
        "providers": sides,
        "calls_per_round": {name: found["providers"][side]["calls_per_timing"] for name, side in sides.items()},
        "seconds": {name: found["providers"][side]["seconds"] for name, side in sides.items()},
        "ratios": of_rounds,
        "ratio": statistics.median(of_rounds),
        "ours_us": median_seconds(found, ours) * 1e6,
        "theirs_us": median_seconds(found, row.theirs) * 1e6,
    }


def verdict(row: dict[str, Any]) -> str:
    if row["target"] is not None:
        return "[green]met" if row["ratio"] >= row["target"] else "[red]missed"
    return "[green]met" if row["ours_us"] <= row["budget_us"] else "[red]missed"


def show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(
        title="fusedtrain against PyTorch", caption="ratio: median (lowest to highest round); > 1: ours is faster"
    )
    for column, justify in (
        ("workload", "left"), ("against", "left"), ("ours us", "right"), ("theirs us", "right"),
        ("ratio", "right"), ("target", "right"), ("", "left"),
    ):  # fmt: skip
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        if "wrong" in row:
            table.add_row(row["name"], row["baseline"], "", "", "[red]WRONG", "", escape(row["wrong"]))
            continue
        spread = f"{row['ratio']:.2f} ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})"
        target = f">= {row['target']:g}" if row["target"] is not None else f"<= {row['budget_us']:.0f} us"
        times = f"{row['ours_us']:,.0f}", f"{row['theirs_us']:,.0f}"
        table.add_row(row["name"], row["baseline"], *times, spread, target, verdict(row))
    console.print(table)


def main(
    json_path: Annotated[
        Path | None, typer.Option("--json", help="write machine, versions, commit, all rounds")
    ] = None,
    quick: Annotated[bool, typer.Option(help="fewer and shorter rounds, a smaller GPT: proves nothing")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="rounds of each row")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="threads of torch")] = 2,
    only: Annotated[str, typer.Option(help="rows whose name contains this")] = "",
) -> None:
    """Prints the ratios, and writes rows as they come; exits with 1 if a row is wrong.

    A missed target is shown, and no failure: machines differ.
    """
    console = Console(width=None if sys.stdout.isatty() else 150)
    chosen = [row for row in ROWS if only in row.name]
    try:
        if not chosen:
            raise unknown("--only", only, "row", [row.name for row in ROWS])
        if json_path is not None:
            check_writable("--json", json_path)
    except BenchError as error:
        Console(stderr=True).print(f"error: {error}", style="bold red", soft_wrap=True, highlight=False, markup=False)
        raise typer.Exit(2) from None
    torch.set_num_threads(threads)
    rounds = min(rounds, 3) if quick else rounds
    console.print(
        f"torch {torch.__version__}, {threads} threads, {env.machine()['cpu']}, load {os.getloadavg()[0]:.2f}"
    )
    console.print(f"backends: {fusedtrain.backends()}")
    command = "python benchmarks/ratios.py " + " ".join(sys.argv[1:])
    report: dict[str, Any] = {**setting(command), "threads": threads, "rows": []}
    clock = Wall(0.05 if quick else 0.3, threads)
    for row in chosen:
        load = os.getloadavg()[0]
        measured = figures(row, rounds, clock, quick)
        report["rows"].append({**measured, "load": [load, os.getloadavg()[0]]})
        if json_path is not None:
            write_json(json_path, report)
        console.print(f"  {row.name}: " + ("WRONG" if "wrong" in measured else f"{measured['ratio']:.2f}"))
    show(report["rows"], console)
    if any("wrong" in row for row in report["rows"]):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
