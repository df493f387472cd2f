"""One call of the operator for one batch, and what it is given besides."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fusedtrain import distributed
from fusedtrain.optim.hyper import Settings
from fusedtrain.optim.work import Batch


def amp(opt: Any) -> tuple[Tensor | None, Tensor | None]:
    """``(1 / scale, found_inf)`` as a GradScaler has left them on the optimizer, or None."""
    scale, found_inf = getattr(opt, "grad_scale", None), getattr(opt, "found_inf", None)
    if scale is not None:
        scale = distributed.whole(torch.as_tensor(scale)).double().reciprocal().float()
    return scale, None if found_inf is None else distributed.whole(torch.as_tensor(found_inf))


def follow(counter: Tensor | None, batches: Iterable[Batch]) -> Tensor | None:
    """The counter where parameters are: a model may have moved since its optimizer was made, and a counter that stayed
    behind would be waited for at every step."""
    devices = [batch.device for batch in batches]
    if counter is None or not devices or counter.device.type in {device.type for device in devices}:
        return counter
    return counter.to(devices[0])


def held(grads: Iterable[Tensor | None]) -> tuple[Tensor, Tensor] | None:
    """Where a compiled step with these gradients leaves grad_norm and clip_coef; None if there are none."""
    here = [distributed.local(g) for g in grads if g is not None]
    if not here:
        return None
    dtype = torch.float64 if any(g.dtype == torch.float64 for g in here) else torch.float32
    norm = torch.zeros((), dtype=dtype, device=here[0].device)
    return norm, torch.ones_like(norm)


def run(
    backend: Any,
    batch: Batch,
    settings: Settings,
    norm: Tensor | None,
    nonfinite: Tensor | None,
    inv_scale: Tensor | None,
    found_inf: Tensor | None,
    outputs: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> None:
    """Steps a batch. ``outputs``: grad_norm, clip_coef and skipped_steps, for one batch of a step, else None."""

    def here(x: Tensor | None) -> Tensor | None:
        return x if x is None or x.device == batch.device else x.to(batch.device)

    direct = [here(x) for x in outputs]
    table = settings.tables[batch.rule]
    backend.optim_step_(
        batch.rule,
        batch.params,
        batch.grads,
        batch.slot_major(),
        batch.steps,
        table if table.device.type == "cpu" else here(table),
        batch.group,
        here(norm),
        here(nonfinite),
        here(inv_scale),
        here(found_inf),
        settings.max_norm,
        settings.nonfinite != "propagate",
        *direct,
    )
    for p, stand_in in batch.copies:
        p.copy_(stand_in)
    for x, y in zip(outputs, direct, strict=True):
        if x is not y and x is not None and y is not None:
            x.copy_(y)
