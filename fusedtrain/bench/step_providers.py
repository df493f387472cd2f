"""Ways to clip gradients by their global norm and take an AdamW step, ours and others'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import get_total_norm

import fusedtrain as ft
from fusedtrain import dispatch
from fusedtrain.bench import compiling
from fusedtrain.bench.peers import MAX_NORM, PEERS, SETTINGS, Groups, Make, clip_then, for_optimizer, params_of
from fusedtrain.bench.workload import Call


def fused_step(backend: str) -> Make:
    """``fusedtrain.optim.AdamW(max_norm=)``."""

    def make(groups: Groups) -> Call:
        return ft.optim.AdamW(for_optimizer(groups), **SETTINGS, max_norm=MAX_NORM, backend=backend).step

    return make


def stock(**flags: Any) -> Callable[[Groups], torch.optim.Optimizer]:
    return lambda groups: torch.optim.AdamW(for_optimizer(groups), **SETTINGS, **flags)


def grad_scale_trick(groups: Groups) -> Call:
    """torch's fused step divides gradients by ``opt.grad_scale`` for GradScaler's sake: given the inverse of the clip
    coefficient it clips, and saves a pass. It still writes the gradients back."""
    params = params_of(groups)
    opt: Any = stock(fused=True)(groups)
    opt.found_inf = torch.zeros((), device=params[0].device)

    def call() -> None:
        grads = [p.grad for p in params if p.grad is not None]
        norm = get_total_norm(grads, foreach=True).float()
        opt.grad_scale = ((norm + 1e-6) / MAX_NORM).clamp_(min=1.0)
        opt.step()

    return call


def compiled(groups: Groups) -> Call:
    """``torch.compile`` over clipping and the foreach step together."""
    on_gpu = groups[0][0].is_cuda
    return compiling.compiled(clip_then(stock(foreach=True, capturable=on_gpu), foreach=True)(groups))


OURS = {f"fusedtrain-{name}": name for name in dispatch.ORDER}
"""Our providers, and the backend of each."""
TORCH: dict[str, Make] = {
    "torch-loop": clip_then(stock(foreach=False), foreach=False),
    "torch-foreach": clip_then(stock(foreach=True), foreach=True),
    "torch-fused": clip_then(stock(fused=True)),
    "torch-grad_scale": grad_scale_trick,
    "torch-compiled": compiled,
}
PROVIDERS: dict[str, Make] = {
    **{provider: fused_step(backend) for provider, backend in OURS.items()},
    **TORCH,
    **{name: peer.make for name, peer in PEERS.items()},
}
