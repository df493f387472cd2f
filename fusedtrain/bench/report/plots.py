"""The plots of the page, as SVG that takes its colours from the page: readable in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from fusedtrain.bench import scaling
from fusedtrain.bench.fits import Fit
from fusedtrain.bench.measure import Row, bytes_of, median_seconds, share_of_copy, timed

# matplotlib writes colours as they are; each stands for a variable of the page's style, and is replaced by it.
INK, GRID = "#010101", "#020202"
_VARIABLES = {INK: "--ink", GRID: "--line"}
_MARKERS = "osD^vP*X<>h"
_FEW = 64
_LEAST_BYTES = 2**17
"""Of what is smaller, the time is the host's and says nothing of memory."""
COLOURS = 12
"""Of the style, ``--c0`` to ``--c11``."""
_OURS = {"fusedtrain-cuda": 0, "fusedtrain-cpu": 0, "fusedtrain-triton": 10, "fusedtrain-reference": 11}
_OTHERS = range(1, 10)
for _i in range(COLOURS):
    _VARIABLES[f"#0101{_i + 16:02x}"] = f"--c{_i}"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fusedtrain",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass
class Series:
    provider: str
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    law: Fit | None = None


def colour(provider: str, providers: Sequence[str]) -> int:
    """The number of a provider's colour: ours have their own, the others theirs in the order in which they appear.
    Where there are more than colours, the marks of plots tell them apart."""
    if provider in _OURS:
        return _OURS[provider]
    others = [p for p in providers if p not in _OURS]
    return _OTHERS[others.index(provider) % len(_OTHERS)]


def plot(
    series: Sequence[Series],
    providers: Sequence[str],
    x_label: str,
    y_label: str,
    line_at: float | None = None,
) -> str:
    """The SVG of these series over a logarithmic x axis; a dotted line where there is a law."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 3.7), layout="constrained")
        FigureCanvasSVG(figure)
        axes: Axes = figure.subplots()
        for one in series:
            number = colour(one.provider, providers)
            ink = f"#0101{number + 16:02x}"
            marker = _MARKERS[list(providers).index(one.provider) % len(_MARKERS)]
            join = "none" if one.law is not None or y_label.startswith("share") else "-"
            axes.plot(one.x, one.y, marker=marker, color=ink, label=one.provider, linestyle=join, markersize=5)
            if one.law is not None and len(one.x) > 1:
                xs = np.geomspace(min(one.x), max(one.x), 60)
                axes.plot(xs, [one.law(x) for x in xs], color=ink, linestyle=":", linewidth=1.4)
        axes.set_xscale("log")
        axes.set_yscale("log")
        values = sorted({x for one in series for x in one.x})
        if values and values[-1] <= _FEW:  # powers of ten are no ticks for a count of threads
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.xaxis.set_minor_locator(NullLocator())
        if line_at is not None:
            axes.axhline(line_at, color=INK, linewidth=0.8, linestyle="--")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(linewidth=0.6)
        handles, _ = axes.get_legend_handles_labels()
        if handles:
            figure.legend(loc="outside upper left", ncols=2, fontsize=9, handletextpad=0.3, columnspacing=1.0)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(out.getvalue())


def _themed(svg: str) -> str:
    """The element alone, without a fixed size, its colours those of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'xmlns(?::xlink)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    for ink, variable in _VARIABLES.items():
        svg = svg.replace(ink, f"var({variable})")
    return svg


def unique_ids(svg: str, prefix: str) -> str:
    """The plot with ids that no other of the page has, or its marks would be drawn with the shapes of another."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)


def axis(rows: Sequence[Row], fits: Sequence[dict[str, Any]], name: str) -> list[Series]:
    """The times of one axis of the suite `scaling`, in microseconds, with their laws."""
    found: dict[str, Series] = {}
    for row in rows:
        if row.get("axis") != name:
            continue
        for provider in row["providers"]:
            if timed(row, provider):
                one = found.setdefault(provider, Series(provider))
                one.x.append(row["value"])
                one.y.append(median_seconds(row, provider) * 1e6)
    for law in fits:
        if law["axis"] == name and law["provider"] in found and "exponent" in law:
            known = (law[key] for key in ("exponent", "exponent_error", "misfit"))
            found[law["provider"]].law = Fit(law["fixed"] * 1e6, law["scale"] * 1e6, *known)
    return list(found.values())


def shares(rows: Sequence[Row], copy_bandwidth: float | None) -> list[Series]:
    """The share of the copy bandwidth of every row, over the bytes that it must move."""
    found: dict[str, Series] = {}
    for row in rows:
        for provider in row["providers"]:
            if row["bytes"] < _LEAST_BYTES or not timed(row, provider):
                continue
            share = share_of_copy(row, provider, copy_bandwidth)
            if share is not None:
                one = found.setdefault(provider, Series(provider))
                one.x.append(bytes_of(row, provider))
                one.y.append(share)
    return list(found.values())


def axis_label(name: str) -> str:
    return scaling.AXES[name]
