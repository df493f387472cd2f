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
    ft.optim.LAMB,
    ft.optim.LARS,
]
IN_TORCH = [cls for cls in CLASSES if hasattr(torch.optim, cls.__name__)]
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


class PlainLAMB(torch.optim.Optimizer):
    """You et al. 2020, algorithm 2, with bias correction, and the norms themselves for phi."""

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: Any = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                t = state["step"] = state.get("step", torch.zeros(())) + 1
                m = state.setdefault("exp_avg", torch.zeros_like(p))
                v = state.setdefault("exp_avg_sq", torch.zeros_like(p))
                m.mul_(beta1).add_((1 - beta1) * p.grad)
                v.mul_(beta2).add_((1 - beta2) * p.grad * p.grad)
                r = m / (1 - beta1 ** float(t)) / ((v / (1 - beta2 ** float(t))).sqrt() + group["eps"])
                u = r + group["weight_decay"] * p
                p.sub_(group["lr"] * ratio(p, u) * u)


class PlainLARS(torch.optim.Optimizer):
    """SGD with momentum, whose direction is scaled to the parameter."""

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "coefficient": trust_coefficient}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad + group["weight_decay"] * p
                before = self.state[p].get("momentum_buffer")
                u = g if before is None else group["momentum"] * before + g
                self.state[p]["momentum_buffer"] = u.clone()
                p.sub_(group["lr"] * group["coefficient"] * ratio(p, u) * u)


def ratio(p: Tensor, u: Tensor) -> float:
    p_norm, u_norm = float(p.norm()), float(u.norm())
    return p_norm / u_norm if p_norm and u_norm else 1.0


PLAIN = {ft.optim.Lion: PlainLion, ft.optim.LAMB: PlainLAMB, ft.optim.LARS: PlainLARS}


def plain(cls: type, params: list[Parameter], **kwargs: Any) -> torch.optim.Optimizer:
    if cls in PLAIN:
        return PLAIN[cls](params, **kwargs)
    return getattr(torch.optim, cls.__name__)(params, foreach=False, **kwargs)


ALL_STATES: dict[type, dict[str, Any]] = {
    ft.optim.AdamW: {"amsgrad": True},
    ft.optim.Adam: {"amsgrad": True},
    ft.optim.SGD: {"momentum": 0.9},
    ft.optim.RMSprop: {"momentum": 0.9, "centered": True},
}
"""With which a class has all states that it can have."""


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
