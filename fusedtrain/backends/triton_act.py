"""y = dropout(act(x + bias)) + residual and its gradient, in Triton: a launch each.

Here are the memory, the dtypes, the random numbers and the selection; the maths is in `triton_rules`.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedtrain import rules
from fusedtrain.backends import triton_act_checks as checks
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
from fusedtrain.backends.triton_dropout import (
    is_not_positive_zero,
    keep,
    keep_bits,
    kept_scale,
    kept_span,
    mark_zeros,
    read_drop,
    selected,
    unscale,
)
from fusedtrain.backends.triton_rules import ACTIVATIONS
from fusedtrain.backends.triton_sizes import backward_size, forward_size
from fusedtrain.backends.triton_table import TYPES, AotCase, current

SCALARS = {"threshold": "i32", "numel": "i64", "whole": "i64", "width": "i64", "row": "i64"}
"""The types of what all of these kernels are told besides tensors."""

COARSE_DIGITS = {torch.float16: 11, torch.bfloat16: 8}
"""Binary digits of the types whose arithmetic may be coarse."""


@triton.jit
def forward(z, b, r, kept, scale, Y: tl.constexpr, FWD: tl.constexpr, MARK: tl.constexpr, COARSE: tl.constexpr):
    """y of some elements, from x, bias, residual and which are kept; those that are None are not there."""
    if b is not None:
        z = z + b
    v = FWD(z, COARSE)
    if kept is not None:
        v = selected(v, kept, scale)
        if MARK:
            v = mark_zeros(v, kept, Y)
    if r is not None:
        v = v + r
    return v


@triton.jit(
    do_not_specialize=["x", "bias", "residual", "rng_state", "y", "threshold", "numel", "whole", "width", "row"]
)
def act_dropout_kernel(
    x,
    bias,
    residual,
    rng_state,
    y,
    threshold: tl.int32,
    numel: tl.int64,
    whole: tl.int64,
    width: tl.int64,
    row: tl.int64,
    FWD: tl.constexpr,
    MARK: tl.constexpr,
    COARSE: tl.constexpr,
    T: tl.constexpr,
):
    Y: tl.constexpr = y.dtype.element_ty
    tile, strip, strips = tile_of(row)
    column = columns_of(tile)
    inside = column < row
    drop = read_drop(rng_state, threshold)
    scale = kept_scale(threshold, T)
    b = load_bias(bias, column, width, inside, T)
    place = places_of(column, row)
    chunks = tl.cdiv(numel, CHUNK)
    full_end, whole_end, end = ends_of(tile, row, chunks, whole)
    first = strip * ROWS * row
    for REST in tl.static_range(2):
        while first < (end if REST else full_end):
            chunk = first + place
            if (first < whole_end) if REST else True:
                start, mask = chunk * CHUNK, mask_of(inside, chunk, chunks, REST)
                z = load_whole(x, start, mask, T)
                r = load_whole(residual, start, mask, T)
                v = forward(z, b, r, keep(drop, chunk), scale, Y, FWD, MARK, COARSE)
                store_whole(y, start, mask, v)
            else:
                bits = keep_bits(drop, chunk)
                k = first * 0
                while k < tl.minimum(numel - first * CHUNK, CHUNK):
                    i = span_of(chunk * CHUNK, k)
                    one = inside[:, None] & (i < numel)
                    z = load_one(x, i, one, T)
                    r = load_one(residual, i, one, T)
                    b_one = load_one(bias, span_of(column * CHUNK, k) % width, one, T)
                    store_one(y, i, one, forward(z, b_one, r, kept_span(bits, k), scale, Y, FWD, MARK, COARSE))
                    k += SPAN
            first += strips * ROWS * row


@triton.jit
def backward(d, s, b, kept, threshold, scale, GRAD: tl.constexpr, FROM_OUTPUT: tl.constexpr, COARSE: tl.constexpr):
    """dx of some elements, from dy, what was saved, bias and which are kept."""
    if FROM_OUTPUT:
        # At threshold 0 all are kept, and the scale is 1.
        kept = is_not_positive_zero(s) | (threshold == 0)
        v = selected(d * GRAD(unscale(s, threshold), COARSE), kept, scale)
    else:
        z = d if s is None else s  # what a rule needs no input for, it does not look at
        if b is not None:
            z = z + b
        v = d * GRAD(z, COARSE)
        if kept is not None:
            v = selected(v, kept, scale)
    return v


@triton.jit(
    do_not_specialize=[
        *("dy", "saved", "bias", "rng_state", "dx", "dbias", "partials", "totals", "tickets"),
        *("threshold", "numel", "whole", "width", "row"),
    ]
)
def act_dropout_grad_kernel(
    dy,
    saved,
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
    GRAD: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    COARSE: tl.constexpr,
    T: tl.constexpr,
):
    tile, strip, strips = tile_of(row)
    column = columns_of(tile)
    inside = column < row
    drop = read_drop(rng_state, threshold)
    scale = kept_scale(threshold, T)
    b = load_bias(bias, column, width, inside, T)
    place = places_of(column, row)
    chunks = tl.cdiv(numel, CHUNK)
    full_end, whole_end, end = ends_of(tile, row, chunks, whole)
    sum = tl.zeros([place.shape[0], CHUNK], T)
    first = strip * ROWS * row
    for REST in tl.static_range(2):
        while first < (end if REST else full_end):
            chunk = first + place
            if (first < whole_end) if REST else True:
                start, mask = chunk * CHUNK, mask_of(inside, chunk, chunks, REST)
                d = load_whole(dy, start, mask, T)
                s = load_whole(saved, start, mask, T)
                v = backward(d, s, b, keep(drop, chunk), threshold, scale, GRAD, FROM_OUTPUT, COARSE)
                store_whole(dx, start, mask, v)
                if dbias is not None:
                    sum += counted(v, mask, REST)
            else:
                bits = keep_bits(drop, chunk)
                k = first * 0
                while k < tl.minimum(numel - first * CHUNK, CHUNK):
                    i = span_of(chunk * CHUNK, k)
                    one = inside[:, None] & (i < numel)
                    d_one = load_one(dy, i, one, T)
                    s_one = load_one(saved, i, one, T)
                    b_one = load_one(bias, span_of(column * CHUNK, k) % width, one, T)
                    kept = kept_span(bits, k)
                    v_one = backward(d_one, s_one, b_one, kept, threshold, scale, GRAD, FROM_OUTPUT, COARSE)
                    store_one(dx, i, one, v_one)
                    if dbias is not None:
                        sum += spread(v_one, k)
                    k += SPAN
            first += strips * ROWS * row
    if dbias is not None:
        finish_sums((sum,), partials, totals, tickets, dbias, tile, strip, strips, row, width)


def constants(dtype: torch.dtype) -> dict[str, Any]:
    """What kernels for tensors of a dtype are compiled for, besides their rule."""
    return {"COARSE": COARSE_DIGITS.get(dtype, 0), "T": tl.float64 if dtype == torch.float64 else tl.float32}


def in_layout_of(x: Tensor, y: Tensor) -> Tensor:
    """A contiguous result y in the layout that torch.empty_like would give it."""
    if x.is_contiguous():
        return y
    like = torch.empty_like(x)
    return y if like.is_contiguous() else like.copy_(y)


def _launch_forward(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    rng_state: Tensor | None,
    threshold: int,
    activation: str,
    y: Tensor,
) -> None:
    """From contiguous tensors; y may be x."""
    if x.numel() == 0:
        return
    width, size = checks.width_of(x), forward_size(x.dtype, bias=bias, residual=residual)
    plan = plan_of(size, x.device, x.numel(), None if bias is None else width)
    with current(x.device):
        act_dropout_kernel[plan.programs](
            x,
            bias,
            residual,
            rng_state if threshold else None,
            y,
            threshold,
            x.numel(),
            whole_chunks(x.numel(), is_aligned(x, residual, y)),
            width,
            plan.row,
            FWD=ACTIVATIONS[activation].fwd,
            # So that the backward can tell a kept zero from a dropped one by the output alone.
            MARK=residual is None and rules.ACTIVATIONS[activation].saves == "output",
            **constants(x.dtype),
            **size.options(),
        )


def act_dropout(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, rng_state: Tensor | None, threshold: int, activation: str
) -> Tensor:
    """As the schema says.

    Raises:
        RuntimeError: before anything is launched: arguments of other shapes, dtypes or devices than it can work on.
    """
    checks.check_forward("act_dropout", x, bias, residual, rng_state, threshold, activation)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    bias, residual, rng_state = checks.contiguous(bias, residual, rng_state)
    _launch_forward(x.contiguous(), bias, residual, rng_state, threshold, activation, y)
    return in_layout_of(x, y)


def act_dropout_(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, rng_state: Tensor | None, threshold: int, activation: str
) -> None:
    """As the schema says; raises as `act_dropout`, and for elements of x that share memory."""
    checks.check_forward("act_dropout_", x, bias, residual, rng_state, threshold, activation, inplace=True)
    bias, residual, rng_state = checks.contiguous(bias, residual, rng_state)
    if x.is_contiguous() and not any(t is not None and checks.may_overlap(x, t) for t in (bias, residual)):
        _launch_forward(x, bias, residual, rng_state, threshold, activation, x)
        return
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch_forward(x.contiguous(), bias, residual, rng_state, threshold, activation, y)
    x.copy_(y)


def act_dropout_grad(
    dy: Tensor,
    saved: Tensor | None,
    bias: Tensor | None,
    rng_state: Tensor | None,
    threshold: int,
    activation: str,
    from_output: bool,
    needs_bias_grad: bool,
) -> tuple[Tensor, Tensor]:
    """As the schema says; raises as `act_dropout`. The sums of the bias gradient are made in a fixed order, in the same
    launch."""
    checks.check_backward("act_dropout_grad", dy, saved, bias, rng_state, threshold, activation, from_output)
    like = dy if saved is None else saved
    width = checks.width_of(dy)
    dx = torch.empty(dy.shape, dtype=dy.dtype, device=dy.device)
    dbias = checks.empty_sums(dy, width if needs_bias_grad else 0)
    if dy.numel() == 0:
        return in_layout_of(like, dx), dbias.zero_()
    rule = ACTIVATIONS[activation]
    dys = dy.contiguous()
    saved, bias, rng_state = checks.contiguous(saved, None if from_output else bias, rng_state)
    columns = needs_bias_grad or bias is not None
    size = backward_size(dy.dtype, bias=bias, dbias=dbias if needs_bias_grad else None)
    plan = plan_of(size, dy.device, dy.numel(), width if columns else None, needs_bias_grad)
    sums = (dbias, *Sums.of(plan, 1, dbias)) if needs_bias_grad else (None,) * 4
    with current(dy.device):
        act_dropout_grad_kernel[plan.programs](
            dys,
            saved,
            bias,
            rng_state if threshold and not from_output else None,
            dx,
            *sums,
            threshold,
            dy.numel(),
            whole_chunks(dy.numel(), is_aligned(dys, saved, dx)),
            width,
            plan.row,
            GRAD=rule.grad_from_output if from_output else rule.grad,
            FROM_OUTPUT=from_output,
            **constants(dy.dtype),
            **size.options(),
        )
    return in_layout_of(like, dx), dbias


def aot_choices() -> Iterator[tuple[str, torch.dtype]]:
    """Every rule in the dtypes of most tensors; the others differ from these by how they are moved, so one does."""
    for activation in ACTIVATIONS:
        yield activation, torch.bfloat16
        yield activation, torch.float32
    yield "softplus", torch.float16
    # Not gelu, whose gradient in fp64 spills a few of the 255 registers that a thread can have, on sm_120.
    yield "silu", torch.float64


def _forward_case(activation: str, dtype: torch.dtype, *absent: str) -> AotCase:
    t, marks = TYPES[dtype], rules.ACTIVATIONS[activation].saves == "output"
    x = f"*{t.name}"
    case = AotCase(
        f"act_dropout_kernel[{activation}, {t}]",
        act_dropout_kernel,
        {"x": x, "bias": x, "residual": x, "rng_state": "*i64", "y": x, **SCALARS},
        {"FWD": ACTIVATIONS[activation].fwd, "MARK": marks, **constants(dtype)},
        {},
    ).without(*absent)
    return case.of_size(forward_size(dtype, **case.given("bias", "residual")))


def _backward_case(activation: str, dtype: torch.dtype, from_output: bool, *absent: str) -> AotCase:
    t, rule = TYPES[dtype], ACTIVATIONS[activation]
    x, wide = f"*{t.name}", "*fp64" if dtype == torch.float64 else "*fp32"
    sums = {"dbias": wide, "partials": wide, "totals": "*fp64", "tickets": "*i32"}
    grad = rule.grad_from_output if from_output else rule.grad
    implied = ("bias", "rng_state") * from_output + tuple(sums) * ("dbias" in absent)
    case = AotCase(
        f"act_dropout_grad_kernel[{activation}, {t}{', from output' * from_output}]",
        act_dropout_grad_kernel,
        {"dy": x, "saved": x, "bias": x, "rng_state": "*i64", "dx": x, **sums, **SCALARS},
        {"GRAD": grad, "FROM_OUTPUT": from_output, **constants(dtype)},
        {},
    ).without(*absent, implied=implied)
    return case.of_size(backward_size(dtype, **case.given("bias", "dbias")))


def aot_cases() -> Iterator[AotCase]:
    """The kernels of this module, for compilation ahead of time: every rule, with all that is optional, and in 16 bits
    with neither operands nor sums, since there are fewer registers then; one of each kind with nothing."""
    for activation, dtype in aot_choices():
        both_ways = (False, True) if ACTIVATIONS[activation].grad_from_output else (False,)
        yield _forward_case(activation, dtype)
        for from_output in both_ways:
            yield _backward_case(activation, dtype, from_output)
        if activation in ("identity", "relu") and dtype == torch.bfloat16:
            yield _forward_case(activation, dtype, "bias", "residual", "rng_state")
    for activation in ACTIVATIONS:
        for dtype in (torch.bfloat16, torch.float16):
            yield _forward_case(activation, dtype, "bias", "residual")
            yield _backward_case(activation, dtype, False, "bias", "dbias")
            if ACTIVATIONS[activation].grad_from_output:
                yield _backward_case(activation, dtype, True, "dbias")
    yield _backward_case("identity", torch.bfloat16, False, "saved", "bias", "rng_state", "dbias")
