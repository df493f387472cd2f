"""RMSprop: squares of any size, a variance that is mere rounding, averages that begin late."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fusedtrain as ft
from fusedtrain.testing import assert_as_accurate


def steps_with_one_gradient(opt: torch.optim.Optimizer, g: Tensor, count: int) -> Tensor:
    (p,) = opt.param_groups[0]["params"]
    for _ in range(count):
        p.grad = g.clone()
        opt.step()
    return torch.as_tensor(p.detach())


CONSTANT = {"lr": 1e-3, "alpha": 0.9, "centered": True}
FURTHEST = 1e-3 * torch.finfo(torch.float32).eps ** -0.5
"""That a step goes whose variance is the rounding of the mean square."""


def test_a_gradient_that_stays_the_same(backend: str, device: torch.device) -> None:
    """The variance is 0 but for rounding, and the square root of a negative one would be NaN."""
    g = torch.linspace(0.3, 0.9, 64, device=device)
    opt = ft.optim.RMSprop([torch.zeros(64, device=device, requires_grad=True)], **CONSTANT, backend=backend)
    p = steps_with_one_gradient(opt, g, 150)
    assert bool((p < 0).all())
    assert bool((p > -150 * FURTHEST).all())


def test_a_gradient_that_stays_the_same_can_fail() -> None:
    """torch 2.13's own, in the same steps."""
    opt = torch.optim.RMSprop([torch.zeros(64, requires_grad=True)], **CONSTANT, foreach=False)
    assert bool(steps_with_one_gradient(opt, torch.linspace(0.3, 0.9, 64), 150).isnan().any())


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_variance_is_the_rounding_of_the_square_at_least(
    backend: str, device: torch.device, dtype: torch.dtype, momentum: float
) -> None:
    p = Parameter(torch.zeros(5, device=device, dtype=dtype))
    opt = ft.optim.RMSprop([p], lr=1.0, alpha=1.0, eps=1e-3, centered=True, momentum=momentum, backend=backend)
    p.grad = torch.ones_like(p)
    opt.step()  # makes the states
    state = opt.state[p]
    with torch.no_grad():
        p.zero_()
        if momentum:
            state["momentum_buffer"].fill_(3.0)
        state["square_avg"].fill_(4.0)
        state["grad_avg"].copy_(torch.tensor([2.5, 2.0, 0.0, -3.0, float("nan")]))
    opt.step()
    least = 4 * torch.finfo(state["square_avg"].dtype).eps
    roots = torch.tensor([least, least, 4.0, least, float("nan")], dtype=torch.float64).sqrt()
    expected = -(1 / (roots + 1e-3) + momentum * 3)
    torch.testing.assert_close(p.detach().cpu(), expected.to(dtype), equal_nan=True)


@pytest.mark.parametrize(
    ("size", "centered"), [(1e-30, False), (1e-30, True), (1e19, False), (1e20, False), (1e20, True)]
)
def test_gradients_of_any_size_are_as_torchs(backend: str, device: torch.device, size: float, centered: bool) -> None:
    """Squares that are scaled down first reach further."""
    p, q = (Parameter(torch.ones(3, device=device)) for _ in range(2))
    settings: dict[str, Any] = {"lr": 1.0, "centered": centered}
    opt = ft.optim.RMSprop([p], **settings, backend=backend)
    theirs = torch.optim.RMSprop([q], **settings, foreach=False)
    for _ in range(3):
        p.grad = torch.tensor([size, 1.0, -size], device=device)
        q.grad = p.grad.clone()
        opt.step()
        theirs.step()
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_a_small_alpha_forgets_the_square_of_before(backend: str, device: torch.device, alpha: float) -> None:
    p = Parameter(torch.zeros(2, device=device))
    opt = ft.optim.RMSprop([p], lr=1.0, alpha=alpha, eps=0.0, backend=backend)
    for g in (1.0, 1e-4):
        p.grad = torch.full_like(p, g)
        opt.step()
    expected = -((1 - alpha) ** -0.5 + 1e-4 / (alpha * (1 - alpha) + (1 - alpha) * 1e-8) ** 0.5)
    torch.testing.assert_close(p.detach(), torch.full_like(p, expected))


@pytest.mark.parametrize("late", [{"momentum": 0.9}, {"centered": True}, {"momentum": 0.9, "centered": True}], ids=str)
def test_averages_that_begin_late_begin_at_zero(backend: str, device: torch.device, late: dict[str, Any]) -> None:
    """In torch the step fails for want of the state."""
    g = torch.linspace(-1, 1, 6, device=device)
    p, q, r = (Parameter(torch.ones(6, device=device, dtype=d)) for d in (torch.float32, torch.float32, torch.float64))
    opt = ft.optim.RMSprop([p], lr=0.1, backend=backend)
    plain = [(torch.optim.RMSprop([x], lr=0.1, foreach=False), x) for x in (q, r)]
    for t in range(4):
        if t == 2:
            opt.param_groups[0].update(late)
            for theirs, x in plain:
                theirs.param_groups[0].update(late)
                theirs.state[x].update(momentum_buffer=torch.zeros_like(x), grad_avg=torch.zeros_like(x))
        for one, x in ((opt, p), *plain):
            x.grad = (g * (t + 1)).to(x.dtype)
            one.step()
    assert_as_accurate(p.detach(), q.detach(), r.detach(), factor=4.0)
    for key, setting in (("momentum_buffer", "momentum"), ("grad_avg", "centered")):
        assert (key in opt.state[p]) == (setting in late)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_variance_that_is_small_is_nearer_than_torchs(backend: str) -> None:
    """Constants that are rounded apart, alpha and 1 - alpha, shift the averages by more than this variance."""
    generator = torch.Generator().manual_seed(0)
    gradients = 1 + 1e-3 * torch.randn(6000, 16, generator=generator)
    settings: dict[str, Any] = {"lr": 1.0, "alpha": 0.999, "centered": True}
    p, q = (Parameter(torch.zeros(16)) for _ in range(2))
    opt = ft.optim.RMSprop([p], **settings, backend=backend)
    theirs = torch.optim.RMSprop([q], **settings, foreach=False)
    v = a = torch.zeros(16, dtype=torch.float64)
    for g in gradients:
        p.grad, q.grad = g, g
        before = [x.detach().double() for x in (p, q)]
        opt.step()
        theirs.step()
        wide = g.double()
        v, a = 0.999 * v + (1 - 0.999) * wide * wide, 0.999 * a + (1 - 0.999) * wide
    step = wide / ((v - a * a).sqrt() + 1e-8)
    errors = [float(((was - x.detach()) / step - 1).abs().median()) for x, was in zip((p, q), before, strict=True)]
    assert errors[0] < errors[1] / 2


def test_fused_and_foreach_are_accepted() -> None:
    opt = ft.optim.RMSprop([torch.zeros(2, requires_grad=True)], fused=True, foreach=False)
    assert opt.param_groups[0].keys() - set(torch.optim.RMSprop([torch.zeros(2)]).param_groups[0]) == {
        "max_norm",
        "norm_type",
        "clip_value",
        "l1",
        "nonfinite",
    }
