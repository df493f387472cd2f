"""How the programs of a kernel walk over the chunks of a tensor, and how they load and store them.

A chunk is eight consecutive elements, as many as one draw of random numbers serves. Tensors are seen as rows of a whole
number of chunks; a program has a tile of TILE chunks of ROWS rows and walks down. A thread has the same eight elements
of every tensor, also where they are two or four vectors: so nothing is exchanged between threads. Chunks that are not
whole, or not aligned, are taken SPAN elements at a time.

A program walks twice: over the blocks of rows that are full, where a loop has nothing to decide and costs three
instructions an element less, and over the REST.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fusedtrain.backends.triton_cast import rounded, widened
from fusedtrain.backends.triton_target import INTERPRETED

CHUNK = tl.constexpr(8)
TILE = tl.constexpr(8)  # 128 bytes of a row in 16 bits: what the memory moves at once
ROWS = tl.constexpr(16)
CHUNKS = tl.constexpr(TILE.value * ROWS.value)
WARPS = 4  # a thread for each chunk; two of them on those GPUs of AMD whose warps have 64

SPAN = tl.constexpr(8 if INTERPRETED.value else 1)
"""More would cost registers on a GPU; the interpreter minds the number of operations alone."""

ALIGNMENT = tl.constexpr(16)
"""Bytes of the widest load of a thread."""


@triton.jit
def tile_of(row):
    """``(tile, strip, strips)`` of this program, for rows of so many chunks."""
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(row, TILE)
    return program % tiles, program // tiles, tl.num_programs(0).to(tl.int64) // tiles


@triton.jit
def columns_of(tile):
    """The columns, in chunks, of the chunks of a tile: int64 (CHUNKS,)."""
    return tile * TILE + tl.arange(0, CHUNKS) % TILE


@triton.jit
def places_of(column, row):
    """The chunks of a tile in these columns, counted from the beginning of the first of its ROWS rows."""
    return (tl.arange(0, CHUNKS) // TILE).to(tl.int64) * row + column


@triton.jit
def ends_of(tile, row, chunks, whole):
    """``(full_end, whole_end, end)`` for the first chunks of a tile's blocks of rows: a block that begins before
    full_end has all its chunks, whole and aligned; of one before whole_end those that exist are so; none begins at end
    or beyond."""
    last = (ROWS - 1) * row + tl.minimum((tile + 1) * TILE, row) - 1
    return tl.minimum(whole, chunks) - last, whole - last, chunks - tile * TILE


@triton.jit
def mask_of(inside, chunk, chunks, REST: tl.constexpr):
    """Which chunks of a block of rows exist."""
    return inside & (chunk < chunks) if REST else inside


@triton.jit
def counted(x, mask, REST: tl.constexpr):
    """What of whole chunks is summed. A full block lacks only columns, and nobody reads their sums."""
    return tl.where(mask[:, None], x, 0.0) if REST else x


@triton.jit
def elements_of(start):
    """Those of the chunks that start there: (C,) -> (C, 8)."""
    return start[:, None] + tl.arange(0, CHUNK)[None, :]


@triton.jit
def span_of(start, k):
    """The elements from the k-th on: (C,) -> (C, SPAN)."""
    return (start + k)[:, None] + tl.arange(0, SPAN)[None, :]


@triton.jit
def spread(x, k):
    """Such elements among those of their chunks, the others 0: (C, SPAN) -> (C, 8)."""
    return x if SPAN == 8 else tl.where(tl.arange(0, 8)[None, :] == k, x, 0.0)


@triton.jit
def load_one(ptr, i, mask, T: tl.constexpr):
    """Elements in the dtype of the arithmetic, 0 where the mask says no; None of a pointer that is None."""
    x = None
    if ptr is not None:
        x = widened(tl.load(ptr + i, mask=mask, other=0), T)
    return x


@triton.jit
def store_one(ptr, i, mask, x):
    tl.store(ptr + i, rounded(x, ptr.dtype.element_ty), mask=mask)


@triton.jit
def run_at(ptr, start, WIDE: tl.constexpr):
    """The promise of alignment is what makes accesses wide. It holds for these pointers alone, so that another branch
    may go without."""
    return tl.multiple_of(ptr + start, ALIGNMENT)[:, None] + tl.arange(0, WIDE)[None, :]


@triton.jit
def load_vectors(ptr, start, mask):
    C: tl.constexpr = start.shape[0]
    VECTOR: tl.constexpr = ALIGNMENT * 8 // ptr.dtype.element_ty.primitive_bitwidth
    mask = mask[:, None]
    if VECTOR == 8:
        x = tl.load(run_at(ptr, start, 8), mask=mask)
    elif VECTOR == 4:
        p = run_at(ptr, start, 4)
        pair = tl.join(tl.load(p, mask=mask), tl.load(p + 4, mask=mask))
        x = tl.reshape(tl.permute(pair, [0, 2, 1]), [C, 8])
    else:
        p = run_at(ptr, start, 2)
        even = tl.join(tl.load(p, mask=mask), tl.load(p + 4, mask=mask))
        odd = tl.join(tl.load(p + 2, mask=mask), tl.load(p + 6, mask=mask))
        x = tl.reshape(tl.permute(tl.join(even, odd), [0, 2, 3, 1]), [C, 8])
    return x


@triton.jit
def load_whole(ptr, start, mask, T: tl.constexpr):
    """The whole aligned chunks that start there, as `load_one`, but anything where the mask says no: (C,) -> (C, 8)."""
    x = None
    if ptr is not None:
        x = widened(load_vectors(ptr, start, mask), T)
    return x


@triton.jit
def store_whole(ptr, start, mask, x):
    x = rounded(x, ptr.dtype.element_ty)
    C: tl.constexpr = start.shape[0]
    VECTOR: tl.constexpr = ALIGNMENT * 8 // ptr.dtype.element_ty.primitive_bitwidth
    mask = mask[:, None]
    if VECTOR == 8:
        tl.store(run_at(ptr, start, 8), x, mask=mask)
    elif VECTOR == 4:
        p = run_at(ptr, start, 4)
        first, second = tl.split(tl.permute(tl.reshape(x, [C, 2, 4]), [0, 2, 1]))
        tl.store(p, first, mask=mask)
        tl.store(p + 4, second, mask=mask)
    else:
        p = run_at(ptr, start, 2)
        even, odd = tl.split(tl.permute(tl.reshape(x, [C, 2, 2, 2]), [0, 3, 1, 2]))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        tl.store(p, first, mask=mask)
        tl.store(p + 2, second, mask=mask)
        tl.store(p + 4, third, mask=mask)
        tl.store(p + 6, fourth, mask=mask)


def is_aligned(*tensors: Tensor | None) -> bool:
    return all(x is None or x.data_ptr() % ALIGNMENT.value == 0 for x in tensors)


def whole_chunks(numel: int, aligned: bool) -> int:
    """The chunks before this one are whole, and may be moved by vectors; beyond any tensor if all are."""
    whole = numel // CHUNK.value
    return 0 if not aligned else whole if numel % CHUNK.value else 2**62
