"""What one sees while it trains: a bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from fusedtrain.train.metrics import Row
from fusedtrain.train.sides import SIDES
from fusedtrain.train.tasks import Task


class Progress(Protocol):
    def step(self, row: Row) -> None:
        """Takes the row of a step that is done."""
        ...

    def close(self) -> None: ...


class Silent:
    """For the processes that do not print."""

    def step(self, row: Row) -> None:
        pass

    def close(self) -> None:
        pass


def describe(row: Row, task: Task, what: str) -> str:
    """``stock 0.4121  fused 0.4077``: ``"loss"`` or ``"val_metric"`` of each side that has it in this row."""
    shown = []
    for side in SIDES:
        value = row.get(f"{side.name}_{what}")
        if value is not None:
            percent = what == "val_metric" and task.metric == "accuracy"
            shown.append(f"{side.name} {value:.2%}" if percent else f"{side.name} {value:.4f}")
    return "  ".join(shown)


class Lines:
    """A line at each evaluation, and one in ten seconds between them."""

    def __init__(self, console: Console, task: Task, total: int) -> None:
        self.console, self.task, self.total = console, task, total
        self._last = time.monotonic()

    def step(self, row: Row) -> None:
        evaluated = any(f"{side.name}_val_metric" in row for side in SIDES)
        now = time.monotonic()
        if not evaluated and now - self._last < 10:
            return
        self._last = now
        line = f"step {row['step']}/{self.total}  train loss: {describe(row, self.task, 'loss')}"
        if evaluated:
            line += f"  val {self.task.metric}: {describe(row, self.task, 'val_metric')}"
        self.console.print(line, soft_wrap=True, highlight=False)

    def close(self) -> None:
        pass


class Bar:
    """A bar with the last validation metric of both sides."""

    def __init__(self, console: Console, task: Task, total: int, done: int) -> None:
        self.task = task
        self._progress = RichProgress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[scores]}"),
            console=console,
            refresh_per_second=4,
            expand=True,
        )
        self._id = self._progress.add_task("training", total=total, completed=done, scores="")
        self._progress.start()

    def step(self, row: Row) -> None:
        scores = describe(row, self.task, "val_metric")
        if scores:
            self._progress.update(self._id, scores=f"val: {scores}")
        self._progress.update(self._id, completed=row["step"])

    def close(self) -> None:
        self._progress.stop()


def new(console: Console, task: Task, total: int, done: int) -> Progress:
    return Bar(console, task, total, done) if console.is_terminal else Lines(console, task, total)
