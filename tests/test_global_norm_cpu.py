"""The CPU operators of the global norm and of clipping to it, called directly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fusedtrain
from fusedtrain import dispatch, rules
from fusedtrain.backends import reference
from fusedtrain.testing import assert_as_accurate, with_layout

pytestmark = pytest.mark.skipif(bool(dispatch.load("cpu").why_not), reason=str(dispatch.load("cpu").why_not))

OPS = torch.ops.fusedtrain
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ORDERS = (1.0, 2.0, 3.0, 0.5, math.inf)
shapes = st.one_of(
    st.just(()),
    st.lists(st.integers(0, 30), min_size=1, max_size=3).map(tuple),
    st.integers(1, 100).map(lambda n: (n,)),
    st.just((40_000,)),
)


@pytest.fixture(autouse=True)
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads; one where a test does not ask, since small work on many threads is mostly waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def laid_out(x: Tensor, layout: str) -> Tensor:
    return with_layout(x, layout if x.dim() else "contiguous")


def ulps(dtype: torch.dtype, n: float) -> float:
    return n * torch.finfo(dtype).eps


@settings(max_examples=50, phases=[Phase.explicit, Phase.generate])
@given(
    st.lists(
        st.tuples(shapes, st.sampled_from(DTYPES), st.sampled_from(["contiguous", "transposed", "sliced", "offset"])),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(ORDERS),
    st.sampled_from([1.0, 1e-3, 30.0]),
)
def test_equals_the_specification(
    tensors: list[tuple[tuple[int, ...], torch.dtype, str]], p: float, scale: float
) -> None:
    xs = [laid_out((torch.randn(s) * scale).to(dtype), layout) for s, dtype, layout in tensors]
    norm, nonfinite = OPS.global_norm(xs, p)
    expected = rules.vector_norm(xs, p)
    double = any(x.dtype == torch.float64 for x in xs)
    assert norm.dtype == (torch.float64 if double else torch.float32)
    assert norm.shape == nonfinite.shape == ()
    assert float(nonfinite) == 0
    # Both sums are in fp64: rounding it once is all that fp32 may differ by.
    n = sum(x.numel() for x in xs) + 1
    allowed = ulps(torch.float64, 16 * math.sqrt(n) * max(1, 1 / p)) + (0 if double else ulps(torch.float32, 0.5))
    assert float(norm) == pytest.approx(float(expected), rel=allowed, abs=0)


def test_no_elements() -> None:
    for xs in ([torch.zeros(0)], [torch.zeros(0, 3)] * 1000):
        norm, nonfinite = OPS.global_norm(xs, 2.0)
        assert (float(norm), float(nonfinite)) == (0, 0)
    assert float(fusedtrain.global_norm([])) == 0  # the operator itself has no tensor to be chosen by


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1e20, torch.float32),
        (3e38, torch.float32),
        (1e-30, torch.float32),
        (1e-45, torch.float32),
        (6e4, torch.float16),
        (6e-8, torch.float16),
        (3e38, torch.bfloat16),
        (1e-38, torch.bfloat16),
        (1e200, torch.float64),
        (1e-200, torch.float64),
        (1e300, torch.float64),
        (1e-300, torch.float64),
        (5e-324, torch.float64),
    ],
    ids=str,
)
def test_C3_no_overflow_and_no_underflow(value: float, dtype: torch.dtype, p: float) -> None:
    x = torch.full((64,), value, dtype=dtype)
    norm, nonfinite = OPS.global_norm([x[:32], x[32:]], p)
    n = 1.0 if math.isinf(p) else 64.0 ** (1 / p)
    expected = torch.tensor(float(x[0]) * n, dtype=torch.float64).to(norm.dtype)  # inf where the norm itself is
    assert float(norm) == pytest.approx(float(expected), rel=1e-6, abs=0 if value > 1e-44 else 1e-45)
    assert float(nonfinite) == 0


def test_C2_squares_of_low_precision() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        assert float(OPS.global_norm([torch.tensor([300.0, 400.0], dtype=dtype)], 2.0)[0]) == 500
    assert float(OPS.global_norm([torch.full((2,), 6e4, dtype=torch.float16)], 2.0)[0]) == pytest.approx(
        math.hypot(6e4, 6e4), rel=1e-6
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", ORDERS)
def test_C18_one_bad_element_anywhere(bad: float, dtype: torch.dtype, p: float) -> None:
    for n in (1, 8, 33, 1025, 40_001):
        for place in {0, n // 2, n - 1}:
            xs = [torch.ones(3), torch.ones(n, dtype=dtype), torch.ones(5)]
            xs[1][place] = bad
            norm, nonfinite = OPS.global_norm(xs, p)
            assert float(nonfinite) == 1
            assert math.isnan(norm) if math.isnan(bad) else math.isinf(norm)


def test_C17_a_large_norm_of_finite_elements_is_no_overflow() -> None:
    xs = [torch.full((100,), 3e38)] * 10
    norm, nonfinite = OPS.global_norm(xs, 2.0)
    assert math.isinf(norm)  # it is beyond fp32
    assert float(nonfinite) == 0


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_C21_bitwise_equal_from_run_to_run_and_for_any_threads(threads: Callable[[int], None], p: float) -> None:
    xs = [torch.randn(n, dtype=torch.float64) for n in (600_000, 1, 0, 33_333, 70)] + [torch.randn(50)] * 100
    if p == 3.0:
        xs = [x[:3000] for x in xs]
    seen = set()
    for n in (1, 2, 3, 5, 2, 1):
        threads(n)
        seen |= {float(OPS.global_norm(xs, p)[0]) for _ in range(5)}
    assert len(seen) == 1


def test_memory_is_walked_as_it_is() -> None:
    x = torch.randn(60, 70)
    assert torch.equal(OPS.global_norm([x], 2.0)[0], OPS.global_norm([x.t()], 2.0)[0])


@pytest.mark.parametrize("p", [0.0, -1.0, math.nan, -math.inf])
def test_an_order_that_is_none(p: float) -> None:
    with pytest.raises(RuntimeError, match=r"fusedtrain\.global_norm: norm_type is .*; it must be > 0"):
        OPS.global_norm([torch.ones(3)], p)


def test_tensors_that_have_no_norm() -> None:
    with pytest.raises(RuntimeError, match=r"fusedtrain\.global_norm: tensors\[1\] has dtype Long"):
        OPS.global_norm([torch.ones(3), torch.ones(3, dtype=torch.int64)], 2.0)
    with pytest.raises(RuntimeError, match=r"tensors\[0\] has dtype ComplexFloat"):
        OPS.global_norm([torch.ones(3, dtype=torch.complex64)], 2.0)


# clip_scale_


@settings(max_examples=40, phases=[Phase.explicit, Phase.generate])
@given(
    st.lists(
        st.tuples(shapes, st.sampled_from(DTYPES), st.sampled_from(["contiguous", "transposed", "sliced", "offset"])),
        max_size=5,
    ),
    st.sampled_from([0.0, 0.7, 1e9, math.inf]),
)
def test_scaling_equals_the_specification(
    tensors: list[tuple[tuple[int, ...], torch.dtype, str]], max_norm: float
) -> None:
    grads = [laid_out(torch.randn(s).to(dtype), layout) for s, dtype, layout in tensors]
    norm = reference.global_norm(grads, 2.0)[0]
    truth, theirs = [g.double() for g in grads], [g.clone() for g in grads]
    reference.clip_scale_(truth, norm.double(), max_norm)
    reference.clip_scale_(theirs, norm, max_norm)
    before = [g.clone() for g in grads]
    OPS.clip_scale_(grads, norm, max_norm)
    for x, y, z, old in zip(grads, theirs, truth, before, strict=True):
        if max_norm > 1e6:
            assert torch.equal(x, old)
        elif x.numel():
            assert_as_accurate(x, y, z)


def test_gaps_between_elements_stay() -> None:
    base = torch.full((6, 8), 7.0)
    OPS.clip_scale_([base[:, ::2]], torch.tensor(10.0), 1.0)
    assert (base[:, 1::2] == 7).all()
    torch.testing.assert_close(base[:, ::2], torch.full((6, 4), 0.7))


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_C1_norms_that_are_not_finite_do_as_in_torch(norm: float) -> None:
    g = torch.tensor([1.0, norm])
    ours, theirs = g.clone(), g.clone()
    OPS.clip_scale_([ours], torch.tensor(norm), 1.0)
    theirs *= torch.clamp(1.0 / (torch.tensor(norm) + 1e-6), max=1.0)
    assert torch.equal(ours.nan_to_num(nan=5.0), theirs.nan_to_num(nan=5.0))


@pytest.mark.parametrize("max_norm", [-1.0, math.nan])
def test_C4_a_bound_that_is_none(max_norm: float) -> None:
    g = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"fusedtrain\.clip_scale_: max_norm is .*; it must be >= 0"):
        OPS.clip_scale_([g], torch.tensor(2.0), max_norm)
    assert torch.equal(g, torch.ones(3))


def test_memory_that_would_be_scaled_twice() -> None:
    g = torch.ones(6)
    for grads, match in (
        ([g, g], r"grads\[0\] and grads\[1\] share memory"),
        ([g[:4], g[3:]], "share memory"),
        ([g, g[:1].expand(3)], r"grads\[1\] has elements that share memory"),
    ):
        with pytest.raises(RuntimeError, match=match):
            OPS.clip_scale_(grads, torch.tensor(2.0), 1.0)
        assert torch.equal(g, torch.ones(6))


def views(base: Tensor) -> list[Tensor]:
    return [base[i : i + n] for i, n in ((0, 3), (5, 40), (64, 1), (65, 500))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_A21_nothing_beside_a_view_is_touched(dtype: torch.dtype) -> None:
    base = torch.full((600,), 3.0, dtype=dtype)
    OPS.clip_scale_(views(base), torch.tensor(2.0, dtype=torch.float64), 1.0)
    expected = torch.full((600,), 3.0, dtype=dtype)
    for view in views(expected):
        view *= 1 / (2 + 1e-6)
    assert torch.equal(base, expected)
