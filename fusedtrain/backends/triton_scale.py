"""The scaling of gradients to a norm, in Triton."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedtrain import layout
from fusedtrain.backends import triton_checks as checks
from fusedtrain.backends.triton_cast import rounded, widened
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
    double_at,
    lanes,
    row_of,
    run_at,
    runs,
)
from fusedtrain.backends.triton_updates import clip_coefficient

WIDTH = tl.constexpr(FIELDS.value + 1)
BLOCK = 1024
SIZE = Size(4, 40)


@triton.jit
def scale(
    row,
    begin,
    n,
    factor,
    X: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    lane = lanes(BLOCK, WIDE)
    x_ptr = run_at(tl.load(row + FIELDS), begin, X, WIDE) + lane
    mask = None if WIDE else lane < n
    tl.store(x_ptr, rounded(widened(tl.load(x_ptr, mask=mask), T) * factor, X), mask=mask)


@triton.jit(do_not_specialize=["table", "norm"])
def scale_kernel(table, norm, X: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr):
    """Besides the rows the table holds max_norm."""
    coef = clip_coefficient(widened(tl.load(norm), tl.float64), double_at(table + EXTRA))
    # A NaN is no coefficient of 1: it poisons the gradients.
    chunks = tl.where(coef >= 1, 0, tl.load(table + CHUNKS))
    chunk = tl.program_id(0).to(tl.int64)
    while chunk < chunks:
        row = row_of(table, chunk, WIDTH)
        begin = (chunk - tl.load(row + FIRST)) * BLOCK
        n = tl.load(row + NUMEL) - begin
        if (n >= BLOCK) & (tl.load(row + ALIGNED) != 0):
            scale(row, begin, n, coef.to(T), X, T, BLOCK, True)
        else:
            scale(row, begin, n, coef.to(T), X, T, BLOCK, False)
        chunk += tl.num_programs(0)


def _constants(dtype: torch.dtype) -> dict[str, Any]:
    """What `scale_kernel` is compiled for."""
    return {
        "X": TYPES[dtype],
        "T": tl.float64 if dtype == torch.float64 else tl.float32,
        "BLOCK": BLOCK,
    }


def clip_scale_(grads: list[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scales the gradients where the coefficient, which stays on the device, is below 1.

    Raises:
        RuntimeError: before anything is scaled: ``max_norm`` negative or NaN; gradients that are not floating ones on
            one device, or share memory.
    """
    checks.check_scaled("clip_scale_", grads, norm, max_norm)
    if not grads:
        return
    device = grads[0].device
    dense = [x if layout.of(x) == "dense" else x.contiguous() for x in grads]
    with current(device):
        for dtype, xs in by_dtype(dense).items():
            rows = runs(xs, BLOCK)
            scale_kernel[SIZE.grid(device, rows.chunks)](
                rows.table(device, bits([max_norm])), norm, **_constants(dtype), **SIZE.options()
            )
    for x, y in zip(grads, dense, strict=True):
        if x is not y:
            x.copy_(y)


def aot_cases() -> Iterator[AotCase]:
    """The kernels of this module, for compilation ahead of time."""
    for dtype in TYPES:
        signature = {"table": "*i64", "norm": "*fp64" if dtype == torch.float64 else "*fp32"}
        yield AotCase(f"scale_kernel[{TYPES[dtype]}]", scale_kernel, signature, _constants(dtype), SIZE.options())
