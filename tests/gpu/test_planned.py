"""Repeated steps by a table that stays on the GPU: what they cost, and that no graph, stream or device is mixed up.

What they notice and copy is tested on every machine: tests/planner, tests/triton_kernels/test_planned_triton.py."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from optim_cases import CASES
from step_tables import launcher_of
from stepping import FLOATS, assert_bitwise, everything, optimizer, parameters, random

from fusedtrain import dispatch
from fusedtrain.bench import observe
from fusedtrain.optim import planned

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
SHAPES: list[tuple[int, ...]] = [(1000, 33), (7,), (4097,), (0,), (), (5, 5)]


@pytest.fixture(autouse=True)
def tables(on_gpu: str) -> None:
    """Every backend of GPUs, also where none is named."""
    launcher_of(dispatch.load(on_gpu))


def warm(case: str = "adamw", dtype: torch.dtype = torch.float32, steps: int = 3, **settings: Any) -> Any:
    """An optimizer that steps by a table."""
    params = parameters(random(SHAPES, CUDA, dtype), random(SHAPES, CUDA, dtype, 1))
    opt = optimizer(case, params, **{"max_norm": 1.0, **settings})
    for _ in range(steps):
        opt.step()
    assert opt._planner is not None
    assert opt._planner.table is not None
    return opt


def by_lists(opt: Any) -> None:
    """A step without a table."""
    opt._planner = planned.Planner()
    opt._planner.wait = 1
    opt.step()


def params_of(opt: Any) -> list[torch.nn.Parameter]:
    return [p for group in opt.param_groups for p in group["params"]]


def events(step: Any) -> tuple[int, int]:
    """``(kernels, copies)`` of a call, as the profiler has them."""
    kinds: Counter[str] = Counter()
    for (kind, _), count in observe.events(step).items():
        kinds[kind] += count
    return kinds["kernel"], kinds["gpu_memcpy"] + kinds["gpu_memset"]


@pytest.mark.parametrize("tensors", [1, 2000])
def test_two_launches_and_no_copy(tensors: int) -> None:
    xs = [torch.ones(100, device=CUDA) for _ in range(tensors)]
    opt = optimizer("adamw", parameters(xs, [torch.ones_like(x) for x in xs]), max_norm=1.0)
    for _ in range(3):
        opt.step()
    kernels, copies = events(opt.step)
    assert (kernels, copies) == (2, 0)


def test_a_copy_is_seen_where_there_is_one() -> None:
    """What counts copies would pass the test above if it saw none."""
    opt = warm()

    def step() -> None:
        opt.param_groups[0]["lr"] *= 0.5
        opt.step()

    kernels, copies = events(step)
    assert (kernels, copies) == (2, 1)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_both_ways_are_bitwise_equal(case: str, dtype: torch.dtype) -> None:
    opt, twin = warm(case, dtype, nonfinite="skip"), warm(case, dtype, nonfinite="skip")
    for seed in range(4):
        for p, q, g in zip(params_of(opt), params_of(twin), random(SHAPES, CUDA, dtype, seed), strict=True):
            p.grad, q.grad = g, g.clone()
        if seed == 2:
            params_of(opt)[0].grad[0, 0] = params_of(twin)[0].grad[0, 0] = torch.inf  # type: ignore[index]
        opt.step()
        by_lists(twin)
        outputs = [[x.grad_norm, x.clip_coef, x.skipped_steps] for x in (opt, twin)]
        assert_bitwise([*everything(opt), *outputs[0]], [*everything(twin), *outputs[1]])
    assert int(opt.skipped_steps) == 1


def test_a_repeated_step_never_waits(no_waiting: None) -> None:
    generator = torch.Generator(CUDA).manual_seed(0)
    xs, gs = ([torch.randn(shape, generator=generator, device=CUDA) for shape in SHAPES] for _ in range(2))
    opt = optimizer("adamw", parameters(xs, gs), max_norm=1.0, nonfinite="skip")
    for i in range(6):
        if i % 2:
            opt.param_groups[0]["lr"] = 0.1 / (i + 1)
            for p in params_of(opt):
                p.grad = p.grad * 0.5  # type: ignore[operator]
        opt.step()
    assert opt._planner is not None
    assert opt._planner.table is not None


def test_two_streams_in_turn() -> None:
    """Each step waits for the one before, as users of streams do; tables that they share would be overwritten while the
    other stream reads them, which takes long here."""
    opt, twin = warm(), warm()
    streams = [torch.cuda.Stream() for _ in range(2)]
    table = opt._planner.table
    for i in range(6):
        stream = streams[i % 2]
        stream.wait_stream(torch.cuda.current_stream())
        stream.wait_stream(streams[1 - i % 2])
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            opt.param_groups[0]["lr"] = 0.1 / (i + 1)
            opt.step()
        twin.param_groups[0]["lr"] = 0.1 / (i + 1)
        by_lists(twin)
    for stream in streams:
        torch.cuda.current_stream().wait_stream(stream)
    assert opt._planner.table is table
    assert_bitwise(everything(opt), everything(twin))


def test_a_table_is_overwritten_behind_the_step_that_reads_it() -> None:
    """Steps that the device has yet to begin while the host prepares the next: each has the lr it was given."""
    opt, twin = warm(), warm()
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)
    for i in range(8):
        opt.param_groups[0]["lr"] = 0.1 / (i + 1)
        opt.step()
    torch.cuda.synchronize()
    for i in range(8):
        twin.param_groups[0]["lr"] = 0.1 / (i + 1)
        by_lists(twin)
        torch.cuda.synchronize()
    assert_bitwise(everything(opt), everything(twin))


def test_capture_after_steps_by_a_table() -> None:
    """The graph has a table of its own, and that of the optimizer survives; both go on in turn."""
    opt, twin = warm(), warm()
    table = opt._planner.table
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        opt.step()
    assert opt._planner.table is table
    for i in range(6):
        if i % 2:
            graph.replay()
        else:
            opt.step()
        by_lists(twin)
        for size in (100, 10_000):  # takes the place of whatever was let go
            torch.full((size,), torch.nan, device=CUDA)
    assert opt._planner.table is table
    assert_bitwise(everything(opt), everything(twin))
    kernels, copies = events(opt.step)
    assert (kernels, copies) == (2, 0)


def test_a_model_that_moves_to_the_host_is_stepped_there(monkeypatch: pytest.MonkeyPatch) -> None:
    opt, twin = warm(), warm()
    monkeypatch.delenv("FUSEDTRAIN_BACKEND")
    for p in params_of(opt):
        grad = p.grad
        p.grad, p.data = None, p.data.cpu()
        p.grad = grad.cpu()  # type: ignore[union-attr]
    opt.step()
    by_lists(twin)
    for p, q in zip(params_of(opt), params_of(twin), strict=True):
        torch.testing.assert_close(p, q.cpu())


@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one() -> None:
    second = torch.device("cuda:1")
    params = parameters(random(SHAPES, second, torch.float32), random(SHAPES, second, torch.float32, 1))
    opt = optimizer("adamw", params, max_norm=1.0)
    with torch.cuda.device(0):
        for _ in range(4):
            opt.step()
        assert torch.cuda.current_device() == 0
    assert opt._planner is not None
    assert opt._planner.table is not None
    twin = warm(steps=4)
    assert_bitwise([x.cpu() for x in everything(opt)], [x.cpu() for x in everything(twin)])
