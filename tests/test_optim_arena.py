"""Small states share blocks of memory, and nobody notices but the clock."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

import fusedtrain as ft
from fusedtrain.optim.arena import SMALL, Arena


def stepped(shapes: list[tuple[int, ...]], steps: int = 2, **settings: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(s, generator=generator)) for s in shapes]
    opt = ft.optim.AdamW(params, lr=0.1, **settings)
    step(opt, steps)
    return opt


def step(opt: Any, steps: int = 1) -> None:
    for _ in range(steps):
        for p in opt.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        opt.step()


def states(opt: Any) -> list[Tensor]:
    return [x for entry in opt.state.values() for x in entry.values()]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), max_size=60), st.sampled_from([2, 4, 8]))
def test_what_it_gives_out_is_apart_zero_and_aligned(shapes: list[tuple[int, int]], size: int) -> None:
    dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[size]
    arena = Arena()
    pieces = []
    for shape in shapes:
        x = arena.zeros_like(torch.empty(shape), dtype)
        counter = arena.counter(torch.device("cpu"), dtype)
        assert counter is not None
        assert counter.shape == ()
        pieces.append(counter)
        if shape[0] == 0:
            assert x is None
            continue
        assert x is not None
        assert x.shape == shape
        assert x.dtype == dtype
        assert x.data_ptr() % 64 == 0
        pieces.append(x)
    for i, x in enumerate(pieces):
        assert (x == 0).all()
        x.fill_(i + 1)
    assert all((x == torch.tensor(i + 1, dtype=dtype)).all() for i, x in enumerate(pieces))


def test_small_states_share_blocks_and_large_ones_do_not() -> None:
    opt = stepped([(10,)] * 200 + [(SMALL + 1,), (6, 7)])
    entries = list(opt.state.values())
    bases = {id(x._base) for entry in entries for x in entry.values() if x._base is not None}
    assert 0 < len(bases) <= 12
    assert entries[200]["exp_avg"]._base is None
    assert entries[0]["exp_avg"]._base is not None
    step(opt)
    assert len(opt._planner.table.written) == 202 + 2 + len(bases)  # parameters, two large states, blocks


@pytest.mark.parametrize("make", [lambda p: p.t(), lambda p: p[:, :3], lambda p: p[:0]])
def test_unusual_parameters_have_their_own(make: Any) -> None:
    assert Arena().zeros_like(make(torch.zeros(4, 6)), torch.float32) is None


def test_subclasses_and_inference_have_their_own() -> None:
    class Tagged(Tensor):
        pass

    arena = Arena()
    assert arena.zeros_like(torch.zeros(3).as_subclass(Tagged), torch.float32) is None
    with torch.inference_mode():
        assert arena.zeros_like(torch.zeros(3), torch.float32) is None


def test_saved_copied_and_replaced_one_by_one() -> None:
    opt, same = stepped([(5,), (2, 3)]), stepped([(5,), (2, 3)])
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    assert len(file.getvalue()) < 100_000  # a block is saved whole, but once
    file.seek(0)
    opt.load_state_dict(torch.load(file, weights_only=True))
    twin = copy.deepcopy(opt)
    for o in (opt, twin, same):
        first = next(iter(o.state.values()))
        first["exp_avg"] = first["exp_avg"].clone() * 2
        first["exp_avg_sq"].data = first["exp_avg_sq"].data * 3
        step(o, 3)
    for o in (opt, twin):
        assert all(torch.equal(a, b) for a, b in zip(states(o), states(same), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(*[x.param_groups[0]["params"] for x in (o, same)], strict=True))


def test_blocks_go_with_the_states() -> None:
    opt = stepped([(SMALL,)] * 70)
    block = weakref.ref(next(iter(opt.state.values()))["exp_avg"]._base)
    assert block() is not None
    opt.state.clear()
    opt._planner = None
    gc.collect()
    assert block() is None


def test_a_compiled_step_has_states_of_their_own() -> None:
    eager, compiled = stepped([(5,), (2, 3)]), stepped([(5,), (2, 3)])
    run = torch.compile(compiled.step, backend="eager")
    for o, call in ((eager, eager.step), (compiled, run)):
        for _ in range(2):
            for p in o.param_groups[0]["params"]:
                p.grad = torch.ones_like(p)
            call()
    assert all(x._base is None for x in states(compiled))
    for a, b in zip(states(eager), states(compiled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_fake_tensors_leave_no_block_behind() -> None:
    memory, cpu = Arena(), torch.device("cpu")
    with FakeTensorMode():
        assert memory.counter(cpu, torch.float32) is None
    kept = memory.counter(cpu, torch.float32)
    assert kept is not None
    assert type(kept) is torch.Tensor
