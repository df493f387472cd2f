"""The operator of the step, done by a table as repeated steps are: so that tests of one are tests of the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedtrain import rules


class ByTable:
    """Takes the arguments of ``optim_step_``. A norm that is passed says that there is to be one: the table computes
    that of order 2 of the gradients itself, and whether it is finite."""

    def __init__(self, launcher: Any) -> None:
        self.launcher = launcher

    def __call__(
        self,
        rule: str,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[Tensor],
        steps: list[Tensor],
        hyper: Tensor,
        group: list[int],
        norm: Tensor | None,
        nonfinite: Tensor | None,
        inv_scale: Tensor | None,
        found_inf: Tensor | None,
        max_norm: float,
        skip_nonfinite: bool,
        grad_norm: Tensor | None,
        clip_coef: Tensor | None,
        skipped_steps: Tensor | None,
    ) -> None:
        keys, count = rules.UPDATES[rule].slots, len(params)
        groups = [{"params": [p]} for p in params]
        entries = [{key: states[slot * count + i] for slot, key in enumerate(keys)} for i in range(count)]
        for p, g in zip(params, grads, strict=True):
            p.grad_dtype = None
            p.grad = g
        state: dict[Tensor, Any] = dict(zip(params, entries, strict=True))
        table = self.launcher.table(groups, group, state, keys, entries, steps)
        dtype = torch.float64 if table.has_double_gradient() else torch.float32
        outputs = torch.zeros(3, dtype=dtype, device=params[0].device)
        if grad_norm is not None:
            outputs[0] = grad_norm
        assert table.refresh(groups, state)
        order = 0.0 if norm is None else 2.0
        rest = (order, inv_scale, found_inf, max_norm, skip_nonfinite, outputs, skipped_steps)
        assert self.launcher.step(table, rule, hyper, *rest)
        for p in params:
            p.grad = None
        for i, x in enumerate((grad_norm, clip_coef)):
            if x is not None:
                x.copy_(outputs[i])
