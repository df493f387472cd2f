"""How big the programs of activation + dropout are, by the registers of a thread: for 16 bits and for fp32, as those of
fp64 take all there are.

The fewer registers, the more programs are resident, and the faster they are all together: on an H200 gelu took 30 to 50
us less with 40 and 64 than with 64 and 80, of some 270 to 460. These are as few as no rule spills with on sm_90.
Operands take some; those that a call has none of are None.
"""

from __future__ import annotations

import torch

from fusedtrain.backends.triton_chunks import WARPS
from fusedtrain.backends.triton_table import Size


def _size(dtype: torch.dtype, coarse: int, exact: int) -> Size:
    return Size(WARPS, {2: coarse, 4: exact, 8: 255}[dtype.itemsize])


def forward_size(dtype: torch.dtype, *, bias: object, residual: object) -> Size:
    return _size(dtype, 40 if bias is None and residual is None else 64, 128)


def backward_size(dtype: torch.dtype, *, bias: object, dbias: object) -> Size:
    return _size(dtype, 64 if bias is None and dbias is None else 80, 128)


def gated_forward_size(dtype: torch.dtype) -> Size:
    return _size(dtype, 80, 128)


def gated_backward_size(dtype: torch.dtype) -> Size:
    return _size(dtype, 128, 168)
