"""Ways to apply an activation and dropout, ours and torch's."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import fusedtrain as ft
from fusedtrain.bench.step_providers import OURS

Function = Callable[[Tensor], Tensor]
Make = Callable[[str, float, bool], Function]
"""``make(activation, p, gated)``: a function of x, which is [gate, up] on the last dimension if gated."""

PLAIN: dict[str, Function] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
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
    return lambda x: F.dropout(plain(activation, x, gated), p)


def compiled(activation: str, p: float, gated: bool) -> Function:
    return torch.compile(eager(activation, p, gated))


PROVIDERS: dict[str, Make] = {
    **{provider: fused(backend) for provider, backend in OURS.items()},
    "torch-eager": eager,
    "torch-compiled": compiled,
}
