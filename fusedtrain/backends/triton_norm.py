"""The global norm of a list of tensors, in Triton.

Every chunk leaves a partial result ``(m, s)``, whose share of ``sum |x|^p`` is ``m^p s``; the program that is done last
combines them in their order. So the norm does not depend on how many programs there are, nor on when each runs.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disable-error-code=assignment

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedtrain import layout
from fusedtrain.backends import triton_checks as checks
from fusedtrain.backends.triton_cast import widened
from fusedtrain.backends.triton_table import (
    ALIGNED,
    CHUNKS,
    EXTRA,
    FIELDS,
    FIRST,
    NUMEL,
    TYPES,
    AotCase,
    Size,
    bits,
    by_dtype,
    current,
    done_last,
    double_at,
    lanes,
    row_of,
    run_at,
    runs,
)

WIDTH = tl.constexpr(FIELDS.value + 1)
BLOCK = 1024
LOADS = 4
BLOCKS = 4 * LOADS
"""Of a chunk, or a multiple: few enough that programs share the work evenly."""
PARTIALS = 16384
"""About as many partial results as one program combines in a time that does not matter."""
PARTIALS_BLOCK = tl.constexpr(1024)


@triton.jit
def magnitude_bits(x):
    # Without their signs, floating-point numbers are ordered as their bits are, NaN above infinity.
    if x.dtype == tl.float64:
        b = x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        b = widened(x, tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return b


@triton.jit
def largest_of(b):
    """The magnitude whose bits are the largest, in fp64."""
    top = tl.max(b, 0)
    x = top.to(tl.float64 if top.dtype == tl.int64 else tl.float32, bitcast=True)
    return x.to(tl.float64)


@triton.jit
def power(r, p, ORDER: tl.constexpr):
    """``r^p`` for r >= 0 in fp64."""
    if ORDER == "2":
        y = r * r
    elif ORDER == "1":
        y = r
    else:
        y = tl.where(r > 0, tl.exp(p * tl.log(tl.where(r > 0, r, 1.0))), r)
    return y


@triton.jit
def root(y, p, ORDER: tl.constexpr):
    """``y^(1/p)`` for y > 0 in fp64."""
    if ORDER == "2":
        r = tl.sqrt(y)
    elif ORDER == "1":
        r = y
    else:
        r = tl.exp(tl.log(y) / p)
    return r


@triton.jit
def unit_of(m):
    return tl.where((m > 0) & (m < float("inf")), m, 1.0)


@triton.jit
def load_blocks(x_ptr, begin, n, lane, LOADS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """LOADS blocks, all of them on their way before the first is needed; zeros from n on."""
    xs = ()
    for k in tl.static_range(LOADS):
        i = begin + k * BLOCK
        xs += (tl.load(x_ptr + i + lane) if WIDE else tl.load(x_ptr + i + lane, mask=lane < n - i, other=0),)
    return xs


@triton.jit
def largest_bits(address, begin, n, X: tl.constexpr, LOADS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    x_ptr = run_at(address, begin, X, WIDE)
    lane = lanes(BLOCK, WIDE)
    top = magnitude_bits(tl.zeros_like(lane).to(X))
    step = n * 0
    while step * (LOADS * BLOCK) < n:
        xs = load_blocks(x_ptr, step * (LOADS * BLOCK), n, lane, LOADS, BLOCK, WIDE)
        for k in tl.static_range(LOADS):
            top = tl.maximum(top, magnitude_bits(xs[k]))
        step += 1
    return tl.reshape(top, [BLOCK])


@triton.jit
def sums(
    address,
    begin,
    n,
    unit,
    p,
    X: tl.constexpr,
    ORDER: tl.constexpr,
    SCALED: tl.constexpr,
    LOADS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """A sum for each lane; which elements are in it does not depend on the alignment."""
    x_ptr = run_at(address, begin, X, WIDE)
    lane = lanes(BLOCK, WIDE)
    total = tl.zeros_like(lane).to(tl.float64)
    step = n * 0
    while step * (LOADS * BLOCK) < n:
        xs = load_blocks(x_ptr, step * (LOADS * BLOCK), n, lane, LOADS, BLOCK, WIDE)
        for k in tl.static_range(LOADS):
            r = tl.abs(widened(xs[k], tl.float64))
            if SCALED:
                r = r / unit
            total += power(r, p, ORDER)
        step += 1
    return tl.reshape(total, [BLOCK])


@triton.jit
def measure(
    row,
    begin,
    blocks,
    p,
    X: tl.constexpr,
    ORDER: tl.constexpr,
    SCALED: tl.constexpr,
    LOADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``(m, s)`` of the chunk of so many blocks that begins at this element. If an element is inf or NaN, so is m."""
    address = tl.load(row + FIELDS)
    n = tl.minimum(tl.load(row + NUMEL) - begin, blocks * BLOCK)
    whole = (n == blocks * BLOCK) & (tl.load(row + ALIGNED) != 0)
    m = tl.full((), 1.0, tl.float64)
    s = tl.full((), 0.0, tl.float64)
    if SCALED:
        if whole:
            top = largest_bits(address, begin, n, X, LOADS, BLOCK, True)
        else:
            top = largest_bits(address, begin, n, X, LOADS, BLOCK, False)
        m = largest_of(top)
    if ORDER != "inf":
        if whole:
            total = sums(address, begin, n, unit_of(m), p, X, ORDER, SCALED, LOADS, BLOCK, True)
        else:
            total = sums(address, begin, n, unit_of(m), p, X, ORDER, SCALED, LOADS, BLOCK, False)
        s = tl.sum(total, 0)
    if not SCALED:
        # A power of a float is far from the limits of fp64; where the sum is not finite an element is not. A chunk of
        # zeros must not set the unit of those beside it.
        m = tl.where((s > 0) & (s < float("inf")), 1.0, s)
    return m, s


