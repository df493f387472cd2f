"""One run: row after row, again and again, and each on disk as soon as it has been visited."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fusedtrain.bench import bandwidth, figures, fits, gains, stats, tables, timers
from fusedtrain.bench.errors import BenchError
from fusedtrain.bench.measure import Measurement, Row
from fusedtrain.bench.progress import Watch
from fusedtrain.bench.ranks import Ranks
from fusedtrain.bench.results import KIND, SCHEMA, Results, write_json, write_text
from fusedtrain.bench.selection import Item
from fusedtrain.bench.setting import setting
from fusedtrain.bench.train_step import TrainStep
from fusedtrain.bench.workload import Workload

_ROUNDS_OF_A_VISIT = 2
"""For a comparison visits count, not rounds: beside other programs, six visits of two rounds tell a change to 26 %
where four of three tell it to 35 %. Rounds of one visit could not tell that one of them was interrupted."""


@dataclass(frozen=True)
class Plan:
    """A run whose options have been checked."""

    items: Sequence[Item]
    device: torch.device
    path: Path
    command: str
    options: dict[str, Any]
    """As given, for the record."""
    rounds: int = 20
    seconds: float = 0.1
    """That a timing takes at least."""
    threads: int = 1
    limit: float = math.inf
    """Seconds for the rounds of a row; every visit has at least one round."""
    deadline: float = math.inf
    """Seconds for all rows: late ones get fewer rounds, and those that it has no time for at all say so."""
    copy_bytes: int | None = None
    cudagraph: bool = False
    observed: bool = True
    keep_going: bool = False
    model: TrainStep | None = None
    """The user's, whose gain is told."""
    ranks: Sequence[Ranks] = ()
    csv: Path | None = None
    markdown: Path | None = None
    fail_under: float | None = None

    def visits(self) -> list[int]:
        """The rounds of each visit, as even as can be: a visit of a row lasts so short a time that the machine is
        equally fast in it, and a run has as many of them as it has time for."""
        visits = max(1, self.rounds // _ROUNDS_OF_A_VISIT)
        return [self.rounds // visits + (i < self.rounds % visits) for i in range(visits)]


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
    if plan.device.index is not None:
        torch.cuda.set_device(plan.device)  # events, streams and what says no more than "cuda" are of the current one
    copy = _copy_bandwidth(plan)
    results: Results = {
        "kind": KIND,
        "schema": SCHEMA,
        **setting(plan.command),
        "options": plan.options,
        "complete": False,
        "copy_bandwidth": copy,
        "copy_bandwidths": [copy],
        "rows": [],
    }
    write_json(plan.path, results)
    console.print(f"copy bandwidth {copy / 1e9:,.1f} GB/s, reads and writes counted; rows go to {plan.path}")
    cpus = results["machine"]["cpus"] or 1
    if (results["load"] or 0.0) > cpus / 2:
        busy = f"the load is {results['load']:.1f} on {cpus} CPUs: other programs run, and figures will be rough"
        console.print(busy, style="yellow", highlight=False)
    pieces = [_pieces(item, rounds, first=not i) for i, rounds in enumerate(plan.visits()) for item in plan.items]
    watch = Watch(console, sum(pieces) + len(plan.ranks))
    try:
        whole = _rows(plan, results, watch)
        if whole:
            _ranks(plan, results, watch)
        if plan.model is not None and whole:
            watch.begin("shares of the step")
            results["gains"] = _gains(plan, plan.model, results["rows"])
    except BaseException:
        with contextlib.suppress(BenchError):  # what happened first is what is to be told
            write_json(plan.path, results)
        raise
    finally:
        watch.close()
    write_json(plan.path, results)
    results["fits"] = fits.of_rows(results["rows"])
    results["complete"] = whole
    write_json(plan.path, results)
    if plan.csv is not None:
        write_text(plan.csv, tables.as_csv(results))
    if plan.markdown is not None:
        write_text(plan.markdown, tables.as_markdown(results))
    return conclude(plan, results, console)


def _gains(plan: Plan, model: TrainStep, rows: list[Row]) -> dict[str, Any]:
    try:
        return gains.of_model(model, plan.device, rows, plan.rounds, plan.limit)
    except Exception as error:  # of the user's model, in a step: the rows stand all the same
        why = f"its step raised {type(error).__name__}: {error}".splitlines()[0]
        return {"model": model.path, "why_not": why, "raised": True}


def _copy_bandwidth(plan: Plan) -> float:
    on_gpu = plan.device.type == "cuda"
    clock: timers.Clock = timers.Device() if on_gpu else timers.Wall(min(plan.seconds, 0.1), plan.threads)
    return bandwidth.copy_bandwidth(plan.device, clock, plan.copy_bytes)


def _rows(plan: Plan, results: Results, watch: Watch) -> bool:
    """Visits all rows, then all again, so that every row sees the machine at its fast and at its slow times, and so
    does the copy that they are compared with. Whether all were measured."""
    began = time.monotonic()
    visits = plan.visits()
    measurements: list[Measurement] = []
    for visit, rounds in enumerate(visits):
        if visit:
            results["copy_bandwidths"].append(_copy_bandwidth(plan))
            results["copy_bandwidth"] = statistics.median(results["copy_bandwidths"])
        for number, item in enumerate(plan.items):
            left = plan.deadline - (time.monotonic() - began)
            limit = min(plan.limit / len(visits), left / (len(plan.items) * (len(visits) - visit) - number))
            watch.begin(f"{item.workload.name}, visit {visit + 1} of {len(visits)}")
            due = watch.done + _pieces(item, rounds, first=not visit)
            if not visit:
                measurements.append(_checked(plan, item, left, watch))
                results["rows"].append(measurements[-1].row)
            if left > 0:
                measurements[number].visit(rounds, limit)
                torch.set_num_threads(plan.threads)  # a point of an axis may have had others
            watch.tick(due - watch.done)
            write_json(plan.path, results)
            wrong = figures.failures([measurements[number].row])
            if wrong or visit + 1 == len(visits):
                watch.show(tables.lines(measurements[number].row, results["copy_bandwidth"]))
            else:
                watch.note(f"{item.workload.name}, visit {visit + 1} of {len(visits)}")
            if wrong and not plan.keep_going and (visit + 1, number + 1) != (len(visits), len(plan.items)):
                watch.show([f"stopped: {wrong[0]}. --keep-going goes on with the others"])
                return False
    return True


def _checked(plan: Plan, item: Item, left: float, watch: Watch) -> Measurement:
    """The row of an item, to be visited."""
    no_graph = item.workload.no_graph() if plan.cudagraph else None
    measurement = Measurement(
        item.workload,
        plan.device,
        clock_of(plan, item.workload, item.point.threads if item.point else None),
        providers=item.providers if left > 0 and not no_graph else [],
        observed=plan.observed and item.point is None,
        told=watch.tick,
    )
    if item.point is not None:
        measurement.row |= {"axis": item.point.axis, "value": item.point.value}
    if no_graph:
        measurement.row["why_not"] = no_graph
    elif left > 0:
        measurement.check()
    else:
        why = f"the {plan.deadline:.0f} s of the run were over: run it alone, or without --quick"
        measurement.row["why_not"] = why
    return measurement


def _pieces(item: Item, rounds: int, first: bool) -> int:
    return len(item.providers) * (rounds + first)


def _ranks(plan: Plan, results: Results, watch: Watch) -> None:
    """Several processes; they go last, since nothing else may run beside them."""
    for one in plan.ranks:
        watch.begin(one.name)
        row = one.measure(plan.visits(), plan.seconds, plan.limit)
        results["rows"].append(row)
        write_json(plan.path, results)
        watch.tick()
        watch.show(tables.lines(row, None))


def conclude(plan: Plan, results: Results, console: Console) -> int:
    """Prints the table and what is to be known besides."""
    console.print(tables.table(results))
    for axis, provider, fixed, scale, exponent, misfit in tables.laws(results):
        law = f"{fixed} + {scale} x n^{exponent}"
        console.print(f"{axis:<9} {provider:<20} {law:<36} misfit {misfit}", highlight=False)
    if "gains" in results:
        console.print("\n".join(gains.lines(results["gains"])), highlight=False, markup=False)
    few = [row["name"] for row in results["rows"] if 0 < len(row.get("visits", [])) < stats.LEAST_VISITS]
    if few:
        why = f"fewer than {stats.LEAST_VISITS} visits of {'; '.join(few)}: no interval, and nothing for bench compare"
        console.print(f"{why}. More --rounds, or a larger --limit", style="yellow", highlight=False, markup=False)
    console.print(f"written to {plan.path}; python -m fusedtrain bench report {plan.path} makes a page of it")
    status = 1 if results.get("gains", {}).get("raised") else 0
    for failure in figures.failures(results["rows"]):
        console.print(failure, style="bold red", highlight=False, markup=False)
        status = 1
    if plan.fail_under is not None:
        for slow in figures.below(results["rows"], plan.fail_under):
            console.print(slow, style="bold red", highlight=False, markup=False)
            status = 1
    return status
