"""What the tests of the optimizers share: ours and the plain one beside it, with the same values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fusedtrain as ft

CLASSES = [
    ft.optim.AdamW,
    ft.optim.Adam,
    ft.optim.SGD,
    ft.optim.Lion,
    ft.optim.Adagrad,
    ft.optim.RMSprop,
]
every_class = pytest.mark.parametrize("cls", CLASSES)


class PlainLion(torch.optim.Optimizer):
    """Chen et al. 2023, algorithm 2, word by word."""

    def __init__(self, params: Any, lr: float = 1e-4, betas: Any = (0.9, 0.99), weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                update = (beta1 * m + (1 - beta1) * p.grad).sign()
                p.sub_(group["lr"] * (update + group["weight_decay"] * p))
                m.mul_(beta2).add_((1 - beta2) * p.grad)


def plain(cls: type, params: list[Parameter], **kwargs: Any) -> torch.optim.Optimizer:
    if cls is ft.optim.Lion:
        return PlainLion(params, **kwargs)
    return getattr(torch.optim, cls.__name__)(params, foreach=False, **kwargs)


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return [Parameter(torch.randn(shape).to(dtype)) for shape in shapes or ((5, 3), (4,), ())]


def clones(params: list[Parameter], dtype: torch.dtype | None = None) -> list[Parameter]:
    return [Parameter(p.detach().to(dtype or p.dtype, copy=True)) for p in params]


def grads_for(*lists: list[Parameter], scale: float = 1.0) -> None:
    """The same new gradients for parallel lists of parameters, each in its dtype."""
    for ps in zip(*lists, strict=True):
        g = torch.randn_like(ps[0]) * scale
        for p in ps:
            p.grad = g.to(p.dtype, copy=True)


def snapshot(opt: torch.optim.Optimizer) -> list[Tensor]:
    """Everything a step writes: parameters, then states in order."""
    params = [p for group in opt.param_groups for p in group["params"]]
    states = [v for p in params for v in opt.state.get(p, {}).values() if isinstance(v, Tensor)]
    return [x.detach().clone() for x in params + states]


def assert_bitwise(a: list[Tensor], b: list[Tensor]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
