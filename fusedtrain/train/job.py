"""One run from its options to its folder: what the command does, callable from Python."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fusedtrain.train import checkpoint, files, loop, metrics, plots, progress, report, settings, sides, tasks, text
from fusedtrain.train.errors import TrainError
from fusedtrain.train.loop import Run
from fusedtrain.train.settings import Settings
from fusedtrain.train.signals import Signals
from fusedtrain.train.world import rank_from_env, size_from_env, world

SUMMARY = "summary.json"


def run(
    given: dict[str, Any], out: Path | None, resume: Path | None, max_seconds: float | None, console: Console
) -> int:
    """Trains as the options say. Everything is checked before the run folder is made.

    Args:
        given: options of `settings.Settings` that the user gave.
        out: the folder of a new run; None makes one under ``runs/``.
        resume: the folder of a run to continue, instead.
        max_seconds: stop then, with a checkpoint and the report.
        console: where to print.

    Returns:
        The exit status: 0, or 128 + the signal that ended it.

    Raises:
        TrainError: bad input, or a write that failed.
    """
    if max_seconds is not None and not (0 < max_seconds < math.inf):
        raise TrainError("--max-seconds", max_seconds, "it must be finite and above 0", "Leave it out for no limit")
    if resume is not None and out is not None:
        raise TrainError("--out", out, "a resumed run stays in its folder", "Leave it out")
    if resume is not None:
        chosen, stored = settings.from_run(resume, given, size_from_env())
    else:
        chosen, stored = settings.new(given, size_from_env()), {}
        if chosen.task == "text":
            chosen = dataclasses.replace(chosen, text=str(text.corpus_path(chosen.text)))
    task = tasks.load(chosen, rank_from_env(), size_from_env())
    if resume is not None and stored.get("data") != task.fingerprint():
        raise TrainError(
            "--resume", resume, "the data are not those it was trained on", "Put them back or start another run"
        )
    with _deterministic(chosen), world(chosen.device) as processes:
        folder = resume or out or _default_folder(chosen)
        if processes.writes and resume is None:
            files.new_folder(folder, "--out")
        both = sides.build_all(chosen, processes)
        this = Run(chosen, task, both, processes, folder if processes.writes else None, metrics.Log(None))
        if resume is not None:
            this.step = checkpoint.load(folder, both, this.stoppers, processes)
        if processes.writes:
            extra = {"world_size": processes.size, "data": task.fingerprint()}
            files.write_text(folder / settings.FILE, settings.to_json(chosen, **extra))
            this.log = metrics.Log(folder, keep=this.step)
        return _train_and_report(this, folder, max_seconds, console)


def _train_and_report(run: Run, folder: Path, max_seconds: float | None, console: Console) -> int:
    shown: progress.Progress = progress.Silent()
    with Signals() as signals:
        if run.step == 0:
            run.save()  # A full disk shows before the training, and an early Ctrl-C has something to resume.
        if run.world.writes:
            _announce(run, folder, console)
            shown = progress.new(console, run.task, run.settings.steps, run.step)
        try:
            ended = loop.train(run, shown, signals, max_seconds)
        finally:
            shown.close()
            run.log.close()
    again = f"python -m fusedtrain train --resume {folder}"
    if ended == "signal":
        number = signals.received or 15
        if run.world.writes:
            console.print(f"Interrupted after step {run.step}. Continue with: {again}", soft_wrap=True, highlight=False)
        return 128 + number
    for side in run.sides:
        run.stoppers[side.name].restore(side.model)
    figures = report.figures(run, ended)
    if run.world.writes:
        for side in run.sides:
            checkpoint.save_weights(folder, side)
        plots.all_plots(run.log.rows, run.settings, figures, folder)
        files.write_json(folder / SUMMARY, report.finite(figures))
        report.table(figures, console)
        console.print(f"Run folder: {folder}", soft_wrap=True, highlight=False)
        if ended == "time":
            console.print(
                f"Stopped by --max-seconds at step {run.step} of {run.settings.steps}. Continue with: {again}",
                soft_wrap=True, highlight=False,
            )  # fmt: skip
    return 0


def _announce(run: Run, folder: Path, console: Console) -> None:
    s, w = run.settings, run.world
    where = f"{s.device}, {w.size} processes" if w.size > 1 else s.device
    begun = f", from step {run.step}" if run.step else ""
    console.print(
        f"{s.task}: {s.model} of width {s.width} on {where}, seed {s.seed}{begun}. Run folder: {folder}",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def _default_folder(chosen: Settings) -> Path:
    stem = Path("runs") / f"{chosen.task}-{time.strftime('%Y%m%d-%H%M%S')}"
    return next(p for p in (stem, *(Path(f"{stem}-{i}") for i in range(2, 1000))) if not p.exists())


@contextmanager
def _deterministic(chosen: Settings) -> Iterator[None]:
    """Kernels that give the same bits each time, where torch has them, so that a resumed run is the same run. Whoever
    calls from Python has torch's settings back afterwards."""
    if chosen.device != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS asks for, before its first call
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a kernel per allocation
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
