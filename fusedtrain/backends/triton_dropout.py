"""What dropout does to an element, in Triton: see the RNG contract in `fusedtrain.rng`.

What drops is a tuple ``(random state, threshold)``, or None if nothing does.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from fusedtrain import rng
from fusedtrain.backends.triton_chunks import SPAN
from fusedtrain.backends.triton_philox import read_state, upper_lanes

LEVELS = tl.constexpr(rng.LEVELS)


@triton.jit
def read_drop(rng_state, threshold):
    drop = None
    if rng_state is not None:
        drop = (read_state(rng_state), threshold)
    return drop


@triton.jit
def keep(drop, chunk):
    """Which elements of the chunks are kept: (C,) -> (C, 8); None if nothing drops."""
    kept = None
    if drop is not None:
        # The lower half of the bound is all ones, so that of a word does not matter. At a threshold of 0, which has no
        # such bound, nothing drops.
        kept = upper_lanes(drop[0], chunk) > (drop[1].to(tl.uint32) << 16) - 1
    return kept


@triton.jit
def keep_bits(drop, chunk):
    """The same as bits: int32 (C,)."""
    bits = None
    if drop is not None:
        bits = tl.sum(keep(drop, chunk).to(tl.int32) << tl.arange(0, 8)[None, :], 1)
    return bits


@triton.jit
def kept_span(bits, k):
    """Of the elements from the k-th on: (C,) -> (C, SPAN)."""
    kept = None
    if bits is not None:
        kept = (bits[:, None] >> (k.to(tl.int32) + tl.arange(0, SPAN))[None, :]) & 1 != 0
    return kept


@triton.jit
def kept_levels(threshold):
    """65536 - threshold, or 65536 if none is kept: then it does not matter, but nothing is divided by 0."""
    return tl.where(threshold < LEVELS, threshold * -1 + LEVELS, LEVELS)


@triton.jit
def kept_scale(threshold, T: tl.constexpr):
    """What kept values are multiplied by: 65536 / (65536 - threshold), 0 if none is kept."""
    levels = tl.where(threshold < LEVELS, LEVELS, 0).to(tl.float64)
    return (levels / kept_levels(threshold).to(tl.float64)).to(T)


@triton.jit
def selected(v, kept, scale):
    """What is kept of v, scaled; 0 else. Scaled last: LLVM puts off a selection that comes last until v is rounded to
    16 bits, and then takes each pair apart for it, at an instruction an element."""
    return tl.where(kept, v, 0.0) * scale


@triton.jit
def unscale(y, threshold):
    return y * (kept_levels(threshold).to(y.dtype) * (1 / LEVELS))


@triton.jit
def mark_zeros(v, kept, Y: tl.constexpr):
    """Makes what is kept and becomes zero in dtype Y -0.0 there. By a product: Triton takes a constant -0.0, and the
    opposite of 0.0, for 0.0."""
    # The largest magnitude that is rounded to zero: 2^-134, which Triton takes for a double, or 2^-25.
    BITS: tl.constexpr = 0x8000 if tl.bfloat16 == Y else 0x33000000 if tl.float16 == Y else 0
    rounds_to_zero = tl.full([], BITS, tl.int32).to(tl.float32, bitcast=True)
    return tl.where(kept & (tl.abs(v) <= rounds_to_zero), tl.abs(v) * -1.0, v)


@triton.jit
def is_not_positive_zero(y):
    """All but what is dropped by a forward that marks kept zeros."""
    return y.to(tl.int64 if y.dtype == tl.float64 else tl.int32, bitcast=True) != 0
