"""The optimizers against torch's for-loop ones: numbers, layouts, the norm, skipped steps, scaling."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from optim_pairs import assert_bitwise, clones, every_class, grads_for, parameters, plain, snapshot
from torch.nn import Parameter

import fusedtrain as ft
from fusedtrain.testing import assert_as_accurate, with_layout

# ---- numbers


@every_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("max_norm", [None, 0.3, 1e9])
def test_clip_and_step_as_torch(
    cls: type, dtype: torch.dtype, max_norm: float | None, backend: str, device: torch.device
) -> None:
    steps = 2 if backend == "triton" and device.type == "cpu" else 5  # interpreted, a step takes long
    lr = 0.01 if cls is not ft.optim.Lion else 2**-7  # representable: a sign step is then exact in every dtype
    ours = [Parameter(p.detach().to(device)) for p in parameters((33, 7), (64,), dtype=dtype)]
    same, exact = clones(ours), clones(ours, torch.float64)
    opt = cls(ours, lr=lr, max_norm=max_norm, backend=backend)
    references = [plain(cls, same, lr=lr), plain(cls, exact, lr=lr)]
    for _ in range(steps):
        grads_for(ours, same, exact)
        opt.step()
        if max_norm is not None:
            for params in (same, exact):
                norm = torch.nn.utils.clip_grad_norm_(params, max_norm)
            # The truth of fp64 is a computation in fp64, with errors of its own.
            factor = 16.0 if dtype == torch.float64 else 2.0
            assert_as_accurate(opt.grad_norm, norm.to(opt.grad_norm.dtype), norm, factor)
            assert opt.clip_coef.item() == pytest.approx(min(1.0, max_norm / (norm.item() + 1e-6)), rel=1e-5)
        for reference in references:
            reference.step()
    for p, q, r in zip(ours, same, exact, strict=True):
        if cls is ft.optim.Lion and dtype in (torch.bfloat16, torch.float16):
            continue  # torch's states would be of low precision there and choose other signs
        assert_as_accurate(p.detach(), q.detach(), r.detach(), factor=2.0 * steps)


@every_class
def test_order_of_operations(cls: type) -> None:
    """Unscale, maximize, clip by norm, clip by value, L1, and only then weight decay."""
    (p,), lr, scale = parameters((50,), dtype=torch.float64), 0.1, 8.0
    (q,) = clones([p])
    opt = cls([p], lr=lr, weight_decay=0.1, maximize=True, max_norm=2.0, clip_value=0.3, l1=0.05)
    reference = plain(cls, [q], lr=lr, weight_decay=0.1)
    for _ in range(3):
        g = torch.randn_like(p)
        p.grad, opt.grad_scale, opt.found_inf = g * scale, torch.tensor(scale), torch.zeros(())
        opt.step()
        clipped = -g * min(1.0, 2.0 / (g.norm().item() + 1e-6))
        q.grad = clipped.clamp(-0.3, 0.3) + 0.05 * q.detach().sign()
        reference.step()
        torch.testing.assert_close(opt.grad_norm, g.norm())
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_parameter_that_joins_late_has_its_own_first_step(momentum: float) -> None:
    ours = parameters((3,), (4,))
    same = clones(ours)
    opt = ft.optim.SGD(ours, lr=0.1, momentum=momentum, dampening=0.5)
    reference = torch.optim.SGD(same, lr=0.1, momentum=momentum, dampening=0.5, foreach=False)
    for step in range(4):
        grads_for(ours, same)
        if step < 2:
            ours[1].grad = same[1].grad = None
        opt.step()
        reference.step()
    torch.testing.assert_close([p.detach() for p in ours], [p.detach() for p in same])
    assert {k for s in opt.state.values() for k in s} == ({"momentum_buffer"} if momentum else set())


def test_sgd_momentum_switched_on_later_starts_as_torch() -> None:
    ours = parameters((6,))
    same = clones(ours)
    opt, reference = ft.optim.SGD(ours, lr=0.1, dampening=0.5), torch.optim.SGD(same, lr=0.1, dampening=0.5)
    for step in range(6):
        for o in (opt, reference):
            o.param_groups[0]["momentum"] = 0.9 if step in (2, 3, 5) else 0.0
        grads_for(ours, same)
        opt.step()
        reference.step()
    torch.testing.assert_close(ours[0], same[0])


def test_mixed_dtypes_in_one_optimizer() -> None:
    ours = [Parameter(torch.randn(9).to(d)) for d in (torch.float32, torch.bfloat16, torch.float64, torch.float32)]
    opt = ft.optim.AdamW(ours, lr=0.1, max_norm=1.0)
    exact = clones(ours, torch.float64)
    reference = torch.optim.AdamW(exact, lr=0.1, foreach=False)
    ours[3].grad_dtype = torch.bfloat16
    for p, q in zip(ours, exact, strict=True):
        p.grad = torch.randn(9).to(torch.bfloat16 if p is ours[3] else p.dtype)
        q.grad = p.grad.to(torch.float64, copy=True)
    norm = torch.nn.utils.clip_grad_norm_(exact, 1.0)
    opt.step()
    reference.step()
    assert opt.grad_norm.dtype == torch.float64
    torch.testing.assert_close(opt.grad_norm, norm)
    for p, q in zip(ours, exact, strict=True):
        torch.testing.assert_close(p.detach(), q.detach().to(p.dtype))


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64, torch.float32])
def test_step_count_does_not_depend_on_precision(default: torch.dtype) -> None:
    torch.set_default_dtype(default)
    try:
        p = Parameter(torch.zeros(1, dtype=torch.bfloat16))
        opt = ft.optim.AdamW([p], lr=0.0)
        for _ in range(300):
            p.grad = torch.ones_like(p)
            opt.step()
        step = opt.state[p]["step"]
        assert step.item() == 300
        assert step.shape == ()
        assert step.dtype == (torch.float64 if default == torch.float64 else torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)


# ---- layouts


@every_class
@pytest.mark.parametrize("p_layout", ["contiguous", "transposed", "sliced", "offset"])
@pytest.mark.parametrize("g_layout", ["contiguous", "transposed", "sliced", "offset", "expanded"])
def test_layouts(cls: type, p_layout: str, g_layout: str, backend: str, device: torch.device) -> None:
    values = torch.randn(5, 3, device=device)
    p, q = Parameter(with_layout(values, p_layout)), Parameter(values.clone())
    memory = p.detach().as_strided((p.untyped_storage().nbytes() // 4,), (1,), 0)
    gaps = memory.isnan()
    assert bool(gaps.any()) == (p_layout in ("sliced", "offset"))
    opt = cls([p], lr=0.1, max_norm=1.0, backend=backend)
    reference = cls([q], lr=0.1, max_norm=1.0, backend="reference")
    for _ in range(3):
        if g_layout == "expanded":
            p.grad = torch.randn(3, device=device).expand(5, 3)
        else:
            p.grad = with_layout(torch.randn(5, 3, device=device), g_layout)
        q.grad = p.grad.clone(memory_format=torch.contiguous_format)
        opt.step()
        reference.step()
    torch.testing.assert_close(p, q)
    assert bool(memory[gaps].isnan().all()), "the gaps between the elements were written"


def test_parameter_may_change_its_layout_and_storage_between_steps() -> None:
    values = torch.randn(2, 3, 4, 5)
    p, q = Parameter(values.clone()), Parameter(values.clone())
    opt, reference = ft.optim.AdamW([p], lr=0.1), torch.optim.AdamW([q], lr=0.1, foreach=False)
    for step in range(4):
        if step == 1:
            p.data = p.data.to(memory_format=torch.channels_last)
        if step == 3:
            p.data = p.data.clone(memory_format=torch.contiguous_format)
        grads_for([p], [q])
        opt.step()
        reference.step()
        assert opt.state[p]["exp_avg"].stride() == p.stride()
    torch.testing.assert_close(p, q)


@every_class
def test_overlapping_parameter_is_refused(cls: type) -> None:
    good = Parameter(torch.ones(3))
    overlapping = Parameter(torch.zeros(1, 3).expand(4, 3))
    opt = cls([good, overlapping])
    good.grad, overlapping.grad = torch.ones(3), torch.ones(4, 3)
    before = snapshot(opt)
    with pytest.raises(RuntimeError, match=rf"{cls.__name__}.*parameter 1 of group 0.*share memory"):
        opt.step()
    assert_bitwise(snapshot(opt), before)


# ---- the norm, and gradients that are not finite


def test_measured_only_when_asked() -> None:
    p = Parameter(torch.ones(2))
    opt = ft.optim.AdamW([p])
    assert opt.grad_norm is None
    assert opt.clip_coef is None
    p.grad = torch.tensor([3.0, 4.0])
    opt.step()
    assert opt.grad_norm is None
    opt.set_max_norm(torch.inf)
    opt.step()
    first = opt.grad_norm
    assert (first.item(), opt.clip_coef.item()) == (5.0, 1.0)
    opt.set_max_norm(1.0)
    p.grad = p.grad * 2
    opt.step()
    assert (first.item(), opt.grad_norm.item()) == (5.0, 10.0), "a logged norm must stay what it was"
    assert opt.clip_coef.item() == pytest.approx(0.1)
    assert opt.grad_norm.dtype == opt.clip_coef.dtype == torch.float32
    assert opt.skipped_steps.dtype == torch.int64
    p.grad = None
    opt.step()
    assert (opt.grad_norm.item(), opt.clip_coef.item()) == (0.0, 1.0)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, torch.inf])
def test_norm_type(norm_type: float) -> None:
    ours = parameters()
    opt = ft.optim.SGD(ours, lr=0.1, max_norm=0.5, norm_type=norm_type)
    grads_for(ours)
    opt.step()
    expected = torch.nn.utils.get_total_norm([p.grad for p in ours], norm_type)
    torch.testing.assert_close(opt.grad_norm, expected)


@every_class
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_skip_leaves_everything_bitwise(
    cls: type, bad: float, max_norm: float | None, backend: str, device: torch.device
) -> None:
    ours = [Parameter(p.detach().to(device)) for p in parameters((40,), (3, 3))]
    same = clones(ours)
    kwargs = {"momentum": 0.9} if cls is ft.optim.SGD else {}
    opt = cls(ours, lr=0.1, max_norm=max_norm, nonfinite="skip", backend=backend, **kwargs)
    reference = cls(same, lr=0.1, max_norm=max_norm, backend=backend, **kwargs)
    for step, position in enumerate([(0, 39), None, (1, 4), None]):
        grads_for(ours, same)
        if position is None:
            opt.step()
            reference.step()
            continue
        ours[position[0]].grad.view(-1)[position[1]] = bad
        before = snapshot(opt)
        opt.step()
        assert_bitwise(snapshot(opt)[: len(before)], before)
        assert opt.skipped_steps.item() == step // 2 + 1
    assert_bitwise(snapshot(opt), snapshot(reference))


def test_raise_comes_one_step_late_and_names_it() -> None:
    (p,) = parameters((3,))
    opt = ft.optim.AdamW([p], lr=0.1, nonfinite="raise")
    p.grad = torch.ones(3)
    opt.step()
    before = snapshot(opt)
    p.grad = torch.tensor([1.0, torch.nan, 1.0])
    opt.step()
    assert_bitwise(snapshot(opt), before)
    p.grad = torch.ones(3)
    with pytest.raises(FloatingPointError, match="AdamW: the gradients of step 2 were not finite"):
        opt.step()
    assert_bitwise(snapshot(opt), before)
    opt.step()
    assert opt.state[p]["step"].item() == 2


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])  # noqa: S301
def test_a_copy_tells_what_its_original_would_have_told(duplicate: Callable[[object], ft.optim.AdamW]) -> None:
    opt, event = stepped_into_nan(), Arrived()
    opt._pending._arrived = event
    for one in (duplicate(opt), opt):
        with pytest.raises(FloatingPointError, match="of step 1 were not finite"):
            one.step()
    assert event.waits == 2  # of the copy none: it has no event


class Arrived:
    """An event of a GPU, which cannot be copied."""

    waits = 0

    def synchronize(self) -> None:
        self.waits += 1

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("cannot pickle an event")


def stepped_into_nan() -> ft.optim.AdamW:
    (p,) = parameters((3,))
    opt = ft.optim.AdamW([p], lr=0.1, nonfinite="raise")
    p.grad = torch.full((3,), torch.nan)
    opt.step()
    return opt


def test_raise_is_refused_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the parameters were on a GPU whose stream is captured: nothing may be waited for there."""
    opt, event = stepped_into_nan(), Arrived()
    opt._pending._arrived = event
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        patched.setattr(Parameter, "is_cuda", True, raising=False)
        with pytest.raises(RuntimeError, match=r"AdamW.step: nonfinite='raise' cannot be captured .* use 'skip'"):
            opt.step()
    assert event.waits == 0
    with pytest.raises(FloatingPointError, match="of step 1"):
        opt.step()


