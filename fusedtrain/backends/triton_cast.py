"""Between the dtypes of memory and of arithmetic, in Triton: exact one way, rounded to nearest the other.

The interpreter would cut off the bits that bfloat16 lacks, and errs in its subnormal numbers: there it is done by bits.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from fusedtrain.backends.triton_target import INTERPRETED


@triton.jit
def widened(x, T: tl.constexpr):
    """What memory holds, in the dtype of the arithmetic, fp32 or fp64."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        high = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        y = high.to(tl.float32, bitcast=True).to(T)
    else:
        y = x.to(T)
    return y


@triton.jit
def rounded(x, X: tl.constexpr):
    """A result in the dtype of its memory. A double becomes a 16-bit number by way of float, as in torch."""
    single = x.to(tl.float32) if X.primitive_bitwidth == 16 else x
    if INTERPRETED and tl.bfloat16 == X:
        b = single.to(tl.uint32, bitcast=True)
        nearest_even = (b + ((b >> 16) & 1) + 0x7FFF) >> 16
        y = tl.where(single == single, nearest_even, 0x7FC0).to(tl.uint16).to(X, bitcast=True)
    else:
        y = single.to(X)
    return y
