"""A step: one process, and how to read what it left."""

from __future__ import annotations

import math
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


class Run(Protocol):
    """Runs a command to its end, or to its time limit."""

    def __call__(self, command: tuple[str, ...], env: Mapping[str, str], seconds: float, log: Path) -> Done: ...
