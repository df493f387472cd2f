"""The table of ``bench compare``."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fusedtrain.bench import compare, results
from fusedtrain.bench.compare import BROKEN, FASTER, GONE, NEITHER, SAME, SLOWER, Change
from fusedtrain.bench.errors import BenchError

_STYLES = {FASTER: "green", SLOWER: "red", SAME: "dim", NEITHER: "yellow", BROKEN: "bold red", GONE: "yellow"}


def show(paths: tuple[Path, Path], force: bool, level: float, margin: float, bound: float, console: Console) -> int:
    """Prints the verdict of every row that both runs have; how many are slower, or of ours and broken.

    Raises:
        BenchError: a file cannot be read, the machines differ, or the runs have no row in common.
    """
    before, after = (results.load(path) for path in paths)
    notes = compare.check_comparable(before, after, paths, force)
    found = compare.changes(before, after, level, margin, bound)
    if not found:
        raise BenchError("compare", f"{paths[0]} {paths[1]}", "they have no row in common", "Name runs of one suite")
    table = Table(
        title=f"{before.get('commit') or '?':.12} to {after.get('commit') or '?':.12}",
        caption="speed: in the ratio to the row's baseline, and its 95 % interval: what the timings leave possible. "
        f"faster, slower: by more than {margin:.0%}, at level {level:g} for all rows together. no change: no "
        f"difference was found, and the whole interval is within a factor of {1 + bound:g}; beside it, how sharply "
        f"that is told. {_power(found)}",
    )
    for column, justify in (("workload", "left"), ("provider", "left"), ("speed", "right"), ("p", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("")
    for change in found:
        speed = "" if change.factor is None else f"{change.factor:.3f}x"
        if change.low is not None:
            speed += f" ({change.low:.2f} to {change.high:.2f})"
        p = "" if change.p_value is None else f"{change.p_value:.3f}"
        why = f"{',' if change.verdict == SAME else ':'} {change.reason}" if change.reason else ""
        verdict = f"[{_STYLES[change.verdict]}]{escape(change.verdict + why)}"
        table.add_row(escape(change.workload), escape(change.provider), speed, p, verdict)
    console.print(table)
    for path, run in zip(paths, (before, after), strict=True):
        cpus = run["machine"].get("cpus") or 1
        if (run.get("load") or 0.0) > cpus / 2:
            busy = f"{path}: the load was {run['load']:.1f} on {cpus} CPUs at its start"
            console.print(busy, style="yellow", highlight=False, markup=False)
    for note in notes:
        console.print(f"differs: {note}", highlight=False, markup=False)
    count = {verdict: sum(change.verdict == verdict for change in found) for verdict in _STYLES}
    worth = [math.sqrt(c.high / c.low) - 1 for c in found if c.verdict == SAME and c.low and c.high]
    told = {SAME: f", \N{PLUS-MINUS SIGN}{statistics.median(worth):.0%} in the middle row" if worth else ""}
    shown = "; ".join(f"{n} {verdict}{told.get(verdict, '')}" for verdict, n in count.items() if n)
    console.print(shown, highlight=False)
    return count[SLOWER] + count[BROKEN]


def _power(found: list[Change]) -> str:
    """What could have been found."""
    smallest = [change.smallest for change in found if change.smallest is not None]
    if not smallest:
        return "No row could be tested."
    return (
        f"The smallest change that is found every other time: {statistics.median(smallest):.0%} in the middle row, "
        f"{min(smallest):.0%} to {max(smallest):.0%}."
    )
