"""The plots of a run folder: losses, gradient norms before and after clipping, step time by part."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fusedtrain.train import files, metrics
from fusedtrain.train.metrics import Row
from fusedtrain.train.settings import Settings

COLOURS = {"stock": "#7a93ac", "fused": "#d95f02"}
_WIDTHS = {"stock": 3.2, "fused": 1.3}
"""Stock is drawn first and wide, fused over it and narrow: where the two agree, both are still seen."""
_TITLES = {"forward": "forward", "backward": "backward", "clip_step": "clip + step", "step": "whole step"}


def _figure(title: str, panels: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left")
    row = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, row


def _save(figure: Figure, path: Path) -> None:
    with files.aside(path) as temporary:
        figure.savefig(temporary, format="png")


def _series(rows: list[Row], column: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(row["step"], row[column]) for row in rows if column in row]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.asarray(steps), np.asarray(values, dtype=float)


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A centred running mean over a fiftieth of the series, without the ends where it has no whole window."""
    window = max(1, len(values) // 50)
    if window == 1:
        return steps, values
    mean = np.convolve(values, np.ones(window) / window, mode="valid")
    return steps[(window - 1) // 2 :][: len(mean)], mean


def loss(rows: list[Row], path: Path) -> None:
    """Training loss (faint: each step, strong: running mean) and validation loss (dots) of both sides."""
    figure, (axes,) = _figure("Loss")
    for name, colour in COLOURS.items():
        steps, values = _series(rows, f"{name}_loss")
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.5 * _WIDTHS[name])
    for name, colour in COLOURS.items():
        smooth = _smooth(*_series(rows, f"{name}_loss"))
        axes.plot(*smooth, color=colour, linewidth=_WIDTHS[name], label=f"{name}, training")
        evaluated = _series(rows, f"{name}_val_loss")
        size = 1.5 * _WIDTHS[name] + 2
        axes.plot(*evaluated, "o:", color=colour, linewidth=1, markersize=size, label=f"{name}, validation")
    losses = [row[f"{name}_loss"] for row in rows for name in COLOURS if row.get(f"{name}_loss", 0) > 0]
    if losses and max(losses) > 20 * min(losses):
        _logarithmic(axes)
    axes.set_xlabel("step")
    axes.set_ylabel("cross-entropy, nats")
    axes.legend(frameon=False, ncols=2)
    _save(figure, path)


def gradient_norm(rows: list[Row], settings: Settings, path: Path) -> None:
    """The global gradient norm of each side, before clipping and after, on a log scale."""
    figure, panels = _figure("Gradient norm over all parameters", panels=2)
    for axes, (name, colour) in zip(panels, COLOURS.items(), strict=True):
        axes.plot(*_series(rows, f"{name}_grad_norm"), color="0.75", linewidth=0.7, label="before clipping")
        axes.plot(*_series(rows, f"{name}_grad_norm_clipped"), color=colour, linewidth=0.7, label="after")
        if math.isfinite(settings.max_norm):
            axes.axhline(settings.max_norm, color="black", linewidth=0.8, linestyle="--", label="max_norm")
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("step")
        axes.legend(frameon=False)
        _logarithmic(axes)
    _save(figure, path)


def step_time(shown: dict[str, Any], path: Path) -> None:
    """Median time of each part of a step on both sides, with quartiles and the ratio."""
    figure, (axes,) = _figure("Time of a training step by part: median, quartiles, and ratio stock / fused")
    axes.grid(visible=False, axis="y")
    for y, part in enumerate(_TITLES):
        times = shown["seconds"][part]
        for name, offset in (("stock", -0.2), ("fused", 0.2)):
            low, median, high = (times[name][key] * 1e3 for key in ("low", "median", "high"))
            axes.barh(y + offset, median, height=0.38, color=COLOURS[name], label=name if y == 0 else None)
            axes.errorbar(median, y + offset, xerr=[[median - low], [high - median]], color="black", linewidth=0.8)
            ratio = f"   {times['ratio']['median']:.2f}x" if name == "fused" else ""
            label = f"{metrics.milliseconds(median / 1e3)} ms{ratio}"
            axes.annotate(
                label, (max(high, median), y + offset), (6, 0), textcoords="offset points",
                va="center", fontsize="small", weight="bold" if part == "step" and ratio else "normal",
            )  # fmt: skip
    axes.set_yticks(range(len(_TITLES)), list(_TITLES.values()))
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    axes.margins(x=0.18)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="upper right")
    _save(figure, path)


def _logarithmic(axes: Axes) -> None:
    """A log scale with plain numbers on it."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = axes.get_ylim()
    few = high / low < 50
    axes.yaxis.set_minor_formatter((lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "") if few else "")


def all_plots(rows: list[Row], settings: Settings, shown: dict[str, Any], folder: Path) -> None:
    """``loss.png``, ``gradient-norm.png`` and ``step-time.png`` into the run folder."""
    loss(rows, folder / "loss.png")
    gradient_norm(rows, settings, folder / "gradient-norm.png")
    step_time(shown, folder / "step-time.png")
