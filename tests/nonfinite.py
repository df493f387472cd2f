"""Elements that are no finite numbers, of every kind that may be told from another by its bits."""

from __future__ import annotations

import torch
from torch import Tensor

NONFINITE = ("inf", "-inf", "nan", "-nan", "inf - inf")


def spoil(x: Tensor, kind: str) -> None:
    """Makes the last element of ``x`` (n,) no finite number. The sign of a NaN is set by its bits, as torch loses it on
    the way to bfloat16; a difference is computed where ``x`` is, and has the sign that NaN have there."""
    value = x[-1:]
    value.fill_(float("inf") if kind == "inf - inf" else float(kind.removeprefix("-")))
    if kind == "inf - inf":
        value.sub_(value.clone())
    elif kind.startswith("-"):
        bits = value.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize])
        bits |= torch.iinfo(bits.dtype).min
