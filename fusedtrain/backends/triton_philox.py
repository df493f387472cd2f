"""Philox4x32-10 in Triton, in the counter layout of the RNG contract (`fusedtrain.rng`): one counter gives the lanes of
eight consecutive elements.

Triton's own is not used: it draws for one element at a time, from other counters, and may change.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from fusedtrain.backends.triton_target import INTERPRETED, NVIDIA


@triton.jit
def wide_product(x, FACTOR: tl.constexpr):
    """The product of 32-bit words, uint64. As one instruction: LLVM makes two of some, at an instruction an element."""
    if NVIDIA and not INTERPRETED:
        instruction: tl.constexpr = "mul.wide.u32 $0, $1, $2;"
        y = tl.inline_asm_elementwise(instruction, "=l,r,r", [x, FACTOR], tl.uint64, is_pure=True, pack=1)
    else:
        y = x.to(tl.uint64) * FACTOR
    return y


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds on four counter words and two key words, uint32."""
    for _ in tl.static_range(10):
        product0 = wide_product(c0, 0xD2511F53)
        product1 = wide_product(c2, 0xCD9E8D57)
        c0, c2 = (product1 >> 32).to(tl.uint32) ^ k0 ^ c1, (product0 >> 32).to(tl.uint32) ^ k1 ^ c3
        c1, c3 = product1.to(tl.uint32), product0.to(tl.uint32)
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def read_state(rng_state):
    """``(seed, offset)`` as words: the two of the key, and of the two counter words that all chunks share."""
    # Loaded as words: with parts of 64 bits LLVM computes all that follows in 64 bits, at 2 instructions an element.
    words = rng_state.to(tl.pointer_type(tl.uint32))
    k0, k1 = tl.load(words), tl.load(words + 1)
    offset0, offset1 = tl.load(words + 2), tl.load(words + 3)
    return k0, k1, offset0 >> 2 | offset1 << 30, offset1 >> 2


@triton.jit
def upper_lanes(state, chunk):
    """The lanes of elements ``8 chunk`` to ``8 chunk + 7``, each in the upper half of a word whose lower half is any:
    chunk int64 (C,) -> uint32 (C, 8). A thread that has a chunk has its lanes, nothing is exchanged."""
    zero = (chunk * 0).to(tl.uint32)
    k0, k1, c0, c1 = state
    w0, w1, w2, w3 = philox4x32(zero + c0, zero + c1, chunk.to(tl.uint32), (chunk >> 32).to(tl.uint32), k0, k1)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.reshape(tl.join(words << 16, words), [chunk.shape[0], 8])
