"""Two runs: what became faster, what slower, and what did not change as far as the timings can tell.

Machines drift: one has a busier minute, or a cooler one, than the other. What is compared is therefore the ratio of a
provider to its baseline within each round, which drifts far less than times. It still drifts, and more slowly than the
rounds of one visit follow each other: these are no independent witnesses. So a visit gives one value, the median of its
rounds, and a difference between runs is held against how much the visits of each run differ: Welch's t test, with
Holm's correction for the number of rows. A fresh process also has its tensors and its code elsewhere in memory, which
makes ratios of one and the same program differ by a few per cent: only what is beyond that `MARGIN` counts.

That no difference was found does not say that there is none. "No change" is therefore said with what it is worth, the
half width of the interval, and only of a row whose whole interval lies within the `BOUND`; of all others, that it
cannot be told. Where visits differ by 5 % (standard deviation), as on a quiet machine, the 8 visits of a quick run tell
a change to 5 %, and find one of 15 % among 20 rows every other time. Where they differ by 20 %, as beside other
programs, 8 visits tell it to 23 %, and the 20 of 40 rounds to 14 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusedtrain.bench import stats
from fusedtrain.bench.errors import BenchError
from fusedtrain.bench.measure import Row, by_visit, ratios, reason, timed
from fusedtrain.bench.results import Results

LEVEL = 0.05
MARGIN = 0.05
BOUND = 0.5
"""Relative, both. A bound of half this would need four times the visits."""
_MACHINE = ("cpu", "cpus", "cpu_capability", "memory_bytes")
_OPTIONS = {"device": None, "threads": None, "cudagraph": False}
"""And what they are in runs that do not tell."""
_VERSIONS = ("torch", "triton")
FASTER, SLOWER, SAME, NEITHER, BROKEN, GONE = "faster", "slower", "no change", "cannot be told", "broken", "gone"


@dataclass(frozen=True)
class Change:
    workload: str
    provider: str
    verdict: str
    """One of the six above."""
    factor: float | None = None
    """How many times as fast as before, in the ratio to the baseline."""
    low: float | None = None
    high: float | None = None
    """The 95 % interval of it, for this row alone: what the timings leave possible."""
    smallest: float | None = None
    """The relative change that would be told with a chance of one half."""
    p_value: float | None = None
    """Adjusted for the number of rows."""
    reason: str = ""


def differences(before: Results, after: Results) -> list[str]:
    """What the machines, or how they were used, differ in."""
    found = []
    for where, keys in (("machine", dict.fromkeys(_MACHINE)), ("options", _OPTIONS)):
        for key, usual in keys.items():
            a, b = (run[where].get(key, usual) for run in (before, after))
            if a != b:
                found.append(f"{key}: {a} and {b}")
    gpus = [[gpu.get("name") for gpu in run["machine"].get("gpus", [])] for run in (before, after)]
    if gpus[0] != gpus[1]:
        found.append(f"gpus: {gpus[0]} and {gpus[1]}")
    return found


def upgrades(before: Results, after: Results) -> list[str]:
    """Versions that differ: to be known, and no reason to refuse, for what a new version changes is a fair question."""
    versions = [(key, before["versions"].get(key), after["versions"].get(key)) for key in _VERSIONS]
    return [f"{key}: {a} and {b}" for key, a, b in versions if a != b]


def check_comparable(before: Results, after: Results, paths: tuple[Path, Path], force: bool) -> list[str]:
    """What differs and is to be passed over.

    Raises:
        BenchError: the runs are of different machines, and ``force`` does not say to compare them all the same.
    """
    found = differences(before, after)
    if found and not force:
        reason = f"of different machines or settings ({'; '.join(found)}), so that times say nothing of the code"
        raise BenchError("compare", f"{paths[0]} {paths[1]}", reason, "Measure both on one, or add --force")
    return found + upgrades(before, after)


def changes(
    before: Results, after: Results, level: float = LEVEL, margin: float = MARGIN, bound: float = BOUND
) -> list[Change]:
    """Every provider of every row that both runs have, but for the baselines themselves; then what the later run does
    not have any more. Empty if they have no row in common."""
    old, new = ({_key(row): row for row in run["rows"]} for run in (before, after))
    common = [key for key in new if key in old]
    if not common:
        return []
    tested: list[Tested] = []
    untold: list[Change] = []
    for was, now in ((old[key], new[key]) for key in common):
        for provider in dict.fromkeys([*was["providers"], *now["providers"]]):
            found = _untold(was, now, provider)
            if found is not None:
                untold.append(found)
            elif provider != now["baseline"] and timed(was, provider) and timed(now, provider):
                tested.append((now, provider, *_logarithms(was, now, provider)))
    gone = [Change(old[key]["name"], "", GONE, reason="no row of the later run") for key in old if key not in new]
    tested, few = _with_enough_visits(tested)
    shifts = [stats.shift(a, b) for _, _, a, b in tested]
    adjusted = stats.holm([one.beyond(math.log1p(margin)) for one in shifts])
    least = level / max(1, len(tested))  # of the first row that is found, by Holm
    verdicts = [
        _change(row, provider, one, p, level, bound, math.expm1(math.log1p(margin) + one.half_width(1 - least)))
        for (row, provider, _, _), one, p in zip(tested, shifts, adjusted, strict=True)
    ]
    return verdicts + few + untold + gone


Tested = tuple[Row, str, list[float], list[float]]


def _untold(was: Row, now: Row, provider: str) -> Change | None:
    """The verdict on a provider that cannot be tested, and is not left out without a word."""
    found = now["providers"].get(provider)
    ran = timed(was, provider), timed(now, provider)
    ours = provider.startswith("fusedtrain-")
    # One of ours that could run, and on the same machine cannot any more, is as broken as one that fails.
    if found is not None and ours and ("wrong" in found or "failed" in found or (ran[0] and "why_not" in found)):
        return Change(now["name"], provider, BROKEN, reason=reason(found))
    if ran[0] and found is None:
        return Change(now["name"], provider, GONE, reason=str(now.get("why_not", "the later run did not take it")))
    if ran[0] != ran[1]:
        why = f"it was timed only {'before' if ran[0] else 'now'}"
        return Change(now["name"], provider, NEITHER, reason=why + (f": {reason(found)}" if found and ran[0] else ""))
    if not all(ran) or provider == now["baseline"]:
        return None
    why = _incomparable(was, now)
    return Change(now["name"], provider, NEITHER, reason=why) if why else None


def _incomparable(was: Row, now: Row) -> str:
    """Why the ratios of two rows are not of one kind, or nothing."""
    for key in ("baseline", "clock"):
        if was.get(key) != now.get(key):
            return f"its {key} was {was.get(key)} and is {now.get(key)}"
    base = now["baseline"]
    missing = [when for row, when in ((was, "before"), (now, "now")) if not timed(row, base)]
    return f"its baseline, {base}, was not timed {' or '.join(missing)}" if missing else ""


def _with_enough_visits(tested: list[Tested]) -> tuple[list[Tested], list[Change]]:
    """Those whose visits tell how much a figure wanders, and the verdict on the others."""
    enough, few = [], []
    for row, provider, a, b in tested:
        if min(len(a), len(b)) >= stats.LEAST_VISITS:
            enough.append((row, provider, a, b))
        else:
            why = f"too few visits, {len(a)} and {len(b)}; it takes {stats.LEAST_VISITS}: more --rounds"
            factor = math.exp(stats.median(b) - stats.median(a))
            few.append(Change(row["name"], provider, NEITHER, factor, reason=why))
    return enough, few


def _key(row: Row) -> tuple[Any, ...]:
    return row["name"], row["dtype"], row["device"]


def _logarithms(was: Row, now: Row, provider: str) -> tuple[list[float], list[float]]:
    """Of the ratio to the baseline, visit by visit."""
    a, b = (
        [math.log(stats.median(visit)) for visit in by_visit(row, ratios(row, provider, row["baseline"]))]
        for row in (was, now)
    )
    return a, b


def _change(
    row: Row, provider: str, shift: stats.Shift, p: float, level: float, bound: float, smallest: float
) -> Change:
    factor, low, high = (math.exp(value) for value in (shift.by, *shift.interval()))
    if p < level:
        verdict, why = (FASTER if factor > 1 else SLOWER), ""
    else:
        verdict = SAME if 1 / (1 + bound) <= low and high <= 1 + bound else NEITHER
        why = f"\N{PLUS-MINUS SIGN}{math.expm1(shift.half_width()):.0%}"
    return Change(row["name"], provider, verdict, factor, low, high, smallest, p, why)
