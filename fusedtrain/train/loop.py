"""The training loop: both sides, step by step in turn, until the steps, the patience, the time or the user end it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fusedtrain.train import checkpoint, metrics
from fusedtrain.train.early_stopping import EarlyStopping
from fusedtrain.train.progress import Progress
from fusedtrain.train.settings import Settings
from fusedtrain.train.sides import Measured, Side
from fusedtrain.train.signals import Signals
from fusedtrain.train.tasks import Task
from fusedtrain.train.world import World


@dataclass
class Run:
    """What a run consists of. ``folder`` is None only where nothing is to be written (tests, other processes)."""

    settings: Settings
    task: Task
    sides: list[Side]
    world: World
    folder: Path | None
    log: metrics.Log
    step: int = 0
    stoppers: dict[str, EarlyStopping] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for side in self.sides:
            self.stoppers.setdefault(side.name, EarlyStopping(self.settings.patience))

    def save(self) -> None:
        """A checkpoint after `step` steps, with the rows of all of them on disk before it."""
        self.log.flush()
        if self.folder is not None or not self.world.writes:
            checkpoint.save(self.folder or Path(), self.step, self.sides, self.stoppers, self.world)


def learning_rate(settings: Settings, step: int) -> float:
    """Of step 0, 1, ...: linear warm-up, then constant, or a half cosine down to a hundredth (Loshchilov & Hutter
    2017). A function of the step alone, so that nothing of it is to be saved."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def train(run: Run, progress: Progress, signals: Signals, max_seconds: float | None = None) -> str:
    """Trains until the end. Returns what ended it: ``"steps"``, ``"patience"``, ``"time"`` or ``"signal"``. By then a
    checkpoint of the last step is on disk."""
    settings, world = run.settings, run.world
    deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
    ended = _ended(run)
    while ended is None:
        measured = _step(run)
        losses, stop, late = _agree(world, measured, signals.received is not None, time.monotonic() >= deadline)
        lr, first = learning_rate(settings, run.step - 1), next(iter(measured))
        row: metrics.Row = {"step": run.step, "lr": lr, "first": first}
        for name, loss in losses.items():
            metrics.of_step(row, name, measured[name], loss)
        if run.step % settings.eval_every == 0 or run.step == settings.steps:
            _evaluate(run, row)
        run.log.append(row)
        progress.step(row)
        ended = "signal" if stop else "time" if late else _ended(run)
        if ended is not None or run.step % settings.eval_every == 0:
            run.save()
    return ended


def _ended(run: Run) -> str | None:
    if all(stopper.stopped for stopper in run.stoppers.values()):
        return "patience"
    return "steps" if run.step >= run.settings.steps else None


def _step(run: Run) -> dict[str, Measured]:
    """One step of every side that has not stopped, in the order they ran: first the one that was second before."""
    batch, lr = run.task.batch(run.step), learning_rate(run.settings, run.step)
    order = run.sides if run.step % 2 == 0 else run.sides[::-1]
    run.step += 1
    return {side.name: side.step(run.task, batch, lr) for side in order if not run.stoppers[side.name].stopped}


def _agree(world: World, measured: dict[str, Measured], stop: bool, late: bool) -> tuple[dict[str, float], bool, bool]:
    """Mean losses over the processes, and whether any was told to stop or ran out of time: one reduction for all, so
    that each process decides the same."""
    names = sorted(measured)
    losses = [measured[name].loss.double() for name in names]
    flags = torch.tensor([stop, late], dtype=torch.float64, device=world.device)
    *sums, stops, lates = world.sum(torch.cat([torch.stack(losses), flags])).tolist()
    return {name: total / world.size for name, total in zip(names, sums, strict=True)}, stops > 0, lates > 0


def _evaluate(run: Run, row: metrics.Row) -> None:
    for side in run.sides:
        stopper = run.stoppers[side.name]
        if stopper.stopped:
            continue
        loss, metric = score(run, side, "val")
        row[f"{side.name}_val_loss"], row[f"{side.name}_val_metric"] = loss, metric
        stopper.update(run.step, loss, side.model)


def score(run: Run, side: Side, split: str) -> tuple[float, float]:
    """Mean loss and metric of a side on ``"val"`` or ``"test"``, the same on every process."""
    loss, metric, count = run.world.sum(run.task.evaluate(side.model, split)).tolist()
    return loss / count, metric / count
