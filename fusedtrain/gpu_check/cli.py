"""The command line of ``python -m fusedtrain.gpu_check``."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusedtrain.gpu_check import machine as machines
from fusedtrain.gpu_check import runner, schedule, summary
from fusedtrain.gpu_check.machine import Machine
from fusedtrain.gpu_check.record import Record
from fusedtrain.gpu_check.slices import SLICES
from fusedtrain.gpu_check.step import CANNOT, FAILED, NO_TIME, PASSED, RUNNING, Found, Run, Step

_LEAST = 15.0
"""Seconds under which no step is begun."""


def _slices(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in SLICES]
    if unknown or not names:
        what = f"no slice {', '.join(map(repr, unknown))}" if unknown else "no slice named"
        raise argparse.ArgumentTypeError(f"{what}; choose from {', '.join(SLICES)}")
    return [name for name in SLICES if name in names]


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not minutes > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes above 0")
    return minutes


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m fusedtrain.gpu_check",
        description="Builds, tests and measures fusedtrain on the GPU of this machine. Exit status: 0 all is proven; "
        "1 something failed; 2 nothing failed, but not everything could be done.",
        epilog="Not all of it fits into one call of the default length. Call it again with --resume and the same --out "
        "until nothing is left. Where files come back only from a folder that is emptied before each call, keep --out "
        "elsewhere and copy the records: --out /tmp/check --resume; cp /tmp/check/*.json FOLDER",
    )
    out = "where SLICE.json and SLICE.log go, and SLICE.STEP.running.log meanwhile; --resume reads from here"
    options.add_argument("--out", type=Path, required=True, metavar="DIR", help=out)
    options.add_argument("--only", type=_slices, default=list(SLICES), help=f"slices, of {','.join(SLICES)}")
    options.add_argument("--steps", default="", help="only steps whose name contains this")
    options.add_argument("--minutes", type=_minutes, default=9.0, help="of all slices together; default 9")
    options.add_argument(
        "--resume", action="store_true", help="leave out what passed before with the same sources, torch, GPUs"
    )
    return options


def main(arguments: Sequence[str] | None = None, run: Run = runner.run, machine: Machine | None = None) -> int:
    """Runs the slices; returns the exit status. ``run`` and ``machine`` are given by tests."""
    began = time.monotonic()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(arguments)
    ends = began + 60 * options.minutes
    command = "python -m fusedtrain.gpu_check " + shlex.join(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"python -m fusedtrain.gpu_check: --out {options.out}: {error.strerror}; name a folder you may write to")
        return 2
    here = machines.look() if machine is None else machine
    print(
        f"{', '.join(gpu['name'] for gpu in here.gpus) or 'no GPU'}, driver {here.driver or 'none'}, {here.cpus} CPUs"
    )
    if here.cannot:
        print(f"Nothing can be proven here: {here.cannot}.")
    if here.missing:
        print(f"Not installed, though tests need it: {', '.join(here.missing)}. Without, not all can be proven.")
    sources = machines.fingerprint()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    setting: dict[str, Any] = {}
    try:
        for name in options.only:
            setting = setting or machines.setting(command)
            fixed: dict[str, Any] = {"driver": here.driver, "gpus": list(here.gpus), "sources": sources}
            fixed["missing_modules"] = list(here.missing)
            steps = SLICES[name](here)
            record = Record(options.out, name, {**setting, **fixed}, options.resume, [step.name for step in steps])
            results[name] = record.steps
            run_slice(record, [step for step in steps if options.steps in step.name], here, run, ends)
            if name == "build":
                setting = {}  # a build changes what is said of the backends
    except KeyboardInterrupt:
        print("\n".join(["", *summary.table(results), "interrupted; --resume runs what is left"]), flush=True)
        return 130
    print("\n".join(["", *summary.table(results)]))
    return summary.status(results, here.missing)


def run_slice(record: Record, steps: list[Step], machine: Machine, run: Run, ends: float) -> None:
    """Runs the steps, whatever becomes of each, until it is ``ends`` by the monotonic clock."""
    able = []
    for step in steps:
        if record.has(step.name):
            continue
        cannot = machine.cannot or step.cannot
        if cannot:
            record.add(step.name, CANNOT, command=step.line, reason=cannot)
        else:
            able.append(step)
    schedule.run_all(able, schedule.capacity(machine), lambda step, stop: _begin(record, step, run, ends, stop))


def _begin(record: Record, step: Step, run: Run, ends: float, stop: threading.Event) -> None:
    """Runs a step if there is time for it."""
    left = ends - time.monotonic() - runner.GRACE
    if left < _LEAST:
        record.add(step.name, NO_TIME, command=step.line, reason="the time was over; --resume runs what is left")
        return
    record.add(step.name, RUNNING, command=step.line, reason="cut off while it ran, or not over yet")
    _say(f"{record.name}: {step.name} ...")
    with record.log(step.name) as log:
        status = run_step(record, step, run, min(left, step.limit), log, stop)
    _say(f"{record.name}: {step.name}: {status}")


def _say(line: str) -> None:
    print(f"{line}\n", end="", flush=True)  # in one piece, as others may be saying something


def run_step(record: Record, step: Step, run: Run, seconds: float, log: Path, stop: threading.Event) -> str:
    """Returns what became of it, as it is recorded."""
    with tempfile.TemporaryDirectory() as scratch:
        command = tuple(part.replace("{scratch}", scratch) for part in step.command)
        done = run(command, step.env, seconds, log, stop)
        try:
            found = step.read(done, Path(scratch))
        except Exception as error:  # what a step left may be anything; the others still have their turn
            found = Found(failures=[f"what it left cannot be read: {type(error).__name__}: {error}"])
    failures = list(found.failures)
    if done.timed_out:
        failures.append(f"not done after {done.seconds:.0f} s")
    status = CANNOT if found.cannot else FAILED if failures else PASSED
    record.add(
        step.name,
        status,
        command=step.line,
        env=dict(step.env),
        seconds=done.seconds,
        exit_status=done.status,
        found=found.details,
        output=done.output,
        **({"failures": failures} if failures else {}),
        **({"reason": found.cannot} if found.cannot else {}),
    )
    return status
