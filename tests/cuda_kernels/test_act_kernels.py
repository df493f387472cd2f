"""The CUDA kernels of activation + dropout, on a GPU or run on the CPU: each path, and what it may touch.

What an operator computes is measured against fp64 and held to what the reference errs in the same dtype.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from cuda_on_cpu import backend as cuda_emulation
from torch import Tensor

from fusedtrain import dispatch, rng, rules
from fusedtrain.backends import Backend, reference
from fusedtrain.testing import assert_as_accurate, error

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
THRESHOLDS = tuple(rng.drop_threshold(p) for p in (0.0, 0.1, 0.5, 1.0))
SIZES = (0, 1, 7, 8, 9, 2049, 17003)  # of elements: the last takes several blocks and steps, and a part of a chunk
RESIDENT = 2  # blocks that the emulation holds at once, unless told otherwise
STATE = torch.tensor([-(2**62) - 12345, 2**40 + 4])
OUTPUT_RULES = [name for name, rule in rules.ACTIVATIONS.items() if rule.grad_from_output is not None]


@pytest.fixture(scope="module")
def ops() -> Backend:
    backend = dispatch.load("cuda") if torch.cuda.is_available() else cuda_emulation.load()
    if backend.why_not:
        pytest.skip(backend.why_not)
    return backend


@pytest.fixture(scope="module")
def place() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Guarded:
    """A tensor `shift` bytes after a 16-byte boundary, amid bytes that must not change."""

    MARGIN = 64
    PATTERN = 0x5A

    def __init__(self, x: Tensor, shift: int, place: torch.device) -> None:
        size = x.numel() * x.element_size()
        self.bytes = torch.full((size + 2 * self.MARGIN + 32,), self.PATTERN, dtype=torch.uint8, device=place)
        self.first = -self.bytes.data_ptr() % 16 + self.MARGIN + shift
        self.end = self.first + size
        self.tensor = self.bytes[self.first : self.end].view(x.dtype).view(x.shape)
        self.tensor.copy_(x)

    def assert_margins(self) -> None:
        outside = torch.cat([self.bytes[: self.first], self.bytes[self.end :]])
        assert bool((outside == self.PATTERN).all())


def bitwise_equal(a: Tensor, b: Tensor) -> bool:
    word = WORDS[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(word).cpu(), b.view(word).cpu())


@functools.cache
def keep_mask(threshold: int, numel: int) -> Tensor:
    return rng.keep_mask(STATE, threshold, (numel,))


def assert_accurate(ours: Tensor, op: str, *args: Any) -> None:
    """``ours`` errs against fp64 at most twice as much as the reference in the same dtype; of fp64 itself, three times
    as much as the reference in fp32, in proportion to the precision: the truth errs too."""

    def run(dtype: torch.dtype | None) -> Tensor:
        cast = [a.to(dtype) if dtype and isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        result = getattr(reference, op)(*cast)
        return result[0] if isinstance(result, tuple) else result

    ours, truth = ours.cpu(), run(torch.float64)
    assert ours.shape == truth.shape
    if ours.dtype != torch.float64:
        assert_as_accurate(ours, run(None), truth)
    elif truth.numel():
        single = torch.finfo(torch.float32).eps
        in_single = max(error(run(torch.float32), truth), single * float(truth.abs().max()))
        assert error(ours, truth) <= 3 * in_single * torch.finfo(torch.float64).eps / single


def sample(numel: int, dtype: torch.dtype, scale: float = 3.0) -> Tensor:
    return (scale * torch.randn(numel)).to(dtype)


# ---- every rule, dtype, size and threshold


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_values_and_gradients(ops: Backend, place: torch.device, activation: str, dtype: torch.dtype) -> None:
    """Of the largest size against fp64; of the others that they are its beginning, to the bit."""
    state = STATE.to(place)
    x, dy = sample(SIZES[-1], dtype), sample(SIZES[-1], dtype, 1.0)
    here, dy_here = x.to(place), dy.to(place)
    for threshold in THRESHOLDS:
        y = ops.act_dropout(here, None, None, state, threshold, activation)
        assert_accurate(y, "act_dropout", x, None, None, STATE, threshold, activation)
        dx, _ = ops.act_dropout_grad(dy_here, here, None, state, threshold, activation, False, False)
        assert_accurate(dx, "act_dropout_grad", dy, x, None, STATE, threshold, activation, False, False)
        for n in SIZES[:-1] if threshold == 6554 else ():
            assert bitwise_equal(ops.act_dropout(here[:n], None, None, state, threshold, activation), y[:n])
            part, _ = ops.act_dropout_grad(dy_here[:n], here[:n], None, state, threshold, activation, False, False)
            assert bitwise_equal(part, dx[:n])
        if activation in OUTPUT_RULES:
            dx, _ = ops.act_dropout_grad(dy_here, y, None, None, threshold, activation, True, False)
            assert_accurate(dx, "act_dropout_grad", dy, y.cpu(), None, None, threshold, activation, True, False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_gated(ops: Backend, place: torch.device, activation: str, dtype: torch.dtype) -> None:
    state = STATE.to(place)
    for case, (rows, width) in enumerate([(0, 4), (3, 0), (1, 1), (5, 7), (3, 8), (70, 24), (9, 129)]):
        threshold = THRESHOLDS[(case + 1) % len(THRESHOLDS)]
        x, dy = (
            sample(2 * rows * width, dtype).view(rows, 2 * width),
            sample(rows * width, dtype, 1.0).view(rows, width),
        )
        bias = sample(2 * width, dtype) if case % 2 else None
        there = None if bias is None else bias.to(place)
        y = ops.gated_act_dropout(x.to(place), there, state, threshold, activation)
        assert_accurate(y, "gated_act_dropout", x, bias, STATE, threshold, activation)
        dx, _ = ops.gated_act_dropout_grad(dy.to(place), x.to(place), there, state, threshold, activation, False)
        assert_accurate(dx, "gated_act_dropout_grad", dy, x, bias, STATE, threshold, activation, False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 24, 1, 7, 129])
def test_bias_and_residual(ops: Backend, place: torch.device, width: int, dtype: torch.dtype) -> None:
    """Of the dtype of x, of that of its arithmetic, and of another that has to be widened first."""
    x, dy = sample(40 * width, dtype).view(40, width), sample(40 * width, dtype, 1.0).view(40, width)
    state = STATE.to(place)
    for other in DTYPES:
        bias, residual = sample(width, other, 1.0), sample(40 * width, other, 1.0).view(40, width)
        for b, r in ((bias, None), (None, residual), (bias, residual)):
            there = [None if t is None else t.to(place) for t in (b, r)]
            y = ops.act_dropout(x.to(place), *there, state, 6554, "silu")
            assert y.dtype == dtype
            assert_accurate(y, "act_dropout", x, b, r, STATE, 6554, "silu")
        dx, _ = ops.act_dropout_grad(dy.to(place), x.to(place), bias.to(place), state, 6554, "silu", False, False)
        assert_accurate(dx, "act_dropout_grad", dy, x, bias, STATE, 6554, "silu", False, False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(12, 4096), (5, 16384), (1200, 24), (40, 1000), (4, 14336)])
def test_a_thread_goes_on_in_the_same_columns(
    ops: Backend, place: torch.device, rows: int, width: int, dtype: torch.dtype
) -> None:
    """Where one turn of all blocks is not a number of rows by itself, and several turns are taken."""
    rows *= 100 if place.type == "cuda" else 1
    x, dy = sample(rows * width, dtype).view(rows, width), sample(rows * width, dtype, 1.0).view(rows, width)
    bias, state = sample(width, dtype), STATE.to(place)
    there, x_there, dy_there = bias.to(place), x.to(place), dy.to(place)
    y = ops.act_dropout(x_there, there, None, state, 6554, "gelu")
    assert_accurate(y, "act_dropout", x, bias, None, STATE, 6554, "gelu")
    dx, _ = ops.act_dropout_grad(dy_there, x_there, there, state, 6554, "gelu", False, False)
    assert_accurate(dx, "act_dropout_grad", dy, x, bias, STATE, 6554, "gelu", False, False)
    wide, wide_bias = torch.cat([x, dy], 1), sample(2 * width, dtype)
    wide_there, there = wide.to(place), wide_bias.to(place)
    y = ops.gated_act_dropout(wide_there, there, state, 6554, "gelu")
    assert_accurate(y, "gated_act_dropout", wide, wide_bias, STATE, 6554, "gelu")
    dx, _ = ops.gated_act_dropout_grad(dy_there, wide_there, there, state, 6554, "gelu", False)
    assert_accurate(dx, "gated_act_dropout_grad", dy, wide, wide_bias, STATE, 6554, "gelu", False)


def test_a_bias_that_is_passed_with_the_output_is_not_looked_at(ops: Backend, place: torch.device) -> None:
    """Nor need it be aligned for chunks of y and dy to be moved whole."""
    y, dy = sample(900, torch.bfloat16).view(300, 3), sample(900, torch.bfloat16).view(300, 3)
    bias = Guarded(torch.full((3,), torch.nan, dtype=torch.bfloat16), 2, place).tensor
    got = [ops.act_dropout_grad(dy.to(place), y.to(place), b, None, 0, "relu", True, True) for b in (None, bias)]
    assert all(bitwise_equal(a, b) for a, b in zip(*got, strict=True))


# ---- masks


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_are_those_of_the_contract(ops: Backend, place: torch.device, dtype: torch.dtype) -> None:
    state = STATE.to(place)
    for numel in SIZES:
        ones = torch.ones(numel, dtype=dtype, device=place)
        for threshold in (1, 6554, 32768, 65535, 65536):
            keep = keep_mask(threshold, numel)
            assert torch.equal(ops.act_dropout(ones, None, None, state, threshold, "identity").cpu() != 0, keep)
            dx, _ = ops.act_dropout_grad(ones, None, None, state, threshold, "identity", False, False)
            assert torch.equal(dx.cpu() != 0, keep)
            gated = torch.ones(2 * numel, dtype=dtype, device=place)
            y = ops.gated_act_dropout(gated, None, state, threshold, "identity")
            assert torch.equal(y.cpu() != 0, keep)
            dx, _ = ops.gated_act_dropout_grad(ones, gated, None, state, threshold, "identity", False)
            assert torch.equal(dx.cpu() != 0, torch.cat([keep, keep]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", OUTPUT_RULES)
def test_the_output_alone_tells_dropped_from_kept(
    ops: Backend, place: torch.device, activation: str, dtype: torch.dtype
) -> None:
    """Even where a kept value is zero, or was rounded to it: kept zeros are -0.0 and dropped elements +0.0."""
    small = [1e-30, -1e-30, 1e-21, 1e-7, -1e-7, 1e-45, 3e-8]
    x = torch.tensor([0.0, -0.0, -1e30, *small, 2.0] * 64, dtype=torch.float64)
    keep = keep_mask(32768, x.numel())
    y = ops.act_dropout(x.to(dtype).to(place), None, None, STATE.to(place), 32768, activation).cpu()
    if activation != "identity":  # whose backward needs no mark: it draws the lanes again
        assert torch.equal((y != 0) | y.signbit(), keep)
    assert not y[~keep].signbit().any()
    zeros = torch.zeros(9, dtype=dtype, device=place)
    assert bitwise_equal(ops.act_dropout(zeros, None, None, None, 0, "relu"), zeros)  # nothing is dropped or marked


def test_the_state_may_have_any_stride(ops: Backend, place: torch.device) -> None:
    x = torch.ones(1001, device=place)
    spread = torch.stack([STATE, STATE + 1], dim=1).to(place)[:, 0]
    assert spread.stride() == (2,)
    assert torch.equal(ops.act_dropout(x, None, None, spread, 32768, "identity").cpu() != 0, keep_mask(32768, 1001))


# ---- memory


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 130])
@pytest.mark.parametrize("width", [8, 9, 136])
def test_any_alignment_and_nothing_outside(
    ops: Backend, place: torch.device, width: int, rows: int, dtype: torch.dtype
) -> None:
    """All shifts of all tensors, and of each alone, give the same bits, in place too, and leave their surroundings as
    they were."""
    x, dy, residual = (sample(rows * width, dtype).view(rows, width) for _ in range(3))
    bias, wide = sample(width, dtype), sample(2 * rows * width, dtype).view(rows, 2 * width)
    originals = (x, dy, residual, bias, wide, sample(2 * width, dtype))
    state = STATE.to(place)
    expected: list[Tensor] | None = None
    size, count = x.element_size(), len(originals)
    together = [[shift] * count for shift in range(0, 16, size)]
    alone = [[size if k == other else 0 for other in range(count)] for k in range(count)]
    for shifts in together + alone:
        guarded = [Guarded(t, shift, place) for t, shift in zip(originals, shifts, strict=True)]
        g_x, g_dy, g_residual, g_bias, g_wide, g_wide_bias = (g.tensor for g in guarded)
        target = Guarded(x, shifts[0], place)
        ops.act_dropout_(target.tensor, g_bias, g_residual, state, 6554, "gelu")
        got = [
            target.tensor,
            ops.act_dropout(g_x, g_bias, g_residual, state, 6554, "gelu"),
            *ops.act_dropout_grad(g_dy, g_x, g_bias, state, 6554, "gelu", False, True),
            ops.gated_act_dropout(g_wide, g_wide_bias, state, 6554, "silu"),
            *ops.gated_act_dropout_grad(g_dy, g_wide, g_wide_bias, state, 6554, "silu", True),
        ]
        assert bitwise_equal(got[0], got[1])
        expected = expected or [t.clone() for t in got]
        assert all(bitwise_equal(a, b) for a, b in zip(got, expected, strict=True))
        for g, original in zip(guarded, originals, strict=True):
            g.assert_margins()
            assert bitwise_equal(g.tensor, original)
        target.assert_margins()


# ---- sums over rows

SUM_SHAPES = [(5,), (700, 1), (4096, 3), (40, 1024), (2, 1001), (300, 65), (9000, 8), (0, 4), (4, 0), (600, 136)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SUM_SHAPES, ids=str)
def test_sums_of_whole_numbers_are_exact(
    ops: Backend, place: torch.device, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Half are dropped and the others doubled, so all arithmetic is exact and any misplaced element shows."""
    dy = torch.randint(-3, 4, shape).to(dtype)
    state = STATE.to(place)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = torch.where(keep_mask(32768, dy.numel()).view(shape), 2 * dy.double(), 0.0)
    by_column = (expected if expected.dim() > 1 else expected[None]).sum(0).to(wide)
    dx, dbias = ops.act_dropout_grad(dy.to(place), None, None, state, 32768, "identity", False, True)
    assert torch.equal(dx.cpu(), expected.to(dtype))
    assert torch.equal(dbias.cpu(), by_column)
    assert dbias.dtype == wide
    x = torch.cat([torch.full(shape, 2.0), torch.full(shape, -1.0)], dim=-1).to(dtype).to(place)  # gate 2, up -1
    dx, dbias = ops.gated_act_dropout_grad(dy.to(place), x, None, state, 32768, "identity", True)
    assert torch.equal(dx.cpu(), torch.cat([-expected, 2 * expected], dim=-1).to(dtype))
    assert torch.equal(dbias.cpu(), torch.cat([-by_column, 2 * by_column]))


