"""The global norm: exact to a few roundings whatever the range, the order and the number of tensors and threads."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fusedtrain as ft
from fusedtrain import dispatch

BACKENDS = [name for name in ("cpu", "reference") if dispatch.load(name).why_not is None]


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDTRAIN_BACKEND", request.param)


@pytest.mark.parametrize(
    ("values", "dtype", "norm"),
    [
        ([60000.0, 60000.0], torch.float16, 84852.8125),
        ([300.0, 400.0], torch.float16, 500.0),
        ([1e20, 1e20], torch.float32, math.sqrt(2) * 1e20),
        ([1e-30, 1e-30], torch.float32, math.sqrt(2) * 1e-30),
        ([1e-45, 1e-45], torch.float32, 1.401298464324817e-45),
        ([2e38, 2e38], torch.bfloat16, math.sqrt(2) * float(torch.tensor(2e38, dtype=torch.bfloat16))),
        ([1e300, 1e300], torch.float64, math.sqrt(2) * 1e300),
        ([1e-300, 0.0, 1e-300], torch.float64, math.sqrt(2) * 1e-300),
    ],
)
def test_no_range_is_too_wide(values: list[float], dtype: torch.dtype, norm: float) -> None:
    tensors = [torch.tensor([v], dtype=dtype) for v in values]
    for xs in (tensors, [torch.cat(tensors)]):
        got = ft.global_norm(xs)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        wide = torch.tensor(norm, dtype=got.dtype)
        assert float(got) == pytest.approx(float(wide), rel=4 * torch.finfo(got.dtype).eps, abs=0)


def test_inf_and_nan_are_told_apart() -> None:
    """The norm of an infinity is inf, of a NaN is NaN, of both NaN."""
    x = torch.ones(100)
    assert math.isinf(ft.global_norm([x, torch.tensor([-math.inf])]))
    assert math.isnan(ft.global_norm([x, torch.tensor([math.nan])]))
    assert math.isnan(ft.global_norm([torch.tensor([math.nan]), x, torch.tensor([math.inf])]))
    assert math.isinf(ft.global_norm([x, torch.tensor([math.inf])], math.inf))


@pytest.mark.parametrize("norm_type", [0.5, 1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_many_elements_lose_nothing(dtype: torch.dtype, norm_type: float) -> None:
    """300,000 elements in uneven tensors against an exactly rounded sum."""
    tensors = [torch.randn(n).to(dtype) for n in (1, 99_991, 7, 150_001, 50_000)]
    flat = torch.cat(tensors).double().abs()
    if norm_type == math.inf:
        exact = float(flat.max())
    else:
        exact = math.fsum(flat.pow(norm_type).tolist()) ** (1 / norm_type)
    got = ft.global_norm(tensors, norm_type)
    eps = torch.finfo(got.dtype).eps
    # The root divides the relative error of the sum by norm_type; partial sums of 2**15 elements are added in pairs.
    assert float(got) == pytest.approx(exact, rel=32 * eps / min(norm_type, 1.0), abs=0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=12))
def test_order_and_threads_do_not_matter(seed: int, sizes: list[int]) -> None:
    """Any order of the tensors: equal to rounding; any number of threads: equal to the bit."""
    generator = torch.Generator().manual_seed(seed)
    tensors: list[Tensor] = [torch.randn(n, generator=generator) for n in sizes]
    norm = ft.global_norm(tensors)
    shuffled = [tensors[i] for i in torch.randperm(len(tensors), generator=generator).tolist()]
    torch.testing.assert_close(ft.global_norm(shuffled), norm, rtol=4 * torch.finfo(torch.float32).eps, atol=0)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert torch.equal(ft.global_norm(tensors), norm)
    finally:
        torch.set_num_threads(threads)
