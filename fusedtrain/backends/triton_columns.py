"""The columns of a tensor: which program has which, and the sums of a gradient over rows, in an order that depends on
its shape alone.

Rows whose length is not a multiple of a chunk, or would leave tiles empty, are taken several at a time as one long row,
so that every chunk lies within a row and keeps its place in the next. Each program leaves the sums of its strip of a
tile; the last program of a tile adds its strips, and if rows were taken together the last of all adds those. All of it
happens within the launch that computes the gradient.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedtrain.backends.triton_chunks import CHUNK, CHUNKS, ROWS, TILE, elements_of, load_one
from fusedtrain.backends.triton_table import Size

TILE_COLUMNS = tl.constexpr(TILE.value * CHUNK.value)
AT_ONCE = tl.constexpr(16)  # rows that one program adds in one go

PROGRAMS = 4096
"""Of a launch with sums, about: several times what any device holds at once, to fill it to the end."""
MOST_STRIPS = 128
LEAST_BLOCKS = 4
"""Blocks of ROWS rows that a strip should have, for its sums to be worth storing."""
MOST_EMPTY = 1 / 8
WAVES = 8
"""How many times as many programs as are resident at once are launched, at most. With one time each has its share from
the beginning, and those on slower multiprocessors come last: gelu with p 0.1 of 16384 x 16384 bf16 has 0.84 of the
bandwidth of a copy then on an H100, and 0.90 with eight times."""
LEAST_STEPS = 16
"""Blocks of ROWS rows that a program has before there are more programs than are resident at once. With 64 times as
many programs, and four blocks each, it is 0.85 again: each waits for the state of the dropout first."""


class Plan(NamedTuple):
    """How a tensor is shared out among programs."""

    row: int
    """Chunks of a long row."""
    together: int
    """Rows that are taken as one."""
    tiles: int
    strips: int

    @property
    def programs(self) -> tuple[int]:
        return (self.tiles * self.strips,)


def _long_row(width: int) -> tuple[int, int]:
    """``(chunks of a long row, rows in it)``."""
    aligned = math.lcm(width, CHUNK.value) // CHUNK.value
    row = aligned
    while 1 - row / (-(-row // TILE.value) * TILE.value) > MOST_EMPTY:
        row += aligned
    return row, row * CHUNK.value // width


def plan_of(size: Size, device: torch.device, numel: int, width: int | None, sums: bool = False) -> Plan:
    """For a tensor that is not empty, of rows of this width; None if nobody asks for columns."""
    row, together = (TILE.value, 1) if width is None else _long_row(width)
    tiles = -(-row // TILE.value)
    blocks = -(-numel // (row * CHUNK.value * ROWS.value))
    if sums:
        strips = min(-(-PROGRAMS // tiles), MOST_STRIPS, max(blocks // LEAST_BLOCKS, 1))
    else:
        resident, all_blocks = size.grid(device, tiles * blocks)[0], tiles * blocks
        programs = max(resident, min(WAVES * resident, all_blocks // LEAST_STEPS))
        strips = max(programs // tiles, 1)
    return Plan(row, together, tiles, strips)


class Sums(NamedTuple):
    """The memory of the sums of a launch."""

    partials: Tensor
    """(strips, sums, columns of a long row), in the dtype of the result."""
    totals: Tensor
    """fp64 (sums, columns of a long row)."""
    tickets: Tensor
    """int32 (tiles + 1,): programs that are done, of each tile and tiles that are."""

    @classmethod
    def of(cls, plan: Plan, count: int, result: Tensor) -> Sums:
        columns = plan.row * CHUNK.value
        return cls(
            result.new_empty((plan.strips, count, columns)),
            result.new_empty((count, columns), dtype=torch.float64),
            result.new_zeros((plan.tiles + 1,), dtype=torch.int32),
        )


@triton.jit
def load_bias(bias, column, width, inside, T: tl.constexpr):
    """Of the chunks in these columns of a long row: (C,) -> (C, 8); None if there is no bias."""
    return load_one(bias, elements_of(column * CHUNK) % width, inside[:, None], T)


@triton.jit
def is_last(ticket, count):
    """Whether all others of so many programs have come here before. What they have written by then can be read: the
    barrier holds back the ticket until all threads of a program have arrived."""
    tl.debug_barrier()
    return tl.atomic_add(ticket, 1) == count - 1


@triton.jit
def add_rows(x, count, stride, column, inside):
    """The sums of so many rows in these columns, fp64, in an order that depends on the count alone."""
    j = tl.arange(0, AT_ONCE).to(tl.int64)[:, None]
    total = tl.zeros([AT_ONCE, TILE_COLUMNS], tl.float64)
    first = count * 0
    while first < count:
        mask = (first + j < count) & inside[None, :]
        # Past the L1 cache: other programs have written it.
        total += tl.load(x + (first + j) * stride + column[None, :], mask=mask, other=0, cache_modifier=".cg").to(
            tl.float64
        )
        first += AT_ONCE
    return tl.sum(total, 0)


@triton.jit
def finish_sums(sums, partials, totals, tickets, result, tile, strip, strips, row, width):
    """``sums``: a tuple of tensors (CHUNKS, 8). Called by all programs."""
    COUNT: tl.constexpr = len(sums)
    columns = row * CHUNK
    column = tile * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    inside = column < columns
    for k in tl.static_range(COUNT):
        of_tile = tl.sum(tl.reshape(sums[k], [CHUNKS // TILE, TILE_COLUMNS]), 0)
        tl.store(partials + (strip * COUNT + k) * columns + column, of_tile, mask=inside)
    if is_last(tickets + tile, strips):
        for k in tl.static_range(COUNT):
            total = add_rows(partials + k * columns, strips, COUNT * columns, column, inside)
            if columns == width:
                tl.store(result + k * width + column, total.to(result.dtype.element_ty), mask=inside)
            else:
                tl.store(totals + k * columns + column, total, mask=inside)
        if columns > width:
            tiles = tl.cdiv(row, TILE)
            if is_last(tickets + tiles, tiles):
                for k in tl.static_range(COUNT):
                    first = width * 0
                    while first < width:
                        c = first + tl.arange(0, TILE_COLUMNS)
                        total = add_rows(totals + k * columns, columns // width, width, c, c < width)
                        tl.store(result + k * width + c, total.to(result.dtype.element_ty), mask=c < width)
                        first += TILE_COLUMNS
