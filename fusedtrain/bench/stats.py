"""What can be said of a few timings: medians, spread, intervals, and whether two sets of them differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
SEED = 0
"""Of the bootstrap: the same timings always give the same interval."""
LEAST_BLOCKS = 3
"""Fewer do not tell how much they vary."""
_TINY = 1e-24
"""Variance of values that are all the same."""


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The quartiles."""
    low, high = np.percentile(np.asarray(values, dtype=float), [25, 75])
    return float(low), float(high)


def median_interval(blocks: Sequence[Sequence[float]], level: float = 0.95) -> tuple[float, float]:
    """A bootstrap interval (percentiles) of the median of values that come in blocks, as rounds come in visits.

    Values of one block are alike, so whole blocks are drawn; single values, if there are fewer than `LEAST_BLOCKS`. The
    only value twice if there is but one.
    """
    if len(blocks) < LEAST_BLOCKS:
        blocks = [[value] for block in blocks for value in block]
    table = np.full((len(blocks), max(map(len, blocks))), np.nan)
    for line, block in zip(table, blocks, strict=True):
        line[: len(block)] = block
    if len(set(table[~np.isnan(table)])) == 1:
        return float(np.nanmin(table)), float(np.nanmax(table))
    drawn = table[np.random.default_rng(SEED).integers(len(blocks), size=(RESAMPLES, len(blocks)))]
    low, high = np.quantile(np.nanmedian(drawn.reshape(RESAMPLES, -1), axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
        from scipy.special import stdtr  # only for comparisons: a run needs no scipy

        return float(min(1.0, 2 * stdtr(self.freedom, (margin - abs(self.by)) / self.error)))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        from scipy.special import stdtrit

        half = float(stdtrit(self.freedom, (1 + level) / 2)) * self.error
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
