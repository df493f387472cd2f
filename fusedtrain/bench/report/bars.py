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


def of_suites(run: Results, providers: Sequence[str]) -> list[dict[str, Any]]:
    """A group of rows for each suite, with a bar for each provider."""
    suites = []
    for suite, what in SUITES.items():
        rows = [_speedups(row, run.get("copy_bandwidth"), providers) for row in run["rows"] if _is_of(row, suite)]
        if rows:
            suites.append({"title": suite, "what": what[0].upper() + what[1:], "rows": rows})
    return suites


def _is_of(row: Row, suite: str) -> bool:
    return row["suite"] == suite and "axis" not in row and bool(row["providers"])


def _speedups(row: Row, copy: float | None, providers: Sequence[str]) -> dict[str, Any]:
    found = figures(row, copy)
    timed = [f for f in found if f.seconds is not None]
    logs = [math.log10(value) for f in timed for value in (f.ratio or 1.0, f.ratio_low or 1.0, f.ratio_high or 1.0)]
    low, high = min(-0.1, *logs, 0.0) - 0.03, max(0.1, *logs, 0.0) + 0.03

    def at(value: float) -> float:
        return round(100 * (math.log10(value) - low) / (high - low), 2)

    bars = []
    for f in sorted(timed, key=lambda f: (not f.ours, f.provider != row["baseline"], -(f.ratio or 1.0))):
        begin, end = sorted((at(1.0), at(f.ratio or 1.0)))
        bar = {"provider": f.provider, "colour": plots.colour(f.provider, providers), "one": at(1.0), "left": begin}
        bar |= {"width": round(end - begin, 2), "text": _text(f, row["baseline"])}
        if f.ratio_low and f.ratio_high:
            bar |= {"low": at(f.ratio_low), "span": round(at(f.ratio_high) - at(f.ratio_low), 2)}
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
