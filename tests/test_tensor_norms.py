"""The norm of each tensor: each as exact as the global norm, and of no tensor but its own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fusedtrain as ft
from fusedtrain import dispatch
from fusedtrain.testing import with_layout

# NumPy's, which interprets Triton: a norm beyond fp32 is no error.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ORDERS = [0.5, 1.0, 2.0, 3.0, math.inf]
LAYOUTS = ["contiguous", "transposed", "sliced", "offset"]


@pytest.fixture(autouse=True)
def _use(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "backend" in request.fixturenames:
        monkeypatch.setenv("FUSEDTRAIN_BACKEND", request.getfixturevalue("backend"))


def truth(x: Tensor, p: float) -> float:
    """In fp64, on the CPU. Of no elements torch has no norm of order inf."""
    return float(torch.linalg.vector_norm(x.detach().cpu().double(), p)) if x.numel() else 0.0


def assert_norms(xs: list[Tensor], p: float) -> None:
    norms = ft.tensor_norms(xs, p)
    double = any(x.dtype == torch.float64 for x in xs)
    assert norms.shape == (len(xs),)
    assert norms.dtype == (torch.float64 if double else torch.float32)
    assert norms.device == xs[0].device
    for x, norm in zip(xs, norms.tolist(), strict=True):
        # Both sums are in fp64: rounding the norm once is all that fp32 may differ by.
        allowed = 16 * math.sqrt(x.numel() + 1) * max(1, 1 / p) * torch.finfo(torch.float64).eps
        allowed += 0 if double else torch.finfo(torch.float32).eps / 2
        assert norm == pytest.approx(truth(x, p), rel=allowed, abs=0)


@pytest.mark.parametrize("dtype", [*FLOATS, None], ids=str)
@pytest.mark.parametrize("p", ORDERS)
def test_every_order_type_size_and_layout(dtype: torch.dtype | None, p: float, backend: str, device: torch.device):
    """None: all types in one call. Sizes around a vector, a chunk of the GPU kernels, and none."""
    sizes = [0, 1, 7, 33, 8191, 8193, 0, 17_000]
    xs = [torch.randn(n).to(device, dtype or FLOATS[i % 4]) for i, n in enumerate(sizes)]
    xs += [with_layout(torch.randn(31, 17).to(device, dtype or FLOATS[i]), at) for i, at in enumerate(LAYOUTS)]
    xs += [torch.randn(()).to(device, dtype or torch.float32), torch.randn(5, 1, device=device).expand(5, 3)]
    assert_norms(xs, p)


@settings(max_examples=15, phases=[Phase.explicit, Phase.generate])
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 40), max_size=3).map(tuple), st.sampled_from(FLOATS), st.sampled_from(LAYOUTS)
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(ORDERS),
    st.sampled_from([1.0, 1e-3, 30.0]),
)
def test_any_list(
    backend: str, device: torch.device, tensors: list[tuple[tuple[int, ...], torch.dtype, str]], p: float, scale: float
) -> None:
    xs = [(torch.randn(shape, device=device) * scale).to(dtype) for shape, dtype, _ in tensors]
    assert_norms([with_layout(x, at if x.dim() else "contiguous") for x, (*_, at) in zip(xs, tensors, strict=True)], p)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_they_are_the_global_norms_of_single_tensors_to_the_bit(
    dtype: torch.dtype, p: float, backend: str, device: torch.device
) -> None:
    xs = [torch.randn(n).to(device, dtype) for n in (40_000, 3, 0, 5_000)]
    assert torch.equal(ft.tensor_norms(xs, p), torch.stack([ft.global_norm([x], p) for x in xs]))


def test_long_tensors_that_threads_share_on_the_cpu() -> None:
    if dispatch.load("cpu").why_not:
        pytest.skip(str(dispatch.load("cpu").why_not))
    xs = [torch.randn(n) for n in (270_001, 262_144, 262_143, 100, 300_000)]
    single = {p: torch.stack([ft.global_norm([x], p) for x in xs]) for p in (2.0, math.inf)}
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            for p, expected in single.items():
                assert torch.equal(ft.tensor_norms(xs, p), expected)
    finally:
        torch.set_num_threads(threads)
    assert_norms(xs, 2.0)


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
        (1e200, torch.float64),
        (1e-200, torch.float64),
        (1e300, torch.float64),
        (5e-324, torch.float64),
    ],
    ids=str,
)
def test_C3_no_overflow_and_no_underflow_whatever_is_beside(
    value: float, dtype: torch.dtype, p: float, backend: str, device: torch.device
) -> None:
    x = torch.full((64,), value, dtype=torch.float64).to(device, dtype)
    beside = [torch.full((9,), v, dtype=dtype, device=device) for v in (1.0, 0.0)]
    norms = ft.tensor_norms([beside[0], x, beside[1], x[:1]], p)
    root = lambda n: 1.0 if math.isinf(p) else n ** (1 / p)  # noqa: E731
    expected = [root(9), float(x[0]) * root(64), 0.0, float(x[0])]
    for norm, exact in zip(norms.tolist(), expected, strict=True):
        rounded = float(torch.tensor(exact, dtype=torch.float64).to(norms.dtype))  # inf where the norm itself is
        assert norm == pytest.approx(rounded, rel=1e-6, abs=0 if exact > 1e-44 else 1e-45)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("p", ORDERS)
def test_C18_a_bad_element_shows_in_its_own_entry_alone(
    dtype: torch.dtype, p: float, backend: str, device: torch.device
) -> None:
    """Beside tensors of a chunk and of several, whose norms stay what they are without it."""
    sizes, places = (4, 1, 9000, 33, 0, 9000, 4), {1: 0, 3: 32, 5: 8192}
    xs = [torch.ones(n, dtype=dtype, device=device) for n in sizes]
    clean = ft.tensor_norms(xs, p).tolist()
    kinds = [math.nan, math.inf, -math.inf] * 2
    bad = dict(zip(places, kinds[FLOATS.index(dtype) % 3 :], strict=False))  # another in each place for each dtype
    for i, place in places.items():
        xs[i][place] = bad[i]
    for i, (norm, before) in enumerate(zip(ft.tensor_norms(xs, p).tolist(), clean, strict=True)):
        if i not in places:
            assert norm == before
        else:
            assert math.isnan(norm) if math.isnan(bad[i]) else norm == math.inf


def test_C17_a_norm_beyond_fp32_is_infinite_alone(backend: str, device: torch.device) -> None:
    x = torch.full((100,), 3e38, device=device)
    assert ft.tensor_norms([x, x[:1]]).tolist() == [math.inf, float(x[0])]
    assert ft.tensor_norms([x, x.double()])[0].item() == pytest.approx(3e39, rel=1e-6)


def test_a_thousand_small_tensors(backend: str, device: torch.device) -> None:
    interpreted = backend == "triton" and device.type == "cpu"  # which takes milliseconds for each
    assert_norms([torch.randn(i % 40, device=device) for i in range(100 if interpreted else 1000)], 2.0)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_C21_neither_runs_nor_threads_nor_alignment_nor_company_matter(
    dtype: torch.dtype, p: float, backend: str, device: torch.device
) -> None:
    xs = [(torch.randn(n) * 3).to(device, dtype) for n in (20_003, 1, 0, 500, 50, 50)]
    first = ft.tensor_norms(xs, p)
    threads = torch.get_num_threads()
    try:
        for n in (2, 1):
            torch.set_num_threads(n)
            assert torch.equal(ft.tensor_norms(xs, p), first)
    finally:
        torch.set_num_threads(threads)
    shifted = [with_layout(x, "offset") for x in xs]
    if backend != "reference":  # torch's own sum depends on it
        assert torch.equal(ft.tensor_norms(shifted, p), first)
    assert torch.equal(ft.tensor_norms(xs[::-1], p), first.flip(0))


# ---- what may be passed


def test_nothing_one_the_same_twice_and_any_iterable() -> None:
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    assert ft.tensor_norms(x).tolist() == [5.0]
    assert ft.tensor_norms([x, x]).tolist() == [5.0, 5.0]
    assert ft.tensor_norms(t for t in [x, x[:1]]).tolist() == [5.0, 3.0]
    assert ft.tensor_norms({"a": x}.values(), "inf").tolist() == [4.0]  # type: ignore[arg-type]
    assert not ft.tensor_norms([x]).requires_grad
    with torch.device("meta"):
        none = ft.tensor_norms([])
    assert (none.shape, none.dtype, none.device.type) == ((0,), torch.float32, "cpu")
    assert ft.tensor_norms([torch.empty(0), torch.empty(3, 0)]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("p", [0, -1.0, math.nan, True, "two", None])
def test_bad_norm_types(p: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"fusedtrain\.tensor_norms: norm_type must be"):
        ft.tensor_norms([torch.ones(2)], p)


def test_bad_tensors() -> None:
    x = torch.ones(2)
    for bad, match in (
        (torch.ones(1, dtype=torch.int64), r"tensor 1 is torch\.int64"),
        (torch.ones(1, dtype=torch.complex64), r"tensor 1 is torch\.complex64"),
        (x.to_sparse(), "tensor 1 is sparse"),
        (1.0, "tensor 1 is no tensor but float"),
    ):
        with pytest.raises(TypeError, match=r"fusedtrain\.tensor_norms: " + match):
            ft.tensor_norms([x, bad])  # type: ignore[list-item]


def test_the_operator_refuses_what_it_cannot_measure(backend: str, device: torch.device) -> None:
    if backend == "reference":
        pytest.skip("the reference checks nothing")
    op, x = dispatch.load(backend).tensor_norms, torch.ones(3, device=device)
    for p in (0.0, -1.0, math.nan, -math.inf):
        with pytest.raises(RuntimeError, match=r"fusedtrain\.tensor_norms: norm_type is .*; it must be > 0"):
            op([x], p)
    with pytest.raises(RuntimeError, match=r"fusedtrain\.tensor_norms: tensors\[1\] has dtype (Long|int64)"):
        op([x, x.long()], 2.0)
    with pytest.raises(RuntimeError, match=r"tensor_norms: tensors on .*meta.*; move them to one device"):
        op([x, x.to("meta")], 2.0)


# ---- compilers


def test_fake_and_meta_tensors() -> None:
    with FakeTensorMode():
        norms = ft.tensor_norms([torch.ones(3), torch.ones(2, 2, dtype=torch.bfloat16)])
        assert (norms.shape, norms.dtype) == ((2,), torch.float32)
        assert ft.tensor_norms([torch.ones(3), torch.ones(2, dtype=torch.float64)]).dtype == torch.float64
    ghost = ft.tensor_norms([torch.ones(3, device="meta")] * 3, 3.0)
    assert (ghost.shape, ghost.device.type) == ((3,), "meta")


@pytest.mark.parametrize("p", ORDERS)
def test_opcheck(p: float) -> None:
    if dispatch.load("cpu").why_not:
        pytest.skip(str(dispatch.load("cpu").why_not))
    for xs in ([torch.randn(7)], [torch.randn(3, 4).t(), torch.zeros(0), torch.randn(5, dtype=torch.float64)]):
        torch.library.opcheck(torch.ops.fusedtrain.tensor_norms, (xs, p))


def test_compiled_is_eager(backend: str, device: torch.device) -> None:
    torch.compiler.reset()
    xs = [torch.randn(n, device=device) for n in (5, 0, 300)]

    def largest_share(xs: list[Tensor]) -> Tensor:
        norms = ft.tensor_norms([x * 2 for x in xs])
        return norms / norms.sum()

    compiled = torch.compile(largest_share, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(xs), largest_share(xs))
    torch.compiler.reset()
