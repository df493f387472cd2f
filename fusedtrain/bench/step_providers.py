"""Ways to clip gradients by their global norm and take an AdamW step, ours and others'."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_, get_total_norm

import fusedtrain as ft
from fusedtrain import dispatch
from fusedtrain.bench.workload import Call

BETAS, EPS, LR, WEIGHT_DECAY, MAX_NORM = (0.9, 0.95), 1e-8, 3e-4, 0.1, 1.0

Groups = list[list[Parameter]]
Make = Callable[[Groups], Call]

SETTINGS: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}


def _params(groups: Groups) -> list[Parameter]:
    return [p for group in groups for p in group]


def _for_optimizer(groups: Groups) -> list[dict[str, Any]]:
    return [{"params": group} for group in groups]


def fused_step(backend: str) -> Make:
    """``fusedtrain.optim.AdamW(max_norm=)``."""

    def make(groups: Groups) -> Call:
        return ft.optim.AdamW(_for_optimizer(groups), **SETTINGS, max_norm=MAX_NORM, backend=backend).step

    return make


def clip_then(optimizer: Callable[[Groups], torch.optim.Optimizer], foreach: bool | None = None) -> Make:
    """``torch.nn.utils.clip_grad_norm_``, then the step of an optimizer."""

    def make(groups: Groups) -> Call:
        params, opt = _params(groups), optimizer(groups)

        def call() -> None:
            clip_grad_norm_(params, MAX_NORM, foreach=foreach)
            opt.step()

        return call

    return make


def stock(**flags: Any) -> Callable[[Groups], torch.optim.Optimizer]:
    return lambda groups: torch.optim.AdamW(_for_optimizer(groups), **SETTINGS, **flags)


def grad_scale_trick(groups: Groups) -> Call:
    """torch's fused step divides gradients by ``opt.grad_scale`` for GradScaler's sake: given the inverse of the clip
    coefficient it clips, and saves a pass. It still writes the gradients back."""
    params = _params(groups)
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
    return torch.compile(clip_then(stock(foreach=True, capturable=on_gpu), foreach=True)(groups))


def apex(groups: Groups) -> Call:
    """NVIDIA apex: its own clipping and ``FusedAdam``."""
    clip = importlib.import_module("apex.contrib.clip_grad").clip_grad_norm_
    opt = importlib.import_module("apex.optimizers").FusedAdam(_for_optimizer(groups), **SETTINGS, adam_w_mode=True)
    params = _params(groups)

    def call() -> None:
        clip(params, MAX_NORM)
        opt.step()

    return call


def transformer_engine(groups: Groups) -> Call:
    """NVIDIA Transformer Engine's ``FusedAdam`` after torch's clipping."""
    optimizers = importlib.import_module("transformer_engine.pytorch.optimizers")
    return clip_then(lambda gs: optimizers.FusedAdam(_for_optimizer(gs), **SETTINGS, adam_w_mode=True))(groups)


def optimi(groups: Groups) -> Call:
    """torch-optimi's Triton AdamW after torch's clipping."""
    optimizers = importlib.import_module("optimi")
    return clip_then(lambda gs: optimizers.AdamW(_for_optimizer(gs), **SETTINGS))(groups)


OURS = {f"fusedtrain-{name}": name for name in dispatch.ORDER}
"""Our providers, and the backend of each."""
TORCH: dict[str, Make] = {
    "torch-loop": clip_then(stock(foreach=False), foreach=False),
    "torch-foreach": clip_then(stock(foreach=True), foreach=True),
    "torch-fused": clip_then(stock(fused=True)),
    "torch-grad_scale": grad_scale_trick,
    "torch-compiled": compiled,
}
PEERS: dict[str, tuple[str, Make]] = {
    "apex": ("apex.optimizers", apex),
    "transformer_engine": ("transformer_engine.pytorch.optimizers", transformer_engine),
    "optimi": ("optimi", optimi),
}
"""With the module that each needs."""
PROVIDERS: dict[str, Make] = {
    **{provider: fused_step(backend) for provider, backend in OURS.items()},
    **TORCH,
    **{name: make for name, (_, make) in PEERS.items()},
}
