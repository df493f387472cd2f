"""SGD: torch's class with the clipped step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fusedtrain.optim import arena, checkpoint
from fusedtrain.optim.base import ClippedOptimizer
from fusedtrain.optim.hyper import Group


class SGD(ClippedOptimizer, torch.optim.SGD):  # type: ignore[misc]
    """SGD with momentum, dampening and Nesterov's momentum, and clipping in the step: `torch.optim.SGD` otherwise.

    The first step of a parameter sets ``momentum_buffer`` to the gradient, as torch's does. Which steps are first is
    counted on the device and outside ``state``, whose keys stay torch's. A first step that was skipped leaves it
    first: `state_dict` then has ``momentum_buffer=None``, for which it waits for the device.

    The keyword arguments from ``max_norm`` on are described at `ClippedOptimizer`, the others at `torch.optim.SGD`.
    """

    _reads = (*ClippedOptimizer._reads, "momentum", "dampening", "weight_decay", "nesterov")
    _state_keys = frozenset({"momentum_buffer"})
    _counters: dict[Tensor, Tensor] | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
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
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "differentiable": differentiable,
        }
        self._configure(backend, own, others)
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )

    def _rule(self, group: Group) -> str:
        return "sgd_momentum" if group["momentum"] != 0 else "sgd"

    def _row(self, group: Group) -> list[Any]:
        if group["momentum"] == 0:
            return [group["weight_decay"]]
        return [group["weight_decay"], group["momentum"], group["dampening"], float(group["nesterov"])]

    def _step_count(self, p: Tensor, keys: tuple[str, ...]) -> Tensor:
        if self._counters is None:
            self._counters = {}
        count = self._counters.get(p)
        state = self.state.get(p) if keys else None
        begun = state is not None and state.get("momentum_buffer") is not None
        if count is None or count.device != p.device or (keys and not begun):
            count = self._counters[p] = checkpoint.step_counter(float(begun), p.device, arena.of(self))
        return count

    def _states_replaced(self) -> None:
        super()._states_replaced()
        self._counters = None

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """As torch's; ``momentum_buffer`` is None for a parameter that has had no step yet."""
        packed = super().state_dict()
        counters = self._counters or {}
        params = [p for group in self.param_groups for p in group["params"]]
        ids = [i for group in packed["param_groups"] for i in group["params"]]
        for key, p in zip(ids, params, strict=True):
            state, count = packed["state"].get(key), counters.get(p)
            if state and state.get("momentum_buffer") is not None and count is not None and count.item() == 0:
                packed["state"][key] = {**state, "momentum_buffer": None}
        return packed
