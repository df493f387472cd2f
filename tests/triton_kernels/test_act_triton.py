"""The Triton operators of activation + dropout, called directly: masks, values, memory, sums."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_act_dropout_cpu import DTYPES, LAYOUTS, OUTPUT_RULES, STATE, bitwise_equal, states, strides
from torch import Tensor

from fusedtrain import dispatch, rng, rules
from fusedtrain.backends import reference
from fusedtrain.testing import assert_as_accurate, error, with_layout

pytest.importorskip("fusedtrain.backends.triton_act")
BACKEND = dispatch.load("triton")
pytestmark = [
    pytest.mark.skipif(bool(BACKEND.why_not), reason=str(BACKEND.why_not)),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),  # NumPy's, which interprets: inf is no error
]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = 32768


def moved(args: tuple[Any, ...], dtype: torch.dtype | None = None, device: torch.device = DEVICE) -> tuple[Any, ...]:
    """The arguments on a device, and floating tensors among them in a dtype."""
    return tuple(
        a.to(device, dtype if dtype is not None and a.is_floating_point() else a.dtype) if isinstance(a, Tensor) else a
        for a in args
    )


def call(op: str, *args: Any) -> Any:
    """What the operator returns, on the CPU."""
    out = getattr(BACKEND, op)(*moved(args))
    return tuple(t.cpu() for t in out) if isinstance(out, tuple) else out.cpu()


def assert_accurate(op: str, *args: Any) -> None:
    """The (first) result errs against fp64 at most twice as much as the reference does in the same dtype. Where that is
    fp64 itself, three times as much as the reference in fp32, in proportion to the precision: the truth errs too."""
    runs = [
        call(op, *args),
        getattr(reference, op)(*args),
        getattr(reference, op)(*moved(args, torch.float64, torch.device("cpu"))),
        getattr(reference, op)(*moved(args, torch.float32, torch.device("cpu"))),
    ]
    ours, same, truth, single = (run[0] if isinstance(run, tuple) else run for run in runs)
    assert (ours.shape, ours.dtype) == (same.shape, same.dtype)
    if ours.dtype != torch.float64:
        assert_as_accurate(ours, same, truth)
    elif truth.numel():
        unit = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        largest = float(truth[truth.isfinite()].abs().max())
        assert error(ours, truth) <= 3 * unit * max(error(single, truth), torch.finfo(torch.float32).eps * largest)
    if isinstance(runs[0], tuple) and runs[0][1].numel():
        assert_sums(*runs[0])


def assert_sums(dx: Tensor, dbias: Tensor) -> None:
    """The bias gradient is the sum of dx before it was rounded, within the bounds of any order of summation."""
    rows = dx.double().reshape(-1, dbias.numel())
    unit = rows.shape[0] * torch.finfo(dbias.dtype).eps + torch.finfo(dx.dtype).eps
    assert bool(((dbias.double() - rows.sum(0)).abs() <= unit * rows.abs().sum(0)).all())


def normal(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape)).to(dtype)


def test_the_rules_are_those_of_the_specification() -> None:
    from fusedtrain.backends.triton_rules import ACTIVATIONS

    assert list(ACTIVATIONS) == list(rules.ACTIVATIONS)
    for name, rule in rules.ACTIVATIONS.items():
        assert (ACTIVATIONS[name].grad_from_output is None) == (rule.grad_from_output is None)


# ---- masks


@settings(max_examples=8, phases=[Phase.explicit, Phase.generate])
@given(states, st.integers(0, 300), st.sampled_from([1, 6554, HALF, 65535]), st.sampled_from(DTYPES))
def test_the_mask_is_that_of_the_contract(state: Tensor, n: int, threshold: int, dtype: torch.dtype) -> None:
    keep = rng.keep_mask(state, threshold, (n,))
    ones, twice = torch.ones(n, dtype=dtype), torch.ones(2 * n, dtype=dtype)
    assert torch.equal(call("act_dropout", ones, None, None, state, threshold, "identity") != 0, keep)
    dx, _ = call("act_dropout_grad", ones, None, None, state, threshold, "identity", False, False)
    assert torch.equal(dx != 0, keep)
    assert torch.equal(call("gated_act_dropout", twice, None, state, threshold, "identity") != 0, keep)
    dx, _ = call("gated_act_dropout_grad", ones, twice, None, state, threshold, "identity", False)
    assert torch.equal(dx != 0, torch.cat([keep, keep]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_element_has_its_lane_in_every_layout_and_program(layout: str) -> None:
    x = torch.ones(17, 3, 72)  # several programs, blocks and tiles
    keep = rng.keep_mask(STATE, HALF, x.shape)
    y = BACKEND.act_dropout(with_layout(x.to(DEVICE), layout), None, None, STATE.to(DEVICE), HALF, "identity")
    assert torch.equal(y.cpu() != 0, keep)
    assert strides(y) == strides(torch.empty_like(with_layout(x, layout)))


def test_lanes_of_elements_beyond_32_bits() -> None:
    triton = pytest.importorskip("triton")
    import triton.language as tl

    from fusedtrain.backends.triton_philox import read_state, upper_lanes

    @triton.jit
    def kernel(out, rng_state, first: tl.int64):
        lanes = upper_lanes(read_state(rng_state), first + tl.arange(0, 16)) >> 16
        tl.store(out + tl.arange(0, 16)[:, None] * 8 + tl.arange(0, 8)[None, :], lanes.to(tl.int32))

    kernel.fn.__globals__.update(tl=tl, upper_lanes=upper_lanes, read_state=read_state)
    for first in (0, 2**28 - 8, 2**32 - 5, 2**40):
        for state in (STATE, torch.tensor([-1, -1]), torch.tensor([2**63 - 1, -(2**63)])):
            out = torch.zeros(128, dtype=torch.int32, device=DEVICE)
            kernel[(1,)](out, state.to(DEVICE), first)
            assert torch.equal(out.cpu().long(), rng.lanes(state, 128, 8 * first))


# ---- values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_values_and_gradients(activation: str, dtype: torch.dtype) -> None:
    x, dy, residual = normal((7, 64), dtype, 3), normal((7, 64), dtype), normal((7, 64), dtype)
    bias = normal((64,), dtype)
    assert_accurate("act_dropout", x, bias, residual, STATE, 6554, activation)
    assert_accurate("act_dropout", x, None, None, None, 0, activation)
    assert_accurate("act_dropout_grad", dy, x, bias, STATE, 6554, activation, False, True)
    if activation in OUTPUT_RULES:
        y = call("act_dropout", x, bias, None, STATE, HALF, activation)
        assert_accurate("act_dropout_grad", dy, y, None, None, HALF, activation, True, True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_gated(activation: str, dtype: torch.dtype) -> None:
    x, dy, bias = normal((7, 128), dtype, 3), normal((7, 64), dtype), normal((128,), dtype)
    assert_accurate("gated_act_dropout", x, bias, STATE, 6554, activation)
    assert_accurate("gated_act_dropout_grad", dy, x, bias, STATE, 6554, activation, True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threshold", [0, 1, 65535, 65536])
def test_the_ends_of_the_range_of_p(threshold: int, dtype: torch.dtype) -> None:
    x, dy, twice = normal((5, 24), dtype), normal((5, 24), dtype), normal((5, 48), dtype)
    assert_accurate("act_dropout", x, None, None, STATE, threshold, "silu")
    assert_accurate("act_dropout_grad", dy, x, None, STATE, threshold, "silu", False, False)
    y = call("act_dropout", x, None, None, STATE, threshold, "tanh")
    assert_accurate("act_dropout_grad", dy, y, None, None, threshold, "tanh", True, False)
    assert_accurate("gated_act_dropout_grad", dy, twice, None, STATE, threshold, "silu", False)


@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_relative_accuracy_in_the_tails(activation: str) -> None:
    """Of what is far from 1, absolute tolerances would say nothing: gelu(-6) is -6e-9."""
    fwd = rules.ACTIVATIONS[activation].fwd
    for dtype, allowed in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        x = torch.linspace(-6, -2, 1024, dtype=dtype)
        truth, y = fwd(x.double()), call("act_dropout", x, None, None, None, 0, activation)
        nonzero = truth != 0
        assert torch.equal(y[~nonzero], truth[~nonzero].to(dtype))
        if nonzero.any():
            theirs = float(((fwd(x).double() - truth) / truth)[nonzero].abs().max())
            ours = float(((y.double() - truth) / truth)[nonzero].abs().max())
            assert ours <= max(allowed, 2 * theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_large_and_non_finite_inputs(activation: str, dtype: torch.dtype) -> None:
    sizes = (8, 13, 50, 88, 89, 104, 200, 1e4, 65504)
    x = torch.tensor([s * v for v in sizes for s in (1, -1)] + [0.0, -0.0, 1e-7, -1e-7, 1.0, -1.0]).to(dtype)
    assert_accurate("act_dropout", x, None, None, None, 0, activation)
    assert_accurate("act_dropout_grad", torch.ones_like(x), x, None, None, 0, activation, False, False)
    x = torch.tensor([math.nan, math.inf, -math.inf, 1.0] * 16).to(dtype)
    y = call("act_dropout", x, None, None, STATE, HALF, activation)
    assert error(y, reference.act_dropout(x, None, None, STATE, HALF, activation)) < 1
    assert not y[~rng.keep_mask(STATE, HALF, x.shape)].any()
    y = call("gated_act_dropout", x, None, STATE, HALF, activation)
    assert error(y, reference.gated_act_dropout(x, None, STATE, HALF, activation)) < 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", OUTPUT_RULES)
def test_the_output_alone_tells_dropped_from_kept(activation: str, dtype: torch.dtype) -> None:
    """Even where a kept value is zero, or was rounded to it: kept zeros are -0.0 and dropped elements +0.0."""
    x = torch.tensor([0.0, -0.0, -1e30, 1e-30, -1e-30, 1e-21, 1e-7, -1e-7, 2.0] * 16, dtype=torch.float64).to(dtype)
    keep = rng.keep_mask(STATE, HALF, x.shape)
    y = call("act_dropout", x, None, None, STATE, HALF, activation)
    assert torch.equal((y != 0) | y.signbit(), keep)
    assert not y[~keep].signbit().any()
    dx, _ = call("act_dropout_grad", torch.ones_like(y), y, None, None, HALF, activation, True, False)
    slope = rules.ACTIVATIONS[activation].grad_from_output
    assert slope is not None
    expected = torch.where(keep, 2 * slope(y.to(reference._compute_dtype(y)) / 2), 0.0)
    assert_as_accurate(dx, expected.to(dtype), expected)
    zeros = torch.zeros(9, dtype=dtype)  # nothing is dropped at threshold 0, so nothing is marked
    assert bitwise_equal(call("act_dropout", zeros, None, None, STATE, 0, "relu"), zeros)


def test_bias_and_residual_of_other_dtypes() -> None:
    for dtype in DTYPES[:1] + DTYPES[2:]:
        x = normal((6, 40), dtype)
        for other in DTYPES:
            bias, residual = normal((40,), other), normal((6, 40), other)
            y = call("act_dropout", x, bias, residual, STATE, 6554, "silu")
            same = reference.act_dropout(x, bias.float(), residual.float(), STATE, 6554, "silu")
            truth = reference.act_dropout(x.double(), bias.double(), residual.double(), STATE, 6554, "silu")
            assert y.dtype == dtype
            assert_as_accurate(y, same, truth)


# ---- memory


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 3, 8, 20, 65, 136])
def test_rows_of_any_length(width: int, dtype: torch.dtype) -> None:
    """The ends of rows, tiles and the tensor; whole chunks are moved by vectors, others by element."""
    shape = (2, 11, width)
    x, dy, residual = normal(shape, dtype), normal(shape, dtype), normal(shape, dtype)
    bias, twice = normal((width,), dtype), normal((2, 11, 2 * width), dtype)
    assert_accurate("act_dropout", x, bias, residual, STATE, 6554, "tanh")
    assert_accurate("act_dropout_grad", dy, x, bias, STATE, 6554, "tanh", False, True)
    assert_accurate("gated_act_dropout", twice, torch.cat([bias, bias]), STATE, 6554, "tanh")
    assert_accurate("gated_act_dropout_grad", dy, twice, torch.cat([bias, bias]), STATE, 6554, "tanh", True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_change_nothing_but_strides(layout: str) -> None:
    x, dy, residual, twice = (torch.randn(4, 6, n, device=DEVICE) for n in (10, 10, 10, 20))
    bias, state = torch.randn(10, device=DEVICE), STATE.to(DEVICE)
    y = BACKEND.act_dropout(x, bias, residual, state, HALF, "gelu")
    other = BACKEND.act_dropout(*(with_layout(t, layout) for t in (x, bias, residual)), state, HALF, "gelu")
    assert bitwise_equal(y, other)
    pairs = (
        (BACKEND.act_dropout_grad(dy, x, bias, state, HALF, "gelu", False, True), x),
        (BACKEND.gated_act_dropout_grad(dy, twice, None, state, HALF, "gelu", True), twice),
    )
    dys, xs, twices = (with_layout(t, layout) for t in (dy, x, twice))
    others = (
        BACKEND.act_dropout_grad(dys, xs, with_layout(bias, layout), state, HALF, "gelu", False, True),
        BACKEND.gated_act_dropout_grad(dys, twices, None, state, HALF, "gelu", True),
    )
    for (results, like), other_results in zip(pairs, others, strict=True):
        assert all(bitwise_equal(a, b) for a, b in zip(results, other_results, strict=True))
        assert strides(other_results[0]) == strides(torch.empty_like(with_layout(like, layout)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place(layout: str, dtype: torch.dtype) -> None:
    x, bias = normal((5, 21), dtype).to(DEVICE), normal((21,), dtype).to(DEVICE)
    expected = BACKEND.act_dropout(x, bias, x, STATE.to(DEVICE), HALF, "mish")
    target = with_layout(x, layout)
    BACKEND.act_dropout_(target, bias, x, STATE.to(DEVICE), HALF, "mish")
    assert bitwise_equal(target, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_A21_nothing_beside_a_view_is_touched(dtype: torch.dtype) -> None:
    # 1024 elements are a block of rows that is full.
    for offset, n in ((0, 9), (1, 16), (8, 13), (3, 130), (0, 1016), (8, 1024)):
        flat = normal((1100,), dtype).to(DEVICE)
        before = flat.clone()
        view = flat[offset : offset + n]
        expected = BACKEND.act_dropout(view.clone(), None, None, STATE.to(DEVICE), HALF, "relu")
        BACKEND.act_dropout_(view, None, None, STATE.to(DEVICE), HALF, "relu")
        assert bitwise_equal(view, expected)
        assert bitwise_equal(flat[:offset], before[:offset])
        assert bitwise_equal(flat[offset + n :], before[offset + n :])


def test_in_place_with_a_residual_that_overlaps() -> None:
    wide = torch.randn(65, device=DEVICE)
    expected = BACKEND.act_dropout(wide[1:].clone(), None, wide[:-1].clone(), STATE.to(DEVICE), 6554, "silu")
    BACKEND.act_dropout_(wide[1:], None, wide[:-1], STATE.to(DEVICE), 6554, "silu")
    assert torch.equal(wide[1:], expected)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
def test_no_elements(shape: tuple[int, ...]) -> None:
    x, bias = torch.ones(shape), torch.ones(shape[-1])
    assert call("act_dropout", x, bias, None, STATE, HALF, "relu").shape == shape
    dx, dbias = call("act_dropout_grad", x, x, bias, STATE, HALF, "relu", False, True)
    assert dx.shape == shape
    assert torch.equal(dbias, torch.zeros(shape[-1]))
    twice = torch.ones(*shape[:-1], 2 * shape[-1])
    assert call("gated_act_dropout", twice, None, STATE, HALF, "relu").shape == shape
    dx, dbias = call("gated_act_dropout_grad", x, twice, None, STATE, HALF, "relu", True)
    assert dx.shape == twice.shape
    assert torch.equal(dbias, torch.zeros(2 * shape[-1]))


def test_no_dimensions() -> None:
    assert_accurate("act_dropout", torch.tensor(0.3), None, None, STATE, 1, "gelu")
    assert_accurate("act_dropout_grad", torch.tensor(0.3), torch.tensor(1.0), None, STATE, 1, "gelu", False, True)


# ---- the bias gradient


@pytest.mark.parametrize("shape", [(1,), (5,), (700, 1), (3, 5, 7), (2, 1025), (65, 65), (2100, 8), (64, 192)])
def test_bias_gradients_of_whole_numbers_are_exact(shape: tuple[int, ...]) -> None:
    """Half are dropped and the others doubled, so all arithmetic is exact and any misplaced element shows."""
    dy = torch.randint(-3, 4, shape).float()
    by_column = torch.where(rng.keep_mask(STATE, HALF, shape), 2 * dy, 0.0).reshape(-1, shape[-1]).sum(0)
    _, dbias = call("act_dropout_grad", dy, None, None, STATE, HALF, "identity", False, True)
    assert torch.equal(dbias, by_column)
    x = torch.cat([torch.ones(shape), -torch.ones(shape)], dim=-1)
    _, dbias = call("gated_act_dropout_grad", dy, x, None, STATE, HALF, "identity", True)
    assert torch.equal(dbias, torch.cat([-by_column, by_column]))


def test_a_bias_gradient_over_many_rows_is_as_accurate_as_a_sum_in_torch_and_always_the_same() -> None:
    dy = torch.randn(6000, 5) + 1
    results = [call("act_dropout_grad", dy, None, None, None, 0, "identity", False, True)[1] for _ in range(2)]
    assert bitwise_equal(*results)
    assert_as_accurate(results[0], dy.sum(0), dy.double().sum(0))


@given(st.integers(1, 5000), st.integers(1, 3000))
def test_plans_share_out_every_column(width: int, rows: int) -> None:
    from fusedtrain.backends.triton_columns import MOST_EMPTY, MOST_STRIPS, plan_of
    from fusedtrain.backends.triton_table import Size

    for sums in (False, True):
        plan = plan_of(Size(4, 64), torch.device("cpu"), rows * width, width, sums)
        assert 8 * plan.row == plan.together * width
        assert 8 * plan.tiles >= plan.row > 8 * (plan.tiles - 1)
        assert plan.row >= (1 - MOST_EMPTY) * 8 * plan.tiles
        assert plan.strips >= 1
        if sums:
            assert plan.strips <= MOST_STRIPS


def test_more_programs_than_are_resident_have_blocks_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusedtrain.backends import triton_table
    from fusedtrain.backends.triton_chunks import CHUNKS
    from fusedtrain.backends.triton_columns import LEAST_STEPS, WAVES, plan_of

    monkeypatch.setattr(triton_table, "_processors", lambda device: 100)
    size, resident, elements = triton_table.Size(4, 64), 800, CHUNKS.value * 8  # of a block
    for blocks, programs in (
        (7, 7),
        (800, resident),
        (LEAST_STEPS * resident, resident),
        (LEAST_STEPS * 2000, 2000),
        (10**6, WAVES * resident),
    ):
        assert plan_of(size, torch.device("cuda"), blocks * elements, None).programs == (programs,)
