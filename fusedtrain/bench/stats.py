"""What can be said of a few timings: medians, spread, intervals, and whether two sets of them differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

LEAST_VISITS = 3
"""Fewer do not tell how much they vary."""
_TINY = 1e-24
"""Variance of values that are all the same."""


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The quartiles."""
    low, high = np.percentile(np.asarray(values, dtype=float), [25, 75])
    return float(low), float(high)


def median_interval(visits: Sequence[Sequence[float]], level: float = 0.95) -> tuple[float, float] | None:
    """The interval of the median of positive values that come in visits; None of fewer than `LEAST_VISITS`.

    Values of one visit are alike, so that each visit counts as one value, the logarithm of its median, and the interval
    is that of the t distribution about their mean. (A bootstrap of so few visits is too narrow: of three it covers 74 %
    where it says 95.) It is widened, where it must be, to hold the median of all values.
    """
    if len(visits) < LEAST_VISITS:
        return None
    middle = statistics.median(value for visit in visits for value in visit)
    logs = np.log([statistics.median(visit) for visit in visits])
    half = float(special.stdtrit(len(logs) - 1, (1 + level) / 2)) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    mean = float(logs.mean())
    return min(middle, math.exp(mean - half)), max(middle, math.exp(mean + half))


@dataclass(frozen=True)
class Shift:
    """How much larger some values are than others, by Welch's t distribution: the two sets may vary differently."""

    by: float
    """The difference of the means."""
    error: float
    """Its standard error."""
    freedom: float
    """Degrees of it, by Welch and Satterthwaite."""

    def beyond(self, margin: float) -> float:
        """The p-value of the hypothesis that the shift is at most ``margin`` either way: two one-sided tests, with
        Bonferroni's factor for the two."""
        return float(min(1.0, 2 * special.stdtr(self.freedom, (margin - abs(self.by)) / self.error)))

    def half_width(self, level: float = 0.95) -> float:
        """Of the interval."""
        return float(special.stdtrit(self.freedom, (1 + level) / 2)) * self.error

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        half = self.half_width(level)
        return self.by - half, self.by + half


def shift(before: Sequence[float], after: Sequence[float]) -> Shift:
    """Of ``after`` against ``before``, two values or more of each."""
    b, a = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    vb, va = (max(float(np.var(x, ddof=1)) / len(x), _TINY) for x in (b, a))
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return Shift(float(a.mean() - b.mean()), math.sqrt(va + vb), freedom)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, so that one false alarm among all of them is as rare as the level says
    (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


median = statistics.median
