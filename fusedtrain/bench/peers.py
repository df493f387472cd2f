"""Other projects' ways to take an AdamW step. Only what is installed is imported, and nothing of it is changed.

Each is asked for the arithmetic of ``torch.optim.AdamW``. As that one, some keep their states in the dtype of the
parameters; the others, as ours, in fp32. Optimizers with 8-bit states compute
something else: they trade accuracy for memory, and a table of speeds at equal results is no place for them.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_

from fusedtrain.bench import availability
from fusedtrain.bench.shapes import Shapes
from fusedtrain.bench.workload import Call

DISTRIBUTIONS = (
    "apex", "bitsandbytes", "deepspeed", "flashoptim", "heavyball", "liger-kernel", "torch-optimi", "torchao",
    "transformer-engine",
)  # fmt: skip
"""By whose versions the peers of all suites are told, as package indices name them."""


def installed() -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@dataclass(frozen=True)
class Settings:
    """Of clip + AdamW; by default those that are timed."""

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_norm: float = 1.0
    capturable: bool = False
    """Of torch's optimizers: whether their steps can be part of a CUDA graph."""

    def adamw(self) -> dict[str, Any]:
        """Those of ``torch.optim.AdamW``."""
        return {"lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}


TIMED = Settings()
Groups = list[list[Parameter]]
Make = Callable[[Groups, Settings], Call]
Optimizer = Callable[[Groups, Settings], torch.optim.Optimizer]


def params_of(groups: Groups) -> list[Parameter]:
    return [p for group in groups for p in group]


def for_optimizer(groups: Groups) -> list[dict[str, Any]]:
    return [{"params": group} for group in groups]


def clip_then(optimizer: Optimizer, foreach: bool | None = None) -> Make:
    """``torch.nn.utils.clip_grad_norm_``, then the step of an optimizer."""

    def make(groups: Groups, settings: Settings) -> Call:
        params, opt = params_of(groups), optimizer(groups, settings)

        def call() -> None:
            clip_grad_norm_(params, settings.max_norm, foreach=foreach)
            opt.step()

        return call

    return make


def _stepper(module: str, name: str, **flags: Any) -> Optimizer:
    """The optimizer of this name, with the settings that all have."""

    def make(groups: Groups, settings: Settings) -> torch.optim.Optimizer:
        return getattr(importlib.import_module(module), name)(for_optimizer(groups), **settings.adamw(), **flags)

    return make


def _apex(groups: Groups, settings: Settings) -> Call:
    """NVIDIA apex: its own clipping and ``FusedAdam``."""
    clip = importlib.import_module("apex.contrib.clip_grad").clip_grad_norm_
    opt = _stepper("apex.optimizers", "FusedAdam", adam_w_mode=True)(groups, settings)
    params = params_of(groups)

    def call() -> None:
        clip(params, settings.max_norm)
        opt.step()

    return call


def _heavyball(groups: Groups, settings: Settings) -> Call:
    """HeavyBall's AdamW takes the gradients away in its step: they are put back, at the price of an assignment each."""
    params = params_of(groups)
    opt = _stepper("heavyball", "AdamW")(groups, settings)

    def call() -> None:
        clip_grad_norm_(params, settings.max_norm)
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
    own_dtype: bool = False
    """Whether its states are of the dtype of the parameters, not fp32."""
    least_eps: bool = False
    """Whether epsilon is the least that its denominator may be, not added to it. That is one and the same at 1e-8."""

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
        "deepspeed.ops.adam",
        clip_then(_stepper("deepspeed.ops.adam", "FusedAdam", adam_w_mode=True)),
        "cuda",
        own_dtype=True,
    ),
    "deepspeed-cpu": Peer(
        "deepspeed.ops.adam", clip_then(_stepper("deepspeed.ops.adam", "DeepSpeedCPUAdam", adamw_mode=True)), "cpu"
    ),
    "torchao": Peer(
        "torchao.optim",
        clip_then(_stepper("torchao.optim", "_AdamW")),
        most_tensors=2000,
        most_shapes=20,
        own_dtype=True,
    ),
    "bitsandbytes": Peer("bitsandbytes", clip_then(_stepper("bitsandbytes.optim", "AdamW32bit"))),
    "optimi": Peer("optimi", clip_then(_stepper("optimi", "AdamW")), own_dtype=True),
    # Without its compressed states and master weights; its fused path is of Triton.
    "flashoptim": Peer(
        "flashoptim",
        lambda groups, settings: clip_then(
            _stepper("flashoptim", "FlashAdamW", quantize=False, master_weight_bits=None, fused=groups[0][0].is_cuda)
        )(groups, settings),
        own_dtype=True,
    ),
    "heavyball": Peer("heavyball", _heavyball, most_tensors=64, least_eps=True),
    "apex": Peer("apex.optimizers", _apex, "cuda"),
    "transformer_engine": Peer(
        "transformer_engine.pytorch.optimizers",
        clip_then(_stepper("transformer_engine.pytorch.optimizers", "FusedAdam", adam_w_mode=True)),
        "cuda",
    ),
}
