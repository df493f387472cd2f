"""``python -m fusedtrain.bench``: measures workloads by name and writes what it finds as JSON, row by row."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fusedtrain.bench import bandwidth, timers
from fusedtrain.bench.measure import Row, measure, median_seconds, timed
from fusedtrain.bench.setting import setting
from fusedtrain.bench.workload import Workload
from fusedtrain.bench.workloads import WORKLOADS


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m fusedtrain.bench", description=__doc__)
    options.add_argument("--list", action="store_true", help="list the workloads and the providers of each")
    options.add_argument("--only", default="", help="workloads whose name contains this")
    options.add_argument("--workload", action="append", choices=list(WORKLOADS), metavar="NAME", help="by full name")
    options.add_argument("--providers", default="", help="comma-separated; default: all of a workload")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    options.add_argument("--rounds", type=int, default=5, help="each times every provider once")
    options.add_argument("--seconds", type=float, default=0.1, help="that a timing takes at least")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    options.add_argument("--json", type=Path, help="write setting, rows and all timings to this file")
    return options


def write_json(path: Path, value: Any) -> None:
    """Writes aside and renames, so that the file is whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    aside.replace(path)


def clock_of(workload: Workload, device: torch.device, seconds: float, threads: int) -> timers.Clock:
    """The clock that says what counts: of the wall on CPUs, and where a GPU waits for its host."""
    if device.type == "cpu" or workload.host_bound:
        return timers.Wall(seconds, threads)
    return timers.Device(seconds)


def lines(row: Row, copy_bandwidth: float) -> list[str]:
    """A row for people: a line for each provider."""
    shown = [f"{row['name']} ({row['dtype']} on {row['device']}, {row['clock']} time)"]
    for provider, found in row["providers"].items():
        if not timed(row, provider):
            shown.append(f"  {provider:<22} {'WRONG: ' + found['wrong'] if 'wrong' in found else found['why_not']}")
            continue
        seconds = median_seconds(row, provider)
        share = row["bytes"] / seconds / copy_bandwidth
        line = f"  {provider:<22} {seconds * 1e6:12,.1f} us {share:7.1%} of copy"
        if "host_seconds" in found:
            line += f", host {found['host_seconds'] * 1e6:,.0f} us"
        if "launches" in found:
            line += f", {found['launches']} launches"
        shown.append(line)
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 if a provider of ours is wrong; 2 if nothing can be measured as asked."""
    options = parser().parse_args(arguments)
    named = options.workload or WORKLOADS
    chosen = [WORKLOADS[name] for name in named if options.only in name]
    if options.list:
        for workload in chosen:
            print(f"{workload.name}\n    {', '.join(workload.providers())}")
        return 0
    if not chosen:
        print(f"python -m fusedtrain.bench: no workload's name contains {options.only!r}; --list shows them")
        return 2
    if options.device == "cuda" and not torch.cuda.is_available():
        print("python -m fusedtrain.bench: --device cuda: torch sees no GPU; choose --device cpu")
        return 2
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    wanted = [name for name in options.providers.split(",") if name] or None
    clock: timers.Clock = timers.Device() if device.type == "cuda" else timers.Wall(options.seconds, options.threads)
    copy = bandwidth.copy_bandwidth(device, clock)
    command = "python -m fusedtrain.bench " + " ".join(sys.argv[1:] if arguments is None else arguments)
    report: dict[str, Any] = {**setting(command), "copy_bandwidth": copy, "rows": []}
    print(f"copy bandwidth {copy / 1e9:,.0f} GB/s, reads and writes counted")
    for workload in chosen:
        clock = clock_of(workload, device, options.seconds, options.threads)
        row = measure(workload, device, clock, providers=wanted, rounds=options.rounds)
        report["rows"].append(row)
        print("\n".join(lines(row, copy)), flush=True)
        if options.json is not None:
            write_json(options.json, report)
    wrong = [p for row in report["rows"] for p, found in row["providers"].items() if "wrong" in found]
    return 1 if any(p.startswith("fusedtrain-") for p in wrong) else 0
