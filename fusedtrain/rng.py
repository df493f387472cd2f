"""The random numbers of dropout: one contract, bit-identical masks in every backend.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") keyed by a 64-bit seed. Counter words
c0:c1 hold ``offset / 4``, c2:c3 the chunk ``element_index >> 3``; lane ``element_index & 7`` is the l-th 16-bit
little-endian half of the four output words. An element is kept iff its lane is at least ``T = round(p * 65536)``.
The element index is the logical row-major one, so a mask does not depend on layout, tiling, threads or vector width.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

LEVELS = 65536
"""The number of values of a lane: drop probabilities are multiples of 1 / LEVELS."""

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def drop_threshold(p: float) -> int:
    """``T = round(p * 65536)``: lanes below it drop. ``p`` must be a probability (checked by the caller)."""
    return round(p * LEVELS)


def keep_scale(threshold: int) -> float:
    """``65536 / (65536 - T)``: makes the mean of the kept values exact for the quantised probability; 0 if all drop."""
    return LEVELS / (LEVELS - threshold) if threshold < LEVELS else 0.0


_sites = itertools.count()


def _new_site() -> int:
    """A number of its own for each draw that is traced."""
    return next(_sites)


# As torch.compiler.assume_constant_result, which would import Dynamo.
_new_site._dynamo_marked_constant = True  # type: ignore[attr-defined]


def draw(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Draws an RNG state, int64 (2,) = (seed, offset), on ``device`` from torch's generator: one reservation each."""
    if generator is None and torch.compiler.is_compiling():
        # Opaque, since a compiler replaces the random numbers that it sees by others.
        return torch.ops.fusedtrain.draw_rng_state(device=device, site=_new_site())
    return torch.randint(torch.iinfo(torch.int64).max, (2,), generator=generator, device=device)


def _mul_hi_lo(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """High and low words of the 64-bit product of 32-bit words, in int64 without overflow."""
    low, high = (a & 0xFFFF) * m, (a >> 16) * m
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & _WORD


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor], rounds: int = 10) -> tuple[Tensor, ...]:
    """Philox4x32 on int64 tensors that hold 32-bit words: four counter words and two key words of one shape (or
    broadcasting) -> four output words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        hi0, lo0 = _mul_hi_lo(c0, _MULTIPLIERS[0])
        hi1, lo1 = _mul_hi_lo(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def lanes(rng_state: Tensor, numel: int, start: int = 0) -> Tensor:
    """The 16-bit lanes of elements ``start`` to ``start + numel``, int64 (numel,), on the device of ``rng_state``."""
    seed, offset = rng_state.split(1)  # not unbind and reshape, which vmap over no samples refuses
    first, last = start >> 3, (start + numel + 7) >> 3
    chunk = torch.arange(first, last, device=rng_state.device)
    block = (offset >> 2) & (2**62 - 1)  # the offset is unsigned
    counter = (block & _WORD, block >> 32, chunk & _WORD, chunk >> 32)
    words = philox4x32(tuple(c.expand_as(chunk) for c in counter), (seed & _WORD, (seed >> 32) & _WORD))
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    return torch.stack(halves, dim=-1).flatten()[start - 8 * first :][:numel]


def keep_mask(rng_state: Tensor, threshold: int, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The dropout mask of a tensor of this shape: bool, True where the element is kept."""
    return (lanes(rng_state, math.prod(shape)) >= threshold).reshape(shape)
