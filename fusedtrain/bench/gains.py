"""What a user's model would gain: the part of its step that is ours, what that should give, and what it gives."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import timer

import fusedtrain as ft
from fusedtrain.bench import factory, stats, tables, train_step
from fusedtrain.bench.act_dropout import ActDropout, named
from fusedtrain.bench.act_providers import PLAIN
from fusedtrain.bench.measure import Row, by_visit, median_seconds, ratios, timed
from fusedtrain.bench.optim_step import OptimStep
from fusedtrain.bench.step_providers import OURS
from fusedtrain.bench.train_step import TrainStep
from fusedtrain.bench.workload import Workload
from fusedtrain.nn import ActDropout as Fused

_FEWEST = 8
"""Steps whose parts are timed, however long they take."""
Site = tuple[str, float, tuple[int, int], torch.dtype]
"""Activation, probability, (rows, width) of the tensor, its dtype."""


@functools.cache
def sites_of(path: str, dtype: torch.dtype | None = None, device: torch.device = train_step.CPU) -> dict[Site, int]:
    """The activations with a dropout after them that `fuse_` finds, as one forward calls them: how often each.

    Args:
        device: where the model is built and called; some can only be called on a GPU.
    """
    training = factory.build(path, device, dtype)
    ft.fuse_(training.model)
    seen: Counter[Site] = Counter()

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        width = x.shape[-1] if x.dim() else 1
        p = float(module.p)  # type: ignore[arg-type]
        seen[str(module.activation), p, (x.numel() // max(1, width), width), x.dtype] += 1

    for module in training.model.modules():
        if isinstance(module, Fused):
            module.register_forward_pre_hook(note)
    training.loss()
    return dict(seen)


def workloads(
    path: str, dtype: torch.dtype = torch.float32, seed: int = 0, device: torch.device = train_step.CPU
) -> list[Workload]:
    """The step on the model, clip + AdamW on its parameters, and each of its activations with a dropout."""
    acts: list[Workload] = [dataclasses.replace(act, seed=seed) for act, _ in _acts(path, dtype, device)]
    whole = TrainStep(f"train, {path}", path, dtype=dtype, seed=seed, device=device)
    step = OptimStep(f"clip + AdamW, {path}", whole.shapes, host_bound=True, dtype=dtype, seed=seed)
    return [whole, step, *acts]


def _acts(path: str, dtype: torch.dtype, device: torch.device) -> list[tuple[ActDropout, int]]:
    return [
        (named(ActDropout("", activation, shape, kind, p=p, model=path)), calls)
        for (activation, p, shape, kind), calls in sites_of(path, dtype, device).items()
        if activation in PLAIN and shape[0] * shape[1]
    ]


@dataclass
class Share:
    """Medians over the rounds, in seconds."""

    forward: float
    backward: float
    update: float

    @property
    def step(self) -> float:
        return self.forward + self.backward + self.update


def of_model(whole: TrainStep, device: torch.device, rows: Sequence[Row], rounds: int, limit: float) -> dict[str, Any]:
    """Shares of a step, the gain that they let expect, and the measured one, with the rows of `workloads` at hand, of
    which ``whole`` is the first.

    Returns:
        ``model``; ``ours``, the provider; ``stock`` and ``fused``: seconds of ``forward``, ``backward`` and ``update``;
        ``sites``; ``share_update`` and ``share_act`` of the stock step; ``expected`` and ``measured``: how many times
        as long the stock step takes, and ``measured_interval``, None with too few visits. Or ``why_not``.
    """
    path, dtype = whole.path, whole.dtype
    by_name = {row["name"]: row for row in rows}
    _, step, *_ = workloads(path, dtype, device=device)
    row = by_name.get(whole.name)
    ours = next((p for p in OURS if row is not None and timed(row, p) and p != "fusedtrain-reference"), None)
    if row is None or ours is None or not timed(row, whole.baseline):
        return {"model": path, "why_not": "its training step was not measured"}
    stock, fused, sites = _phases(whole, device, (whole.baseline, ours), rounds, limit)
    update = by_name.get(step.name)
    saved = spent = 0.0
    if update is not None and _both(update, step, ours):
        saved = median_seconds(update, step.baseline) - median_seconds(update, ours)
    for act, calls in _acts(path, dtype, device):
        found = by_name.get(act.name)
        if found is not None and _both(found, act, ours):
            spent += calls * median_seconds(found, act.baseline)
            saved += calls * (median_seconds(found, act.baseline) - median_seconds(found, ours))
    of_rounds = ratios(row, ours, whole.baseline)
    return {
        "model": path,
        "ours": ours,
        "baseline": whole.baseline,
        "sites": sites,
        "stock": vars(stock),
        "fused": vars(fused),
        "share_update": stock.update / stock.step,
        "share_act": spent / stock.step,
        "expected": stock.step / max(stock.step - saved, 1e-12),
        "measured": stats.median(of_rounds),
        "measured_interval": stats.median_interval(by_visit(row, of_rounds)),
    }


def _both(row: Row, workload: Workload, ours: str) -> bool:
    return timed(row, ours) and timed(row, workload.baseline)


def _phases(
    step: TrainStep, device: torch.device, sides: tuple[str, str], rounds: int, limit: float
) -> tuple[Share, Share, list[str]]:
    """Both sides, step by step in turn."""
    made = [step.phases(side, device, step.dtype) for side in sides]
    seconds: list[list[list[float]]] = [[], []]
    began = time.monotonic()
    for turn in range(rounds + 1):
        if turn > _FEWEST and time.monotonic() - began > limit:
            break
        for phases, found in zip(made, seconds, strict=True):
            t = [timer()]
            loss = phases.forward()
            t.append(timer())
            phases.backward(loss)
            t.append(timer())
            phases.update()
            t.append(timer())
            if turn:  # the first one warms up
                found.append([b - a for a, b in itertools.pairwise(t)])
    stock, fused = (Share(*(stats.median(part) for part in zip(*found, strict=True))) for found in seconds)
    return stock, fused, made[1].sites


def lines(gains: dict[str, Any]) -> list[str]:
    """For people."""
    if "why_not" in gains:
        return [f"{gains['model']}: {gains['why_not']}"]
    low, high = gains["measured_interval"] or (None, None)
    sites = f"{len(gains['sites'])} places" if gains["sites"] else "no place that fuse_ takes"
    return [
        f"{gains['model']}, {gains['ours']} against {gains['baseline']}:",
        f"  clip + optimizer are {gains['share_update']:.1%} of the step",
        f"  activation + dropout are {gains['share_act']:.1%} of it ({sites})",
        f"  expected from these: {gains['expected']:.3f}x",
        f"  measured: {gains['measured']:.3f}x ({tables.interval(low, high, 3)})",
    ]
