"""The record of a run, a row per step, as JSON lines and as CSV; and the statistics of paired step times."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from fusedtrain.train import files
from fusedtrain.train.errors import TrainError
from fusedtrain.train.sides import PARTS, SIDES, Measured

JSONL = "metrics.jsonl"
CSV = "metrics.csv"
Row = dict[str, Any]

_PER_SIDE = (
    "loss",
    "grad_norm",
    "grad_norm_clipped",
    "clip_coef",
    *(f"{part}_s" for part in PARTS),
    "val_loss",
    "val_metric",
)
COLUMNS = ("step", "lr", "first", *(f"{side.name}_{column}" for side in SIDES for column in _PER_SIDE))
"""``step`` counts from 1; ``first`` is the side that ran first in it; times are in seconds. A side that has stopped
early, or a step without evaluation, leaves its columns out (JSON) or empty (CSV)."""


def of_step(row: Row, side: str, measured: Measured, loss: float) -> None:
    """Enters what one side's step showed into its row."""
    row[f"{side}_loss"] = loss
    row[f"{side}_grad_norm"] = measured.grad_norm
    row[f"{side}_grad_norm_clipped"] = measured.grad_norm_clipped
    row[f"{side}_clip_coef"] = measured.clip_coef
    for part in PARTS:
        row[f"{side}_{part}_s"] = measured.seconds[part]


class Log:
    """Appends rows to both files as they come; `flush` puts them on the disk, for a checkpoint to rely on.

    Args:
        folder: the run folder; None keeps rows in memory only (the processes that do not write).
        keep: the steps of the checkpoint that the run continues from; later rows are dropped from the files.

    Raises:
        TrainError: the rows to keep are not all there, or the files cannot be written.
    """

    def __init__(self, folder: Path | None, keep: int = 0) -> None:
        self.folder = folder
        self.rows: list[Row] = []
        self._files: list[IO[str]] = []
        if folder is None:
            return
        self.rows = read(folder, keep)
        files.write_text(folder / JSONL, "".join(_json_line(row) for row in self.rows))
        files.write_text(folder / CSV, _csv_line(COLUMNS) + "".join(_csv_row(row) for row in self.rows))
        try:
            self._files = [(folder / name).open("a", newline="") for name in (JSONL, CSV)]
        except OSError as error:
            raise files.write_error(folder / JSONL, error) from error

    def append(self, row: Row) -> None:
        self.rows.append(row)
        for file, line in zip(self._files, (_json_line(row), _csv_row(row)) if self._files else (), strict=True):
            self._guarded(file, lambda file=file, line=line: file.write(line))

    def flush(self) -> None:
        for file in self._files:
            self._guarded(file, file.flush)
            self._guarded(file, lambda file=file: os.fsync(file.fileno()))

    def close(self) -> None:
        for file in self._files:
            self._guarded(file, file.close)
        self._files = []

    def _guarded(self, file: IO[str], action: Any) -> None:
        try:
            action()
        except OSError as error:
            raise files.write_error(Path(file.name), error) from error


def read(folder: Path, keep: int) -> list[Row]:
    """The rows of the first ``keep`` steps. What follows them, a broken last line included, is not read.

    Raises:
        TrainError: they are not all there, or one is no row.
    """
    path = folder / JSONL
    rows: list[Row] = []
    if not keep:
        return rows
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:  # what follows the rows may be anything
            for line in itertools.islice(lines, keep):
                rows.append(_from_json(line, step=len(rows) + 1))
        if len(rows) < keep:
            raise ValueError(f"it ends after step {len(rows)}")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TrainError(
            "--resume",
            path,
            f"it does not hold the {keep} steps of the checkpoint ({reason})",
            "Put the whole file back, or start another run",
        ) from error
    return rows


def _from_json(line: str, step: int) -> Row:
    found = json.loads(line)
    if not isinstance(found, dict) or found.get("step") != step:
        raise ValueError(f"line {step} is not the row of step {step}")
    return {name: math.nan if value is None else value for name, value in found.items()}


def _json_line(row: Row) -> str:
    """JSON has no NaN and no infinity: null stands for both."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def _csv_line(values: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _csv_row(row: Row) -> str:
    return _csv_line([row.get(column, "") for column in COLUMNS])


@dataclass(frozen=True)
class Spread:
    """Quartiles of a sample; NaN if there is none."""

    low: float
    median: float
    high: float

    @staticmethod
    def of(sample: list[float]) -> Spread:
        if not sample:
            return Spread(math.nan, math.nan, math.nan)
        low, median, high = np.percentile(sample, (25, 50, 75))
        return Spread(float(low), float(median), float(high))


@dataclass(frozen=True)
class PairedTimes:
    """One part of the step on both sides, over the steps that both took: seconds of each, and their ratio step by step,
    stock / fused, so that noise which lasts longer than a step cancels."""

    stock: Spread
    fused: Spread
    ratio: Spread
    steps: int


def warm(rows: list[Row]) -> list[Row]:
    """The rows that count for timing: both sides stepped, and the first tenth (at most 20) left out as warm-up."""
    both = [row for row in rows if f"stock_{PARTS[0]}_s" in row and f"fused_{PARTS[0]}_s" in row]
    return both[min(20, len(both) // 10) :]


def paired(rows: list[Row], parts: tuple[str, ...] = PARTS) -> PairedTimes:
    """The times of the sum of these parts."""
    stock = [sum(row[f"stock_{part}_s"] for part in parts) for row in rows]
    fused = [sum(row[f"fused_{part}_s"] for part in parts) for row in rows]
    ratio = [a / b for a, b in zip(stock, fused, strict=True) if b > 0]
    return PairedTimes(Spread.of(stock), Spread.of(fused), Spread.of(ratio), len(rows))


def milliseconds(seconds: float) -> str:
    """In milliseconds, three significant digits."""
    return f"{seconds * 1e3:#.3g}".rstrip(".") if seconds < 1 else f"{seconds * 1e3:.0f}"


def share_clipped(rows: list[Row], side: str) -> float:
    """The share of a side's steps whose gradient norm exceeded ``max_norm``; NaN without steps."""
    coefs = [row[f"{side}_clip_coef"] for row in rows if f"{side}_clip_coef" in row]
    return sum(coef < 1 for coef in coefs) / len(coefs) if coefs else math.nan
