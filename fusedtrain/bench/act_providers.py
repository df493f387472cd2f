"""Ways to apply an activation and dropout, ours and torch's."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import fusedtrain as ft
from fusedtrain.bench import availability, compiling
from fusedtrain.bench.step_providers import OURS

Function = Callable[[Tensor], Tensor]
Make = Callable[[str, float, bool], Function]
"""``make(activation, p, gated)``: a function of x, which is [gate, up] on the last dimension if gated."""

PLAIN: dict[str, Function] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
}
"""torch's own activations."""


def plain(activation: str, x: Tensor, gated: bool) -> Tensor:
    """torch's operators before the dropout."""
    if not gated:
        return PLAIN[activation](x)
    gate, up = x.chunk(2, dim=-1)
    return PLAIN[activation](gate) * up


def fused(backend: str) -> Make:
    def make(activation: str, p: float, gated: bool) -> Function:
        f = ft.functional.gated_act_dropout if gated else ft.functional.act_dropout
        return functools.partial(f, activation=activation, p=p, backend=backend)

    return make


def eager(activation: str, p: float, gated: bool) -> Function:
    if not p:  # nobody calls a dropout of nothing
        return lambda x: plain(activation, x, gated)
    return lambda x: F.dropout(plain(activation, x, gated), p)


def compiled(activation: str, p: float, gated: bool) -> Function:
    return compiling.compiled(eager(activation, p, gated))


def liger(activation: str, p: float, gated: bool) -> Function:
    """Liger's gated activation, then torch's dropout."""
    module, name = _LIGER[activation]
    apply = getattr(importlib.import_module(module), name).apply

    def f(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        y = apply(gate.contiguous(), up.contiguous())
        return F.dropout(y, p) if p else y

    return f


_LIGER = {
    "silu": ("liger_kernel.ops.swiglu", "LigerSiLUMulFunction"),
    "gelu_tanh": ("liger_kernel.ops.geglu", "LigerGELUMulFunction"),
}


@dataclass(frozen=True)
class Peer:
    make: Make

    def why_not(self, activation: str, p: float, gated: bool, device: torch.device) -> str | None:
        if not gated or activation not in _LIGER:
            return f"has gated activations only, of {', '.join(_LIGER)}"
        if device.type != "cuda":
            return "runs on cuda only"
        return availability.import_refusal(_LIGER[activation][0])


PEERS: dict[str, Peer] = {"liger": Peer(liger)}
PROVIDERS: dict[str, Make] = {
    **{provider: fused(backend) for provider, backend in OURS.items()},
    "torch-eager": eager,
    "torch-compiled": compiled,
    **{name: peer.make for name, peer in PEERS.items()},
}
