"""Speed ratios against PyTorch on this machine, in one run: ``make bench``, or ``python benchmarks/ratios.py --help``.

Each workload is first checked against fp64: a row that is wrong prints no speed. Then both sides are timed in turn,
ours, theirs, ours, theirs; each round gives one ratio, and the table shows their median and their spread. Whatever else
the machine does then touches both sides of a ratio alike; look at the load that is printed all the same.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.utils.benchmark import Timer
from workloads import QUICK, WORKLOADS, Call, Workload

import fusedtrain
from fusedtrain import env

ROOT = Path(__file__).resolve().parent.parent


def seconds(call: Call, number: int, threads: int) -> float:
    """The mean time of a call over ``number`` of them."""
    return Timer("call()", globals={"call": call}, num_threads=threads).timeit(number).mean


def measure(workload: Workload, rounds: int, threads: int, at_least: float, quick: bool) -> dict[str, Any]:
    """One row: the correctness check, then all rounds. ``at_least``: seconds that each timing takes."""
    row: dict[str, Any] = {"name": workload.name, "baseline": workload.baseline, "target": workload.target}
    row["budget_us"] = workload.budget
    pair = (QUICK.get(workload.name) or workload.make)() if quick else workload.make()
    try:
        pair.check()
    except AssertionError as error:
        return {**row, "wrong": str(error)}
    sides = {"ours": pair.ours, "theirs": pair.theirs}
    for call in sides.values():
        seconds(call, 2, threads)
    number = {name: max(1, round(at_least / seconds(call, 1, threads))) for name, call in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            times[name].append(seconds(call, number[name], threads))
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["theirs"], strict=True)]
    return {
        **row,
        "calls_per_round": number,
        "seconds": times,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "ours_us": statistics.median(times["ours"]) * 1e6,
        "theirs_us": statistics.median(times["theirs"]) * 1e6,
    }


def git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


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
            table.add_row(row["name"], row["baseline"], "", "", "[red]WRONG", "", row["wrong"])
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
    """Prints the ratios; exits with 1 if a row is wrong. A missed target is shown, and no failure: machines differ."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    torch.set_num_threads(threads)
    rounds = min(rounds, 3) if quick else rounds
    console.print(
        f"torch {torch.__version__}, {threads} threads, {env.machine()['cpu']}, load {os.getloadavg()[0]:.2f}"
    )
    console.print(f"backends: {fusedtrain.backends()}")
    report: dict[str, Any] = {
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": "python benchmarks/ratios.py " + " ".join(sys.argv[1:]),
        "commit": git("rev-parse", "HEAD"),
        "changed_since": bool(git("status", "--porcelain", "--untracked-files=no")),
        "versions": env.versions(),
        "machine": env.machine(),
        "build": env.build_info(),
        "backends": fusedtrain.backends(),
        "threads": threads,
        "rows": [],
    }
    for workload in WORKLOADS:
        if only not in workload.name:
            continue
        load = os.getloadavg()[0]
        row = measure(workload, rounds, threads, 0.05 if quick else 0.3, quick)
        report["rows"].append({**row, "load": [load, os.getloadavg()[0]]})
        console.print(f"  {row['name']}: " + ("WRONG" if "wrong" in row else f"{row['ratio']:.2f}"))
    show(report["rows"], console)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        aside = json_path.with_name(json_path.name + ".part")
        aside.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        aside.replace(json_path)
    if any("wrong" in row for row in report["rows"]):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
