"""One step of an update rule over a list of tensors, in Triton: one launch for each choice of dtypes among them.

Here are the memory, the dtypes, the clipping and the skipping of steps; the maths is in `triton_updates`.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disable-error-code=assignment

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedtrain import rules
from fusedtrain.backends import triton_checks as checks
from fusedtrain.backends.triton_cast import rounded, widened
from fusedtrain.backends.triton_table import (
    ALIGNED,
    CHUNKS,
    EXTRA,
    FIELDS,
    FIRST,
    HEAD,
    NUMEL,
    ROWS,
    TYPES,
    AotCase,
    Rows,
    Size,
    bits,
    current,
    done_last,
    double_at,
    row_of,
    run_at,
)
from fusedtrain.backends.triton_updates import UPDATES, clip_coefficient, prepare_gradient

# The fields of a row: addresses of p, g and the states, then these.
STEP = tl.constexpr(0)
COUNTER = tl.constexpr(1)
GROUP = tl.constexpr(2)
OTHERS = tl.constexpr(3)
MORE = {"step": STEP, "step_type": COUNTER, "group": GROUP}
"""By the names that `fusedtrain._plan.IntegerRows` has for them."""

BLOCK = 1024
COUNTERS_BLOCK = tl.constexpr(128)
COUNTERS = {torch.float32: 0, torch.float64: 1, torch.int64: 2}

LAUNCH_HYPER = tl.constexpr(len(rules.LAUNCH_HYPER))


@triton.jit
def scalar(ptr, default):
    """An optional scalar of whatever dtype, in fp64."""
    if ptr is None:
        x = tl.full((), default, tl.float64)
    else:
        x = widened(tl.load(ptr), tl.float64)
    return x


@triton.jit
def clipping(table, norm, inv_scale):
    """``(inv_scale, norm of the unscaled gradients, clip coefficient)`` in fp64."""
    unscale = scalar(inv_scale, 1.0)
    total = scalar(norm, 0.0) * unscale
    coef = scalar(None, 1.0)
    if norm is not None:
        coef = clip_coefficient(total, double_at(table + EXTRA))
    return unscale, total, coef


@triton.jit
def is_skipped(nonfinite, found_inf):
    return (scalar(found_inf, 0.0) != 0) | (scalar(nonfinite, 0.0) != 0)


@triton.jit
def steps_done(address, counter, mask):
    """Counts of steps, or one, in fp64. A counter is of one of three dtypes."""
    single = tl.load(address.to(tl.pointer_type(tl.float32)), mask=mask & (counter == 0), other=0)
    double = tl.load(address.to(tl.pointer_type(tl.float64)), mask=mask & (counter == 1), other=0)
    integer = tl.load(address.to(tl.pointer_type(tl.int64)), mask=mask & (counter == 2), other=0)
    return single.to(tl.float64) + double + integer.to(tl.float64)


@triton.jit
def count_step(table, WIDTH: tl.constexpr, OTHER: tl.constexpr):
    """Adds 1 to the counters of all rows."""
    rows = tl.load(table + ROWS)
    i = rows * 0
    while i < rows:
        row = i + tl.arange(0, COUNTERS_BLOCK)
        field = table + HEAD + row * WIDTH + OTHER
        address = tl.load(field + STEP, mask=row < rows, other=0)
        counter = tl.load(field + COUNTER, mask=row < rows, other=-1)
        single = address.to(tl.pointer_type(tl.float32))
        double = address.to(tl.pointer_type(tl.float64))
        integer = address.to(tl.pointer_type(tl.int64))
        tl.store(single, tl.load(single, mask=counter == 0, other=0) + 1, mask=counter == 0)
        tl.store(double, tl.load(double, mask=counter == 1, other=0) + 1, mask=counter == 1)
        tl.store(integer, tl.load(integer, mask=counter == 2, other=0) + 1, mask=counter == 2)
        i += COUNTERS_BLOCK


@triton.jit
def hyper_at(hyper, begin: tl.constexpr, N: tl.constexpr):
    h = ()
    for k in tl.static_range(N):
        h += (tl.load(hyper + begin + k),)
    return h


@triton.jit
def all_to(c, T: tl.constexpr):
    """A tuple of scalars in the dtype of the arithmetic."""
    y = ()
    for k in tl.static_range(len(c)):
        y += (c[k].to(T),)
    return y


@triton.jit
def update(
    row,
    begin,
    n,
    launch,
    c,
    DIRECTION: tl.constexpr,
    P: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Steps the elements from ``begin`` on: BLOCK of them, or n if that is less."""
    lr, scale, clip_value, l1 = launch
    lane = tl.arange(0, BLOCK)
    mask = None if WIDE else lane < n
    p_ptr = run_at(tl.load(row + FIELDS), begin, P, WIDE) + lane
    g_ptr = run_at(tl.load(row + FIELDS + 1), begin, G, WIDE) + lane
    p = widened(tl.load(p_ptr, mask=mask), T)
    g = widened(tl.load(g_ptr, mask=mask), T)
    s = ()
    for k in tl.static_range(len(S)):
        s_ptr = run_at(tl.load(row + FIELDS + 2 + k), begin, S[k], WIDE) + lane
        s += (widened(tl.load(s_ptr, mask=mask), T),)
    u, s = DIRECTION(p, prepare_gradient(p, g, scale, clip_value, l1), s, c)
    tl.store(p_ptr, rounded(p - lr * u, P), mask=mask)
    for k in tl.static_range(len(S)):
        s_ptr = run_at(tl.load(row + FIELDS + 2 + k), begin, S[k], WIDE) + lane
        tl.store(s_ptr, rounded(s[k], S[k]), mask=mask)


