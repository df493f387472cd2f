"""Adagrad, where it is unlike the others: its states are there from the beginning, and need not begin at zero."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from optim_pairs import clones, grads_for, parameters
from torch import Tensor
from torch.nn import Parameter

import fusedtrain as ft
from fusedtrain.testing import assert_as_accurate


def adagrad(params: Any, **settings: Any) -> ft.optim.Adagrad:
    return ft.optim.Adagrad(params, lr=0.1, initial_accumulator_value=0.3, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_states_are_there_from_the_beginning(dtype: torch.dtype) -> None:
    params = [
        *parameters(dtype=dtype),
        Parameter(torch.randn(3, 5).to(dtype).t()),
        Parameter(torch.empty(0, dtype=dtype)),
    ]
    opt = adagrad(params)
    theirs = torch.optim.Adagrad(clones(params), lr=0.1, initial_accumulator_value=0.3)
    assert len(opt.state) == len(params)
    for p, q in zip(params, theirs.param_groups[0]["params"], strict=True):
        assert opt.state[p].keys() == theirs.state[q].keys() == {"step", "sum"}
        total = opt.state[p]["sum"]
        assert total.shape == p.shape
        assert total.stride() == p.stride()
        assert total.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
        assert bool((total == torch.tensor(0.3, dtype=total.dtype)).all())
        assert float(opt.state[p]["step"]) == 0


def test_a_group_that_is_added_begins_there_too(backend: str, device: torch.device) -> None:
    p, q = (Parameter(torch.ones(4, device=device)) for _ in range(2))
    opt = adagrad([p], backend=backend)
    opt.add_param_group({"params": [q], "lr": 0.2})
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    opt.step()
    for x, lr in ((p, 0.1), (q, 0.2)):
        torch.testing.assert_close(opt.state[x]["sum"], torch.full_like(x, 1.3))
        torch.testing.assert_close(x.detach(), torch.full_like(x, 1 - lr * 1.3**-0.5))


def test_a_checkpoint_of_before_the_first_step_is_torchs(backend: str, device: torch.device) -> None:
    params = [Parameter(x.detach().to(device)) for x in parameters()]
    same, exact = clones(params), clones(params, torch.float64)
    opt = ft.optim.Adagrad(params, lr=0.1, backend=backend)
    theirs, truth = (
        torch.optim.Adagrad(x, lr=0.1, initial_accumulator_value=0.3, foreach=False) for x in (same, exact)
    )
    opt.load_state_dict(theirs.state_dict())
    for _ in range(2):
        grads_for(params, same, exact)
        for one in (opt, theirs, truth):
            one.step()
    for p, q, r in zip(params, same, exact, strict=True):
        assert_as_accurate(p.detach(), q.detach(), r.detach(), factor=4.0)
        assert_as_accurate(opt.state[p]["sum"], theirs.state[q]["sum"], truth.state[r]["sum"], factor=4.0)


def test_sums_can_be_shared_among_processes() -> None:
    params = parameters()
    opt, alone = adagrad(params), adagrad(clones(params))
    opt.share_memory()
    for _ in range(3):
        grads_for(params, alone.param_groups[0]["params"])
        opt.step()
        alone.step()
    for p, q in zip(params, alone.param_groups[0]["params"], strict=True):
        assert opt.state[p]["sum"].is_shared()
        assert torch.equal(opt.state[p]["sum"], alone.state[q]["sum"])
        assert torch.equal(p, q)


def test_the_learning_rate_decays_by_the_steps_of_each_parameter(backend: str, device: torch.device) -> None:
    p, q = (Parameter(torch.zeros(3, device=device)) for _ in range(2))
    opt = ft.optim.Adagrad([p, q], lr=0.1, lr_decay=0.5, backend=backend)
    expected = torch.zeros(3, dtype=torch.float64)
    for t in range(1, 5):
        p.grad = torch.full_like(p, 2.0)
        q.grad = torch.full_like(q, 2.0) if t == 4 else None
        opt.step()
        expected -= 0.1 / (1 + (t - 1) * 0.5) / t**0.5  # the sum is 4 t

    def near(x: Tensor, y: Tensor) -> None:
        roundings = 8 * torch.finfo(torch.float32).eps  # two a step
        torch.testing.assert_close(x.detach().cpu().double(), y, rtol=roundings, atol=0)

    near(p, expected)
    near(q, torch.full((3,), -0.1, dtype=torch.float64))


def test_a_beginning_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Adagrad: Invalid initial_accumulator_value value: -0.5"):
        ft.optim.Adagrad(parameters(), initial_accumulator_value=-0.5)


def test_the_beginning_is_that_of_the_constructor_as_in_torch() -> None:
    groups = [{"params": parameters((3,))}, {"params": parameters((2,)), "initial_accumulator_value": 0.75}]
    mine, other = (make(copy.deepcopy(groups)) for make in (adagrad, lambda g: torch.optim.Adagrad(g, 0.1, 0, 0, 0.3)))
    for ours, theirs in zip(mine.state.values(), other.state.values(), strict=True):
        assert torch.equal(ours["sum"], theirs["sum"])


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_parameters_that_are_never_stepped_have_torchs_states(dtype: torch.dtype) -> None:
    frozen = torch.ones(3).to(dtype)
    ours, theirs = (
        cls([Parameter(torch.ones(2)), Parameter(frozen.clone(), requires_grad=False)])
        for cls in (ft.optim.Adagrad, torch.optim.Adagrad)
    )
    assert ours.state_dict()["state"][1]["sum"].dtype == theirs.state_dict()["state"][1]["sum"].dtype
    ours.load_state_dict(theirs.state_dict())
    p = ours.param_groups[0]["params"][0]
    p.grad = torch.ones(2)
    ours.step()
    assert float(ours.state[p]["step"]) == 1