@triton.jit
def combine(partials, n, p, ORDER: tl.constexpr):
    """The norm of all, and whether it is finite but for overflow, from n partial results, in fp64."""
    lane = tl.arange(0, PARTIALS_BLOCK)
    top = tl.zeros([PARTIALS_BLOCK], tl.int64)
    i = n * 0
    while i < n:
        # Past the L1 cache: other programs have written it.
        m = tl.load(partials + 2 * (i + lane), mask=lane < n - i, other=0, cache_modifier=".cg")
        top = tl.maximum(top, magnitude_bits(m))
        i += PARTIALS_BLOCK
    m_all = largest_of(top)
    norm = m_all
    if ORDER != "inf":
        unit = unit_of(m_all)
        total = tl.zeros([PARTIALS_BLOCK], tl.float64)
        i = n * 0
        while i < n:
            m = tl.load(partials + 2 * (i + lane), mask=lane < n - i, other=0, cache_modifier=".cg")
            s = tl.load(partials + 2 * (i + lane) + 1, mask=lane < n - i, other=0, cache_modifier=".cg")
            total += power(m / unit, p, ORDER) * s
            i += PARTIALS_BLOCK
        scaled = tl.sum(total, 0)
        usable = (m_all > 0) & (m_all < float("inf"))
        norm = tl.where(usable, unit * root(tl.where(usable, scaled, 1.0), p, ORDER), m_all)
    return norm, m_all < float("inf")


