"""What can be said of a few timings: medians, spread, intervals, and whether two sets of them differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
SEED = 0
"""Of the bootstrap: the same timings always give the same interval."""


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The quartiles."""
    low, high = np.percentile(np.asarray(values, dtype=float), [25, 75])
    return float(low), float(high)


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """A bootstrap interval (percentiles) of the median; the only value twice if there is but one."""
    if len(values) < 2 or len(set(values)) == 1:
        return min(values), max(values)
    drawn = np.random.default_rng(SEED).choice(np.asarray(values, dtype=float), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def shift(before: Sequence[float], after: Sequence[float]) -> float:
    """How much larger ``after`` is: the median of all differences (Hodges and Lehmann 1963)."""
    b, a = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    return float(np.median(a[:, None] - b[None, :]))


def beyond(before: Sequence[float], after: Sequence[float], margin: float) -> float:
    """The p-value of the hypothesis that ``after`` is shifted against ``before`` by at most ``margin`` either way.

    Two one-sided Mann-Whitney tests of the shifted samples, with Bonferroni's factor for the two. They need no normal
    distribution, and an outlier among the rounds does not decide.
    """
    from scipy import stats  # only for comparisons: a run needs no scipy

    b, a = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    more = stats.mannwhitneyu(a - margin, b, alternative="greater").pvalue
    less = stats.mannwhitneyu(a + margin, b, alternative="less").pvalue
    return float(min(1.0, 2 * min(more, less)))


def least_p_value(before: int, after: int) -> float:
    """The smallest p-value that `beyond` can find with so many values: all of one side above all of the other."""
    return min(1.0, 2 / math.comb(before + after, before))


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
