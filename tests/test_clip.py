"""Clipping by norm and by value, and the norm itself, against torch and against fp64."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

import fusedtrain as ft
from fusedtrain.testing import assert_as_accurate, with_layout

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NORM_TYPES = [0.5, 1.0, 1.5, 2.0, 4.0, math.inf]


def with_grads(*grads: Tensor) -> list[Parameter]:
    params = []
    for g in grads:
        p = Parameter(torch.zeros_like(g))
        p.grad = g
        params.append(p)
    return params


def truth(tensors: list[Tensor], norm_type: float = 2.0) -> Tensor:
    """In extended precision, rounded to fp64 once."""
    flat = np.concatenate([x.detach().double().cpu().numpy().reshape(-1) for x in tensors]).astype(np.longdouble)
    norm = (
        np.abs(flat).max(initial=0) if norm_type == math.inf else (np.abs(flat) ** norm_type).sum() ** (1 / norm_type)
    )
    return torch.tensor(float(norm), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _use(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "backend" in request.fixturenames:
        monkeypatch.setenv("FUSEDTRAIN_BACKEND", request.getfixturevalue("backend"))


# ---- the norm


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_norm(dtype: torch.dtype, norm_type: float, backend: str, device: torch.device) -> None:
    shapes = [(70_001,), (3, 5, 7), (), (0,), (1,)]
    tensors = [torch.randn(shape).to(device, dtype) for shape in shapes]
    norm = ft.global_norm(tensors, norm_type)
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert norm.shape == ()
    exact = truth(tensors, norm_type)
    theirs = torch.nn.utils.get_total_norm([x.to(norm.dtype) for x in tensors if x.numel()], norm_type)
    # pow() errs by an ulp or so, in the same way for terms of like size: that does not average out over the sum.
    assert_as_accurate(norm.cpu(), theirs.cpu(), exact, factor=4.0 if norm_type in (1, 2, math.inf) else 16.0)


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (torch.float16, [300.0, 400.0], 500.0),
        (torch.float16, [60000.0, 60000.0], 60000 * math.sqrt(2)),
        (torch.float32, [1e20, 1e20], 1e20 * math.sqrt(2)),
        (torch.float32, [1e-30, 1e-30], 1e-30 * math.sqrt(2)),
        (torch.bfloat16, [1e38, 1e38], 1e38 * math.sqrt(2)),
        (torch.float64, [1e200, 1e200], 1e200 * math.sqrt(2)),
        (torch.float64, [1e-200, 1e-200], 1e-200 * math.sqrt(2)),
    ],
)
def test_no_finite_input_overflows_or_underflows(
    dtype: torch.dtype, values: list[float], expected: float, backend: str, device: torch.device
) -> None:
    x = torch.tensor(values, dtype=dtype, device=device)
    assert ft.global_norm([x[:1], x[1:]]).item() == pytest.approx(expected, rel=2**-7 if dtype.itemsize < 4 else 1e-6)
    params = with_grads(x.clone())
    assert ft.clip_grad_norm_(params, 1.0).item() == pytest.approx(expected, rel=2**-7)
    clipped = params[0].grad.double()
    if expected > 1:
        assert clipped.norm().item() == pytest.approx(1.0, rel=2**-7)
    else:
        assert torch.equal(clipped, x.double())


@pytest.mark.parametrize("layout", ["transposed", "sliced", "offset", "expanded"])
def test_norm_of_any_layout(layout: str, backend: str, device: torch.device) -> None:
    values = torch.randn(5, 3, device=device)
    x = values[:1].expand(5, 3) if layout == "expanded" else with_layout(values, layout)
    torch.testing.assert_close(ft.global_norm([x]).cpu(), truth([x]).float())


def test_norm_is_the_same_every_time(backend: str, device: torch.device) -> None:
    tensors = [torch.randn(n, device=device) for n in (1, 100_003, 17, 40_000)]
    first = ft.global_norm(tensors)
    threads = torch.get_num_threads()
    try:
        for i in range(10):
            torch.set_num_threads(1 + i % 2)
            assert torch.equal(ft.global_norm(tensors), first)
    finally:
        torch.set_num_threads(threads)


def test_norm_of_nothing_of_one_and_of_the_same_twice() -> None:
    assert ft.global_norm([]).item() == 0.0
    assert ft.global_norm([torch.empty(0)]).item() == 0.0
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    assert ft.global_norm(x).item() == 5.0
    assert ft.global_norm([x, x]).item() == 5.0
    assert ft.global_norm(t for t in [x]).item() == 5.0
    assert not ft.global_norm(x).requires_grad
    assert ft.global_norm([x, torch.zeros(1, dtype=torch.float64)]).dtype == torch.float64


def test_norm_of_nothing_follows_no_default_of_torch() -> None:
    p = Parameter(torch.ones(2, device="cpu"))
    elsewhere = Parameter(torch.ones(2, device="meta"))
    torch.set_default_dtype(torch.float16)
    torch.set_default_device("meta")
    try:
        norms = [ft.global_norm([]), ft.clip_grad_norm_([], 1.0), ft.clip_grad_norm_([p], 1.0)]
        there = ft.clip_grad_norm_([elsewhere, p], 1.0)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for norm in norms:
        assert (norm.device.type, norm.dtype, norm.shape) == ("cpu", torch.float32, ())
        assert norm.item() == 0.0
    assert (there.device.type, there.dtype) == ("meta", torch.float32)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", [0, 4095, 8191, 40_000])
def test_one_bad_element_shows(bad: float, where: int, backend: str, device: torch.device) -> None:
    x = torch.randn(40_001, device=device)
    x[where] = bad
    norm = ft.global_norm([torch.ones(3, device=device), x])
    assert norm.isnan() if math.isnan(bad) else norm.isinf()


# ---- clipping by norm


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("max_norm", [0.5, 1e9, 0])
def test_clips_as_torch(
    norm_type: float, dtype: torch.dtype, max_norm: float, backend: str, device: torch.device
) -> None:
    grads = [torch.randn(shape).to(device, dtype) for shape in [(40, 30), (7,), ()]]
    ours, same = with_grads(*(g.clone() for g in grads)), with_grads(*(g.clone() for g in grads))
    norm = ft.clip_grad_norm_(ours, max_norm, norm_type)
    torch.nn.utils.clip_grad_norm_(same, max_norm, norm_type)
    expected = truth(grads, norm_type)
    torch.testing.assert_close(norm.cpu(), expected.to(norm.dtype))
    coef = min(1.0, max_norm / (expected.item() + 1e-6))
    for p, q, g in zip(ours, same, grads, strict=True):
        assert p.grad.dtype == dtype
        # The norm, the factor and the product are rounded once each.
        assert_as_accurate(p.grad, q.grad, g.double() * coef, factor=3.0)


@pytest.mark.parametrize("max_norm", [math.inf, 5.1])
def test_not_touched_when_nothing_is_to_be_clipped(max_norm: float, backend: str, device: torch.device) -> None:
    values = torch.tensor([3.0, 4.0, -0.0], device=device)
    (p,) = with_grads(values.clone())
    ft.clip_grad_norm_(p, max_norm)
    assert torch.equal(p.grad.view(torch.int32), values.view(torch.int32))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "offset"])
def test_clips_any_layout_and_no_gap(layout: str, backend: str, device: torch.device) -> None:
    values = torch.randn(5, 3, device=device)
    p = Parameter(torch.zeros(5, 3, device=device))
    p.grad = with_layout(values, layout)
    memory = p.grad.as_strided((p.grad.untyped_storage().nbytes() // 4,), (1,), 0)
    gaps = memory.isnan()
    ft.clip_grad_norm_([p], 0.1)
    torch.testing.assert_close(p.grad, values * (0.1 / (values.norm() + 1e-6)))
    assert bool(memory[gaps].isnan().all())


def test_a_parameter_listed_twice_counts_once() -> None:
    (p,) = with_grads(torch.tensor([3.0, 4.0]))
    tied = Parameter(torch.zeros(2))
    tied.grad = p.grad
    assert ft.clip_grad_norm_([p, p, tied], 1.0).item() == 5.0
    torch.testing.assert_close(p.grad, torch.tensor([0.6, 0.8]), rtol=1e-6, atol=0)


def test_parameters_come_in_every_form() -> None:
    for form in (lambda p: p, lambda p: [p], lambda p: (q for q in [p]), lambda p: {p}):
        (p,) = with_grads(torch.tensor([3.0, 4.0]))
        assert ft.clip_grad_norm_(form(p), 1.0).item() == 5.0
        assert p.grad.norm().item() == pytest.approx(1.0, rel=1e-6)
    assert ft.clip_grad_norm_([], 1.0).item() == 0.0
    assert ft.clip_grad_norm_([Parameter(torch.ones(1))], 1.0).item() == 0.0
    with pytest.warns(UserWarning, match="empty generator"):
        ft.clip_grad_norm_((p for p in []), 1.0)
    assert ft.clip_grad_norm_(with_grads(torch.ones(4)), torch.tensor(1.0), norm_type="inf", foreach=True).item() == 1.0


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_nonfinite_norm_does_as_in_torch_or_raises(bad: float, backend: str, device: torch.device) -> None:
    grads = [torch.tensor([1.0, bad]), torch.tensor([2.0])]
    ours, same = with_grads(*(g.to(device) for g in grads)), with_grads(*(g.clone() for g in grads))
    with pytest.raises(RuntimeError, match=r"total norm of order 2.0 for gradients from `parameters` is non-finite"):
        ft.clip_grad_norm_(ours, 1.0, error_if_nonfinite=True)
    torch.testing.assert_close([p.grad.cpu() for p in ours], grads, equal_nan=True, rtol=0, atol=0)
    norm = ft.clip_grad_norm_(ours, 1.0)
    expected = torch.nn.utils.clip_grad_norm_(same, 1.0)
    torch.testing.assert_close(norm.cpu(), expected, equal_nan=True)
    torch.testing.assert_close([p.grad.cpu() for p in ours], [p.grad for p in same], equal_nan=True)


def test_clipping_raises_versions_of_gradients(backend: str, device: torch.device) -> None:
    (p,) = with_grads(torch.tensor([3.0, 4.0], device=device))
    version = p.grad._version
    ft.clip_grad_norm_(p, 1.0)
    assert p.grad._version > version


@given(
    sizes=st.lists(st.integers(0, 70), max_size=6),
    max_norm=st.floats(0, 100),
    norm_type=st.sampled_from([1.0, 2.0, 3.0, math.inf]),
    seed=st.integers(0, 2**30),
)
def test_property(sizes: list[int], max_norm: float, norm_type: float, seed: int) -> None:
    """Afterwards the norm is at most the bound, the direction is the same, and the returned norm is that of before."""
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(n, generator=generator, dtype=torch.float64) for n in sizes]
    params = with_grads(*(g.clone() for g in grads))
    norm = ft.clip_grad_norm_(params, max_norm, norm_type)
    expected = truth([torch.zeros(1), *grads], norm_type)
    torch.testing.assert_close(norm.double(), expected)
    coef = min(1.0, max_norm / (expected.item() + 1e-6))
    torch.testing.assert_close([p.grad for p in params], [g * coef for g in grads])
    assert ft.global_norm([p.grad for p in params], norm_type).item() <= max_norm * (1 + 1e-12) or coef == 1.0


# ---- by value


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [0.0, 0.3, math.inf])
def test_by_value(dtype: torch.dtype, value: float) -> None:
    grads = [torch.randn(9).to(dtype), with_layout(torch.randn(3, 2).to(dtype), "transposed")]
    params = with_grads(*(g.clone() for g in grads))
    ft.clip_grad_value_(params, value)
    for p, g in zip(params, grads, strict=True):
        assert torch.equal(p.grad, g.clamp(-value, value))


# ---- refusals

SPARSE = torch.sparse_coo_tensor(torch.tensor([[0, 1]]), torch.ones(2), (3,))


@pytest.mark.parametrize(
    ("max_norm", "error", "match"),
    [
        (-1.0, ValueError, "must be >= 0, not -1.0"),
        (math.nan, ValueError, "must be >= 0, not nan"),
        (True, TypeError, "must be a number >= 0, not True"),
        ("1", TypeError, "must be a number >= 0, not '1'"),
        (None, TypeError, "must be a number >= 0, not None"),
    ],
)
def test_bad_bounds(max_norm: Any, error: type[Exception], match: str) -> None:
    (p,) = with_grads(torch.tensor([3.0, 4.0]))
    with pytest.raises(error, match=r"fusedtrain\.clip_grad_norm_: max_norm " + match):
        ft.clip_grad_norm_(p, max_norm)
    with pytest.raises(error, match=r"fusedtrain\.clip_grad_value_: clip_value " + match):
        ft.clip_grad_value_(p, max_norm)
    assert p.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("norm_type", [0, -1.0, math.nan, True, "two", None])
def test_bad_norm_types(norm_type: Any) -> None:
    (p,) = with_grads(torch.tensor([3.0, 4.0]))
    with pytest.raises((ValueError, TypeError), match="norm_type must be"):
        ft.clip_grad_norm_(p, 1.0, norm_type)
    with pytest.raises((ValueError, TypeError), match="norm_type must be"):
        ft.global_norm(p, norm_type)
    assert p.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    ("grad", "match"),
    [
        (SPARSE, "gradient of parameter 1 is sparse"),
        (torch.ones(3, dtype=torch.complex64), "parameter 1 is torch.complex64"),
    ],
)
def test_bad_gradients(grad: Tensor, match: str) -> None:
    params = with_grads(torch.tensor([3.0, 4.0]), grad)
    for clip in (ft.clip_grad_norm_, ft.clip_grad_value_):
        with pytest.raises(TypeError, match=match):
            clip(params, 1.0)
    assert params[0].grad.tolist() == [3.0, 4.0]


def test_bad_tensors() -> None:
    with pytest.raises(TypeError, match=r"tensor 1 is torch\.int64"):
        ft.global_norm([torch.ones(1), torch.ones(1, dtype=torch.int64)])
    with pytest.raises(TypeError, match="tensor 0 is no tensor but float"):
        ft.global_norm([1.0])
    with pytest.raises(TypeError, match="parameter 0 is no tensor but str"):
        ft.clip_grad_norm_(["weight"], 1.0)


def test_what_passes_for_a_tensor_is_one() -> None:
    p = with_grads(torch.tensor([3.0, 4.0]))[0]
    assert float(ft.clip_grad_norm_([weakref.proxy(p)], 1.0)) == 5.0
    assert float(ft.global_norm([weakref.proxy(p.grad), torch.zeros(2)])) == pytest.approx(1.0, rel=1e-5)


def test_a_bad_gradient_is_named_by_its_parameter() -> None:
    params = [Parameter(torch.zeros(2)), *with_grads(torch.ones(2), torch.ones(2), SPARSE)]
    with pytest.raises(TypeError, match="gradient of parameter 3 is sparse"):
        ft.clip_grad_norm_(params, 1.0)
