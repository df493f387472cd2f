"""The applier of layer-wise optimizers: an update scaled, tensor by tensor, to the size of what it updates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fusedtrain import distributed, rules
from fusedtrain.optim import launch
from fusedtrain.optim.base import ClippedOptimizer
from fusedtrain.optim.hyper import Group, Settings
from fusedtrain.optim.work import Batch

_ASCENT = -1.0
"""The learning rate of ``p - lr u`` that makes ``p + u``."""


class TrustRatio(ClippedOptimizer):
    """Steps by ``p -= lr r u`` where the rule alone would by ``p -= lr u``, with ``r = trust_coefficient |p| / |u|``
    for each tensor by itself: `fusedtrain.rules.trust_ratio`.

    Two passes, as the norm of a direction is known only when all of it is. The first is the backend's own step, which
    keeps the states, the counts and the decision to skip; it takes copies of the parameters in fp64 from ``p`` to
    ``p + u``. There the direction is read off, measured by the backend, and applied by torch's operators, in a few
    calls for each tensor. So a step wants 8 bytes more for each element while it runs, and waits for nothing.
    """

    _reads = (*ClippedOptimizer._reads, "trust_coefficient")
    _by_table = False

    def _check_group(self, name: str, group: Group) -> None:
        super()._check_group(name, group)
        for i, p in enumerate(group["params"]):
            if p.grad is not None and distributed.shards(p) is not None:
                raise RuntimeError(
                    f"{self._call}: parameter {i} of {name} is sharded over ranks, of which each would see the norm of "
                    "its part alone. Use AdamW or SGD, or replicate the parameter"
                )

    def _run(self, backend: Any, batch: Batch, settings: Settings, *scalars: Any) -> None:
        table = settings.tables[batch.rule]
        ascent = torch.cat([torch.full_like(table[:, :1], _ASCENT), table[:, 1:]], dim=1)
        stepped = [p.to(torch.float64, copy=True) for p in batch.params]
        launch.run(
            backend,
            replace(batch, params=stepped, copies=[]),
            settings._replace(tables={**settings.tables, batch.rule: ascent}),
            *scalars,
        )
        # Equal where the step was skipped, and where the parameter is infinite and stays so.
        directions = [torch.where(s == p, 0.0, s - p) for s, p in zip(stepped, batch.params, strict=True)]
        ratios = rules.trust_ratio(backend.tensor_norms(batch.params, 2.0), backend.tensor_norms(directions, 2.0))
        coefficients = self._coefficients(batch.rule, settings)
        rates = table[:, 0].unbind()
        for p, u, ratio, row in zip(batch.params, directions, ratios.unbind(), batch.group, strict=True):
            _apply(p, u, ratio, coefficients[row], rates[row])
        for p, stand_in in batch.copies:
            p.copy_(stand_in)

    def _coefficients(self, rule: str, settings: Settings) -> dict[int, float | Tensor | None]:
        """By row of the rule's table."""
        every = zip(settings.rules, settings.rows, self.param_groups, strict=True)
        return {row: group["trust_coefficient"] for name, row, group in every if name == rule}


def _apply(p: Tensor, u: Tensor, ratio: Tensor, coefficient: float | Tensor | None, lr: Tensor) -> None:
    """``p -= lr coefficient ratio u``, in fp32 or fp64, rounded once; without the ratio if there is no coefficient."""
    dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
    factor = torch.ones_like(ratio) if coefficient is None else ratio * coefficient
    p.copy_(p.to(dtype) - (factor * lr * u).to(dtype))