@pytest.mark.parametrize("shape", [(4096, 3), (600, 136)], ids=str)
def test_sums_are_the_same_from_run_to_run_and_on_any_device(
    ops: Backend, place: torch.device, shape: tuple[int, ...]
) -> None:
    dy, x, bias = torch.randn(shape), torch.randn(shape), torch.randn(shape[-1])
    gated = torch.randn(shape[0], 2 * shape[1])
    state = STATE.to(place)
    dy, x, bias, gated = (t.to(place) for t in (dy, x, bias, gated))
    emulator = None if torch.cuda.is_available() else cuda_emulation.emulator()
    results = []
    for resident in (RESIDENT, RESIDENT, 1, 7):
        if emulator:
            emulator.emu_set_resident_blocks(resident)
        results.append(
            [
                *ops.act_dropout_grad(dy, x, bias, state, 6554, "gelu", False, True),
                *ops.gated_act_dropout_grad(dy, gated, None, state, 6554, "silu", True),
            ]
        )
    if emulator:
        emulator.emu_set_resident_blocks(RESIDENT)
    for other in results[1:]:
        assert all(bitwise_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_many_rows_are_summed_as_accurately_as_torch_does(ops: Backend, place: torch.device) -> None:
    dy = torch.randn(20_000, 5) + 1
    _, dbias = ops.act_dropout_grad(dy.to(place), None, None, None, 0, "identity", False, True)
    assert_as_accurate(dbias.cpu(), dy.sum(0), dy.double().sum(0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU counts its launches in the profiler")
def test_one_launch_each_and_none_for_nothing(ops: Backend) -> None:
    launches = cuda_emulation.emulator().emu_launches
    for rows, expected in ((600, 1), (0, 0)):
        x, dy = torch.randn(rows, 136), torch.randn(rows, 136)
        gated = torch.randn(rows, 272)
        for call in (
            lambda x=x: ops.act_dropout(x, None, None, STATE, 6554, "gelu"),
            lambda x=x, dy=dy: ops.act_dropout_grad(dy, x, None, STATE, 6554, "gelu", False, True),
            lambda gated=gated: ops.gated_act_dropout(gated, None, STATE, 6554, "silu"),
            lambda gated=gated, dy=dy: ops.gated_act_dropout_grad(dy, gated, None, STATE, 6554, "silu", True),
        ):
            before = launches()
            call()
            assert launches() - before == expected
