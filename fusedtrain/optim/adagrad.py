"""Adagrad: torch's class with the clipped step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fusedtrain.optim import work
from fusedtrain.optim.base import ClippedOptimizer
from fusedtrain.optim.hyper import Group


class Adagrad(ClippedOptimizer, torch.optim.Adagrad):  # type: ignore[misc]
    """Adagrad (Duchi et al. 2011) with clipping in the step: `torch.optim.Adagrad` otherwise.

    As torch's it has its states from the beginning: ``sum``, which starts at ``initial_accumulator_value``, and
    ``step``. The keyword arguments from ``max_norm`` on are described at `ClippedOptimizer`, the others at
    `torch.optim.Adagrad`.
    """

    _reads = (*ClippedOptimizer._reads, "lr_decay", "eps", "weight_decay")
    _state_keys = frozenset({"sum"})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
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
        others = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "differentiable": differentiable,
        }
        self._configure(backend, own, others)
        super().__init__(
            params,
            lr,
            lr_decay,
            weight_decay,
            initial_accumulator_value,
            eps,
            foreach,
            maximize=maximize,
            differentiable=differentiable,
            fused=fused,
        )
        for p in self._parameters():
            if p.dtype in work.FLOATS:  # torch's constructor has made states of all, in the dtype of the parameter
                self.state[p].clear()
                self._step_count(p, ("sum",))
                self._states(p, ("sum",))

    def _rule(self, group: Group) -> str:
        return "adagrad"

    def _row(self, group: Group) -> list[Any]:
        return [group["lr_decay"], group["eps"], group["weight_decay"]]

    def _new_state(self, p: Tensor, key: str) -> Tensor:
        first = self.defaults["initial_accumulator_value"]
        return super()._new_state(p, key).fill_(first) if first else super()._new_state(p, key)
