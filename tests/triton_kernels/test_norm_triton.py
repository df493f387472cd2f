"""The Triton operators of the norms and of clipping to one, called directly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusedtrain import dispatch, rules
from fusedtrain.backends import reference
from fusedtrain.testing import assert_as_accurate, with_layout

triton_norm = pytest.importorskip("fusedtrain.backends.triton_norm")
triton_scale = pytest.importorskip("fusedtrain.backends.triton_scale")
pytestmark = [
    pytest.mark.skipif(bool(dispatch.load("triton").why_not), reason=str(dispatch.load("triton").why_not)),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),  # NumPy's, which interprets: inf is no error
]

OPS = torch.ops.fusedtrain_triton
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ORDERS = (1.0, 2.0, 3.0, 0.5, math.inf)
CHUNK = triton_norm.BLOCK * triton_norm.BLOCKS
shapes = st.one_of(
    st.just(()),
    st.lists(st.integers(0, 30), min_size=1, max_size=3).map(tuple),
    st.sampled_from([(1023,), (1024,), (4097,)]),
)
layouts = st.sampled_from(["contiguous", "transposed", "sliced", "offset"])


def normal(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    return with_layout(torch.randn(shape, device=DEVICE).to(dtype), layout if shape else "contiguous")


def assert_is_norm(xs: list[Tensor], p: float) -> None:
    """Against the specification in fp64: both sums are, so rounding once is all by which fp32 may differ."""
    norm, nonfinite = OPS.global_norm(xs, p)
    expected = rules.vector_norm(xs, p)
    double = any(x.dtype == torch.float64 for x in xs)
    assert norm.dtype == (torch.float64 if double else torch.float32)
    assert norm.shape == nonfinite.shape == ()
    assert norm.device.type == nonfinite.device.type == DEVICE.type
    assert float(nonfinite) == 0
    n = sum(x.numel() for x in xs) + 1
    allowed = 16 * math.sqrt(n) * max(1, 1 / p) * torch.finfo(torch.float64).eps
    allowed += 0 if double else 0.5 * torch.finfo(torch.float32).eps
    assert float(norm) == pytest.approx(float(expected), rel=allowed, abs=0)


@settings(max_examples=25, phases=[Phase.explicit, Phase.generate])
@given(
    st.lists(st.tuples(shapes, st.sampled_from(DTYPES), layouts), min_size=1, max_size=4),
    st.sampled_from(ORDERS),
    st.sampled_from([1.0, 1e-3, 30.0]),
)
def test_equals_the_specification(
    tensors: list[tuple[tuple[int, ...], torch.dtype, str]], p: float, scale: float
) -> None:
    assert_is_norm([normal(s, dtype, layout) * scale for s, dtype, layout in tensors], p)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", ORDERS)
def test_several_chunks(dtype: torch.dtype, p: float) -> None:
    xs = [normal((CHUNK + 5,), dtype, "contiguous"), normal((0,), dtype, "contiguous")]
    assert_is_norm(xs, p)


@pytest.mark.parametrize("p", ORDERS)
def test_dtypes_may_be_mixed_at_any_scale(p: float) -> None:
    """The partial results of floats have a unit of 1, those of doubles one of their own."""
    for double in (1e-200, 1.0, 1e200):
        for single in (0.0, 1e-45, 1.0, 3e38):
            xs = [
                torch.full((40,), single, device=DEVICE),
                torch.full((30,), double, dtype=torch.float64, device=DEVICE),
                torch.zeros(9, dtype=torch.bfloat16, device=DEVICE),
            ]
            assert_is_norm(xs, p)


def test_no_elements() -> None:
    for xs in ([torch.zeros(0, device=DEVICE)], [torch.zeros(0, 3, device=DEVICE)] * 1000):
        norm, nonfinite = OPS.global_norm(xs, 2.0)
        assert (float(norm), float(nonfinite)) == (0, 0)
    assert float(triton_norm.global_norm([], 2.0)[0]) == 0  # the operator itself has no tensor to be chosen by


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1e20, torch.float32),
        (3e38, torch.float32),
        (1e-45, torch.float32),
        (6e4, torch.float16),
        (6e-8, torch.float16),
        (1e-38, torch.bfloat16),
        (1e200, torch.float64),
        (1e-200, torch.float64),
        (1e300, torch.float64),
        (5e-324, torch.float64),
    ],
    ids=str,
)
def test_C3_no_overflow_and_no_underflow(value: float, dtype: torch.dtype, p: float) -> None:
    x = torch.full((64,), value, dtype=dtype, device=DEVICE)
    norm, nonfinite = OPS.global_norm([x[:32], x[32:]], p)
    n = 1.0 if math.isinf(p) else 64.0 ** (1 / p)
    expected = torch.tensor(float(x[0]) * n, dtype=torch.float64).to(norm.dtype)  # inf where the norm itself is
    assert float(norm) == pytest.approx(float(expected), rel=1e-6, abs=0 if value > 1e-44 else 1e-45)
    assert float(nonfinite) == 0


def test_an_order_of_thousands() -> None:
    """Nothing is raised to it but what is at most 1."""
    x = torch.tensor([3.0, 3.9, 1e-30], dtype=torch.float64, device=DEVICE)
    assert float(OPS.global_norm([x], 5000.0)[0]) == pytest.approx(3.9, rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [2.0, 3.0, math.inf])
def test_C18_one_bad_element_anywhere(bad: float, dtype: torch.dtype, p: float) -> None:
    for n, place in ((1, 0), (1025, 1024), (8192, 4000)):
        xs = [torch.ones(3, device=DEVICE), torch.ones(n, dtype=dtype, device=DEVICE), torch.zeros(5, device=DEVICE)]
        xs[1][place] = bad
        norm, nonfinite = OPS.global_norm(xs, p)
        assert float(nonfinite) == 1
        assert math.isnan(norm) if math.isnan(bad) else math.isinf(norm)


def test_C17_a_large_norm_of_finite_elements_is_no_overflow() -> None:
    norm, nonfinite = OPS.global_norm([torch.full((100,), 3e38, device=DEVICE)] * 3, 2.0)
    assert math.isinf(norm)  # it is beyond fp32
    assert float(nonfinite) == 0


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_C21_bitwise_equal_for_any_grid_and_alignment(p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusedtrain.backends import triton_table

    values = [torch.randn(n, dtype=torch.float64, device=DEVICE) for n in (2 * CHUNK + 33, 1, 0, 70)]
    seen = set()
    for layout in ("contiguous", "offset"):
        xs = [with_layout(x, layout) for x in values]
        for programs in (1, 2, 7):
            monkeypatch.setattr(triton_table.Size, "grid", lambda self, device, chunks, n=programs: (n,))
            seen.add(float(OPS.global_norm(xs, p)[0]))
            norms = OPS.tensor_norms(xs, p)
            assert torch.equal(norms, torch.stack([OPS.global_norm([x], p)[0] for x in values]))
    assert len(seen) == 1


def test_chunks_of_very_many_elements_are_few() -> None:
    for elements in (1, 10**6, 10**9, 2**33, 2**40):
        chunks = -(-elements // (triton_norm.blocks_for(elements) * triton_norm.BLOCK))
        assert chunks <= triton_norm.PARTIALS
        assert triton_norm.blocks_for(elements) % triton_norm.LOADS == 0


@pytest.mark.parametrize("p", [0.0, -1.0, math.nan, -math.inf])
def test_an_order_that_is_none(p: float) -> None:
    with pytest.raises(RuntimeError, match=r"fusedtrain\.global_norm: norm_type is .*; it must be > 0"):
        OPS.global_norm([torch.ones(3, device=DEVICE)], p)


def test_tensors_that_have_no_norm() -> None:
    x = torch.ones(3, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"fusedtrain\.global_norm: tensors\[1\] has dtype int64"):
        OPS.global_norm([x, x.long()], 2.0)
    with pytest.raises(RuntimeError, match=r"tensors\[1\] is sparse"):
        triton_norm.global_norm([x, x.to_sparse()], 2.0)
    with pytest.raises(RuntimeError, match=r"tensors\[1\] is on meta"):
        triton_norm.global_norm([x, x.to("meta")], 2.0)


# clip_scale_


@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])
@given(
    st.lists(st.tuples(shapes, st.sampled_from(DTYPES), layouts), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.7, 1e9, math.inf]),
)
def test_scaling_equals_the_specification(
    tensors: list[tuple[tuple[int, ...], torch.dtype, str]], max_norm: float
) -> None:
    grads = [normal(s, dtype, layout) for s, dtype, layout in tensors]
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
    base = torch.full((6, 8), 7.0, device=DEVICE)
    OPS.clip_scale_([base[:, ::2]], torch.tensor(10.0, device=DEVICE), 1.0)
    assert (base[:, 1::2] == 7).all()
    torch.testing.assert_close(base[:, ::2].cpu(), torch.full((6, 4), 0.7))


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_C1_norms_that_are_not_finite_do_as_in_torch(norm: float) -> None:
    ours = torch.tensor([1.0, norm], device=DEVICE)
    theirs = ours.clone()
    OPS.clip_scale_([ours], torch.tensor(norm, device=DEVICE), 1.0)
    theirs *= torch.clamp(1.0 / (torch.tensor(norm, device=DEVICE) + 1e-6), max=1.0)
    assert torch.equal(ours.nan_to_num(nan=5.0), theirs.nan_to_num(nan=5.0))


@pytest.mark.parametrize("max_norm", [-1.0, math.nan])
def test_C4_a_bound_that_is_none(max_norm: float) -> None:
    g = torch.ones(3, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"fusedtrain\.clip_scale_: max_norm is .*; it must be >= 0"):
        OPS.clip_scale_([g], torch.tensor(2.0, device=DEVICE), max_norm)
    assert bool((g == 1).all())


def test_memory_that_would_be_scaled_twice() -> None:
    g = torch.ones(6, device=DEVICE)
    for grads, match in (
        ([g, g], r"grads\[0\] and grads\[1\] share memory"),
        ([g[:4], g[3:]], "share memory"),
        ([g, g[:1].expand(3)], r"grads\[1\] has elements that share memory"),
    ):
        with pytest.raises(RuntimeError, match=match):
            OPS.clip_scale_(grads, torch.tensor(2.0, device=DEVICE), 1.0)
        assert bool((g == 1).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_A21_nothing_beside_a_view_is_touched(dtype: torch.dtype) -> None:
    def views(base: Tensor) -> list[Tensor]:
        return [base[i : i + n] for i, n in ((0, 3), (5, 40), (64, 1024), (1089, 1030))]

    base, expected = torch.full((2200,), 3.0, dtype=dtype, device=DEVICE), torch.full((2200,), 3.0, dtype=dtype)
    OPS.clip_scale_(views(base), torch.tensor(2.0, dtype=torch.float64, device=DEVICE), 1.0)
    for view in views(expected):
        view *= 1 / (2 + 1e-6)
    assert torch.equal(base.cpu(), expected)
