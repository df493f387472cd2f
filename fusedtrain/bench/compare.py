"""Two runs: what became faster, what slower, and what did not change as far as the timings can tell.

Runs drift: one has a busier machine, or a cooler one, than the other. What is compared is therefore the ratio of a
provider to its baseline within each round, which drifts far less than times. And a fresh process has its tensors
elsewhere in memory, which makes ratios of one and the same program differ by a few per cent; a difference must be
larger than that `MARGIN` to count, as `stats.beyond` tests, and unlikely at the level after Holm's correction for the
number of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusedtrain.bench import stats
from fusedtrain.bench.errors import BenchError
from fusedtrain.bench.measure import Row, ratios, timed
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
    tested, few = _with_enough_rounds(tested, level)
    raw = [stats.beyond(a, b, math.log1p(margin)) for _, _, a, b in tested]
    verdicts = [
        _change(row, provider, a, b, p, level) for (row, provider, a, b), p in zip(tested, stats.holm(raw), strict=True)
    ]
    return verdicts + few + untold


Tested = tuple[Row, str, list[float], list[float]]


def _with_enough_rounds(tested: list[Tested], level: float) -> tuple[list[Tested], list[Change]]:
    """Those whose rounds could show a change, if there was one, and the verdict on the others: a test that can never
    reject would call everything unchanged."""
    enough, few = [], []
    for row, provider, a, b in tested:
        if stats.least_p_value(len(a), len(b)) * len(tested) < level:
            enough.append((row, provider, a, b))
        else:
            reason = f"too few rounds, {len(a)} and {len(b)}, for {len(tested)} rows at {level:g}"
            few.append(Change(row["name"], provider, NEITHER, math.exp(stats.shift(a, b)), reason=reason))
    return enough, few


def _key(row: Row) -> tuple[Any, ...]:
    return row["name"], row["dtype"], row["device"]


def _logarithms(was: Row, now: Row, provider: str) -> tuple[list[float], list[float]]:
    """Of the ratio to the baseline, round by round; of the speed itself if a run has no baseline."""
    base = now["baseline"]
    if timed(was, base) and timed(now, base):
        of_rounds = [ratios(row, provider, base) for row in (was, now)]
    else:
        of_rounds = [[1 / s for s in row["providers"][provider]["seconds"]] for row in (was, now)]
    a, b = ([math.log(r) for r in one] for one in of_rounds)
    return a, b


def _change(row: Row, provider: str, a: list[float], b: list[float], p: float, level: float) -> Change:
    factor = math.exp(stats.shift(a, b))
    verdict = SAME if p >= level else FASTER if factor > 1 else SLOWER
    return Change(row["name"], provider, verdict, factor, p)
