"""y = dropout(act(gate) * up), [gate, up] = x + bias, and its gradient, in Triton: a launch each. As `triton_act`."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedtrain.backends import triton_act_checks as checks
from fusedtrain.backends.triton_act import SCALARS, aot_choices, constants, in_layout_of
from fusedtrain.backends.triton_chunks import (
    CHUNK,
    ROWS,
    SPAN,
    columns_of,
    counted,
    ends_of,
    is_aligned,
    load_one,
    load_whole,
    mask_of,
    places_of,
    span_of,
    spread,
    store_one,
    store_whole,
    tile_of,
    whole_chunks,
)
from fusedtrain.backends.triton_columns import Sums, finish_sums, load_bias, plan_of
from fusedtrain.backends.triton_dropout import keep, keep_bits, kept_scale, kept_span, read_drop, selected
from fusedtrain.backends.triton_rules import ACTIVATIONS
from fusedtrain.backends.triton_sizes import gated_backward_size, gated_forward_size
from fusedtrain.backends.triton_table import TYPES, AotCase, current


@triton.jit
def plus(x, b):
    return x if b is None else x + b


@triton.jit
def beyond(bias, width):
    """Where the biases of the ups are."""
    ups = None
    if bias is not None:
        ups = bias + width
    return ups


@triton.jit
def forward(gate, up, kept, scale, FWD: tl.constexpr, COARSE: tl.constexpr):
    """y of some elements."""
    v = FWD(gate, COARSE) * up
    if kept is not None:
        v = selected(v, kept, scale)
    return v


@triton.jit(do_not_specialize=["x", "bias", "rng_state", "y", "threshold", "numel", "whole", "width", "row"])
def gated_act_dropout_kernel(
    x,
    bias,
    rng_state,
    y,
    threshold: tl.int32,
    numel: tl.int64,
    whole: tl.int64,
    width: tl.int64,
    row: tl.int64,
    FWD: tl.constexpr,
    COARSE: tl.constexpr,
    T: tl.constexpr,
):
    tile, strip, strips = tile_of(row)
    column = columns_of(tile)
    inside = column < row
    drop = read_drop(rng_state, threshold)
    scale = kept_scale(threshold, T)
    up_bias = beyond(bias, width)
    gate_b = load_bias(bias, column, width, inside, T)
    up_b = load_bias(up_bias, column, width, inside, T)
    # In x, the rows before an element have twice as many.
    start_column = column * CHUNK % width
    place = places_of(column, row)
    chunks = tl.cdiv(numel, CHUNK)
    full_end, whole_end, end = ends_of(tile, row, chunks, whole)
    first = strip * ROWS * row
    for REST in tl.static_range(2):
        while first < (end if REST else full_end):
            chunk = first + place
            if (first < whole_end) if REST else True:
                start, mask = chunk * (2 * CHUNK) - start_column, mask_of(inside, chunk, chunks, REST)
                gate, up = load_whole(x, start, mask, T), load_whole(x + width, start, mask, T)
                v = forward(plus(gate, gate_b), plus(up, up_b), keep(drop, chunk), scale, FWD, COARSE)
                store_whole(y, chunk * CHUNK, mask, v)
            else:
                bits = keep_bits(drop, chunk)
                k = first * 0
                while k < tl.minimum(numel - first * CHUNK, CHUNK):
                    i, c = span_of(chunk * CHUNK, k), span_of(column * CHUNK, k) % width
                    one = inside[:, None] & (i < numel)
                    gate_one = plus(load_one(x, 2 * i - c, one, T), load_one(bias, c, one, T))
                    up_one = plus(load_one(x + width, 2 * i - c, one, T), load_one(up_bias, c, one, T))
                    store_one(y, i, one, forward(gate_one, up_one, kept_span(bits, k), scale, FWD, COARSE))
                    k += SPAN
            first += strips * ROWS * row


@triton.jit
def backward(d, gate, up, kept, scale, FWD: tl.constexpr, GRAD: tl.constexpr, COARSE: tl.constexpr):
    """Of some elements, both halves of dx."""
    d_gate, d_up = d * (up * GRAD(gate, COARSE)), d * FWD(gate, COARSE)
    if kept is not None:
        d_gate, d_up = selected(d_gate, kept, scale), selected(d_up, kept, scale)
    return d_gate, d_up


@triton.jit(
    do_not_specialize=[
        *("dy", "x", "bias", "rng_state", "dx", "dbias", "partials", "totals", "tickets"),
        *("threshold", "numel", "whole", "width", "row"),
    ]
)
def gated_act_dropout_grad_kernel(
    dy,
    x,
    bias,
    rng_state,
    dx,
    dbias,
    partials,
    totals,
    tickets,
    threshold: tl.int32,
    numel: tl.int64,
    whole: tl.int64,
    width: tl.int64,
    row: tl.int64,
    FWD: tl.constexpr,
    GRAD: tl.constexpr,
    COARSE: tl.constexpr,
    T: tl.constexpr,
):
    tile, strip, strips = tile_of(row)
    column = columns_of(tile)
    inside = column < row
    drop = read_drop(rng_state, threshold)
    scale = kept_scale(threshold, T)
    up_bias = beyond(bias, width)
    gate_b = load_bias(bias, column, width, inside, T)
    up_b = load_bias(up_bias, column, width, inside, T)
    start_column = column * CHUNK % width
    place = places_of(column, row)
    chunks = tl.cdiv(numel, CHUNK)
    full_end, whole_end, end = ends_of(tile, row, chunks, whole)
    gate_sum = tl.zeros([place.shape[0], CHUNK], T)
    up_sum = tl.zeros([place.shape[0], CHUNK], T)
    first = strip * ROWS * row
    for REST in tl.static_range(2):
        while first < (end if REST else full_end):
            chunk = first + place
            if (first < whole_end) if REST else True:
                start, mask = chunk * (2 * CHUNK) - start_column, mask_of(inside, chunk, chunks, REST)
                d = load_whole(dy, chunk * CHUNK, mask, T)
                gate, up = load_whole(x, start, mask, T), load_whole(x + width, start, mask, T)
                kept = keep(drop, chunk)
                d_gate, d_up = backward(d, plus(gate, gate_b), plus(up, up_b), kept, scale, FWD, GRAD, COARSE)
                store_whole(dx, start, mask, d_gate)
                store_whole(dx + width, start, mask, d_up)
                if dbias is not None:
                    gate_sum += counted(d_gate, mask, REST)
                    up_sum += counted(d_up, mask, REST)
            else:
                bits = keep_bits(drop, chunk)
                k = first * 0
                while k < tl.minimum(numel - first * CHUNK, CHUNK):
                    i, c = span_of(chunk * CHUNK, k), span_of(column * CHUNK, k) % width
                    one = inside[:, None] & (i < numel)
                    d_one = load_one(dy, i, one, T)
                    gate_one = plus(load_one(x, 2 * i - c, one, T), load_one(bias, c, one, T))
                    up_one = plus(load_one(x + width, 2 * i - c, one, T), load_one(up_bias, c, one, T))
                    kept = kept_span(bits, k)
                    d_gate_one, d_up_one = backward(d_one, gate_one, up_one, kept, scale, FWD, GRAD, COARSE)
                    store_one(dx, 2 * i - c, one, d_gate_one)
                    store_one(dx + width, 2 * i - c, one, d_up_one)
                    if dbias is not None:
                        gate_sum += spread(d_gate_one, k)
                        up_sum += spread(d_up_one, k)
                    k += SPAN
            first += strips * ROWS * row
    if dbias is not None:
        finish_sums((gate_sum, up_sum), partials, totals, tickets, dbias, tile, strip, strips, row, width)


def _whole_chunks(numel: int, width: int, *tensors: Tensor) -> int:
    """Chunks may not cross rows either: in x they would be torn."""
    return whole_chunks(numel, width % CHUNK.value == 0 and is_aligned(*tensors))


def gated_act_dropout(
    x: Tensor, bias: Tensor | None, rng_state: Tensor | None, threshold: int, activation: str
) -> Tensor:
    """As the schema says.

    Raises:
        RuntimeError: before anything is launched: arguments of other shapes, dtypes or devices than it can work on.
    """
    checks.check_gated_forward("gated_act_dropout", x, bias, rng_state, threshold, activation)
    width = x.shape[-1] // 2
    y = torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    xs = x.contiguous()
    bias, rng_state = checks.contiguous(bias, rng_state)
    plan = plan_of(gated_forward_size(x.dtype), x.device, y.numel(), width)
    with current(x.device):
        gated_act_dropout_kernel[plan.programs](
            xs,
            bias,
            rng_state if threshold else None,
            y,
            threshold,
            y.numel(),
            _whole_chunks(y.numel(), width, xs, y),
            width,
            plan.row,
            FWD=ACTIVATIONS[activation].fwd,
            **constants(x.dtype),
            **gated_forward_size(x.dtype).options(),
        )
    return y


def gated_act_dropout_grad(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    rng_state: Tensor | None,
    threshold: int,
    activation: str,
    needs_bias_grad: bool,
) -> tuple[Tensor, Tensor]:
    """As the schema says; raises as `gated_act_dropout`. The sums of the bias gradient are made in a fixed order, in
    the same launch."""
    checks.check_gated_backward("gated_act_dropout_grad", dy, x, bias, rng_state, threshold, activation)
    width = x.shape[-1] // 2
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dbias = checks.empty_sums(x, 2 * width if needs_bias_grad else 0)
    if dy.numel() == 0:
        return in_layout_of(x, dx), dbias.zero_()
    dys, xs = dy.contiguous(), x.contiguous()
    bias, rng_state = checks.contiguous(bias, rng_state)
    plan = plan_of(gated_backward_size(x.dtype), x.device, dy.numel(), width, needs_bias_grad)
    sums = (dbias, *Sums.of(plan, 2, dbias)) if needs_bias_grad else (None,) * 4
    rule = ACTIVATIONS[activation]
    with current(x.device):
        gated_act_dropout_grad_kernel[plan.programs](
            dys,
            xs,
            bias,
            rng_state if threshold else None,
            dx,
            *sums,
            threshold,
            dy.numel(),
            _whole_chunks(dy.numel(), width, dys, xs, dx),
            width,
            plan.row,
            FWD=rule.fwd,
            GRAD=rule.grad,
            **constants(x.dtype),
            **gated_backward_size(x.dtype).options(),
        )
    return in_layout_of(x, dx), dbias


def aot_cases() -> Iterator[AotCase]:
    """The kernels of this module, for compilation ahead of time: every rule, with all that is optional, and one with
    nothing. In fp32 two stand for all, as kernels take long to compile and those without a gate have shown every
    rule."""
    for activation, dtype in aot_choices():
        if dtype == torch.float32 and activation not in ("gelu", "silu"):
            continue
        rule, t = ACTIVATIONS[activation], TYPES[dtype]
        x, wide = f"*{t.name}", "*fp64" if dtype == torch.float64 else "*fp32"
        bare = dtype == torch.bfloat16 and activation == "silu"
        forward_case = AotCase(
            f"gated_act_dropout_kernel[{activation}, {t}]",
            gated_act_dropout_kernel,
            {"x": x, "bias": x, "rng_state": "*i64", "y": x, **SCALARS},
            {"FWD": rule.fwd, **constants(dtype)},
            gated_forward_size(dtype).options(),
        )
        yield forward_case
        if bare:
            yield forward_case.without("bias", "rng_state")
        if dtype == torch.float64:
            continue  # the gradient needs a few more registers than the 255 that a thread can have, and spills them
        sums = {"dbias": wide, "partials": wide, "totals": "*fp64", "tickets": "*i32"}
        grad_case = AotCase(
            f"gated_act_dropout_grad_kernel[{activation}, {t}]",
            gated_act_dropout_grad_kernel,
            {"dy": x, "x": x, "bias": x, "rng_state": "*i64", "dx": x, **sums, **SCALARS},
            {"FWD": rule.fwd, "GRAD": rule.grad, **constants(dtype)},
            gated_backward_size(dtype).options(),
        )
        yield grad_case
        if bare:
            yield grad_case.without("bias", "rng_state", *sums)