def test_propagate_does_as_torch() -> None:
    ours = parameters((3,), (2,))
    same = clones(ours)
    opt, reference = ft.optim.SGD(ours, lr=0.1, max_norm=1.0), torch.optim.SGD(same, lr=0.1)
    grads_for(ours, same)
    ours[0].grad[1] = same[0].grad[1] = torch.nan
    opt.step()
    torch.nn.utils.clip_grad_norm_(same, 1.0)
    reference.step()
    torch.testing.assert_close([p.detach() for p in ours], [p.detach() for p in same], equal_nan=True)


# ---- GradScaler


@every_class
@pytest.mark.parametrize("order", ["step", "unscale first", "ignorant scaler"])
def test_grad_scaler(cls: type, order: str) -> None:
    ours = parameters((8,), (3, 2))
    same = clones(ours)
    opt, reference = cls(ours, lr=0.1, max_norm=0.7), cls(same, lr=0.1, max_norm=0.7)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    if order == "ignorant scaler":
        opt._step_supports_amp_scaling = False
    for step in range(5):
        grads_for(ours, same)
        scaler.scale(torch.zeros(()))  # the scaler makes its scale on first use
        for p in ours:
            p.grad = p.grad * scaler.get_scale()
        overflow = step in (0, 3)
        if overflow:
            ours[1].grad[0, 0] = torch.inf
        if order == "unscale first":
            scaler.unscale_(opt)
        before = [(p.grad, p.grad.clone()) for p in ours]
        scaler.step(opt)
        scaler.update()
        if order != "ignorant scaler":
            for p, (grad, values) in zip(ours, before, strict=True):
                assert p.grad is grad
                assert torch.equal(p.grad, values), "step() wrote a gradient"
        if not overflow:
            reference.step()
            assert torch.equal(opt.grad_norm, reference.grad_norm)
        elif order != "ignorant scaler":
            assert opt.skipped_steps.item() == (1 if step == 0 else 2)
    assert_bitwise(snapshot(opt), snapshot(reference))
    assert scaler.get_scale() == 2.0**9  # halved twice, doubled once


def test_the_count_of_skipped_steps_follows_the_parameters() -> None:
    from fusedtrain.optim import launch

    def batch(device: str) -> Any:
        return SimpleNamespace(device=torch.device(device))

    counter = torch.tensor(3)
    moved = launch.follow(counter, [batch("meta")])
    assert moved is not None and moved.device.type == "meta" and moved.dtype == torch.int64
    assert launch.follow(counter, [batch("meta"), batch("cpu")]) is counter
    assert launch.follow(counter, []) is counter
    assert launch.follow(None, [batch("cpu")]) is None
