"""What a table must not overlook: tensors that are not what their memory says, memory that is gone, cycles."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tables import place

import fusedtrain as ft

pytestmark = pytest.mark.usefixtures("stepped_by")

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": lambda p, **kw: ft.optim.SGD(p, lr=0.1, momentum=0.9, **kw),
    "Adam": lambda p, **kw: ft.optim.Adam(p, lr=0.01, **kw),
    "Lion": lambda p, **kw: ft.optim.Lion(p, lr=0.01, **kw),
}


def step(opt: Any, steps: int) -> None:
    for _ in range(steps):
        for p in opt.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        opt.step()


def test_an_optimizer_that_its_parameter_refers_to_is_collected() -> None:
    p = torch.nn.Parameter(torch.ones(3, device=place()))
    opt = ft.optim.AdamW([p])
    step(opt, 2)
    assert opt._planner is not None
    assert opt._planner.table is not None
    p.optimizer = opt  # type: ignore[attr-defined]
    gone = weakref.ref(opt)
    del p, opt
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_A17_gradients_that_are_read_as_their_negative(backend: str, name: str) -> None:
    """As autograd leaves them of 0-dim imaginary parts of conjugate numbers."""
    results = {}
    for by in (backend, "reference"):
        a, b = (torch.nn.Parameter(torch.tensor(x, device=place())) for x in (1.0, 0.5))
        opt = OPTIMIZERS[name]([a, b], backend=by)
        for k in range(4):
            opt.zero_grad()
            if k == 2:
                a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
            else:
                (torch.complex(a, b).conj() * torch.tensor(1 + 2j)).real.backward()
                assert b.grad is not None
                assert b.grad.is_neg()
            opt.step()
        results[by] = torch.stack([a.detach(), b.detach()])
    torch.testing.assert_close(results[backend], results["reference"])


def test_a_parameter_that_is_read_as_its_negative() -> None:
    base = torch.tensor([1.0, 2.0], device=place())
    p = torch._neg_view(base).requires_grad_()
    opt = ft.optim.SGD([p], lr=0.5)
    for _ in range(3):
        p.grad = torch.ones(2, device=place())
        opt.step()
    assert p.tolist() == [-2.5, -3.5]
    assert base.tolist() == [2.5, 3.5]


@pytest.mark.parametrize("which", ["parameter", "gradient", "state"])
def test_A17_freed_storage_is_an_error(which: str) -> None:
    p = torch.nn.Parameter(torch.ones(3, 5, device=place()))
    opt = ft.optim.AdamW([p])
    step(opt, 2)
    p.grad = torch.ones_like(p)
    opt.state[p]["exp_avg"] = opt.state[p]["exp_avg"].clone()
    tensor = {"parameter": p, "gradient": p.grad, "state": opt.state[p]["exp_avg"]}[which]
    tensor.untyped_storage().resize_(0)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="its storage was freed"):
        opt.step()


@pytest.mark.parametrize("default", ["meta", "cpu"])
def test_another_default_device_is_nothing_to_a_step(default: str) -> None:
    here, there = (ft.optim.AdamW([torch.nn.Parameter(torch.ones(3, device=place()))], max_norm=1.0) for _ in range(2))
    step(there, 3)
    with torch.device(default):
        step(here, 3)
    assert torch.equal(here.param_groups[0]["params"][0], there.param_groups[0]["params"][0])
    assert here.grad_norm == there.grad_norm
