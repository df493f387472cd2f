"""A step: one process, and how to read what it left."""

from __future__ import annotations

import math
import shlex
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

PASSED, FAILED, CANNOT, NO_TIME, RUNNING = "passed", "failed", "cannot", "no time", "running"
"""What becomes of a step: the third for what this machine lacks, the fourth for what a later call must do. The last is
written before a step begins, and stays where all was cut off while it ran."""


@dataclass(frozen=True)
class Done:
    """A process that has ended."""

    status: int
    """As subprocess says: negative for a signal."""
    seconds: float
    output: str
    timed_out: bool = False


@dataclass
class Found:
    """What a step says: details for the record, and each thing that is wrong. ``cannot``: what the machine lacks."""

    details: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    cannot: str | None = None


Read = Callable[[Done, Path], Found]
"""``read(done, scratch)``: the folder is the step's own."""


def by_status(done: Done, scratch: Path) -> Found:
    """For a process that says by its exit status whether it went well."""
    return Found(failures=[] if done.status == 0 else [f"exit status {done.status}"])


@dataclass(frozen=True)
class Step:
    name: str
    command: tuple[str, ...]
    """``{scratch}`` in it stands for a folder of the step's own."""
    read: Read = by_status
    env: Mapping[str, str] = field(default_factory=dict)
    """Beside the environment of this process."""
    cannot: str | None = None
    """Why it cannot be run here: it is not, then."""
    limit: float = math.inf
    """Seconds that it may take, so that one that hangs leaves time to the others."""
    workers: int = 0
    """Processes that it keeps busy, where it runs beside other steps. 0: it runs alone, as what is timed must."""
    resource: str | None = None
    """What there is once: of the steps that name it, one runs at a time."""

    @property
    def line(self) -> str:
        """The command as a shell takes it."""
        return shlex.join(self.command)


class Stopped(Exception):
    """A process was ended because all of it is to end: nothing is to be said of its step."""


class Run(Protocol):
    """Runs a command to its end, or to its time limit; once ``stop`` is set, ends it and raises `Stopped`."""

    def __call__(
        self, command: tuple[str, ...], env: Mapping[str, str], seconds: float, log: Path, stop: threading.Event
    ) -> Done: ...
