"""What a row says of a provider, in numbers: for the table, CSV, Markdown and the report alike."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from fusedtrain.bench import stats
from fusedtrain.bench.measure import Row, by_visit, ratios, reason, share_of_copy, timed


@dataclass(frozen=True)
class Figure:
    workload: str
    suite: str
    dtype: str
    provider: str
    reason: str = ""
    """Why there is no time; then all that follows is None."""
    seconds: float | None = None
    """Median of the rounds."""
    low: float | None = None
    high: float | None = None
    """Quartiles of the rounds, seconds."""
    ratio: float | None = None
    """How many times as long the baseline takes: the median over the rounds."""
    ratio_low: float | None = None
    ratio_high: float | None = None
    """Its 95 % interval; None with fewer than three visits."""
    share_of_copy: float | None = None
    """Of the copy bandwidth of the same run."""
    host_seconds: float | None = None
    launches: int | None = None
    peak_bytes: int | None = None
    saved_bytes: int | None = None
    max_error: float | None = None
    max_error_of_torch: float | None = None

    @property
    def ours(self) -> bool:
        return self.provider.startswith("fusedtrain-")


_OBSERVED = ("host_seconds", "launches", "peak_bytes", "saved_bytes", "max_error", "max_error_of_torch")


def figure(row: Row, provider: str, copy_bandwidth: float | None) -> Figure:
    found = row["providers"][provider]
    told: dict[str, Any] = {"workload": row["name"], "suite": row["suite"], "dtype": row["dtype"], "provider": provider}
    if not timed(row, provider):
        return Figure(**told, reason=reason(found))
    seconds = statistics.median(found["seconds"])
    low, high = stats.spread(found["seconds"])
    told |= {"seconds": seconds, "low": low, "high": high, **{key: found.get(key) for key in _OBSERVED}}
    told["share_of_copy"] = share_of_copy(row, provider, copy_bandwidth)
    if provider != row["baseline"] and timed(row, row["baseline"]):
        of_rounds = ratios(row, provider, row["baseline"])
        told["ratio"] = statistics.median(of_rounds)
        told["ratio_low"], told["ratio_high"] = stats.median_interval(by_visit(row, of_rounds)) or (None, None)
    return Figure(**told)


def figures(row: Row, copy_bandwidth: float | None) -> list[Figure]:
    """Of every provider; of the whole row one without a provider, if it could not be measured at all."""
    if "why_not" in row:
        return [Figure(row["name"], row["suite"], row["dtype"], "", row["why_not"])]
    return [figure(row, provider, copy_bandwidth) for provider in row["providers"]]


def of_results(results: dict[str, Any]) -> list[Figure]:
    copy = results.get("copy_bandwidth")
    return [f for row in results["rows"] for f in figures(row, copy)]


def failures(rows: list[Row]) -> list[str]:
    """Providers of ours that are wrong or broke."""
    return [
        f"{row['name']}, {provider}: {reason(found)}"
        for row in rows
        for provider, found in row["providers"].items()
        if provider.startswith("fusedtrain-") and ("wrong" in found or "failed" in found)
    ]


def below(rows: list[Row], least: float) -> list[str]:
    """What there is to say against providers of ours: their whole interval of the ratio lies under ``least``, or there
    is no interval, or nothing was measured at all. The reference is the specification, not a contender."""
    found = [f for row in rows for f in figures(row, None) if f.ours and f.provider != "fusedtrain-reference"]
    rated = [f for f in found if f.ratio is not None]
    if not rated:
        return [f"--fail-under {least:g} cannot tell: nothing of ours was measured beside its baseline"]
    told = [
        f"below {least:g}: {f.workload}, {f.provider}: {f.ratio:.2f}, interval up to {f.ratio_high:.2f}"
        for f in rated
        if f.ratio_high is not None and f.ratio_high < least
    ]
    few = [f"{f.workload}, {f.provider}" for f in rated if f.ratio_high is None]
    if few:
        told.append(f"--fail-under {least:g} cannot tell: fewer than three visits, more --rounds: {'; '.join(few)}")
    return told
