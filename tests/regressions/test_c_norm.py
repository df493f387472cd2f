"""Section C of the catalogue: the global norm, clipping by it, and mixed precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import kit
import pytest
import torch
from torch import Tensor

import fusedtrain as ft

Clip = Callable[..., Tensor]
INF, NAN = math.inf, math.nan


def with_grads(*grads: Tensor) -> list[torch.nn.Parameter]:
    return [kit.parameter(torch.zeros_like(g), g) for g in grads]


@pytest.mark.parametrize("bad", [INF, -INF, NAN])
def test_C1_nonfinite_gradients_skip_the_step(backend: str, case: str, bad: float) -> None:
    """pytorch#46849, habitat-lab!2229: one inf turns all gradients to zero or NaN, silently."""
    p, q = kit.parameter(torch.randn(40), torch.randn(40)), kit.parameter(torch.randn(3), torch.randn(3))
    opt = kit.make(case, [p, q], max_norm=1.0, nonfinite="skip")
    opt.step()
    q.grad[1] = bad
    before, grads = kit.snapshot(opt), [p.grad.clone(), q.grad.clone()]
    opt.step()
    kit.assert_bitwise(kit.snapshot(opt), before)
    kit.assert_bitwise([p.grad, q.grad], grads)
    assert not math.isfinite(float(opt.grad_norm))
    assert int(opt.skipped_steps) == 1
    q.grad[1] = 0.5
    opt.step()
    assert int(opt.skipped_steps) == 1
    assert not torch.equal(p.detach(), before[0])


def test_C1_error_if_nonfinite_leaves_the_gradients(backend: str) -> None:
    """pytorch!53843: the error comes before anything is scaled."""
    params = with_grads(torch.tensor([3.0, 4.0]), torch.tensor([INF]))
    with pytest.raises(RuntimeError, match="non-finite"):
        ft.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert params[0].grad.tolist() == [3, 4]


@pytest.mark.parametrize("nonfinite", [INF, NAN])
def test_C1_propagate_does_as_torch(backend: str, nonfinite: float) -> None:
    """The default policy is torch's: a NaN norm makes all NaN, an infinite one leaves zeros and NaN."""
    ours, theirs = (with_grads(torch.tensor([3.0, nonfinite]), torch.tensor([4.0])) for _ in range(2))
    norms = ft.clip_grad_norm_(ours, 1.0), torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    for a, b in [norms, *((p.grad, q.grad) for p, q in zip(ours, theirs, strict=True))]:
        torch.testing.assert_close(a, b, equal_nan=True)


def check_C2_C3(values: list[float], dtype: torch.dtype, clip: Clip) -> None:
    g = torch.tensor(values, dtype=dtype)
    exact = math.hypot(*g.tolist())
    params = with_grads(g.clone())
    norm = clip(params, 0.5 * exact)
    assert float(norm) == pytest.approx(exact, rel=1e-6, abs=0)
    coef = 0.5 * exact / (exact + 1e-6)
    torch.testing.assert_close(params[0].grad, (g.double() * coef).to(dtype))


LARGE_AND_SMALL = [
    ([300.0, 400.0], torch.float16),
    ([60000.0, 60000.0], torch.float16),
    ([1e20, 1e20], torch.float32),
    ([1e-30, 1e-30], torch.float32),
    ([1e38, 1e-38, -3e38], torch.float32),
    ([1e200, -1e200], torch.float64),
    ([1e-200, 1e-200], torch.float64),
    ([3e38, 1e38], torch.bfloat16),
]


@pytest.mark.parametrize(("values", "dtype"), LARGE_AND_SMALL)
def test_C2_C3_no_overflow_and_no_underflow(backend: str, values: list[float], dtype: torch.dtype) -> None:
    """fairscale!263, pytorch#193006: squares leave the range of the dtype; torch zeroes all gradients."""
    check_C2_C3(values, dtype, ft.clip_grad_norm_)


@pytest.mark.parametrize(("values", "dtype"), [LARGE_AND_SMALL[i] for i in (1, 2, 3, 5, 6)])
def test_C2_C3_can_fail(values: list[float], dtype: torch.dtype) -> None:
    """torch's own clipping is what these rows are about."""
    with pytest.raises(AssertionError):
        check_C2_C3(values, dtype, torch.nn.utils.clip_grad_norm_)


