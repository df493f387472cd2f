"""torch.compile of a step: one graph, no graph per learning rate, the numbers of the eager step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import Parameter

import fusedtrain as ft

CASES = [
    (ft.optim.AdamW, {"max_norm": 1.0, "weight_decay": 0.1}),
    (ft.optim.Adam, {"amsgrad": True}),
    (ft.optim.SGD, {"momentum": 0.9, "dampening": 0.5, "max_norm": 0.5, "nonfinite": "skip"}),
    (ft.optim.Lion, {"max_norm": torch.inf}),
    (ft.optim.Adagrad, {"max_norm": 1.0, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    (ft.optim.RMSprop, {"max_norm": 1.0, "momentum": 0.9, "centered": True}),
    (ft.optim.LAMB, {"max_norm": 1.0, "nonfinite": "skip"}),
    (ft.optim.LARS, {"max_norm": 1.0}),
]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pair(cls: type, **kwargs: Any) -> tuple[Any, Any]:
    shapes = [(4, 3), (5,), ()]
    values = [torch.randn(shape) for shape in shapes]
    return tuple(
        cls([{"params": ps[:1]}, {"params": ps[1:], "weight_decay": 0.0}], lr=torch.tensor(0.1), **kwargs)
        for ps in ([Parameter(v.clone()) for v in values] for _ in range(2))
    )


def params_of(opt: torch.optim.Optimizer) -> list[Parameter]:
    return [p for group in opt.param_groups for p in group["params"]]


def new_grads(first: Any, second: Any) -> None:
    for p, q in zip(params_of(first), params_of(second), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()


@pytest.mark.parametrize(("cls", "kwargs"), CASES, ids=lambda x: getattr(x, "__name__", ""))
def test_one_graph_for_all_steps(cls: type, kwargs: dict[str, Any]) -> None:
    compiled, eager = pair(cls, **kwargs)
    counter = CompileCounter()
    step = torch.compile(compiled.step, fullgraph=True, backend=counter)  # before a scheduler wraps step
    make: Callable[[Any], Any] = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20)  # noqa: E731
    schedulers = [make(compiled), make(eager)]
    for i in range(20):
        new_grads(compiled, eager)
        if kwargs.get("nonfinite") == "skip" and i in (0, 7):
            for opt in (compiled, eager):
                params_of(opt)[0].grad[0, 0] = torch.nan
        step()
        eager.step()
        for scheduler in schedulers:
            scheduler.step()
        for p, q in zip(params_of(compiled), params_of(eager), strict=True):
            assert torch.equal(p, q)
        if "max_norm" in kwargs:
            torch.testing.assert_close(compiled.grad_norm, eager.grad_norm, rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(compiled.clip_coef, eager.clip_coef, rtol=0, atol=0, equal_nan=True)
        else:
            assert compiled.grad_norm is None
    assert counter.frame_count <= 2
    assert torch.equal(compiled.skipped_steps, eager.skipped_steps)
    for p, q in zip(params_of(compiled), params_of(eager), strict=True):
        torch.testing.assert_close(compiled.state[p], eager.state[q], rtol=0, atol=0)


def test_inductor_and_awkward_layouts() -> None:
    compiled, eager = pair(ft.optim.AdamW, max_norm=1.0)
    step = torch.compile(compiled.step, fullgraph=True)
    for _ in range(3):
        new_grads(compiled, eager)
        for opt in (compiled, eager):
            p = params_of(opt)[0]
            p.grad = p.grad.t().contiguous().t()  # another layout than the parameter's
        step()
        eager.step()
    for p, q in zip(params_of(compiled), params_of(eager), strict=True):
        torch.testing.assert_close(p, q)


def test_checks_hold_while_compiling() -> None:
    p = Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    opt = ft.optim.AdamW([p], lr=0.1)
    opt.param_groups[0]["weight_decay"] = -1.0
    with pytest.raises(Exception, match=r"Invalid weight_decay value: -1\.0"):
        torch.compile(opt.step, fullgraph=True, backend="eager")()
    late = ft.optim.AdamW([p], lr=0.1, nonfinite="raise")
    with pytest.raises(Exception, match="nonfinite='raise' cannot be compiled"):
        torch.compile(late.step, fullgraph=True, backend="eager")()
    assert torch.equal(p, torch.ones(3))


def test_grad_norm_is_none_once_nothing_measures() -> None:
    p = Parameter(torch.ones(2))
    opt = ft.optim.SGD([p], lr=0.1, max_norm=1.0)
    step = torch.compile(opt.step, backend="eager")
    p.grad = torch.full((2,), 3.0)
    step()
    assert opt.grad_norm is not None
    twin = copy.deepcopy(opt)
    assert twin.grad_norm is not None
    assert torch.equal(twin.grad_norm, opt.grad_norm)
    opt.set_max_norm(None)
    step()
    assert opt.grad_norm is None
    assert opt.clip_coef is None
