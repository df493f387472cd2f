"""Runs the process of a step."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusedtrain.gpu_check.step import Done, Stopped

ROOT = Path(__file__).resolve().parents[2]
GRACE = 20.0
"""Seconds that a process has to end by itself once interrupted: pytest writes its report then."""
_LOOK = 0.05
"""Seconds between two looks at a process."""
# A group of its own, to be signalled as one. Not a session: whoever ends ours, with all that is in it, ends this too.
# `os.setpgrp` takes no lock that another thread might hold.
_GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}


def run(command: tuple[str, ...], env: Mapping[str, str], seconds: float, log: Path, stop: threading.Event) -> Done:
    """Runs a command in the source tree, whose package its processes find wherever they work. Its output is appended to
    ``log`` as it comes. When its time is over it is interrupted, as by Ctrl-C, and killed, with all it has started, if
    that does not end it; so it is at once when ``stop`` is set.

    Raises:
        Stopped: it was.
    """
    began = time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n=== {' '.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=_environment(env),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                **_GROUP,
            )
        except OSError as error:
            return Done(127, time.monotonic() - began, f"{command[0]}: {error.strerror}")
        status, timed_out = _wait(process, seconds, stop)
    with log.open("rb") as file:
        file.seek(start)
        output = file.read().decode(errors="replace")
    return Done(status, time.monotonic() - began, output, timed_out)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Ours with more. The package may be built in place and not installed, and tests start scripts in other folders."""
    env = {**os.environ, **more}
    return {**env, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))}


def _wait(process: subprocess.Popen[bytes], seconds: float, stop: threading.Event) -> tuple[int, bool]:
    try:
        timed_out = not _ends(process, seconds, stop)
        if timed_out:
            _send(process, signal.SIGINT)
            _ends(process, GRACE, stop)
    finally:
        _send(process, signal.SIGKILL)  # what it left running too
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it beyond that
            process.wait(5.0)
    return -signal.SIGKILL if process.returncode is None else process.returncode, timed_out


def _ends(process: subprocess.Popen[bytes], seconds: float, stop: threading.Event) -> bool:
    """Whether it ends within so many seconds. One thread cannot wait for a process and for an event but by turns."""
    until = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() >= until:
            return False
        if stop.wait(_LOOK):
            raise Stopped
    return True


def _send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
