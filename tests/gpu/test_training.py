"""Steps as training loops take them: gradient scalers, gradients that move, torch's optimizers beside ours."""

from __future__ import annotations

import math

import pytest
import torch
from optim_cases import CASES, HAVE_TORCH, LAYERWISE
from stepping import (
    FLOATS,
    assert_bitwise,
    assert_like_reference,
    everything,
    optimizer,
    parameters,
    random,
    run,
)
from torch import Tensor

import fusedtrain as ft
from fusedtrain.testing import assert_as_accurate

SHAPES: list[tuple[int, ...]] = [(40, 33), (7,), (1,), (0,), (129,)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", HAVE_TORCH)
def test_as_near_to_fp64_as_torch(backend: str, device: torch.device, case: str, dtype: torch.dtype) -> None:
    """Against `clip_grad_norm_` and torch's class, in the same dtype on the same device. Sizes of several chunks."""
    shapes: list[tuple[int, ...]] = [(40, 33), (3001,), (1,)]
    xs = random(shapes, device, dtype)
    grads = [random(shapes, device, dtype, seed) for seed in (1, 2, 3)]
    ours = run(case, xs, grads, max_norm=2.0, backend=backend)
    name, arguments, _ = CASES[case]
    params = parameters([x.clone() for x in xs])
    stock: torch.optim.Optimizer = getattr(torch.optim, name)(params, **arguments, foreach=False)
    for gs in grads:
        for p, g in zip(params, gs, strict=True):
            p.grad = g.clone()
        torch.nn.utils.clip_grad_norm_(params, 2.0)
        stock.step()
    wide = [x.cpu().double() for x in xs], [[g.cpu().double() for g in gs] for gs in grads]
    exact = run(case, *wide, max_norm=2.0, backend="reference")
    for mine, theirs, truth in zip(ours[: len(xs)], params, exact[: len(xs)], strict=True):
        assert_as_accurate(mine.cpu(), theirs.detach().cpu(), truth, factor=4.0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", LAYERWISE)
def test_trust_ratios(backend: str, device: torch.device, case: str, dtype: torch.dtype) -> None:
    shapes: list[tuple[int, ...]] = [(40, 33), (3001,), (1,), (0,), ()]
    xs = random(shapes, device, dtype)
    grads = [random(shapes, device, dtype, seed) for seed in (1, 2, 3)]
    ours = run(case, xs, grads, max_norm=2.0, nonfinite="skip", backend=backend)
    assert_like_reference(ours, case, xs, grads, max_norm=2.0, nonfinite="skip")


@pytest.mark.gpu
@pytest.mark.parametrize("case", LAYERWISE)
def test_trust_ratios_are_not_waited_for(on_gpu: str, case: str, no_waiting: None) -> None:
    xs, gs = ([torch.ones(n, device="cuda") for n in (5, 4000)] for _ in range(2))
    opt = optimizer(case, parameters(xs, gs), max_norm=1.0, nonfinite="skip", backend=on_gpu)
    for _ in range(3):
        opt.step()


@pytest.mark.parametrize("case", CASES)
def test_A17_gradients_that_move(backend: str, device: torch.device, case: str) -> None:
    """dion!63: a table keyed on addresses, which an allocator hands out again. Freed, reallocated, of other sizes in
    between, replaced, and parameters whose memory is exchanged under the same object."""
    xs = random(SHAPES, device, torch.float32)
    grads = [random(SHAPES, device, torch.float32, seed) for seed in range(8)]
    params = parameters([x.clone() for x in xs])
    opt = optimizer(case, params, max_norm=1.0, backend=backend)
    for i, gs in enumerate(grads):
        opt.zero_grad(set_to_none=i % 3 != 0)
        junk = [torch.full((n,), math.nan, device=device) for n in (40 * 33, 7, 129, 1)]
        for p, g in zip(params, gs, strict=True):
            if i % 3 == 0 and p.grad is not None:
                p.grad.copy_(g)
            else:
                p.grad = g.clone()
        if i == 4:
            params[0].data = params[0].data.clone()
        del junk
        opt.step()
    assert_like_reference(everything(opt), case, xs, grads, max_norm=1.0)


def test_B40_a_gradient_that_comes_and_goes(backend: str, device: torch.device) -> None:
    """Counts and states are per parameter; one without a gradient rests."""
    a, b = parameters(random([(9,), (17,)], device, torch.float32))
    opt = optimizer("adamw", [a, b], backend=backend)
    for i in range(6):
        a.grad = torch.full_like(a, 1.0)
        b.grad = torch.full_like(b, 1.0) if i % 2 else None
        before = b.detach().clone()
        opt.step()
        assert torch.equal(b.detach(), before) is (i % 2 == 0)
    assert [int(opt.state[p]["step"]) for p in (a, b)] == [6, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_B2_B3_a_grad_scaler(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Lightning#15501, #15555: unscaled once, whether by us or before; clipped by the unscaled norm."""
    xs = random(SHAPES, device, dtype)
    (grads,) = [random(SHAPES, device, dtype, 1)]
    results: list[list[Tensor]] = []
    for way in ("plain", "scaled", "unscaled before"):
        params = parameters([x.clone() for x in xs])
        opt = optimizer("adamw", params, max_norm=1.0, backend=backend)
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**4, enabled=way != "plain")
        scale = 1.0 if way == "plain" else 2.0**4
        for _ in range(3):
            scaler.scale(torch.ones((), device=device))  # a scaler makes its scale at the first use
            for p, g in zip(params, grads, strict=True):
                p.grad = g * scale
            if way == "unscaled before" and dtype == torch.float32:  # torch refuses to unscale fp16 gradients
                scaler.unscale_(opt)
            scaler.step(opt)
            scaler.update()
        results.append(everything(opt))
        assert int(opt.skipped_steps) == 0
        assert float(opt.grad_norm) == pytest.approx(float(ft.global_norm(grads)), rel=1e-6)
    for other in results[1:]:
        assert_bitwise(other, results[0])


def test_B6_B7_an_overflow_is_skipped_and_the_scale_falls(backend: str, device: torch.device) -> None:
    params = parameters(random(SHAPES, device, torch.float32))
    opt = optimizer("sgd_momentum", params, max_norm=1.0, backend=backend)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**8)
    scaler.scale(torch.ones((), device=device))
    start = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.full_like(p, math.inf)
    scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 2.0**7
    assert all(torch.equal(p.detach(), x) for p, x in zip(params, start, strict=True))
    grads = random(SHAPES, device, torch.float32, 1)
    for p, g in zip(params, grads, strict=True):
        p.grad = g * 2.0**7
    scaler.step(opt)
    assert int(opt.skipped_steps) == 1
    fresh = run("sgd_momentum", start, [grads], max_norm=1.0, backend=backend)
    assert_bitwise([p.detach() for p in params], fresh[: len(params)])


@pytest.mark.gpu
def test_B11_a_state_saved_on_the_gpu_goes_on_anywhere(on_gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytorch#80809: counts of steps on another device than the step wants them."""
    monkeypatch.delenv("FUSEDTRAIN_BACKEND")  # one of the steps is on the host
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    xs, gs = random(SHAPES, cuda, torch.float32), random(SHAPES, cuda, torch.float32, 1)
    params = parameters([x.clone() for x in xs], gs)
    opt = optimizer("adamw", params, max_norm=1.0, backend=on_gpu)
    opt.step()
    saved = opt.state_dict()
    here = parameters([p.detach().to(cpu) for p in params], [g.to(cpu) for g in gs])
    there = parameters([p.detach().clone() for p in params], gs)
    for way, name in ((here, None), (there, on_gpu)):
        other = optimizer("adamw", way, max_norm=1.0, backend=name)
        other.load_state_dict(saved)
        other.step()
        assert {int(other.state[p]["step"]) for p in way} == {2}
    opt.step()
    assert_bitwise([p.detach() for p in there], [p.detach() for p in params])
    for p, q in zip(here, params, strict=True):
        torch.testing.assert_close(p.detach(), q.detach().cpu())
