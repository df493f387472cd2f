"""What one sees while it measures: a bar with the time left on a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Watch:
    """Counts pieces of work, of which the whole is known, and says how long the rest will take."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.done = console, total, 0
        self._began = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(compact=True),
            )
            self._bar = Progress(*columns, console=console, refresh_per_second=4, expand=True)
            self._task = self._bar.add_task("measuring", total=total)
            self._bar.start()

    def begin(self, name: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=name)

    def tick(self, pieces: int = 1) -> None:
        self.done = min(self.total, self.done + pieces)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)

    def note(self, line: str) -> None:
        """Prints it where there is no bar that says it."""
        if self._bar is None:
            self.show([line])

    def show(self, lines: Sequence[str]) -> None:
        """Prints what was found, and in a pipe how long the rest will take."""
        left = "" if self._bar is not None or not self.done else f"  [{self.done}/{self.total}, {self._left()} left]"
        self.console.print("\n".join(lines) + left, soft_wrap=True, highlight=False, markup=False)

    def _left(self) -> str:
        seconds = (time.monotonic() - self._began) / self.done * (self.total - self.done)
        return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
