"""Lion, which torch does not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fusedtrain.optim.base import ClippedOptimizer
from fusedtrain.optim.hyper import Group


class Lion(ClippedOptimizer, torch.optim.Optimizer):
    """Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms") with clipping in the step:
    ``u = sign(beta1 m + (1 - beta1) g) + weight_decay p``, ``p -= lr u``, ``m = beta2 m + (1 - beta2) g``.

    Args:
        params: iterable of parameters, of named parameters, or of dicts that define groups.
        lr: learning rate >= 0. The authors take a third to a tenth of AdamW's.
        betas: in [0, 1).
        weight_decay: decoupled, >= 0. With a smaller ``lr`` it has to be larger by the same factor than AdamW's.
        maximize: ascend instead.
        foreach, capturable, differentiable, fused: as torch's other optimizers have them; see `ClippedOptimizer`.

    State: ``exp_avg``, and ``step``, which checkpoints of other implementations may lack. The keyword arguments from
    ``max_norm`` on are described at `ClippedOptimizer`.
    """

    _reads = (*ClippedOptimizer._reads, "betas", "weight_decay")
    _state_keys = frozenset({"exp_avg"})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        weight_decay: float = 0.0,
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
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        self._configure(backend, own, defaults)
        super().__init__(params, {**defaults, "betas": tuple(betas)})

    def _rule(self, group: Group) -> str:
        return "lion"

    def _row(self, group: Group) -> list[Any]:
        return [*group["betas"], group["weight_decay"]]
