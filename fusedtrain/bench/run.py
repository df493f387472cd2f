"""One run: row after row, each on disk as soon as it is finished."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fusedtrain.bench import bandwidth, figures, fits, gains, ranks, tables, timers
from fusedtrain.bench.measure import FEWEST, Row, measure
from fusedtrain.bench.progress import Watch
from fusedtrain.bench.results import KIND, SCHEMA, Results, write_json, write_text
from fusedtrain.bench.selection import Item
from fusedtrain.bench.setting import setting
from fusedtrain.bench.workload import Workload


@dataclass(frozen=True)
class Plan:
    """A run whose options have been checked."""

    items: Sequence[Item]
    device: torch.device
    path: Path
    command: str
    options: dict[str, Any]
    """As given, for the record."""
    rounds: int = 15
    seconds: float = 0.1
    """That a timing takes at least."""
    threads: int = 1
    limit: float = math.inf
    """Seconds for the rounds of a row."""
    deadline: float = math.inf
    """Seconds for all rows: late ones get fewer rounds, and those that it has no time for at all say so."""
    copy_bytes: int | None = None
    cudagraph: bool = False
    observed: bool = True
    keep_going: bool = False
    model: str | None = None
    ranks: tuple[int, ...] = ()
    csv: Path | None = None
    markdown: Path | None = None
    fail_under: float | None = None


def clock_of(plan: Plan, workload: Workload, threads: int | None = None) -> timers.Clock:
    """The clock that says what counts: of the wall on CPUs, and where a GPU waits for its host."""
    if plan.cudagraph:
        return timers.Graph(plan.seconds)
    if plan.device.type == "cpu" or workload.host_bound:
        return timers.Wall(plan.seconds, threads or plan.threads)
    return timers.Device(plan.seconds)


def run(plan: Plan, console: Console) -> int:
    """Measures and writes; the exit status: 0; 1 if something of ours is wrong, or below ``fail_under``."""
    torch.set_num_threads(plan.threads)
    copy = _copy_bandwidth(plan)
    results: Results = {
        "kind": KIND,
        "schema": SCHEMA,
        **setting(plan.command),
        "options": plan.options,
        "complete": False,
        "copy_bandwidth": copy,
        "rows": [],
    }
    write_json(plan.path, results)
    console.print(f"copy bandwidth {copy / 1e9:,.1f} GB/s, reads and writes counted; rows go to {plan.path}")
    cpus = results["machine"]["cpus"] or 1
    if (results["load"] or 0.0) > cpus / 2:
        busy = f"the load is {results['load']:.1f} on {cpus} CPUs: other programs run, and figures will be rough"
        console.print(busy, style="yellow", highlight=False)
    watch = Watch(console, sum(_pieces(item, plan) for item in plan.items) + len(plan.ranks))
    try:
        whole = _rows(plan, results, watch)
        whole = whole and _ranks(plan, results, watch)
        if plan.model is not None and whole:
            watch.begin("shares of the step")
            results["gains"] = gains.of_model(plan.model, plan.device, results["rows"], plan.rounds, plan.limit)
    finally:
        watch.close()
        results["fits"] = fits.of_rows(results["rows"])
        write_json(plan.path, results)
    results["complete"] = whole
    write_json(plan.path, results)
    if plan.csv is not None:
        write_text(plan.csv, tables.as_csv(results))
    if plan.markdown is not None:
        write_text(plan.markdown, tables.as_markdown(results))
    return conclude(plan, results, console)


def _copy_bandwidth(plan: Plan) -> float:
    on_gpu = plan.device.type == "cuda"
    clock: timers.Clock = timers.Device() if on_gpu else timers.Wall(min(plan.seconds, 0.1), plan.threads)
    return bandwidth.copy_bandwidth(plan.device, clock, plan.copy_bytes)


def _pieces(item: Item, plan: Plan) -> int:
    return len(item.providers) * (1 + plan.rounds)


def _rows(plan: Plan, results: Results, watch: Watch) -> bool:
    """Whether all of them were measured."""
    began = time.monotonic()
    for number, item in enumerate(plan.items):
        watch.begin(item.workload.name)
        before = watch.done
        row = _row(plan, item, plan.deadline - (time.monotonic() - began), len(plan.items) - number, watch)
        watch.tick(_pieces(item, plan) - (watch.done - before))
        _add(plan, results, row)
        watch.show(tables.lines(row, results["copy_bandwidth"]))
        if figures.failures([row]) and not plan.keep_going and number + 1 < len(plan.items):
            watch.show([f"stopped: {figures.failures([row])[0]}. --keep-going goes on with the others"])
            return False
    return True


def _row(plan: Plan, item: Item, left: float, rows: int, watch: Watch) -> Row:
    """With the copy bandwidth of its own minute, so that whatever else the machine does slows both alike."""
    row = measure(
        item.workload,
        plan.device,
        clock_of(plan, item.workload, item.point.threads if item.point else None),
        providers=item.providers if left > 0 else [],
        rounds=plan.rounds,
        observed=plan.observed and item.point is None,
        setups=2,
        limit=min(plan.limit, left / rows),
        fewest=FEWEST if left > 2 * rows else 3,  # late, a median of three is better than none
        told=watch.tick,
    )
    torch.set_num_threads(plan.threads)
    if left <= 0:
        row["why_not"] = f"the {plan.deadline:.0f} s of the run were over: run it alone, or without --quick"
    if item.point is not None:
        return {**row, "axis": item.point.axis, "value": item.point.value}
    return {**row, "copy_bandwidth": _copy_bandwidth(plan)} if row["bytes"] and left > 0 else row


def _ranks(plan: Plan, results: Results, watch: Watch) -> bool:
    """Several processes; they go last, since nothing else may run beside them."""
    for n in plan.ranks:
        watch.begin(f"{n} ranks")
        row = ranks.measure(n, plan.rounds, plan.seconds, plan.limit)
        _add(plan, results, row)
        watch.tick()
        watch.show(tables.lines(row, None))
    return True


def _add(plan: Plan, results: Results, row: Row) -> None:
    results["rows"].append(row)
    write_json(plan.path, results)


def conclude(plan: Plan, results: Results, console: Console) -> int:
    """Prints the table and what is to be known besides."""
    console.print(tables.table(results))
    for law in results["fits"]:
        if "exponent" in law:
            console.print(
                f"{law['axis']:<9} {law['provider']:<20} {tables.duration(law['fixed'])} + "
                f"{tables.duration(law['scale'])} x n^{law['exponent']:.2f}",
                highlight=False,
            )
    if "gains" in results:
        console.print("\n".join(gains.lines(results["gains"])), highlight=False, markup=False)
    console.print(f"written to {plan.path}; python -m fusedtrain bench report {plan.path} makes a page of it")
    status = 0
    for failure in figures.failures(results["rows"]):
        console.print(failure, style="bold red", highlight=False, markup=False)
        status = 1
    if plan.fail_under is not None:
        for slow in figures.below(results["rows"], plan.fail_under):
            console.print(f"below {plan.fail_under:g}: {slow}", style="bold red", highlight=False, markup=False)
            status = 1
    return status
