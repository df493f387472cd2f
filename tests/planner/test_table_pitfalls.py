"""What a table must not overlook: tensors that are not what their memory says, memory that is gone, cycles."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tables import give_gradients, has_table, parameters, place
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fusedtrain as ft
from fusedtrain.optim import planned

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
@pytest.mark.parametrize("offset", [0, 2])
def test_A17_freed_storage_is_an_error(which: str, offset: int) -> None:
    """Behind an offset its address is not null."""

    def ones() -> torch.Tensor:
        return torch.ones(offset + 15, device=place())[offset:].view(3, 5)

    p = torch.nn.Parameter(ones())
    opt = ft.optim.AdamW([p])
    step(opt, 2)
    p.grad = ones()
    opt.state[p]["exp_avg"] = ones()
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


class Watching(TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def stepped(**settings: Any) -> ft.optim.AdamW:
    """After two steps, the second of which a table served."""
    params = parameters()
    give_gradients(params, 0)
    opt = ft.optim.AdamW(params, lr=0.01, **settings)
    opt.step()
    opt.step()
    assert has_table(opt)
    return opt


@pytest.mark.parametrize("mode", [Watching, lambda: FakeTensorMode(allow_non_fake_inputs=True)])
def test_A17_no_table_is_built_under_a_mode(mode: Any) -> None:
    """It would hold what the mode makes of the tensors, and not see when they are exchanged."""
    opt = stepped()
    opt.load_state_dict(opt.state_dict())
    with mode():
        opt.step()
        assert not has_table(opt)
    state = opt.state[opt.param_groups[0]["params"][0]]
    opt.step()
    replaced, state["exp_avg"].data = state["exp_avg"].data, torch.zeros_like(state["exp_avg"])
    before = replaced.clone()
    opt.step()
    assert torch.equal(replaced, before)
    assert state["exp_avg"].count_nonzero() > 0


def test_settings_read_under_a_mode_are_for_that_step_alone() -> None:
    opt = stepped()
    opt.param_groups[0]["lr"] = 0.5
    with FakeTensorMode(allow_non_fake_inputs=True):
        opt.step()
    before = [p.detach().clone() for p in opt.param_groups[0]["params"]]
    for _ in range(2):  # by lists and by a table
        opt.step()
    changed = [not torch.equal(p, b) for p, b in zip(opt.param_groups[0]["params"], before, strict=True)]
    assert changed == [p.numel() > 0 for p in opt.param_groups[0]["params"]]


def test_gradients_are_let_go_when_a_step_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs out of memory lets the gradients go and tries again with less."""
    opt = stepped(max_norm=1.0)
    params = opt.param_groups[0]["params"]

    def watched() -> list[Any]:
        return [weakref.ref(p.grad) for p in params]

    grads = watched()
    table, launcher = opt._planner.table.table, opt._planner.table.launcher  # type: ignore[union-attr]
    assert table.refresh(opt.param_groups, opt.state)
    with pytest.raises(ValueError, match="hyper"):
        launcher.step(table, "adamw", torch.zeros(1, 3), 0.0, None, None, -1.0, False, None, None)
    opt.zero_grad()
    assert [g() for g in grads] == [None] * len(grads)

    give_gradients(params, 1)
    grads = watched()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory")))
        with pytest.raises(torch.OutOfMemoryError):
            opt.step()
    opt.zero_grad()
    assert [g() for g in grads] == [None] * len(grads)


def test_a_scalar_that_a_table_cannot_take_is_refused_as_by_lists() -> None:
    opt = stepped(max_norm=1.0)
    opt.found_inf = torch.zeros((), dtype=torch.int32, device=place())  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"optim_step_: found_inf"):
        opt.step()


def test_a_table_that_stands_aside_lets_former_states_go(monkeypatch: pytest.MonkeyPatch) -> None:
    opt = stepped()
    former = [weakref.ref(state["exp_avg"]) for state in opt.state.values()]
    opt.state.clear()
    monkeypatch.setattr(planned.Table, "stands_aside", lambda self: True)
    for _ in range(3):
        opt.step()
    assert [x() for x in former] == [None] * len(former)
