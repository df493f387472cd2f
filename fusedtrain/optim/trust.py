"""The applier of layer-wise optimizers: an update scaled, tensor by tensor, to the size of what it updates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fusedtrain import distributed, rules
from fusedtrain.optim import launch, work
from fusedtrain.optim.base import ClippedOptimizer
from fusedtrain.optim.hyper import Group, Settings
from fusedtrain.optim.work import Batch

_FAR = 2.0**20
"""So much larger than its direction is the step in which that is read off: ``(p + _FAR u) - p`` is ``_FAR u`` with an
error of the rounding of u, and of the rounding of p a millionth. A direction beyond 3e32 overflows."""


class TrustRatio(ClippedOptimizer):
    """Steps by ``p -= lr r u`` where the rule alone would by ``p -= lr u``, with ``r = trust_coefficient |p| / |u|``
    for each tensor by itself: `fusedtrain.rules.trust_ratio`.

    Two passes, as the norm of a direction is known only when all of it is. The first is the backend's own step, which
    keeps the states, the counts and the decision to skip; it takes copies of the parameters from ``p`` far along ``u``.
    There the direction is read off, measured by the backend, and applied by torch's operators, in a few calls for each
    tensor. So a step wants 4 bytes more for each element while it runs (8 in fp64), and waits for nothing.
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
        ascent = torch.cat([torch.full_like(table[:, :1], -_FAR), table[:, 1:]], dim=1)
        stepped = [p.to(work.state_dtype(p), copy=True) for p in batch.params]
        launch.run(
            backend,
            replace(batch, params=stepped, copies=[]),
            settings._replace(tables={**settings.tables, batch.rule: ascent}),
            *scalars,
        )
        directions = [_direction(p, s) for p, s in zip(batch.params, stepped, strict=True)]
        p_norms, u_norms = (backend.tensor_norms(xs, 2.0) for xs in (batch.params, directions))
        ratios = rules.trust_ratio(p_norms, u_norms / _FAR)
        coefficients = self._coefficients(batch.rule, settings)
        rates = (table[:, 0] / _FAR).unbind()
        for p, u, ratio, row in zip(batch.params, directions, ratios.unbind(), batch.group, strict=True):
            coefficient = coefficients[row]
            factor = rates[row] if coefficient is None else ratio * coefficient * rates[row]
            p.sub_(u.mul_(factor))  # in the dtype of u, rounded once
        for p, stand_in in batch.copies:
            p.copy_(stand_in)

    def _coefficients(self, rule: str, settings: Settings) -> dict[int, float | Tensor | None]:
        """By row of the rule's table."""
        every = zip(settings.rules, settings.rows, self.param_groups, strict=True)
        return {row: group["trust_coefficient"] for name, row, group in every if name == rule}


def _direction(p: Tensor, stepped: Tensor) -> Tensor:
    """``_FAR u``, in the memory of ``stepped``. 0 where the step was skipped, and where an infinite ``p`` stays so."""
    stays = stepped == p
    return stepped.sub_(p).masked_fill_(stays, 0.0)
