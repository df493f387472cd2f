"""The CUDA kernels of the norms and of clipping to one, on a GPU or run on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from cuda_on_cpu import backend as cuda_emulation
from torch import Tensor

from fusedtrain import dispatch, rules
from fusedtrain.backends import Backend, reference
from fusedtrain.testing import assert_as_accurate, with_layout

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ORDERS = (1.0, 2.0, 3.0, 0.5, math.inf)
CHUNK = 8192


@pytest.fixture(scope="module")
def ops() -> Backend:
    backend = dispatch.load("cuda") if torch.cuda.is_available() else cuda_emulation.load()
    if backend.why_not:
        pytest.skip(backend.why_not)
    return backend


@pytest.fixture(scope="module", autouse=True)
def default_device() -> Iterator[None]:
    """New tensors are where the kernels run."""
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    yield
    torch.set_default_device(None)


@pytest.fixture
def resident() -> Iterator[Callable[[int], None]]:
    """Sets how many blocks are resident at once, which only the emulation lets one choose."""
    if torch.cuda.is_available():
        pytest.skip("the number of resident blocks is the GPU's")
    library = cuda_emulation.emulator()
    yield library.emu_set_resident_blocks
    library.emu_set_resident_blocks(2)


def assert_right(ops: Backend, xs: list[Tensor], p: float) -> None:
    norm, nonfinite = ops.global_norm(xs, p)
    double = any(x.dtype == torch.float64 for x in xs)
    assert norm.dtype == (torch.float64 if double else torch.float32)
    assert norm.shape == nonfinite.shape == ()
    assert float(nonfinite) == 0
    # Both sums are in fp64: rounding it once is all that fp32 may differ by.
    terms = sum(x.numel() for x in xs) + 1
    allowed = torch.finfo(torch.float64).eps * 16 * math.sqrt(terms) * max(1, 1 / p)
    allowed += 0 if double else torch.finfo(torch.float32).eps / 2
    assert float(norm) == pytest.approx(float(rules.vector_norm(xs, p)), rel=allowed, abs=0)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("dtype", [*DTYPES, None], ids=str)
def test_every_order_type_size_and_layout(ops: Backend, dtype: torch.dtype | None, p: float) -> None:
    """None: all types in one call."""
    for sizes in ((0,), (1,), (7, 0, 9), (CHUNK, 1), (2 * CHUNK + 3, 0, 33, CHUNK - 1)):
        xs = [torch.randn(n).to(dtype or DTYPES[i % 4]) for i, n in enumerate(sizes)]
        assert_right(ops, xs, p)
    for layout in ("offset", "transposed", "sliced"):
        assert_right(ops, [with_layout(torch.randn(60, 70).to(dtype or torch.float32), layout) for _ in range(2)], p)


@pytest.mark.parametrize("count", [31, 32, 33, 3000])
def test_any_number_of_tensors(ops: Backend, count: int) -> None:
    assert_right(ops, [torch.randn((5 * i) % 4) for i in range(count)], 2.0)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_C21_neither_blocks_nor_alignment_nor_runs_matter(
    ops: Backend, resident: Callable[[int], None], dtype: torch.dtype, p: float
) -> None:
    xs = [(torch.randn(n) * 3).to(dtype) for n in (3 * CHUNK + 3, 1, 0, 500, *[50] * 30)]
    shifted = [with_layout(x, "offset") for x in xs]
    seen = set()
    for n in (1, 2, 3, 40, 2):
        resident(n)
        seen |= {float(ops.global_norm(list_, p)[0]) for list_ in (xs, shifted)}
    assert len(seen) == 1


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_C21_the_norms_of_single_tensors_are_the_same_for_any_blocks(
    ops: Backend, resident: Callable[[int], None], dtype: torch.dtype, p: float
) -> None:
    """Also where a block has no chunk of a tensor, one, or several; each in one launch."""
    xs = [(torch.randn(n) * 3).to(dtype) for n in (5 * CHUNK + 3, 1, 0, 2 * CHUNK, 500, *[50] * 30)]
    alone = torch.stack([ops.global_norm([x], p)[0] for x in xs])
    shifted = [with_layout(x, "offset") for x in xs]
    for n in (1, 3, 40):
        resident(n)
        for list_ in (xs, shifted):
            before = cuda_emulation.emulator().emu_launches()
            assert torch.equal(ops.tensor_norms(list_, p), alone)
            assert cuda_emulation.emulator().emu_launches() == before + 1


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (3e38, torch.float32),
        (1e-45, torch.float32),
        (6e4, torch.float16),
        (6e-8, torch.float16),
        (3e38, torch.bfloat16),
        (1e200, torch.float64),
        (1e300, torch.float64),
        (1e-300, torch.float64),
        (5e-324, torch.float64),
    ],
    ids=str,
)
def test_C3_no_overflow_and_no_underflow(ops: Backend, value: float, dtype: torch.dtype, p: float) -> None:
    x = torch.full((64,), value, dtype=torch.float64).to(dtype)
    norm, nonfinite = ops.global_norm([x[:32], x[32:]], p)
    n = 1.0 if math.isinf(p) else 64.0 ** (1 / p)
    expected = torch.tensor(float(x[0]) * n, dtype=torch.float64).to(norm.dtype)  # inf where the norm itself is
    assert float(norm) == pytest.approx(float(expected), rel=1e-6, abs=0 if value > 1e-44 else 1e-45)
    assert float(nonfinite) == 0


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_parts_of_very_different_size(ops: Backend, p: float) -> None:
    """Each chunk has a scale of its own; the smaller ones fade beside the largest, and zeros and nothing have none."""
    sizes = {1e250: 9000, 1e-250: 9000, 0.0: 3}
    xs = [torch.full((n,), value, dtype=torch.float64) for value, n in sizes.items()] + [torch.zeros(0)]
    assert float(ops.global_norm(xs, p)[0]) == pytest.approx(1e250 * 9000 ** (1 / p), rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", ORDERS)
def test_C18_one_bad_element_anywhere(ops: Backend, bad: float, dtype: torch.dtype, p: float) -> None:
    for n in (1, 9, CHUNK + 1):
        for place in {0, n // 2, n - 1}:
            xs = [torch.ones(3), torch.ones(n, dtype=dtype), torch.ones(5)]
            xs[1][place] = bad
            norm, nonfinite = ops.global_norm(xs, p)
            assert float(nonfinite) == 1
            assert math.isnan(norm) if math.isnan(bad) else math.isinf(norm)


def test_C17_a_large_norm_of_finite_elements_is_no_overflow(ops: Backend) -> None:
    norm, nonfinite = ops.global_norm([torch.full((100,), 3e38)] * 10, 2.0)
    assert math.isinf(norm)  # it is beyond fp32
    assert float(nonfinite) == 0


@pytest.mark.parametrize("p", [0.0, -1.0, math.nan, -math.inf])
def test_an_order_that_is_none(ops: Backend, p: float) -> None:
    with pytest.raises(RuntimeError, match=r"fusedtrain\.global_norm: norm_type is .*; it must be > 0"):
        ops.global_norm([torch.ones(3)], p)


# clip_scale_


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "offset"])
def test_scaling_equals_the_specification(ops: Backend, dtype: torch.dtype, layout: str) -> None:
    for max_norm in (0.0, 0.7, 1e9, math.inf):
        grads = [with_layout(torch.randn(s).to(dtype), layout) for s in ((3,), (0,), (2 * CHUNK + 5,), (4, 9))]
        norm = reference.global_norm(grads, 2.0)[0]
        truth, theirs, before = ([g.clone() for g in grads] for _ in range(3))
        truth = [g.double() for g in truth]
        reference.clip_scale_(truth, norm.double(), max_norm)
        reference.clip_scale_(theirs, norm, max_norm)
        ops.clip_scale_(grads, norm, max_norm)
        for x, y, z, old in zip(grads, theirs, truth, before, strict=True):
            if max_norm > 1e6:
                assert torch.equal(x, old)
            elif x.numel():
                assert_as_accurate(x, y, z)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_A21_nothing_beside_a_view_is_touched(ops: Backend, dtype: torch.dtype) -> None:
    base, expected = torch.full((700,), 3.0, dtype=dtype), torch.full((700,), 3.0, dtype=dtype)
    pieces = ((0, 3), (5, 40), (64, 1), (66, 500), (567, 2))
    ops.clip_scale_([base[i : i + n] for i, n in pieces], torch.tensor(2.0, dtype=torch.float64), 1.0)
    for i, n in pieces:
        expected[i : i + n] *= 1 / (2 + 1e-6)
    assert torch.equal(base, expected)


def test_gaps_between_elements_stay(ops: Backend) -> None:
    base = torch.full((6, 8), 7.0)
    ops.clip_scale_([base[:, ::2]], torch.tensor(10.0), 1.0)
    assert (base[:, 1::2] == 7).all()
    torch.testing.assert_close(base[:, ::2], torch.full((6, 4), 0.7))


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_C1_norms_that_are_not_finite_do_as_in_torch(ops: Backend, norm: float) -> None:
    ours, theirs = torch.tensor([1.0, norm]), torch.tensor([1.0, norm])
    ops.clip_scale_([ours], torch.tensor(norm), 1.0)
    theirs *= torch.clamp(1.0 / (torch.tensor(norm) + 1e-6), max=1.0)
    assert torch.equal(ours.nan_to_num(nan=5.0), theirs.nan_to_num(nan=5.0))
