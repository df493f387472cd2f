"""Memory that many small states share.

A step pays for each tensor that it writes, whatever its size: its version counter must be raised, its memory looked up.
Small states are therefore views of a few blocks, which have one version counter each and one memory, and are otherwise
tensors like any other: saved, copied, moved and replaced one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fusedtrain.optim import hyper

SMALL = 4096
"""States of at most so many elements share blocks; the work on larger ones hides what they cost."""
_FIRST, _LARGEST = 1 << 10, 1 << 18
"""Elements of the first block of a kind, each being twice as large as the one before, and of the largest."""
_ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector."""


class Arena:
    """Gives out zeros from blocks of its own; a block lives as long as any view of it."""

    def __init__(self) -> None:
        self._free: dict[tuple[torch.device, torch.dtype, int], tuple[Tensor, int]] = {}
        """The newest block of each kind, and how many of its elements are taken."""
        self.closed = False

    def zeros_like(self, p: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Zeros of the shape of ``p``; None if it must have its own: it is large, empty, not contiguous or no plain
        tensor."""
        if type(p) not in (Tensor, Parameter) or not 0 < p.numel() <= SMALL or not p.is_contiguous():
            return None
        return self._take(p.shape, p.numel(), p.device, dtype, _ALIGNMENT // dtype.itemsize)

    def counter(self, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """A 0-dim zero; None if it must have its own memory."""
        return self._take((), 1, device, dtype, 1)

    def _take(
        self, shape: tuple[int, ...], numel: int, device: torch.device, dtype: torch.dtype, stride: int
    ) -> Tensor | None:
        # Tensors made in these modes behave unlike those made outside, and one block would serve both.
        if self.closed or torch.is_inference_mode_enabled() or hyper.under_mode():
            return None
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        block, begin = self._free.get((device, dtype, stride), (None, 0))
        if block is None or begin + numel > block.numel():
            size = _FIRST if block is None else min(2 * block.numel(), _LARGEST)
            block, begin = torch.zeros(max(size, numel), dtype=dtype, device=device), 0
        self._free[device, dtype, stride] = block, begin + -(-numel // stride) * stride
        return block[begin : begin + numel].view(shape)


def of(opt: Any) -> Arena:
    """Where an optimizer's small states get their memory."""
    if opt._arena is None:
        opt._arena = Arena()
    return opt._arena


def leave(opt: Any) -> None:
    """Gives every state of an optimizer memory of its own, from now on: what a graph is compiled for had better not
    alias its other inputs."""
    of(opt).closed = True
    for entry in (*opt.state.values(), getattr(opt, "_counters", None) or {}):
        for key, x in entry.items():
            if isinstance(x, Tensor) and x._base is not None:
                entry[key] = x.clone()
