"""Streams, devices, and never waiting: A19, A20, C6, C21, and that no call of ours synchronises."""

from __future__ import annotations

import math

import pytest
import torch
from stepping import assert_bitwise, everything, optimizer, parameters, random

import fusedtrain as ft
from fusedtrain import dispatch
from fusedtrain.norms import _in_order

CUDA = torch.device("cuda")
SHAPES: list[tuple[int, ...]] = [(1000, 33), (7,), (4097,), (5, 5)]
needs_two = pytest.mark.skipif("torch.cuda.device_count() < 2", reason="needs two GPUs")


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["sgd_momentum", "adamw", "lion"])
def test_a_step_never_waits(on_gpu: str, case: str, no_waiting: None) -> None:
    params = parameters(*(random_without_waiting(seed) for seed in range(2)))
    opt = optimizer(case, params, max_norm=1.0, nonfinite="skip", backend=on_gpu)
    for i in range(4):
        for p in params:
            p.grad = p.grad * 0.5  # other memory every time
        opt.param_groups[0]["lr"] = 0.1 / (i + 1)
        opt.step()
        assert opt.grad_norm is not None
        assert opt.skipped_steps.is_cuda
    opt.grad_scale, opt.found_inf = torch.full((), 2.0, device=CUDA), torch.zeros((), device=CUDA)
    opt.step()


@pytest.mark.gpu
def test_A20_raise_waits_for_the_step_before_and_nothing_since(on_gpu: str, no_waiting: None) -> None:
    (p,) = parameters(random_without_waiting(0)[:1])
    opt = ft.optim.AdamW([p], lr=0.1, nonfinite="raise", backend=on_gpu)
    for _ in range(3):
        p.grad = p.detach() * 0.5
        opt.step()
    p.grad = torch.full_like(p, torch.nan)
    opt.step()
    torch.cuda._sleep(8_000_000_000)  # four seconds or so of work that nobody has asked about
    queued = torch.cuda.Event()
    queued.record()
    with pytest.raises(FloatingPointError, match="of step 4"):
        opt.step()
    assert not queued.query()


@pytest.mark.gpu
def test_raise_is_refused_while_a_graph_is_captured(on_gpu: str) -> None:
    p = torch.nn.Parameter(torch.ones(3, device=CUDA))
    p.grad = torch.ones_like(p)
    opt = ft.optim.SGD([p], lr=0.1, nonfinite="raise", backend=on_gpu)
    opt.step()
    torch.cuda.synchronize()
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(RuntimeError, match="cannot be captured"):
        opt.step()


def random_without_waiting(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator(CUDA).manual_seed(seed)
    return [torch.randn(shape, generator=generator, device=CUDA) for shape in SHAPES]


@pytest.mark.gpu
def test_a_model_that_moved_since_its_optimizer_was_made_is_not_waited_for(on_gpu: str) -> None:
    model = torch.nn.Linear(64, 64)
    opt = ft.optim.AdamW(model.parameters(), max_norm=1.0, nonfinite="skip", backend=on_gpu)
    model.to(CUDA)
    for i in range(5):
        for p in model.parameters():
            p.grad = torch.full_like(p, math.inf if i == 3 else 1.0)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if i else "default")  # the first step brings the counter
        try:
            opt.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert opt.skipped_steps.device.type == "cuda"
    assert int(opt.skipped_steps) == 1


@pytest.mark.gpu
def test_norms_of_tensors_are_not_waited_for(on_gpu: str, no_waiting: None) -> None:
    tensors = random_without_waiting(0)
    for norm_type in (1.0, 2.0, 3.0, math.inf):
        assert ft.tensor_norms(tensors, norm_type).is_cuda
    a, b = (ft.tensor_norms(some) for some in (tensors[:2], tensors[2:3]))
    assert _in_order([a, b], [[0, 2], [1]]).shape == (3,)  # as of DTensors and others


@pytest.mark.gpu
def test_clipping_never_waits(on_gpu: str, no_waiting: None) -> None:
    params = parameters(random_without_waiting(0), random_without_waiting(1))
    for norm_type in (1.0, 2.0, 3.0, math.inf):
        ft.clip_grad_norm_(params, 1.0, norm_type)
    ft.clip_grad_value_(params, 0.1)
    ft.global_norm([p.grad for p in params])


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_act_dropout_never_waits(on_gpu: str, activation: str, no_waiting: None) -> None:
    x = torch.ones(257, 33, device=CUDA, requires_grad=True)
    bias = torch.ones(33, device=CUDA, requires_grad=True)
    ft.functional.act_dropout(x, activation, 0.3, bias=bias, backend=on_gpu).sum().backward()
    gated = torch.ones(257, 66, device=CUDA, requires_grad=True)
    ft.functional.gated_act_dropout(gated, "silu", 0.3, backend=on_gpu).sum().backward()


@pytest.mark.gpu
def test_work_is_on_the_current_stream(on_gpu: str) -> None:
    """bnb#2050: kernels on another stream read what is not there yet. Each operand is made on the side stream behind
    work that takes long, so that whoever does not wait for it sees the old values."""
    stream = torch.cuda.Stream()
    for x, y in ((torch.zeros(1 << 20, device=CUDA), torch.zeros(1 << 20, device=CUDA)) for _ in range(3)):
        (p,) = parameters([x], [y])
        opt = optimizer("sgd", [p], lr=1.0, weight_decay=0.0, max_norm=math.inf, backend=on_gpu)
        opt.step()  # so that the next one finds its kernels loaded
        a = torch.zeros(1 << 20, device=CUDA)
        ft.functional.act_dropout(a, "relu", 0.0, backend=on_gpu)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)
            p.grad.fill_(3.0)
            a.fill_(5.0)
            opt.step()
            out = ft.functional.act_dropout(a, "relu", 0.0, backend=on_gpu)
        torch.cuda.synchronize()
        assert bool((p.detach() == -3).all())
        assert bool((out == 5).all())
        assert float(opt.grad_norm) == pytest.approx(3 * 1024)


