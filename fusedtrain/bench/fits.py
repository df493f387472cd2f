"""A law for the cost: ``t = a + b * n^k``, a fixed cost and a part that grows."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fusedtrain.bench.measure import Row, timed

_LEAST = 4
"""Points below which three parameters say nothing."""
_TELL_ERROR = 5
"""Points below which next to nothing is left over to tell an error by."""
_STEEPEST = 3.0
"""The largest exponent that is looked for: where it is found, one point stands out and the others are flat."""


@dataclass(frozen=True)
class Fit:
    fixed: float
    """a, in seconds."""
    scale: float
    """b, in seconds."""
    exponent: float
    """k."""
    exponent_error: float | None
    """Its standard error; None if the points do not tell it."""
    misfit: float
    """The largest distance of a point from the law, relative to the law."""

    def __call__(self, n: float) -> float:
        return float(self.fixed + self.scale * n**self.exponent)


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> Fit | None:
    """Least squares of the logarithms, so that every point counts alike, whatever its size; a >= 0, b > 0,
    0 <= k <= 3. None with fewer than four sizes, or if no such law describes them: the best one has the largest k."""
    if len(set(sizes)) < _LEAST:
        return None
    from scipy.optimize import OptimizeWarning, curve_fit

    n, t = np.asarray(sizes, dtype=float), np.asarray(seconds, dtype=float)

    def law(x: Any, a: float, log_b: float, k: float) -> Any:
        return np.log(a + np.exp(log_b) * x**k)

    start = (0.5 * t.min(), float(np.log(t.max() / n.max())), 1.0)
    bounds = ([0.0, -80.0, 0.0], [float(t.min()), 20.0, _STEEPEST])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            found, covariance = curve_fit(law, n, np.log(t), p0=start, bounds=bounds, maxfev=20_000)
        except RuntimeError:  # no convergence: there is no law of this form
            return None
    a, log_b, k = (float(value) for value in found)
    if k > 0.99 * _STEEPEST:
        return None
    error = float(np.sqrt(covariance[2, 2]))
    misfit = float(np.max(np.abs(np.expm1(np.log(t) - law(n, a, log_b, k)))))
    told = np.isfinite(error) and len(t) >= _TELL_ERROR
    return Fit(a, float(np.exp(log_b)), k, error if told else None, misfit)


def of_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The law of each axis and provider: ``axis``, ``provider``, and what `Fit` has or why there is none."""
    found = []
    scaled = [row for row in rows if "axis" in row]
    for axis in dict.fromkeys(row["axis"] for row in scaled):
        along = [row for row in scaled if row["axis"] == axis]
        for provider in dict.fromkeys(p for row in along for p in row["providers"]):
            points = [
                (row["value"], statistics.median(row["providers"][provider]["seconds"]))
                for row in along
                if timed(row, provider)
            ]
            law = fit([n for n, _ in points], [t for _, t in points]) if points else None
            told: dict[str, Any] = {"axis": axis, "provider": provider, "points": len(points)}
            if points:
                why = "too few points for a law" if len(points) < _LEAST else "no law of this form describes the points"
                found.append({**told, **(asdict(law) if law else {"why_not": why})})
    return found
