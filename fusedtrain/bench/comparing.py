"""The table of ``bench compare``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from fusedtrain.bench import compare, results
from fusedtrain.bench.compare import FASTER, NEITHER, SAME, SLOWER
from fusedtrain.bench.errors import BenchError

_STYLES = {FASTER: "green", SLOWER: "red", SAME: "dim", NEITHER: "yellow"}


def show(paths: tuple[Path, Path], force: bool, level: float, margin: float, console: Console) -> int:
    """Prints the verdict of every row that both runs have; how many are slower.

    Raises:
        BenchError: a file cannot be read, the machines differ, or the runs have no row in common.
    """
    before, after = (results.load(path) for path in paths)
    notes = compare.check_comparable(before, after, paths, force)
    found = compare.changes(before, after, level, margin)
    if not found:
        raise BenchError("compare", f"{paths[0]} {paths[1]}", "they have no row in common", "Name runs of one suite")
    table = Table(
        title=f"{before.get('commit') or '?':.12} to {after.get('commit') or '?':.12}",
        caption="speed: in the ratio to the row's baseline, and its 95 % interval: what a verdict of no change leaves "
        f"possible. A difference of up to {margin:.0%} counts as none; p-values are for all {len(found)} rows "
        f"together, level {level:g}.",
    )
    for column, justify in (("workload", "left"), ("provider", "left"), ("speed", "right"), ("p", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("")
    for change in found:
        speed = "" if change.factor is None else f"{change.factor:.3f}x"
        if change.low is not None:
            speed += f" ({change.low:.2f} to {change.high:.2f})"
        p = "" if change.p_value is None else f"{change.p_value:.3f}"
        verdict = f"[{_STYLES[change.verdict]}]{change.verdict}" + (f": {change.reason}" if change.reason else "")
        table.add_row(change.workload, change.provider, speed, p, verdict)
    console.print(table)
    for path, run in zip(paths, (before, after), strict=True):
        cpus = run["machine"].get("cpus") or 1
        if (run.get("load") or 0.0) > cpus / 2:
            console.print(f"{path}: the load was {run['load']:.1f} on {cpus} CPUs at its start", style="yellow")
    for note in notes:
        console.print(f"differs: {note}", highlight=False, markup=False)
    count = {verdict: sum(change.verdict == verdict for change in found) for verdict in _STYLES}
    console.print(", ".join(f"{n} {verdict}" for verdict, n in count.items() if n), highlight=False)
    return count[SLOWER]
