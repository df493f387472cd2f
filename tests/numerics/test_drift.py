"""A thousand steps: how far rounding carries the parameters from a run in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fusedtrain as ft
from fusedtrain import dispatch

BACKENDS = [name for name in ("cpu", "reference") if dispatch.load(name).why_not is None]
STEPS = 1000


def gradients(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    signal = torch.randn(64, generator=generator)
    return [(0.1 * signal + torch.randn(64, generator=generator)).to(dtype) for _ in range(50)]


def run(make: object, dtype: torch.dtype, grads: list[Tensor]) -> tuple[Tensor, torch.optim.Optimizer]:
    p = torch.nn.Parameter(torch.linspace(-2, 2, 64).to(dtype))
    opt = make([p])  # type: ignore[operator]
    for i in range(STEPS):
        p.grad = grads[i % len(grads)].to(dtype)
        opt.step()
    return p.detach(), opt


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thousand_steps_in_fp32_stay_as_near_to_fp64_as_torchs(backend: str) -> None:
    settings = {"lr": 1e-3, "weight_decay": 0.1}
    grads = gradients(torch.float32)
    exact, _ = run(lambda p: torch.optim.AdamW(p, **settings, foreach=False), torch.float64, grads)
    theirs, _ = run(lambda p: torch.optim.AdamW(p, **settings, foreach=False), torch.float32, grads)
    ours, _ = run(lambda p: ft.optim.AdamW(p, **settings, backend=backend), torch.float32, grads)
    allowed = 2 * float((theirs.double() - exact).abs().max())
    assert float((ours.double() - exact).abs().max()) <= allowed


@pytest.mark.parametrize("backend", BACKENDS)
def test_bf16_parameters_have_the_moments_of_fp32(backend: str) -> None:
    """beta2 = 0.999 in bf16 would be 0.996, and v, rounded to bf16 at every step, would stand still."""
    grads = gradients(torch.bfloat16)
    settings = {"lr": 1e-3, "weight_decay": 0.0}
    _, truth = run(lambda p: torch.optim.AdamW(p, **settings, foreach=False), torch.float64, grads)
    p, opt = run(lambda p: ft.optim.AdamW(p, **settings, backend=backend), torch.bfloat16, grads)
    state = opt.state[opt.param_groups[0]["params"][0]]
    true_state = truth.state[truth.param_groups[0]["params"][0]]
    for key in ("exp_avg", "exp_avg_sq"):
        scale = float(true_state[key].abs().max())
        assert state[key].dtype == torch.float32
        error = float((state[key].double() - true_state[key]).abs().max())
        assert error <= STEPS * torch.finfo(torch.float32).eps * scale, key
    q, stock = run(lambda p: torch.optim.AdamW(p, **settings, foreach=False), torch.bfloat16, grads)
    stock_v = stock.state[stock.param_groups[0]["params"][0]]["exp_avg_sq"].double()
    ours_v = state["exp_avg_sq"].double()
    assert float((stock_v - true_state["exp_avg_sq"]).abs().max()) > 100 * float(
        (ours_v - true_state["exp_avg_sq"]).abs().max()
    ), "torch's bf16 moments are what this is about"
    assert p.isfinite().all()
    assert q.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_decay_of_bf16_parameters_is_not_lost(backend: str) -> None:
    """p (1 - lr wd) in one rounding: with lr wd = 2^-7, above half a unit in the last place, every step shrinks p."""
    p = torch.nn.Parameter(torch.full((8,), 1.5, dtype=torch.bfloat16))
    opt = ft.optim.AdamW([p], lr=2.0**-4, weight_decay=2.0**-3, backend=backend)
    p.grad = torch.zeros(8, dtype=torch.bfloat16)
    exact = p.detach().double()
    for _ in range(50):
        opt.step()
        exact = exact * (1 - 2.0**-7)
    eps = torch.finfo(torch.bfloat16).eps
    assert float(((p.detach().double() - exact) / exact).abs().max()) <= 50 * eps / 2
    assert float(p.detach().max()) < 1.5 * 0.85