@triton.jit(
    do_not_specialize=[
        "table",
        "hyper",
        "norm",
        "nonfinite",
        "inv_scale",
        "found_inf",
        "grad_norm",
        "clip_coef",
        "skipped_steps",
    ]
)
def step_kernel(
    table,
    hyper,
    norm,
    nonfinite,
    inv_scale,
    found_inf,
    grad_norm,
    clip_coef,
    skipped_steps,
    CONSTANTS: tl.constexpr,
    DIRECTION: tl.constexpr,
    HYPER: tl.constexpr,
    P: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Besides the rows the table holds max_norm. A tensor that is absent is None."""
    OTHER: tl.constexpr = FIELDS + 2 + len(S)
    WIDTH: tl.constexpr = OTHER + OTHERS
    unscale, total, coef = clipping(table, norm, inv_scale)
    scale = (unscale * coef).to(T)
    skip = is_skipped(nonfinite, found_inf)
    # From the last chunk to the first: what the norm has read last is in the cache still.
    chunk = tl.where(skip, -1, tl.load(table + CHUNKS) - 1 - tl.program_id(0).to(tl.int64))
    while chunk >= 0:
        row = row_of(table, chunk, WIDTH)
        first = tl.load(row + FIRST)
        numel = tl.load(row + NUMEL)
        aligned = tl.load(row + ALIGNED) != 0
        h_ptr = hyper + tl.load(row + OTHER + GROUP) * (LAUNCH_HYPER + HYPER)
        lr, sign, clip_value, l1 = hyper_at(h_ptr, 0, LAUNCH_HYPER)
        launch = (lr.to(T), scale * sign.to(T), clip_value.to(T), l1.to(T))
        t = steps_done(tl.load(row + OTHER + STEP), tl.load(row + OTHER + COUNTER), True) + 1
        # As much as possible once for all chunks of a row: powers in fp64 are dear on some GPUs.
        c = all_to(CONSTANTS(hyper_at(h_ptr, LAUNCH_HYPER, HYPER), t), T)
        while chunk >= first:
            begin = (chunk - first) * BLOCK
            n = numel - begin
            if (n >= BLOCK) & aligned:
                update(row, begin, n, launch, c, DIRECTION, P, G, S, T, BLOCK, True)
            else:
                # By halves: among accesses of one shape Triton lets all threads take as many elements as the widest,
                # and these would no longer be coalesced.
                end = tl.minimum(begin + BLOCK, numel)
                while begin < end:
                    update(row, begin, numel - begin, launch, c, DIRECTION, P, G, S, T, BLOCK // 2, False)
                    begin += BLOCK // 2
            chunk -= tl.num_programs(0)
    if done_last(table):
        # Read once more: to keep it would cost registers that the loop needs.
        unscale, total, coef = clipping(table, norm, inv_scale)
        skip = is_skipped(nonfinite, found_inf)
        if norm is not None and grad_norm is not None:
            tl.store(grad_norm, rounded(total, grad_norm.dtype.element_ty))
        if clip_coef is not None:
            tl.store(clip_coef, rounded(coef, clip_coef.dtype.element_ty))
        if skipped_steps is not None:
            tl.store(skipped_steps, tl.load(skipped_steps) + skip.to(tl.int64))
        if not skip:
            count_step(table, WIDTH, OTHER)


def _size(dtypes: tuple[torch.dtype, ...]) -> Size:
    """Where the sizes of p, g and the states differ a thread takes no more elements than the widest access of the
    largest: else values would go through shared memory, from a layout to another. Doubles need as many again."""
    sizes = {x.itemsize for x in dtypes}
    registers = 128 if dtypes[0] == torch.float64 else 80 if len(dtypes) <= 4 else 96
    return Size(4 if len(sizes) == 1 and max(sizes) <= 4 else 8, registers)


def _constants(rule: str, dtypes: tuple[torch.dtype, ...]) -> dict[str, Any]:
    """What `step_kernel` is compiled for."""
    update = UPDATES[rule]
    p, g, *states = dtypes
    return {
        "CONSTANTS": update.constants,
        "DIRECTION": update.direction,
        "HYPER": len(rules.UPDATES[rule].hyper),
        "P": TYPES[p],
        "G": TYPES[g],
        "S": tuple(TYPES[s] for s in states),
        "T": tl.float64 if p == torch.float64 else tl.float32,
        "BLOCK": BLOCK,
    }


def optim_step_(
    rule: str,
    params: list[Tensor],
    grads: list[Tensor],
    states: list[Tensor],
    steps: list[Tensor],
    hyper: Tensor,
    group: list[int],
    norm: Tensor | None,
    nonfinite: Tensor | None,
    inv_scale: Tensor | None,
    found_inf: Tensor | None,
    max_norm: float,
    skip_nonfinite: bool,
    grad_norm: Tensor | None,
    clip_coef: Tensor | None,
    skipped_steps: Tensor | None,
) -> None:
    """A step as the schema says; ``hyper`` may also be where the parameters are.

    Raises:
        RuntimeError: before anything is written: lists of other lengths, tensors of other devices, dtypes or layouts
            than the step can work on, memory that would be written twice.
    """
    checks.check_step(
        "optim_step_",
        rule,
        params,
        grads,
        states,
        steps,
        hyper,
        group,
        norm,
        nonfinite,
        inv_scale,
        found_inf,
        max_norm,
        skip_nonfinite,
        grad_norm,
        clip_coef,
        skipped_steps,
    )
    if not params:
        return
    n, device = len(params), params[0].device
    work: dict[tuple[torch.dtype, ...], Rows] = {}
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        tensors = (p, g, *states[i::n])
        rows = work.setdefault(tuple(x.dtype for x in tensors), Rows(BLOCK))
        others = (steps[i].data_ptr(), COUNTERS[steps[i].dtype], group[i])
        rows.add(p.numel(), [x.data_ptr() for x in tensors], others)
    # Hyperparameters of the host go up with the table: their bits, as integers.
    tail: list[int] = hyper.view(torch.int64).flatten().tolist() if hyper.device.type == "cpu" else []
    outputs: tuple[Tensor | None, ...] = (None, None, None)
    with current(device):
        for k, (dtypes, rows) in enumerate(work.items()):
            if k == len(work) - 1:  # written, and counted, once: when no launch has the inputs yet to read
                outputs = (grad_norm, clip_coef, skipped_steps)
            table = rows.table(device, bits([max_norm]), tail)
            values = table[table.numel() - len(tail) :].view(torch.float64) if tail else hyper
            inputs = (norm, nonfinite if skip_nonfinite else None, inv_scale, found_inf)
            launch(table, rows.chunks, values, inputs, outputs, rule, dtypes)


def launch(
    table: Tensor,
    chunks: int,
    hyper: Tensor,
    inputs: tuple[Tensor | None, ...],
    outputs: tuple[Tensor | None, ...],
    rule: str,
    dtypes: tuple[torch.dtype, ...],
) -> None:
    """Steps the tensors of a table, all of one choice of dtypes, on the current device. ``inputs``: norm, nonfinite if
    it is to skip the step, inv_scale, found_inf; ``outputs``: grad_norm, clip_coef, skipped_steps."""
    size = _size(dtypes)
    step_kernel[size.grid(table.device, chunks)](
        table, hyper, *inputs, *outputs, **_constants(rule, dtypes), **size.options()
    )


def aot_cases() -> Iterator[AotCase]:
    """The kernels of this module, for compilation ahead of time: the choices of dtypes that training knows."""
    single, double, half, brain = torch.float32, torch.float64, torch.float16, torch.bfloat16
    for rule, update in rules.UPDATES.items():
        usual = [(single, single, single), (brain, brain, single), (double, double, double)]
        if rule == "adamw":
            usual += [(half, half, single), (brain, single, single), (brain, brain, brain)]
        for p, g, s in usual:
            dtypes = (p, g, *[s] * len(update.slots))
            norm = "*fp64" if p == double else "*fp32"
            scalars = {"norm": norm, "nonfinite": "*fp32", "inv_scale": "*fp32", "found_inf": "*fp32"}
            outputs = {"grad_norm": norm, "clip_coef": norm, "skipped_steps": "*i64"}
            name = f"step_kernel[{rule}, {', '.join(str(TYPES[x]) for x in dtypes)}]"
            constants, options = _constants(rule, dtypes), _size(dtypes).options()
            tables = {"table": "*i64", "hyper": "*fp64"}
            yield AotCase(name, step_kernel, {**tables, **scalars, **outputs}, constants, options)
            if rule == "adamw" and dtypes[0] == single:
                name, constants = f"{name} alone", {**constants, **dict.fromkeys(scalars), "grad_norm": None}
                del outputs["grad_norm"]
                yield AotCase(name, step_kernel, {**tables, **outputs}, constants, options)
