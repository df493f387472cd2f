"""The CPU operators of activation + dropout, called directly: masks, values, sums, blocks, threads."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fusedtrain import dispatch, rng, rules
from fusedtrain.backends import reference
from fusedtrain.testing import assert_as_accurate, error, with_layout

pytestmark = pytest.mark.skipif(bool(dispatch.load("cpu").why_not), reason=str(dispatch.load("cpu").why_not))

OPS = torch.ops.fusedtrain
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
THRESHOLDS = tuple(rng.drop_threshold(p) for p in (0.0, 0.1, 0.5, 1.0))
LAYOUTS = ("contiguous", "transposed", "sliced", "offset")
OUTPUT_RULES = sorted(name for name, rule in rules.ACTIVATIONS.items() if rule.saves == "output")
STATE = torch.tensor([-(2**62) - 12345, 2**40 + 4])

states = st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)).map(torch.tensor)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def promoted(*args: Any) -> tuple[Any, ...]:
    return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def assert_accurate(op: str, *args: Any) -> None:
    """The (first) result errs against fp64 at most twice as much as the reference does in the same dtype. Where that is
    fp64 itself, three times as much as the reference in fp32, in proportion to the precision: the truth errs too."""
    is_double = args[0].dtype == torch.float64
    same = tuple(a.float() if is_double and isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
    ours, theirs = getattr(OPS, op)(*args), getattr(reference, op)(*same)
    truth = getattr(reference, op)(*promoted(*(same if is_double else args)))
    if isinstance(ours, tuple):
        ours, theirs, truth = ours[0], theirs[0], truth[0]
    assert ours.shape == truth.shape
    assert ours.dtype == args[0].dtype
    if not is_double:
        assert_as_accurate(ours, theirs, truth)
        return
    exact = getattr(reference, op)(*args)
    exact = exact[0] if isinstance(exact, tuple) else exact
    finite = truth[truth.isfinite()].abs()
    single = torch.finfo(torch.float32).eps
    allowed = 3 * max(error(theirs, truth), single * float(finite.max())) * torch.finfo(torch.float64).eps / single
    assert error(ours, exact) <= allowed


@functools.cache
def keep_mask(threshold: int, shape: tuple[int, ...]) -> Tensor:
    return rng.keep_mask(STATE, threshold, shape)


def strides(x: Tensor) -> list[int]:
    """Those that matter: a dimension of one element, or a tensor of none, may have any."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1 and x.numel()]


def bitwise_equal(a: Tensor, b: Tensor) -> bool:
    view = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(view), b.contiguous().view(view))


# ---- masks


