"""AdamW: torch's class with the clipped step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fusedtrain.optim.adam import AdamRules


class AdamW(AdamRules, torch.optim.AdamW):  # type: ignore[misc]
    """AdamW (Loshchilov & Hutter 2019) with clipping in the step: `torch.optim.AdamW` otherwise.

    The keyword arguments from ``max_norm`` on are described at `ClippedOptimizer`, the others at `torch.optim.AdamW`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
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
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