def test_C21_the_norm_is_the_same_to_the_bit_every_time(backend: str, device: torch.device) -> None:
    """apex: partial sums raced. A hundred times, with other kernels in between and, on GPUs, over streams."""
    tensors = random([(1 << 16,), (12345,), (7,)], device, torch.float32)
    expected = ft.optim.SGD(parameters([t.clone() for t in tensors], tensors), 0.0, max_norm=1.0, backend=backend)
    expected.step()
    params = parameters([t.clone() for t in tensors], tensors)
    opt = ft.optim.SGD(params, 0.0, max_norm=1.0, backend=backend)
    streams = [torch.cuda.Stream() for _ in range(4)] if device.type == "cuda" else [None]
    norms = []
    for i in range(100 if device.type == "cuda" else 5):
        stream = streams[i % len(streams)]
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            opt.step()
            norms.append(opt.grad_norm)
        if stream is not None:
            torch.cuda.current_stream().wait_stream(stream)
    assert len({float(norm) for norm in norms} | {float(expected.grad_norm)}) == 1


@pytest.mark.gpu
def test_C21_partial_sums_are_read_as_just_written(on_gpu: str) -> None:
    """Tensors of three chunks, which other multiprocessors sum than combine. All is scaled by a power of two each time,
    and with it exactly each norm: what a cache has kept of the partials of the time before would show."""
    tensors = [torch.randn(3 * 8192 - i % 7, device=CUDA) for i in range(2000)]
    each, (whole, _) = ft.tensor_norms(tensors), dispatch.load(on_gpu).global_norm(tensors, 2.0)
    for i in range(50):
        factor = 0.5 if i % 2 else 2.0
        torch._foreach_mul_(tensors, factor)
        each, whole = each * factor, whole * factor
        assert torch.equal(ft.tensor_norms(tensors), each)
        assert torch.equal(dispatch.load(on_gpu).global_norm(tensors, 2.0)[0], whole)


@pytest.mark.gpu
def test_a_bias_gradient_is_the_same_to_the_bit_every_time(on_gpu: str) -> None:
    x = random_without_waiting(3)[0].requires_grad_()
    bias = torch.zeros(33, device=CUDA, requires_grad=True)
    state = torch.tensor([1, 2], device=CUDA)
    results = []
    for _ in range(50):
        y = ft.functional.act_dropout(x, "gelu", 0.2, bias=bias, rng_state=state, backend=on_gpu)
        results.append(torch.autograd.grad(y.square().sum(), (x, bias)))
    for other in results[1:]:
        assert_bitwise(list(other), list(results[0]))


@pytest.mark.gpu
@needs_two
def test_A19_A20_a_device_that_is_not_the_current_one(on_gpu: str) -> None:
    """apex#319, !752, triton#2441: launched on the current device instead of that of the tensors."""
    second = torch.device("cuda:1")
    with torch.cuda.device(0):
        params = parameters(random(SHAPES, second, torch.float32), random(SHAPES, second, torch.float32, 1))
        opt = optimizer("adamw", params, max_norm=1.0, backend=on_gpu)
        opt.step()
        x = torch.ones(1000, device=second, requires_grad=True)
        ft.functional.act_dropout(x, "gelu", 0.5, backend=on_gpu).sum().backward()
        assert torch.cuda.current_device() == 0
    first = parameters(random(SHAPES, CUDA, torch.float32), random(SHAPES, CUDA, torch.float32, 1))
    twin = optimizer("adamw", first, max_norm=1.0, backend=on_gpu)
    twin.step()
    assert_bitwise([t.cpu() for t in everything(opt)], [t.cpu() for t in everything(twin)])


@pytest.mark.gpu
@needs_two
def test_C6_one_optimizer_over_two_devices(on_gpu: str) -> None:
    """pytorch#38605: norms of several devices. Clipping is by the norm of all."""
    xs, gs = random(SHAPES, CUDA, torch.float32), random(SHAPES, CUDA, torch.float32, 1)
    spread = [torch.device("cuda", i % 2) for i in range(len(xs))]
    params = parameters(*([t.to(d) for t, d in zip(ts, spread, strict=True)] for ts in (xs, gs)))
    opt = optimizer("adamw", params, max_norm=1.0, backend=on_gpu)
    twin = optimizer("adamw", parameters([x.clone() for x in xs], gs), max_norm=1.0, backend=on_gpu)
    opt.step()
    twin.step()
    assert float(opt.grad_norm) == pytest.approx(float(twin.grad_norm), rel=1e-6)
    for a, b in zip(everything(opt), everything(twin), strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu())


@pytest.mark.gpu
def test_tensors_of_two_devices_in_one_call_are_refused(on_gpu: str) -> None:
    """With what is wrong and what to do; nothing has been written."""
    x = torch.ones(4, 4, device=CUDA)
    with pytest.raises(ValueError, match="bias"):
        ft.functional.act_dropout(x, "relu", 0.5, bias=torch.ones(4), inplace=True, backend=on_gpu)
    with pytest.raises(RuntimeError, match="cpu"):
        ft.functional.act_dropout(torch.ones(4), "relu", 0.5, backend=on_gpu)
    assert bool((x == 1).all())
