"""Other projects' ways to take an AdamW step. Only what is installed is imported, and nothing of it is changed.

Each is asked for the arithmetic of ``torch.optim.AdamW`` with fp32 states. Optimizers with 8-bit states compute
something else: they trade accuracy for memory, and a table of speeds at equal results is no place for them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_

from fusedtrain.bench import availability
from fusedtrain.bench.shapes import Shapes
from fusedtrain.bench.workload import Call

BETAS, EPS, LR, WEIGHT_DECAY, MAX_NORM = (0.9, 0.95), 1e-8, 3e-4, 0.1, 1.0
SETTINGS: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}

Groups = list[list[Parameter]]
Make = Callable[[Groups], Call]


def params_of(groups: Groups) -> list[Parameter]:
    return [p for group in groups for p in group]


def for_optimizer(groups: Groups) -> list[dict[str, Any]]:
    return [{"params": group} for group in groups]


def clip_then(optimizer: Callable[[Groups], torch.optim.Optimizer], foreach: bool | None = None) -> Make:
    """``torch.nn.utils.clip_grad_norm_``, then the step of an optimizer."""

    def make(groups: Groups) -> Call:
        params, opt = params_of(groups), optimizer(groups)

        def call() -> None:
            clip_grad_norm_(params, MAX_NORM, foreach=foreach)
            opt.step()

        return call

    return make


def _stepper(module: str, name: str, **flags: Any) -> Callable[[Groups], torch.optim.Optimizer]:
    """The optimizer of this name, with the settings that all have."""

    def make(groups: Groups) -> torch.optim.Optimizer:
        return getattr(importlib.import_module(module), name)(for_optimizer(groups), **SETTINGS, **flags)

    return make


def _apex(groups: Groups) -> Call:
    """NVIDIA apex: its own clipping and ``FusedAdam``."""
    clip = importlib.import_module("apex.contrib.clip_grad").clip_grad_norm_
    opt = _stepper("apex.optimizers", "FusedAdam", adam_w_mode=True)(groups)
    params = params_of(groups)

    def call() -> None:
        clip(params, MAX_NORM)
        opt.step()

    return call


def _heavyball(groups: Groups) -> Call:
    """HeavyBall's AdamW takes the gradients away in its step: they are put back, at the price of an assignment each."""
    params = params_of(groups)
    opt = _stepper("heavyball", "AdamW")(groups)

    def call() -> None:
        clip_grad_norm_(params, MAX_NORM)
        grads = [p.grad for p in params]
        opt.step()
        for p, g in zip(params, grads, strict=True):
            p.grad = g

    return call


@dataclass(frozen=True)
class Peer:
    module: str
    """That must be importable."""
    make: Make
    only: str | None = None
    """The only type of device that it runs on."""
    most_tensors: int | None = None
    most_shapes: int | None = None
    """Beyond which it compiles for many minutes before its first step."""

    def why_not(self, device: torch.device, shapes: Shapes) -> str | None:
        if self.only is not None and device.type != self.only:
            return f"runs on {self.only} only"
        for most, found, what in (
            (self.most_tensors, len(shapes), "tensors"),
            (self.most_shapes, len(set(shapes)), "different shapes"),
        ):
            if most is not None and found > most:
                return f"compiles for many minutes: is measured on up to {most} {what}, here are {found}"
        return availability.import_refusal(self.module)


PEERS: dict[str, Peer] = {
    "deepspeed-fused": Peer(
        "deepspeed.ops.adam", clip_then(_stepper("deepspeed.ops.adam", "FusedAdam", adam_w_mode=True)), "cuda"
    ),
    "deepspeed-cpu": Peer(
        "deepspeed.ops.adam", clip_then(_stepper("deepspeed.ops.adam", "DeepSpeedCPUAdam", adamw_mode=True)), "cpu"
    ),
    "torchao": Peer("torchao.optim", clip_then(_stepper("torchao.optim", "_AdamW")), most_tensors=2000, most_shapes=20),
    "bitsandbytes": Peer("bitsandbytes", clip_then(_stepper("bitsandbytes.optim", "AdamW32bit"))),
    "optimi": Peer("optimi", clip_then(_stepper("optimi", "AdamW"))),
    # Without its compressed states and master weights; its fused path is of Triton.
    "flashoptim": Peer(
        "flashoptim",
        lambda groups: clip_then(
            _stepper("flashoptim", "FlashAdamW", quantize=False, master_weight_bits=None, fused=groups[0][0].is_cuda)
        )(groups),
    ),
    "heavyball": Peer("heavyball", _heavyball, most_tensors=64),
    "apex": Peer("apex.optimizers", _apex, "cuda"),
    "transformer_engine": Peer(
        "transformer_engine.pytorch.optimizers",
        clip_then(_stepper("transformer_engine.pytorch.optimizers", "FusedAdam", adam_w_mode=True)),
        "cuda",
    ),
}
