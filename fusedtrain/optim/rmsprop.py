"""RMSprop: torch's class with the clipped step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fusedtrain.optim.base import ClippedOptimizer
from fusedtrain.optim.hyper import Group


class RMSprop(ClippedOptimizer, torch.optim.RMSprop):  # type: ignore[misc]
    """RMSprop (Tieleman & Hinton 2012), centered or not (Graves 2013), with momentum or not, and with clipping in the
    step: `torch.optim.RMSprop` otherwise.

    Centered, a variance below the rounding of ``square_avg`` counts as that much: where a gradient stays the same it
    is mere rounding, of which torch makes NaN where it is negative. So a direction is at most 2^11.5 in fp32.
    Momentum and centering may be switched on in mid-training: averages that were never there begin at 0.

    ``fused=`` is accepted and not kept: torch's class has none. The keyword arguments from ``max_norm`` on are
    described at `ClippedOptimizer`, the others at `torch.optim.RMSprop`.
    """

    _reads = (*ClippedOptimizer._reads, "alpha", "eps", "weight_decay", "momentum", "centered")
    _state_keys = frozenset({"square_avg", "grad_avg", "momentum_buffer"})
    _optional_states = frozenset({"grad_avg", "momentum_buffer"})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        fused: bool | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        clip_value: float | None = None,
        l1: float = 0.0,
        nonfinite: str = "propagate",
        backend: str | None = None,
    ) -> None:
        own = {"max_norm": max_norm, "norm_type": norm_type, "clip_value": clip_value, "l1": l1, "nonfinite": nonfinite}
        others = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "differentiable": differentiable,
        }
        self._configure(backend, own, others)
        super().__init__(
            params,
            lr,
            alpha,
            eps,
            weight_decay,
            momentum,
            centered,
            capturable,
            foreach,
            maximize,
            differentiable,
        )

    def _rule(self, group: Group) -> str:
        return "rmsprop" + ("_centered" if group["centered"] else "") + ("_momentum" if group["momentum"] != 0 else "")

    def _row(self, group: Group) -> list[Any]:
        row = [group["alpha"], group["eps"], group["weight_decay"]]
        return row if group["momentum"] == 0 else [*row, group["momentum"]]
