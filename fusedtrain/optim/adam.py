"""Adam and AdamW: torch's classes with the clipped step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fusedtrain.optim.base import ClippedOptimizer
from fusedtrain.optim.hyper import Group


class AdamRules(ClippedOptimizer):
    """What Adam and AdamW share: states ``exp_avg``, ``exp_avg_sq``, with AMSGrad ``max_exp_avg_sq``, and ``step``."""

    _reads = (*ClippedOptimizer._reads, "betas", "eps", "weight_decay", "amsgrad", "decoupled_weight_decay")
    _state_keys = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq"})
    _optional_states = frozenset({"max_exp_avg_sq"})  # AMSGrad switched on later

    def _rule(self, group: Group) -> str:
        name = "adamw" if group["decoupled_weight_decay"] else "adam"
        return name + "_amsgrad" if group["amsgrad"] else name

    def _row(self, group: Group) -> list[Any]:
        beta1, beta2 = group["betas"]
        return [beta1, beta2, group["eps"], group["weight_decay"]]


class Adam(AdamRules, torch.optim.Adam):  # type: ignore[misc]
    """Adam (Kingma & Ba 2015) with clipping in the step: `torch.optim.Adam` otherwise.

    ``weight_decay`` is added to the gradient after clipping (L2), unless ``decoupled_weight_decay``. The keyword
    arguments from ``max_norm`` on are described at `ClippedOptimizer`, the others at `torch.optim.Adam`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        clip_value: float | None = None,
        l1: float = 0.0,
        nonfinite: str = "propagate",
        backend: str | None = None,
    ) -> None:
        own = {"max_norm": max_norm, "norm_type": norm_type, "clip_value": clip_value, "l1": l1, "nonfinite": nonfinite}
        others = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "differentiable": differentiable}
        self._configure(backend, own, others)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )
