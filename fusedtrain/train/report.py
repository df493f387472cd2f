"""The summary of a run: figures for ``summary.json``, and the table that is printed."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import fusedtrain
from fusedtrain.train import loop, measure, metrics
from fusedtrain.train.sides import PARTS, SIDES
from fusedtrain.train.world import World

_MEMORY = {
    "saved": "saved for backward, MiB",
    "peak": "peak of a step, MiB",
    "resident": "weights + states, MiB",
}
_TITLES = {"forward": "forward", "backward": "backward", "clip_step": "clip + step", "step": "whole step"}


def figures(run: loop.Run, ended: str) -> dict[str, Any]:
    """All that the table shows. The sides hold their best weights already. Called by every process."""
    scores = {
        side.name: {
            "val": loop.score(run, side, "val"),
            "test": loop.score(run, side, "test"),
            "best_step": run.stoppers[side.name].best_step,
            "stopped_early_at": run.stoppers[side.name].stopped_at,
            "share_of_steps_clipped": metrics.share_clipped(run.log.rows, side.name),
        }
        for side in run.sides
    }
    rows = metrics.warm(run.log.rows)
    times = {part: metrics.paired(rows, (part,)) for part in PARTS} | {"step": metrics.paired(rows)}
    memory = {kind.name: measure.memory(kind, run.settings, run.task) for kind in SIDES}
    return {
        "ended": ended,
        "steps": run.step,
        "metric": run.task.metric,
        "sides": scores,
        "seconds": {part: asdict(t) for part, t in times.items()},
        "memory_bytes": {name: asdict(m) for name, m in memory.items()},
        "process_peak_rss_bytes": measure.peak_resident_set(),
        "parameters": sum(p.numel() for p in run.sides[0].params),
        "environment": environment(run.world),
    }


def environment(world: World) -> dict[str, Any]:
    return {
        "fusedtrain": fusedtrain.__version__,
        "backends": fusedtrain.backends(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.machine(),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "cpu_cores": os.cpu_count(),
    }


def finite(value: Any) -> Any:
    """``value`` with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _metric(value: float, metric: str) -> str:
    return f"{value:.2%}" if metric == "accuracy" else f"{value:.4f}"


def _ratio(times: dict[str, Any]) -> str:
    r = times["ratio"]
    return "" if math.isnan(r["median"]) else f"{r['median']:.2f}x  [{r['low']:.2f}, {r['high']:.2f}]"


def _mebibytes(n: int) -> str:
    return f"{n / 2**20:.2f}"


def _times_smaller(a: int, b: int) -> str:
    return f"{a / b:.2f}x" if b else ""


def table(shown: dict[str, Any], console: Console) -> None:
    """Prints the table of these figures."""
    sides, metric = shown["sides"], shown["metric"]
    grid = Table()
    grid.add_column("")
    for name in sides:
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column(r"stock / fused \[quartiles]", justify="right", no_wrap=True)
    for split in ("val", "test"):
        grid.add_row(f"{split} {metric}", *(_metric(side[split][1], metric) for side in sides.values()), "")
        grid.add_row(f"{split} loss", *(f"{side[split][0]:.4f}" for side in sides.values()), "")
    grid.add_row("best at step", *(str(side["best_step"]) for side in sides.values()), "")
    grid.add_section()
    for part, title in _TITLES.items():
        times = shown["seconds"][part]
        grid.add_row(f"{title}, ms", *(metrics.milliseconds(times[name]["median"]) for name in sides), _ratio(times))
    grid.add_section()
    memory = shown["memory_bytes"]
    for key, title in _MEMORY.items():
        stock, fused = memory["stock"][key], memory["fused"][key]
        grid.add_row(title, _mebibytes(stock), _mebibytes(fused), _times_smaller(stock, fused))
    grid.add_row("steps clipped", *(f"{side['share_of_steps_clipped']:.1%}" for side in sides.values()), "")
    console.print(grid)
    notes(shown, console)


def notes(shown: dict[str, Any], console: Console) -> None:
    """How the figures were come by, in a line or two under the table."""
    env, steps = shown["environment"], shown["seconds"]["step"]["steps"]
    threads = f"{env['threads']} thread{'s' * (env['threads'] > 1)}"
    processes = f"{env['processes']} process{'es' * (env['processes'] > 1)}"
    console.print(
        f"{shown['parameters']:,} parameters, {shown['steps']} steps. Medians over {steps} steps that both sides took "
        f"in turn; ratios step by step, median and quartiles. Memory by torch's allocator in one step, on top "
        f"of weights and states. {env['device']}, {threads}, {processes}, torch {env['torch']}.",
        highlight=False,
    )