@given(states, st.integers(0, 300), st.sampled_from([1, 6554, 32768, 65535]), st.sampled_from(DTYPES))
def test_the_mask_is_that_of_the_contract(state: Tensor, n: int, threshold: int, dtype: torch.dtype) -> None:
    keep = rng.keep_mask(state, threshold, (n,))
    ones = torch.ones(n, dtype=dtype)
    y = OPS.act_dropout(ones, None, None, state, threshold, "identity")
    assert torch.equal(y != 0, keep)
    dx, _ = OPS.act_dropout_grad(ones, None, None, state, threshold, "identity", False, False)
    assert torch.equal(dx != 0, keep)
    gated = torch.ones(2 * n, dtype=dtype)
    assert torch.equal(OPS.gated_act_dropout(gated, None, state, threshold, "identity") != 0, keep)
    dx, _ = OPS.gated_act_dropout_grad(ones, gated, None, state, threshold, "identity", False)
    assert torch.equal(dx != 0, torch.cat([keep, keep]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_million_elements_and_three(dtype: torch.dtype) -> None:
    x = torch.randn(1_000_003).to(dtype)
    y = OPS.act_dropout(x, None, None, STATE, 6554, "relu")
    keep = keep_mask(6554, (1_000_003,))
    assert torch.equal((y != 0) | y.signbit(), keep)
    assert torch.equal(y, torch.where(keep, x.float().relu() * rng.keep_scale(6554), 0.0).to(dtype))


def test_rows_have_masks_of_their_own_in_every_layout() -> None:
    x = torch.ones(6, 5, 7)
    keep = rng.keep_mask(STATE, 32768, x.shape)
    for layout in LAYOUTS:
        assert torch.equal(OPS.act_dropout(with_layout(x, layout), None, None, STATE, 32768, "identity") != 0, keep)


# ---- values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_values(activation: str, dtype: torch.dtype) -> None:
    x = (3 * torch.randn(37, 35)).to(dtype)
    bias, residual = torch.randn(35).to(dtype), torch.randn(37, 35).to(dtype)
    for threshold in THRESHOLDS:
        for b in (None, bias):
            for r in (None, residual):
                assert_accurate("act_dropout", x, b, r, STATE, threshold, activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_gradients(activation: str, dtype: torch.dtype) -> None:
    x, dy = (3 * torch.randn(37, 35)).to(dtype), torch.randn(37, 35).to(dtype)
    bias = torch.randn(35).to(dtype)
    for threshold in THRESHOLDS:
        for b in (None, bias):
            assert_accurate("act_dropout_grad", dy, x, b, STATE, threshold, activation, False, False)
        if activation in OUTPUT_RULES:
            y = OPS.act_dropout(x, bias, None, STATE, threshold, activation)
            assert_accurate("act_dropout_grad", dy, y, None, None, threshold, activation, True, False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_gated(activation: str, dtype: torch.dtype) -> None:
    x, dy = (3 * torch.randn(37, 70)).to(dtype), torch.randn(37, 35).to(dtype)
    bias = torch.randn(70).to(dtype)
    for threshold in THRESHOLDS:
        for b in (None, bias):
            assert_accurate("gated_act_dropout", x, b, STATE, threshold, activation)
            assert_accurate("gated_act_dropout_grad", dy, x, b, STATE, threshold, activation, False)


@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_relative_accuracy_in_the_tails(activation: str) -> None:
    """Of what is far from 1, absolute tolerances would say nothing: gelu(-6) is -6e-9."""
    x = torch.linspace(-6, -2, 4096)
    y = OPS.act_dropout(x, None, None, None, 0, activation)
    truth = rules.ACTIVATIONS[activation].fwd(x.double())
    nonzero = truth != 0
    assert torch.equal(y[~nonzero], truth[~nonzero].float())
    if nonzero.any():
        assert float(((y.double() - truth) / truth)[nonzero].abs().max()) <= 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_large_inputs_do_not_overflow(activation: str, dtype: torch.dtype) -> None:
    x = torch.tensor([s * v for v in (8, 13, 50, 88, 89, 104, 200, 1e4, 65504) for s in (1, -1)]).to(dtype)
    assert_accurate("act_dropout", x, None, None, None, 0, activation)
    assert_accurate("act_dropout_grad", torch.ones_like(x), x, None, None, 0, activation, False, False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_non_finite_inputs_are_selected_away_or_propagate_as_in_the_reference(
    activation: str, dtype: torch.dtype
) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 1.0] * 64).to(dtype)
    for threshold in (0, 32768, 65536):
        y = OPS.act_dropout(x, None, None, STATE, threshold, activation)
        expected = reference.act_dropout(x, None, None, STATE, threshold, activation)
        assert error(y, expected) < 1  # equal where not finite, close where finite
        assert not y[~rng.keep_mask(STATE, threshold, x.shape)].any()
        y = OPS.gated_act_dropout(x, None, STATE, threshold, activation)
        assert error(y, reference.gated_act_dropout(x, None, STATE, threshold, activation)) < 1
        dx, _ = OPS.gated_act_dropout_grad(x[:128], x, None, STATE, threshold, activation, False)
        dropped = ~rng.keep_mask(STATE, threshold, (128,))
        assert not dx[torch.cat([dropped, dropped])].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", OUTPUT_RULES)
def test_the_output_alone_tells_dropped_from_kept(activation: str, dtype: torch.dtype) -> None:
    """Even where a kept value is zero, or was rounded to it: kept zeros are -0.0 and dropped elements +0.0."""
    x = torch.tensor([0.0, -0.0, -1e30, 1e-30, -1e-30, 1e-21, 1e-7, -1e-7, 2.0] * 64, dtype=torch.float64).to(dtype)
    keep = rng.keep_mask(STATE, 32768, x.shape)
    y = OPS.act_dropout(x, None, None, STATE, 32768, activation)
    assert torch.equal((y != 0) | y.signbit(), keep)
    assert not y[~keep].signbit().any()
    dx, _ = OPS.act_dropout_grad(torch.ones_like(y), y, None, None, 32768, activation, True, False)
    slope = rules.ACTIVATIONS[activation].grad_from_output
    assert slope is not None
    compute = y.to(reference._compute_dtype(y))
    expected = torch.where(keep, 2 * slope(compute / 2), 0.0)
    assert_as_accurate(dx, expected.to(dtype), expected)
    # Nothing is dropped at threshold 0, so nothing is marked.
    assert bitwise_equal(
        OPS.act_dropout(torch.zeros(9, dtype=dtype), None, None, STATE, 0, "relu"), torch.zeros(9, dtype=dtype)
    )


# ---- blocks, layouts, threads


@given(st.integers(0, 5000), st.sampled_from(DTYPES), st.sampled_from(["gelu", "tanh"]))
def test_a_value_depends_on_its_element_and_index_alone(n: int, dtype: torch.dtype, activation: str) -> None:
    """So the end of a tensor or block is like its middle: a prefix of the input gives the prefix of the output."""
    x, dy = torch.linspace(-5, 5, 5000).to(dtype), torch.linspace(1, 2, 5000).to(dtype)
    whole = OPS.act_dropout(x, None, None, STATE, 6554, activation)
    assert bitwise_equal(OPS.act_dropout(x[:n], None, None, STATE, 6554, activation), whole[:n])
    whole, _ = OPS.act_dropout_grad(dy, x, None, STATE, 6554, activation, False, False)
    dx, _ = OPS.act_dropout_grad(dy[:n], x[:n], None, STATE, 6554, activation, False, False)
    assert bitwise_equal(dx, whole[:n])
    by_columns, _ = OPS.act_dropout_grad(dy[:n], x[:n], None, STATE, 6554, activation, False, True)
    assert bitwise_equal(by_columns, dx)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (9,), (3, 5, 7), (513, 3), (2, 0, 3), (0,)])
def test_layouts(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    layout = layout if shape else "contiguous"  # the only one of a single element
    x, residual, dy = (with_layout(torch.randn(shape).to(dtype), layout) for _ in range(3))
    bias = with_layout(torch.randn(shape[-1] if shape else 1).to(dtype), layout)
    plain = [t.contiguous().clone() for t in (x, bias, residual, dy)]
    y = OPS.act_dropout(x, bias, residual, STATE, 6554, "gelu")
    expected = OPS.act_dropout(plain[0], plain[1], plain[2], STATE, 6554, "gelu")
    assert bitwise_equal(y, expected)
    assert strides(y) == strides(torch.empty_like(x))
    dx, dbias = OPS.act_dropout_grad(dy, x, bias, STATE, 6554, "gelu", False, True)
    plain_dx, plain_dbias = OPS.act_dropout_grad(plain[3], plain[0], plain[1], STATE, 6554, "gelu", False, True)
    assert bitwise_equal(dx, plain_dx)
    assert bitwise_equal(dbias, plain_dbias)
    assert strides(dx) == strides(torch.empty_like(x))
    base = x.clone() if layout == "contiguous" else x
    assert OPS.act_dropout_(base, bias, residual, STATE, 6554, "gelu") is None
    assert bitwise_equal(base, expected)


def test_in_place_where_the_residual_is_the_input_itself() -> None:
    x = torch.randn(3000)
    expected = OPS.act_dropout(x, None, x, STATE, 6554, "silu")
    OPS.act_dropout_(x, None, x, STATE, 6554, "silu")
    assert torch.equal(x, expected)
    wide = torch.randn(3001)
    expected = OPS.act_dropout(wide[1:], None, wide[:-1], STATE, 6554, "silu")
    OPS.act_dropout_(wide[1:], None, wide[:-1], STATE, 6554, "silu")
    assert torch.equal(wide[1:], expected)


@pytest.mark.parametrize("shape", [(1003, 301), (70_001, 3), (5, 70_001)])
def test_the_result_does_not_depend_on_the_number_of_threads(
    shape: tuple[int, int], threads: Callable[[int], None]
) -> None:
    x, dy, bias = torch.randn(shape), torch.randn(shape), torch.randn(shape[1])
    gated, gated_bias = torch.randn(shape[0], 2 * shape[1]), torch.randn(2 * shape[1])
    results = []
    for n in (1, 2, 3):
        threads(n)
        results.append(
            [
                OPS.act_dropout(x, bias, None, STATE, 6554, "gelu"),
                *OPS.act_dropout_grad(dy, x, bias, STATE, 6554, "gelu", False, True),
                OPS.gated_act_dropout(gated, gated_bias, STATE, 6554, "silu"),
                *OPS.gated_act_dropout_grad(dy, gated, gated_bias, STATE, 6554, "silu", True),
            ]
        )
    for other in results[1:]:
        assert all(bitwise_equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- the bias gradient

SUM_SHAPES = [
    (1,),
    (5,),
    (700, 1),
    (4096, 3),
    (33, 1024),
    (3, 5, 7),
    (2, 9001),
    (1000, 65),
    (0, 4),
    (4, 0),
    (300, 1025),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SUM_SHAPES)
def test_bias_gradients_of_whole_numbers_are_exact(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Half are dropped and the others doubled, so all arithmetic is exact and any misplaced element shows."""
    dy = torch.randint(-3, 4, shape).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = torch.where(keep_mask(32768, shape), 2 * dy.double(), 0.0)
    by_column = (expected if expected.dim() > 1 else expected[None]).flatten(0, -2).sum(0)
    dx, dbias = OPS.act_dropout_grad(dy, None, None, STATE, 32768, "identity", False, True)
    assert torch.equal(dx, expected.to(dtype))
    assert dbias.dtype == wide
    assert torch.equal(dbias, by_column.to(wide))

    x = torch.cat([torch.full(shape, 2.0), torch.full(shape, -1.0)], dim=-1).to(dtype)  # gate 2, up -1
    dx, dbias = OPS.gated_act_dropout_grad(dy, x, None, STATE, 32768, "identity", True)
    assert torch.equal(dx, torch.cat([-expected, 2 * expected], dim=-1).to(dtype))
    assert torch.equal(dbias, torch.cat([-by_column, 2 * by_column]).to(wide))


def test_a_bias_gradient_over_many_rows_is_as_accurate_as_a_sum_in_torch() -> None:
    dy = torch.randn(20_000, 5) + 1
    _, dbias = OPS.act_dropout_grad(dy, None, None, None, 0, "identity", False, True)
    assert_as_accurate(dbias, dy.sum(0), dy.double().sum(0))


def test_bias_and_residual_of_other_dtypes() -> None:
    """As under autocast: each is widened exactly, the sum is rounded once."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x = torch.randn(40, 33).to(dtype)
        for other in DTYPES:
            bias, residual = torch.randn(33).to(other), torch.randn(40, 33).to(other)
            y = OPS.act_dropout(x, bias, residual, STATE, 6554, "silu")
            assert y.dtype == dtype
            same = reference.act_dropout(x, bias.float(), residual.float(), STATE, 6554, "silu")
            truth = reference.act_dropout(*promoted(x, bias, residual), STATE, 6554, "silu")
            assert_as_accurate(y, same, truth)
