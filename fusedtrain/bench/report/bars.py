"""The bars of the page: speedups on a logarithmic scale, bytes on a linear one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fusedtrain.bench import tables
from fusedtrain.bench.figures import Figure, figures
from fusedtrain.bench.measure import Row
from fusedtrain.bench.report import plots
from fusedtrain.bench.results import Results
from fusedtrain.bench.workload import SUITES

_LEAST_BYTES = 2**16
"""Of memory: what is smaller is nobody's concern."""


class Scale:
    """A logarithmic one that has room for 1x and for every ratio of a suite with its interval: rows can be compared."""

    def __init__(self, found: Sequence[Figure]) -> None:
        ratios = [value for f in found for value in (f.ratio, f.ratio_low, f.ratio_high) if value]
        logs = [math.log10(value) for value in ratios]
        self._low, self._high = min(-0.1, *logs, 0.0) - 0.03, max(0.1, *logs, 0.0) + 0.03

    def at(self, ratio: float) -> float:
        """Per cent of the width."""
        return round(100 * (math.log10(ratio) - self._low) / (self._high - self._low), 2)


def of_suites(run: Results, providers: Sequence[str]) -> list[dict[str, Any]]:
    """A group of rows for each suite, with a bar for each provider."""
    suites = []
    for suite, what in SUITES.items():
        rows = [(row, figures(row, run.get("copy_bandwidth"))) for row in run["rows"] if _is_of(row, suite)]
        scale = Scale([f for _, found in rows for f in found])
        if rows:
            shown = [_speedups(row, found, scale, providers) for row, found in rows]
            suites.append({"title": suite, "what": what[0].upper() + what[1:], "rows": shown})
    return suites


def _is_of(row: Row, suite: str) -> bool:
    return row["suite"] == suite and "axis" not in row and bool(row["providers"])


def _speedups(row: Row, found: Sequence[Figure], scale: Scale, providers: Sequence[str]) -> dict[str, Any]:
    timed = [f for f in found if f.seconds is not None]
    bars = []
    for f in sorted(timed, key=lambda f: (not f.ours, f.provider != row["baseline"], -(f.ratio or 1.0))):
        begin, end = sorted((scale.at(1.0), scale.at(f.ratio or 1.0)))
        bar = {"provider": f.provider, "colour": plots.colour(f.provider, providers), "one": scale.at(1.0)}
        bar |= {"left": begin, "width": round(end - begin, 2), "text": _text(f, row["baseline"])}
        if f.ratio_low and f.ratio_high:
            low = scale.at(f.ratio_low)
            bar |= {"low": low, "span": round(scale.at(f.ratio_high) - low, 2)}
        bars.append(bar)
    wrong = [f"{f.provider}: {f.reason}" for f in found if f.reason.startswith(("WRONG", "failed"))]
    return {"name": row["name"], "note": _note(row), "bars": bars, "wrong": wrong}


def _text(f: Figure, baseline: str) -> str:
    word = f"{f.ratio:.2f}x, " if f.ratio else "baseline, " if f.provider == baseline else ""
    return word + tables.duration(f.seconds)


def _note(row: Row) -> str:
    tensors = f", {row['tensors']:,} tensors" if "tensors" in row else ""
    return f"{row['dtype']}{tensors}" + (f", {row['elements']:,} elements" if "elements" in row else "")


def of_memory(run: Results, providers: Sequence[str]) -> list[dict[str, Any]]:
    """Rows whose calls allocate something: for each provider the peak and, where there is a backward, what is saved."""
    rows = []
    for row in run["rows"]:
        found = [f for f in figures(row, None) if f.seconds is not None and f.peak_bytes is not None]
        most = max((max(f.peak_bytes or 0, f.saved_bytes or 0) for f in found), default=0)
        if most < _LEAST_BYTES:
            continue
        bars = []
        for f in found:
            number = plots.colour(f.provider, providers)
            for what, n in (("peak", f.peak_bytes), ("saved", f.saved_bytes)):
                if n is not None:
                    width = round(100 * n / most, 2)
                    bar = {"provider": f"{f.provider}, {what}", "colour": number, "width": width, "left": 0}
                    bars.append({**bar, "text": tables.size(n), "faint": what == "saved"})
        rows.append({"name": row["name"], "note": _note(row), "bars": bars})
    return rows
