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

_FAR = 2.0**60
"""``(p + _FAR u) - p`` is ``_FAR u``, up to rounding, wherever ``u`` is not 2^60 times smaller than ``p``."""


class TrustRatio(ClippedOptimizer):
    """Steps by ``p -= lr r u`` where the rule alone would by ``p -= lr u``, with ``r = trust_coefficient |p| / |u|``
    for each tensor by itself: `fusedtrain.rules.trust_ratio`.

    Two passes, as the norm of a direction is known only when all of it is. The first is the backend's own step, which
    keeps the states, the counts and the decision to skip; it takes copies of the parameters from ``p`` far along ``u``.
    There the direction is read off, measured by the backend, and applied by torch's operators, in a few calls for each
    tensor. The copies are fp32 (fp64 of fp64); nothing is waited for. A direction of more than 3e20 in fp32 overflows.

    Raises:
        RuntimeError: at ``step()``, parameters that are sharded over ranks (DTensor), and what `ClippedOptimizer` does.
    """

    _reads = (*ClippedOptimizer._reads, "trust_coefficient")
    _by_table = False

    def _check_group(self, name: str, group: Group) -> None:
        super()._check_group(name, group)
        for i, p in enumerate(group["params"]):
            # Also without a gradient: all ranks have to raise, and another one may have it.
            if distributed.shards(p) is not None:
                raise RuntimeError(
                    f"{self._call}: parameter {i} of {name} is sharded over ranks, of which each would see the norm of "
                    "its part alone. Use AdamW or SGD, or replicate the parameter"
                )

    def _run(self, backend: Any, batch: Batch, settings: Settings, *scalars: Any) -> None:
        table = settings.tables[batch.rule]
        rates = [_scalar(lr, batch.device) for lr in table[:, 0].unbind()]
        coefficients = self._coefficients(batch, settings)
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
        ratios = rules.trust_ratio(p_norms, u_norms.double() / _FAR)
        for p, u, ratio, row in zip(batch.params, directions, ratios.unbind(), batch.group, strict=True):
            coefficient = coefficients[row]
            factor = rates[row] if coefficient is None else ratio * coefficient * rates[row]
            u.mul_(factor / _FAR)
            if p.dtype is u.dtype:
                p.sub_(u)
            else:  # once rounded; what does not move keeps its bits, also those of a NaN
                p.copy_(torch.where(u == 0, p, (p - u).to(p.dtype)))
        for p, stand_in in batch.copies:
            p.copy_(stand_in)

    def _coefficients(self, batch: Batch, settings: Settings) -> dict[int, float | Tensor | None]:
        """By row of the rule's table."""
        found = {}
        for rule, row, group in zip(settings.rules, settings.rows, self.param_groups, strict=True):
            if rule == batch.rule:
                coefficient = group["trust_coefficient"]
                found[row] = _scalar(coefficient, batch.device) if isinstance(coefficient, Tensor) else coefficient
        return found


def _scalar(x: Tensor, device: torch.device) -> Tensor:
    """As 0-dim, and where it can meet tensors of the device: there, or on the CPU."""
    x = x.detach().reshape(())
    return x if x.device.type == "cpu" else x.to(device)


def _direction(p: Tensor, stepped: Tensor) -> Tensor:
    """``_FAR u``, in the memory of ``stepped``. 0 where a step was skipped, or an infinite or poisoned ``p`` stays."""
    stays = (stepped == p) | (stepped.isnan() & p.isnan())
    return stepped.sub_(p).masked_fill_(stays, 0.0)
