"""LAMB, which torch does not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fusedtrain.optim.hyper import Group
from fusedtrain.optim.trust import TrustRatio


class LAMB(TrustRatio, torch.optim.Optimizer):
    """LAMB (You et al. 2020, "Large Batch Optimization for Deep Learning") with clipping in the step: the direction
    ``u`` of AdamW, and ``p -= lr r u`` with ``r = |p| / |u|`` for each tensor by itself, 1 where either norm is 0 or
    not finite.

    Args:
        params: iterable of parameters, of named parameters, or of dicts that define groups.
        lr: learning rate >= 0; times ``trust_coefficient`` it is the share of its norm by which a tensor moves.
        betas: in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decoupled, >= 0; a part of ``u``.
        trust_coefficient: a factor >= 0 of ``r``. None steps as AdamW does: for groups of biases and norms, say.
        maximize: ascend instead.
        foreach, capturable, differentiable, fused: as torch's other optimizers have them; see `ClippedOptimizer`.

    State: ``exp_avg``, ``exp_avg_sq`` and ``step``. What a step costs, takes and refuses: see `TrustRatio`. The keyword
    arguments from ``max_norm`` on are described at `ClippedOptimizer`.
    """

    _reads = (*TrustRatio._reads, "betas", "eps", "weight_decay")
    _state_keys = frozenset({"exp_avg", "exp_avg_sq"})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        trust_coefficient: float | None = 1.0,
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
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        self._configure(backend, own, defaults)
        super().__init__(params, {**defaults, "betas": tuple(betas)})

    def _rule(self, group: Group) -> str:
        return "adamw"

    def _row(self, group: Group) -> list[Any]:
        return [*group["betas"], group["eps"], group["weight_decay"]]
