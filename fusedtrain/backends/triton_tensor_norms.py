"""The norm of each of a list of tensors, in Triton.

The chunks of the tensors leave partial results, as for the norm of all; the program that is the last to be done with a
tensor combines those of the tensor in their order.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedtrain import layout
from fusedtrain.backends import triton_checks as checks
from fusedtrain.backends.triton_norm import (
    BLOCK,
    aot_choices,
    blocks_for,
    combine,
    constants_for,
    measure,
    order_of,
    size_for,
)
from fusedtrain.backends.triton_table import (
    CHUNKS,
    EXTRA,
    FIELDS,
    FIRST,
    NUMEL,
    TYPES,
    AotCase,
    Rows,
    Size,
    arrived_last,
    bits,
    current,
    double_at,
    positions,
    row_of,
)

# A row has, besides its memory: the position of its norm; how many of its chunks are done.
POSITION = tl.constexpr(FIELDS.value + 1)
DONE = tl.constexpr(FIELDS.value + 2)
WIDTH = tl.constexpr(FIELDS.value + 3)


@triton.jit(do_not_specialize=["table", "partials", "norms"])
def tensor_norms_kernel(
    table,
    partials,
    norms,
    X: tl.constexpr,
    ORDER: tl.constexpr,
    SCALED: tl.constexpr,
    LOADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Besides the rows the table holds p and the blocks of a chunk."""
    p = double_at(table + EXTRA)
    blocks = tl.load(table + EXTRA + 1)
    chunks = tl.load(table + CHUNKS)
    chunk = tl.program_id(0).to(tl.int64)
    while chunk < chunks:
        row = row_of(table, chunk, WIDTH)
        first = tl.load(row + FIRST)
        count = tl.cdiv(tl.load(row + NUMEL), blocks * BLOCK)
        mine = count * 0
        while chunk < first + count:
            m, s = measure(row, (chunk - first) * blocks * BLOCK, blocks, p, X, ORDER, SCALED, LOADS, BLOCK)
            tl.store(partials + 2 * chunk, m)
            tl.store(partials + 2 * chunk + 1, s)
            chunk += tl.num_programs(0)
            mine += 1
        if arrived_last(row + DONE, mine, count):
            norm, _ = combine(partials + 2 * first, count, p, ORDER)
            tl.store(norms + tl.load(row + POSITION), norm.to(norms.dtype.element_ty))


def _size(dtype: torch.dtype, order: str) -> Size:
    """With registers for where a program is in its row, beside those that the norm of all takes."""
    return Size(4, max(128, size_for(dtype, order).registers))


def tensor_norms(tensors: list[Tensor], norm_type: float) -> Tensor:
    """The norms as the schema says. One launch for each dtype among the tensors.

    Raises:
        RuntimeError: ``norm_type`` not > 0; tensors that are not dense floating ones on one device.
    """
    checks.check_measured("tensor_norms", tensors, norm_type)
    if not tensors:
        return torch.zeros(0, dtype=torch.float32)
    device = tensors[0].device
    places = positions(x.dtype for x in tensors)
    dtype = torch.float64 if torch.float64 in places else torch.float32
    norms = torch.zeros(len(tensors), dtype=dtype, device=device)  # empty tensors have no chunk
    order = order_of(norm_type)
    # As long as for the largest alone: the norms are those of single tensors to the bit.
    blocks = blocks_for(max(x.numel() for x in tensors))
    with current(device):
        for kind, at in places.items():
            # Copies must live until the launch.
            dense = [x if layout.of(x) == "dense" else x.contiguous() for x in (tensors[i] for i in at)]
            rows = Rows(blocks * BLOCK)
            for x, i in zip(dense, at, strict=True):
                rows.add(x.numel(), (x.data_ptr(),), (i, 0))
            partials = torch.empty((rows.chunks, 2), dtype=torch.float64, device=device)
            table = rows.table(device, [*bits([norm_type]), blocks])
            size = _size(kind, order)
            tensor_norms_kernel[size.grid(device, rows.chunks)](
                table, partials, norms, **constants_for(kind, order), **size.options()
            )
    return norms


def aot_cases() -> Iterator[AotCase]:
    """The kernels of this module, for compilation ahead of time."""
    for dtype, order in aot_choices():
        signature = {"table": "*i64", "partials": "*fp64", "norms": "*fp64" if dtype == torch.float64 else "*fp32"}
        options = _size(dtype, order).options()
        name = f"tensor_norms_kernel[{order}, {TYPES[dtype]}]"
        yield AotCase(name, tensor_norms_kernel, signature, constants_for(dtype, order), options)