@pytest.mark.parametrize(("values", "dtype"), LARGE_AND_SMALL)
def test_C2_C3_in_the_step(backend: str, values: list[float], dtype: torch.dtype) -> None:
    """As C2 and C3 where the clipping is fused into the step."""
    g = torch.tensor(values, dtype=dtype)
    exact = math.hypot(*g.tolist())
    p = kit.parameter(torch.zeros(len(values), dtype=dtype), g)
    opt = ft.optim.SGD([p], lr=1.0, max_norm=0.5 * exact)
    opt.step()
    assert float(opt.grad_norm) == pytest.approx(exact, rel=1e-6, abs=0)
    torch.testing.assert_close(p.detach(), (-g.double() * (0.5 * exact / (exact + 1e-6))).to(dtype))
    assert torch.equal(p.grad, torch.tensor(values, dtype=dtype)), "gradients are not rewritten"


@pytest.mark.parametrize("bad", [-1.0, NAN, "1", True, None])
def test_C4_max_norm_is_checked(backend: str, bad: object) -> None:
    """torch 2.13: max_norm=-1 turns every gradient around, NaN makes all NaN."""
    params = with_grads(torch.tensor([3.0, 4.0]))
    with pytest.raises((ValueError, TypeError), match="max_norm"):
        ft.clip_grad_norm_(params, bad)  # type: ignore[arg-type]
    assert params[0].grad.tolist() == [3, 4]
    if bad is not None:
        with pytest.raises((ValueError, TypeError), match="max_norm"):
            ft.optim.AdamW(params, max_norm=bad)
        with pytest.raises((ValueError, TypeError), match="clip_value"):
            ft.optim.AdamW(params, clip_value=bad)
    with pytest.raises((ValueError, TypeError), match="norm_type"):
        ft.clip_grad_norm_(params, 1.0, norm_type=bad)  # type: ignore[arg-type]


def test_C4_zero_and_infinity(backend: str) -> None:
    """strands-robots!2028: 0 leaves zeros, inf changes no bit."""
    g = torch.randn(100)
    params = with_grads(g.clone())
    ft.clip_grad_norm_(params, INF)
    assert torch.equal(params[0].grad, g)
    ft.clip_grad_norm_(params, 0.0)
    assert not params[0].grad.any()
    for max_norm in (INF, 1e30):
        p, q = kit.parameter(torch.zeros(100), g.clone()), kit.parameter(torch.zeros(100), g.clone())
        ft.optim.AdamW([p], max_norm=max_norm).step()
        ft.optim.AdamW([q]).step()
        assert torch.equal(p, q)


@pytest.mark.parametrize("value", [INF, -INF, NAN, 1e30, 0.0])
def test_C5_coefficient_is_never_negative(backend: str, value: float) -> None:
    """DeepSpeed!8614: a norm of -1 stood for "not finite" and turned the gradients around."""
    p = kit.parameter(torch.zeros(3), torch.tensor([1.0, value, 2.0]))
    opt = ft.optim.SGD([p], lr=1.0, max_norm=1.0)
    opt.step()
    coef, norm = float(opt.clip_coef), float(opt.grad_norm)
    assert math.isnan(coef) or 0 <= coef <= 1
    assert math.isnan(norm) or norm >= 0


def test_C6_nothing_to_clip(backend: str) -> None:
    """pytorch#38605: no parameters, no gradients, only empty ones: the norm is 0."""
    assert float(ft.clip_grad_norm_([], 1.0)) == 0
    assert float(ft.clip_grad_norm_([torch.nn.Parameter(torch.ones(3))], 1.0)) == 0
    assert float(ft.clip_grad_norm_(with_grads(torch.empty(0), torch.empty(3, 0)), 1.0)) == 0
    assert float(ft.global_norm([])) == 0
    p = torch.nn.Parameter(torch.ones(3))
    opt = ft.optim.AdamW([p], max_norm=1.0)
    opt.step()
    assert p.tolist() == [1, 1, 1]