@triton.jit(do_not_specialize=["table", "partials", "norm", "nonfinite"])
def norm_kernel(
    table,
    partials,
    norm,
    nonfinite,
    X: tl.constexpr,
    ORDER: tl.constexpr,
    SCALED: tl.constexpr,
    LOADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Besides the rows the table holds p; the number of partial results before this launch; that of all of them, or -1
    if another launch will combine; the blocks of a chunk."""
    p = double_at(table + EXTRA)
    before = tl.load(table + EXTRA + 1)
    n = tl.load(table + EXTRA + 2)
    blocks = tl.load(table + EXTRA + 3)
    chunks = tl.load(table + CHUNKS)
    chunk = tl.program_id(0).to(tl.int64)
    while chunk < chunks:
        row = row_of(table, chunk, WIDTH)
        first = tl.load(row + FIRST)
        end = first + tl.cdiv(tl.load(row + NUMEL), blocks * BLOCK)
        while chunk < end:
            m, s = measure(row, (chunk - first) * blocks * BLOCK, blocks, p, X, ORDER, SCALED, LOADS, BLOCK)
            tl.store(partials + 2 * (before + chunk), m)
            tl.store(partials + 2 * (before + chunk) + 1, s)
            chunk += tl.num_programs(0)
    if done_last(table) & (n >= 0):
        value, finite = combine(partials, n, p, ORDER)
        tl.store(norm, value.to(norm.dtype.element_ty))
        tl.store(nonfinite, tl.where(finite, 0.0, 1.0))


def blocks_for(elements: int) -> int:
    """The blocks of a chunk of so many elements in all."""
    return BLOCKS * max(1, -(-elements // (BLOCKS * BLOCK * PARTIALS)))


def order_of(p: float) -> str:
    return {1.0: "1", 2.0: "2", math.inf: "inf"}.get(p, "any")


def size_for(dtype: torch.dtype, order: str) -> Size:
    return Size(4, 160 if order == "any" else 128 if dtype == torch.float64 else 96)


def constants_for(dtype: torch.dtype, order: str) -> dict[str, Any]:
    """What `norm_kernel` is compiled for."""
    scaled = dtype == torch.float64 or order in ("any", "inf")
    return {
        "X": TYPES[dtype],
        "ORDER": order,
        "SCALED": scaled,
        # Division and powers are inlined for each.
        "LOADS": 1 if scaled and order != "inf" else LOADS,
        "BLOCK": BLOCK,
    }


def global_norm(tensors: list[Tensor], norm_type: float) -> tuple[Tensor, Tensor]:
    """``(norm, nonfinite)`` as the schema says. One launch for each dtype among the tensors.

    Raises:
        RuntimeError: ``norm_type`` not > 0; tensors that are not dense floating ones on one device.
    """
    checks.check_measured("global_norm", tensors, norm_type)
    if not tensors:
        return torch.zeros((), dtype=torch.float32), torch.zeros((), dtype=torch.float32)
    device = tensors[0].device
    groups = by_dtype([x if layout.of(x) == "dense" else x.contiguous() for x in tensors])
    norm = torch.empty((), dtype=torch.float64 if torch.float64 in groups else torch.float32, device=device)
    nonfinite = torch.empty((), dtype=torch.float32, device=device)
    blocks = blocks_for(sum(x.numel() for x in tensors))
    work = [(dtype, runs(xs, blocks * BLOCK)) for dtype, xs in groups.items()]
    n = sum(rows.chunks for _, rows in work)
    partials = torch.empty((n, 2), dtype=torch.float64, device=device)
    extras = head_extras([rows.chunks for _, rows in work], norm_type, blocks)
    with current(device):
        for (dtype, rows), extra in zip(work, extras, strict=True):
            launch(rows.table(device, extra), rows.chunks, partials, norm, nonfinite, dtype, norm_type)
    return norm, nonfinite


def head_extras(chunks: list[int], norm_type: float, blocks: int) -> list[list[int]]:
    """What the head of each table of a norm has besides, where launches work on so many chunks one after another."""
    extras, before = [], 0
    for k, own in enumerate(chunks):
        extras.append([*bits([norm_type]), before, sum(chunks) if k == len(chunks) - 1 else -1, blocks])
        before += own
    return extras


def launch(
    table: Tensor,
    chunks: int,
    partials: Tensor,
    norm: Tensor,
    nonfinite: Tensor,
    dtype: torch.dtype,
    norm_type: float,
) -> None:
    """Measures the tensors of a table, all of one dtype, on the current device. The last launch of a norm writes it."""
    order = order_of(norm_type)
    size = size_for(dtype, order)
    norm_kernel[size.grid(table.device, chunks)](
        table, partials, norm, nonfinite, **constants_for(dtype, order), **size.options()
    )


def aot_choices() -> Iterator[tuple[torch.dtype, str]]:
    """What to compile ahead of time: every order in fp32, every dtype in the usual one."""
    for order in ("2", "1", "inf", "any"):
        yield torch.float32, order
    for dtype in TYPES:
        if dtype != torch.float32:
            yield dtype, "2"
    yield torch.float64, "any"


def aot_cases() -> Iterator[AotCase]:
    """The kernels of this module, for compilation ahead of time."""
    for dtype, order in aot_choices():
        norm = "*fp64" if dtype == torch.float64 else "*fp32"
        signature = {"table": "*i64", "partials": "*fp64", "norm": norm, "nonfinite": "*fp32"}
        name = f"norm_kernel[{order}, {TYPES[dtype]}]"
        yield AotCase(name, norm_kernel, signature, constants_for(dtype, order), size_for(dtype, order).options())
