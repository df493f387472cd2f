"""Ways to clip gradients by their global norm and take an AdamW step, ours and others'."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.nn.utils import get_total_norm

import fusedtrain as ft
from fusedtrain import dispatch
from fusedtrain.bench import compiling
from fusedtrain.bench.peers import PEERS, Groups, Make, Optimizer, Settings, clip_then, for_optimizer, params_of
from fusedtrain.bench.workload import Call


def fused_step(backend: str) -> Make:
    """``fusedtrain.optim.AdamW(max_norm=)``."""

    def make(groups: Groups, settings: Settings) -> Call:
        listed = for_optimizer(groups)
        return ft.optim.AdamW(listed, **settings.adamw(), max_norm=settings.max_norm, backend=backend).step

    return make


def stock(**flags: Any) -> Optimizer:
    def make(groups: Groups, settings: Settings) -> torch.optim.Optimizer:
        listed = for_optimizer(groups)
        return torch.optim.AdamW(listed, **settings.adamw(), **flags, capturable=settings.capturable)

    return make


def grad_scale_trick(groups: Groups, settings: Settings) -> Call:
    """torch's fused step divides gradients by ``opt.grad_scale`` for GradScaler's sake: given the inverse of the clip
    coefficient it clips, and saves a pass. It still writes the gradients back."""
    params = params_of(groups)
    opt: Any = stock(fused=True)(groups, settings)
    opt.found_inf = torch.zeros((), device=params[0].device)

    def call() -> None:
        grads = [p.grad for p in params if p.grad is not None]
        norm = get_total_norm(grads, foreach=True).float()
        opt.grad_scale = ((norm + 1e-6) / settings.max_norm).clamp_(min=1.0)
        opt.step()

    return call


def compiled(groups: Groups, settings: Settings) -> Call:
    """``torch.compile`` over clipping and the foreach step together."""
    settings = dataclasses.replace(settings, capturable=groups[0][0].is_cuda)
    return compiling.compiled(clip_then(stock(foreach=True), foreach=True)(groups, settings))


OURS = {f"fusedtrain-{name}": name for name in dispatch.ORDER}
"""Our providers, and the backend of each."""
TORCH: dict[str, Make] = {
    "torch-loop": clip_then(stock(foreach=False), foreach=False),
    "torch-foreach": clip_then(stock(foreach=True), foreach=True),
    "torch-fused": clip_then(stock(fused=True)),
    "torch-grad_scale": grad_scale_trick,
    "torch-compiled": compiled,
}
OWN_DTYPE = frozenset({*TORCH, *(name for name, peer in PEERS.items() if peer.own_dtype)})
"""Providers that keep their states in the dtype of the parameters."""
PROVIDERS: dict[str, Make] = {
    **{provider: fused_step(backend) for provider, backend in OURS.items()},
    **TORCH,
    **{name: peer.make for name, peer in PEERS.items()},
}