def test_C8_sparse_gradients_are_refused(backend: str) -> None:
    """tutorials#2245: an error from the depths; here it names the call and comes before anything is scaled."""
    e = torch.nn.Embedding(5, 3, sparse=True)
    e(torch.tensor([1, 1, 2])).sum().backward()
    dense = kit.parameter(torch.zeros(2), torch.tensor([3.0, 4.0]))
    with pytest.raises(TypeError, match=r"clip_grad_norm_.*sparse"):
        ft.clip_grad_norm_([dense, e.weight], 1.0)
    assert dense.grad.tolist() == [3, 4]


def check_C10(clip: Clip) -> None:
    (p,) = with_grads(torch.tensor([3.0, 4.0]))
    assert float(clip([p, p], 1.0)) == pytest.approx(5)
    torch.testing.assert_close(p.grad, torch.tensor([0.6, 0.8]))


def test_C10_listed_twice_counts_once(backend: str) -> None:
    """torch 2.13: a tied weight is counted and scaled twice."""
    check_C10(ft.clip_grad_norm_)
    (p,) = with_grads(torch.tensor([3.0, 4.0]))
    assert float(ft.global_norm([p.grad, p.grad])) == 5
    with pytest.raises(AssertionError):
        check_C10(torch.nn.utils.clip_grad_norm_)


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_C15_clipping_sees_unscaled_gradients(backend: str, case: str, scale: float, dtype: torch.dtype) -> None:
    """Lightning#9330, catalyst#1319: clipped before unscaling, the bound depends on the loss scale."""
    g = torch.randn(50).to(dtype)
    p = kit.parameter(torch.randn(50).to(dtype), g * scale)
    q = kit.parameter(p.detach().clone(), g.clone())
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.zeros(()))
    opt, plain = kit.make(case, [p], max_norm=0.1), kit.make(case, [q], max_norm=0.1)
    scaler.step(opt)
    plain.step()
    assert torch.equal(p, q), "a power of two scales without rounding"
    assert torch.equal(opt.grad_norm, plain.grad_norm)


def test_C17_a_huge_norm_is_no_overflow(backend: str, case: str) -> None:
    """fairseq#2384: overflow was judged from the norm, so big models always overflowed."""
    p = kit.parameter(torch.zeros(8), torch.full((8,), 1e38))  # a norm of 2.8e38
    opt = kit.make(case, [p], max_norm=1.0, nonfinite="skip")
    opt.step()
    assert int(opt.skipped_steps) == 0
    assert p.detach().count_nonzero() == 8
    assert p.detach().isfinite().all()


@pytest.mark.parametrize("bad", [INF, NAN])
@pytest.mark.parametrize("dtype", kit.FLOATS, ids=str)
def test_C18_a_nonfinite_element_anywhere_is_found(backend: str, dtype: torch.dtype, bad: float) -> None:
    """fairscale!890: only the first tensor was looked at. Here: every tensor, vector body and tail."""
    sizes = (1, 7, 64, 1037)
    for which, n in enumerate(sizes):
        for position in {0, n // 2, n - 2 if n > 1 else 0, n - 1}:
            grads = [torch.ones(k, dtype=dtype) for k in sizes]
            grads[which][position] = bad
            params = [kit.parameter(torch.zeros(k, dtype=dtype), g) for k, g in zip(sizes, grads, strict=True)]
            opt = ft.optim.SGD(params, lr=1.0, nonfinite="skip")
            opt.step()
            assert int(opt.skipped_steps) == 1, (which, position)
            assert not any(p.any() for p in params)


def test_C21_norm_is_bitwise_reproducible(backend: str) -> None:
    """apex today: partial sums race. Here: equal bits from run to run, and for any number of threads."""
    tensors = [torch.randn(n) * 10.0 ** (i % 9 - 4) for i, n in enumerate([3, 100_000, 1, 70_001, 5000] * 2)]
    threads = torch.get_num_threads()
    norms = set()
    try:
        for n in (1, 2, 3, 4):
            torch.set_num_threads(n)
            norms |= {float(ft.global_norm(tensors)) for _ in range(25 if backend == "cpu" else 2)}
    finally:
        torch.set_num_threads(threads)
    assert len(norms) == 1
