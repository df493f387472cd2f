"""How the elements of a tensor lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def of(x: Tensor) -> str:
    """``"dense"`` (elements fill one block of memory, in any order of dimensions), ``"gaps"`` or ``"overlap"``."""
    if x.is_contiguous() or x.numel() == 0:
        return "dense"
    extent, gaps = 1, False
    for stride, size in sorted((stride, size) for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1):
        if stride < extent:
            return "overlap"
        gaps |= stride > extent
        extent += stride * (size - 1)
    return "gaps" if gaps else "dense"


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape have their elements in the same order, dimensions of size 1 aside."""
    if torch.compiler.is_compiling():  # dynamo compares symbolic sizes one by one only
        return all(b.size(d) == 1 or a.stride(d) == b.stride(d) for d in range(b.dim()))
    if a.stride() == b.stride() or a.numel() < 2:
        return True
    return all(s == t or n == 1 for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True))
