"""The table of a repeated step: equal to the step by lists in every bit, and aware of everything that may change."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import (
    COUNT,
    OPTIMIZERS,
    Pair,
    assert_same,
    everything,
    give_gradients,
    has_table,
    interpreted,
    keep_to_lists,
    parameters,
    place,
)
from torch import Tensor

import fusedtrain as ft
from fusedtrain import dispatch

pytestmark = pytest.mark.usefixtures("stepped_by")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_equals_the_step_by_lists(name: str, dtype: torch.dtype) -> None:
    pair = Pair(OPTIMIZERS[name], dtype, max_norm=1.0, clip_value=0.05, l1=0.01)
    steps = 2 if interpreted() else 4
    for seed in range(steps):
        pair.step(seed)
    assert pair.tables_used == steps - 1


@pytest.mark.parametrize("settings_", [{}, {"max_norm": 0.5, "norm_type": 1.0}, {"nonfinite": "skip"}], ids=str)
def test_settings(settings_: dict[str, Any]) -> None:
    pair = Pair(OPTIMIZERS["AdamW"], **settings_)
    for seed in range(3):
        pair.step(seed)
    assert pair.tables_used == 2


def test_a_skipped_step_changes_nothing() -> None:
    pair = Pair(OPTIMIZERS["AdamW"], max_norm=1.0, nonfinite="skip")
    pair.step(0)
    pair.step(1)
    states = [x.clone() for x in everything(pair.opt)[:-3]]
    for params in (pair.params, pair.others):
        give_gradients(params, 2)
        assert params[3].grad is not None
        params[3].grad[-1, -1] = float("nan")
    pair.step_as_is()
    assert pair.tables_used == 2
    assert int(pair.opt.skipped_steps) == 1
    assert all(torch.equal(x, y) for x, y in zip(states, everything(pair.opt)[:-3], strict=True))


def test_raise_is_remembered() -> None:
    params = parameters()
    opt = ft.optim.AdamW(params, nonfinite="raise")
    for seed in range(2):
        give_gradients(params, seed)
        opt.step()
    assert has_table(opt)
    params[0].grad = torch.full((3, 5), float("inf"), device=place())
    opt.step()
    with pytest.raises(FloatingPointError, match="step 3"):
        opt.step()


def test_loss_scale_and_found_inf() -> None:
    pair = Pair(OPTIMIZERS["Adam"], max_norm=1.0)
    for seed, found in ((0, 0.0), (1, 0.0), (2, 1.0), (3, 0.0)):
        for opt in (pair.opt, pair.plain):
            opt.grad_scale = torch.tensor(1024.0, device=place())
            opt.found_inf = torch.tensor(found, device=place())
        pair.step(seed)
    assert pair.tables_used == 3
    assert int(pair.opt.skipped_steps) == 1


def test_several_groups() -> None:
    def make(params: list[torch.nn.Parameter], **kw: Any) -> Any:
        groups = [{"params": [p], "lr": 0.01 * i, "weight_decay": 0.1 / (i + 1)} for i, p in enumerate(params)]
        return ft.optim.AdamW(groups, **kw)

    pair = Pair(make, max_norm=1.0)
    for seed in range(3):
        pair.step(seed)
        for opt in (pair.opt, pair.plain):
            for group in opt.param_groups:
                group["lr"] *= 0.5
    assert pair.tables_used == 2


# What may change from step to step


def test_A17_gradients_freed_and_reallocated() -> None:
    """dion!63: tables keyed by address while the allocator reuses addresses."""
    pair = Pair(OPTIMIZERS["AdamW"], max_norm=1.0)
    rounds = 3 if interpreted() else 8
    for seed in range(rounds):
        pair.step(seed)
        for p in pair.params:
            p.grad = None
        held = [
            torch.empty(n, device=place()) for n in (15, pair.params[3].numel(), 1, 4, seed + 1)
        ]  # takes the places of the gradients
        pair.step(100 + seed)
        del held
    assert pair.tables_used == 2 * rounds - 1


def test_A17_exchanged_parameters_states_and_gradients() -> None:
    def replace(x: Tensor) -> None:
        x.data = x.data.clone()

    def transpose(x: Tensor) -> None:
        x.data = x.data.t().contiguous().t()

    def widen(x: Tensor) -> None:
        x.data = x.data.double()

    def swap(p: torch.nn.Parameter) -> None:
        other = torch.nn.Parameter(p.detach().clone())
        other.grad = p.grad
        torch.utils.swap_tensors(p, other)

    changes: dict[str, Callable[[Any, list[torch.nn.Parameter]], object]] = {
        "p.data": lambda opt, ps: replace(ps[3]),
        "p.grad": lambda opt, ps: setattr(ps[3], "grad", ps[3].grad.clone()),  # type: ignore[union-attr]
        "state object": lambda opt, ps: opt.state[ps[3]].update(exp_avg=opt.state[ps[3]]["exp_avg"].clone()),
        "state memory": lambda opt, ps: replace(opt.state[ps[3]]["exp_avg_sq"]),
        "state set_": lambda opt, ps: opt.state[ps[3]]["exp_avg"].set_(opt.state[ps[3]]["exp_avg"].clone()),
        "state strides": lambda opt, ps: transpose(opt.state[ps[3]]["exp_avg"]),
        "state dtype": lambda opt, ps: widen(opt.state[ps[3]]["exp_avg"]),
        "step set_": lambda opt, ps: opt.state[ps[0]]["step"].set_(torch.tensor(9.0, device=place())),
        "parameter swapped": lambda opt, ps: swap(ps[3]),
        "shared memory": lambda opt, ps: opt.state[ps[3]]["exp_avg_sq"].share_memory_(),
        "step object": lambda opt, ps: opt.state[ps[0]].update(step=torch.tensor(9.0, device=place())),
        "step memory": lambda opt, ps: replace(opt.state[ps[0]]["step"]),
        "the order of states": lambda opt, ps: opt.state.update({ps[0]: opt.state.pop(ps[0])}),
        "a state dict": lambda opt, ps: opt.load_state_dict(opt.state_dict()),
        "a forgotten state": lambda opt, ps: opt.state.pop(ps[0]),
        "amsgrad": lambda opt, ps: opt.param_groups[0].update(amsgrad=False),
        "a group": lambda opt, ps: opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, device=place()))]}),
        "the list of groups": lambda opt, ps: setattr(opt, "param_groups", [dict(g) for g in opt.param_groups]),
    }
    if interpreted():  # the table is the same for all
        changes = dict(list(changes.items())[::6])
    for name, change in changes.items():
        pair = Pair(OPTIMIZERS["AdamW"], max_norm=1.0)
        for seed in range(3):
            pair.step(seed)
        assert has_table(pair.opt), name
        give_gradients(pair.params, 5)
        give_gradients(pair.others, 5)
        change(pair.opt, pair.params)
        change(pair.plain, pair.others)
        pair.step_as_is()
        pair.step(6)
        pair.step(7)


def test_a_parameter_exchanged_in_its_group() -> None:
    pair = Pair(OPTIMIZERS["AdamW"])
    pair.step(0)
    pair.step(1)
    for opt, params in ((pair.opt, pair.params), (pair.plain, pair.others)):
        params[0] = opt.param_groups[0]["params"][0] = torch.nn.Parameter(torch.full((3, 5), 2.0, device=place()))
    pair.step(2)
    pair.step(3)
    assert (pair.params[0] != 2).all()


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sets(st.integers(0, COUNT - 1)), min_size=1, max_size=10))
def test_gradients_that_come_and_go(patterns: list[set[int]]) -> None:
    pair = Pair(OPTIMIZERS["AdamW"], max_norm=1.0)
    if interpreted():
        patterns = patterns[:2]
    for seed, without in enumerate(patterns):
        pair.step(seed, tuple(without))


class Subclass(Tensor):
    pass


def in_double(p: torch.nn.Parameter, g: Tensor) -> None:
    p.grad, p.grad_dtype = None, None
    p.grad = g.double()


GRADIENTS: dict[str, Callable[[torch.nn.Parameter, Tensor], object]] = {
    "transposed in memory": lambda p, g: setattr(p, "grad", g.t().contiguous().t()),
    "float64": in_double,
    "a subclass": lambda p, g: setattr(p, "grad", g.as_subclass(Subclass)),
    "expanded": lambda p, g: setattr(p, "grad", g[:1].expand_as(g)),
    "another shape": lambda p, g: setattr(p.grad, "data", g.t().contiguous()),
    "fewer elements": lambda p, g: setattr(p.grad, "data", g[:1].clone()),
    "more dimensions": lambda p, g: p.grad.unsqueeze_(0),  # type: ignore[union-attr]
    "fewer dimensions": lambda p, g: setattr(p.grad, "data", g.flatten()),
    "no dimension": lambda p, g: setattr(p.grad, "data", g.sum()),
    "sparse": lambda p, g: setattr(p, "grad", g.to_sparse()),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_of_another_layout_dtype_or_kind_goes_by_lists(name: str) -> None:
    pair = Pair(OPTIMIZERS["AdamW"], max_norm=1.0)
    pair.step(0)
    pair.step(1)
    assert has_table(pair.opt)
    outcomes = []
    for params, opt in ((pair.params, pair.opt), (pair.others, pair.plain)):
        give_gradients(params, 2)
        assert params[3].grad is not None
        GRADIENTS[name](params[3], params[3].grad.clone())
        if opt is pair.plain:
            keep_to_lists(opt)
        try:
            opt.step()
            outcomes.append("done")
        except (RuntimeError, ValueError) as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
    assert (outcomes[0] == "done") == (name in list(GRADIENTS)[:4])
    assert_same(pair.opt, pair.plain)


def test_a_gradient_is_let_go_after_the_step() -> None:
    params = parameters()
    opt = ft.optim.AdamW(params)
    for seed in range(2):
        give_gradients(params, seed)
        opt.step()
    assert has_table(opt)
    dead = []

    class Memory:
        def __del__(self) -> None:
            dead.append(True)

    params[0].grad = torch.ones(3, 5, device=place())
    params[0].grad.memory = Memory()  # type: ignore[attr-defined]
    opt.step()
    opt.zero_grad()
    gc.collect()
    assert dead


def test_states_that_a_table_holds_go_with_the_optimizer() -> None:
    params = parameters()
    opt = ft.optim.AdamW(params)
    for seed in range(3):
        give_gradients(params, seed)
        opt.step()
    assert has_table(opt)
    replaced = opt.state[params[0]]["exp_avg"]
    opt.state[params[0]]["exp_avg"] = replaced.clone()
    last = [weakref.ref(replaced), *(weakref.ref(x) for x in opt.state[params[1]].values())]
    del replaced
    give_gradients(params, 4)
    opt.step()
    gc.collect()
    assert last[0]() is None
    assert all(x() is not None for x in last[1:])
    del opt
    gc.collect()
    assert all(x() is None for x in last)


def test_versions_are_bumped() -> None:
    params = parameters()
    opt = ft.optim.AdamW(params)
    for seed in range(3):
        give_gradients(params, seed)
        written = [params[0], *(x for x in opt.state[params[0]].values())]
        versions = [x._version for x in written]
        opt.step()
        assert all(x._version > v for x, v in zip(written, versions, strict=True))
    assert has_table(opt)


def test_no_step_without_a_table_that_holds() -> None:
    params = parameters()
    opt = ft.optim.AdamW(params)
    give_gradients(params, 0)
    opt.step()
    table, launcher = opt._planner.table.table, opt._planner.table.launcher  # type: ignore[union-attr]
    hyper = opt._settings().tables["adamw"]
    arguments = (table, "adamw", hyper, 0.0, None, None, -1.0, False, None, None)
    assert table.refresh(opt.param_groups, opt.state)
    assert not table.refresh([], opt.state)
    with pytest.raises(RuntimeError, match="refresh"):
        launcher.step(*arguments)
    assert table.refresh(opt.param_groups, opt.state)
    assert launcher.step(*arguments)
    with pytest.raises(RuntimeError, match="refresh"):
        launcher.step(*arguments)


def test_shared_memory_is_refused(backend: str) -> None:
    launcher = dispatch.load(backend).step_launcher
    base = torch.zeros(8, device=place())
    params = [torch.nn.Parameter(base[:5]), torch.nn.Parameter(base[4:])]
    for p in params:
        p.grad = torch.ones_like(p)
    steps = [torch.zeros((), device=place()) for _ in params]
    with pytest.raises(ValueError, match="share memory"):
        launcher.table([{"params": params}], [0], {}, (), [None, None], steps)
    with pytest.raises(ValueError, match="fewer states"):
        launcher.table([{"params": params}], [0], {}, (), [], [])
    with pytest.raises(ValueError, match="share memory"):
        launcher.table([{"params": params[:1]}, {"params": []}], [0, 0], {}, (), [None], [params[0][0].detach()])
