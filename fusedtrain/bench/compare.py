"""Two runs: what became faster, what slower, and what did not change as far as the timings can tell.

Machines drift: one has a busier minute, or a cooler one, than the other. What is compared is therefore the ratio of a
provider to its baseline within each round, which drifts far less than times. It still drifts, and more slowly than the
rounds of one visit follow each other: these are no independent witnesses. So a visit gives one value, the median of its
rounds, and a difference between runs is held against how much the visits of each run differ: Welch's t test, with
Holm's correction for the number of rows. A fresh process also has its tensors and its code elsewhere in memory, which
makes ratios of one and the same program differ by a few per cent: only what is beyond that `MARGIN` counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusedtrain.bench import stats
from fusedtrain.bench.errors import BenchError
from fusedtrain.bench.measure import Row, by_visit, ratios, timed
from fusedtrain.bench.results import Results

LEVEL = 0.05
MARGIN = 0.05
"""Relative."""
_MACHINE = ("cpu", "cpus", "cpu_capability", "memory_bytes")
_OPTIONS = ("device", "threads")
FASTER, SLOWER, SAME, NEITHER = "faster", "slower", "no change", "cannot be told"


@dataclass(frozen=True)
class Change:
    workload: str
    provider: str
    verdict: str
    """One of the four above."""
    factor: float | None = None
    """How many times as fast as before, in the ratio to the baseline."""
    low: float | None = None
    high: float | None = None
    """The 95 % interval of it, for this row alone: what a verdict of no change leaves possible."""
    p_value: float | None = None
    """Adjusted for the number of rows."""
    reason: str = ""


def differences(before: Results, after: Results) -> list[str]:
    """What the machines, or how they were used, differ in."""
    found = []
    for where, keys in (("machine", _MACHINE), ("options", _OPTIONS)):
        for key in keys:
            a, b = before[where].get(key), after[where].get(key)
            if a != b:
                found.append(f"{key}: {a} and {b}")
    gpus = [[gpu.get("name") for gpu in run["machine"].get("gpus", [])] for run in (before, after)]
    if gpus[0] != gpus[1]:
        found.append(f"gpus: {gpus[0]} and {gpus[1]}")
    return found


def check_comparable(before: Results, after: Results, paths: tuple[Path, Path], force: bool) -> list[str]:
    """What differs, if that is to be passed over.

    Raises:
        BenchError: the runs are of different machines, and ``force`` does not say to compare them all the same.
    """
    found = differences(before, after)
    if found and not force:
        reason = f"of different machines or settings ({'; '.join(found)}), so that times say nothing of the code"
        raise BenchError("compare", f"{paths[0]} {paths[1]}", reason, "Measure both on one, or add --force")
    return found


def changes(before: Results, after: Results, level: float = LEVEL, margin: float = MARGIN) -> list[Change]:
    """Every provider of every row that both runs have, but for the baselines themselves."""
    old = {_key(row): row for row in before["rows"]}
    pairs = [(old[_key(row)], row) for row in after["rows"] if _key(row) in old]
    tested: list[Tested] = []
    untold: list[Change] = []
    for was, now in pairs:
        for provider in now["providers"]:
            if provider not in was["providers"] or provider == now["baseline"]:
                continue
            if not (timed(was, provider) and timed(now, provider)):
                if timed(was, provider) or timed(now, provider):
                    when = "before" if timed(was, provider) else "now"
                    untold.append(Change(now["name"], provider, NEITHER, reason=f"it was timed only {when}"))
                continue
            tested.append((now, provider, *_logarithms(was, now, provider)))
    tested, few = _with_enough_visits(tested)
    shifts = [stats.shift(a, b) for _, _, a, b in tested]
    adjusted = stats.holm([one.beyond(math.log1p(margin)) for one in shifts])
    verdicts = [
        _change(row, provider, one, p, level)
        for (row, provider, _, _), one, p in zip(tested, shifts, adjusted, strict=True)
    ]
    return verdicts + few + untold


Tested = tuple[Row, str, list[float], list[float]]


def _with_enough_visits(tested: list[Tested]) -> tuple[list[Tested], list[Change]]:
    """Those whose visits tell how much a figure wanders, and the verdict on the others."""
    enough, few = [], []
    for row, provider, a, b in tested:
        if min(len(a), len(b)) >= stats.LEAST_BLOCKS:
            enough.append((row, provider, a, b))
        else:
            reason = f"too few visits, {len(a)} and {len(b)}"
            factor = math.exp(stats.median(b) - stats.median(a))
            few.append(Change(row["name"], provider, NEITHER, factor, reason=reason))
    return enough, few


def _key(row: Row) -> tuple[Any, ...]:
    return row["name"], row["dtype"], row["device"]


def _logarithms(was: Row, now: Row, provider: str) -> tuple[list[float], list[float]]:
    """Of the ratio to the baseline, visit by visit; of the speed itself if a run has no baseline."""
    base = now["baseline"]
    if timed(was, base) and timed(now, base):
        of_rounds = [ratios(row, provider, base) for row in (was, now)]
    else:
        of_rounds = [[1 / s for s in row["providers"][provider]["seconds"]] for row in (was, now)]
    a, b = (
        [math.log(stats.median(visit)) for visit in by_visit(row, values)]
        for row, values in zip((was, now), of_rounds, strict=True)
    )
    return a, b


def _change(row: Row, provider: str, shift: stats.Shift, p: float, level: float) -> Change:
    factor, low, high = (math.exp(value) for value in (shift.by, *shift.interval()))
    verdict = SAME if p >= level else FASTER if factor > 1 else SLOWER
    return Change(row["name"], provider, verdict, factor, low, high, p)
