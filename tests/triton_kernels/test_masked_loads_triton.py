"""What lies in the lanes of a load that its mask hides: nothing may depend on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_act_dropout_cpu import STATE, bitwise_equal
from torch import Tensor

pytest.importorskip("fusedtrain.backends.triton_act")
from test_act_triton import DEVICE, call, normal

CASES = [(torch.bfloat16, 18, 120), (torch.float32, 18, 120), (torch.float64, 18, 120), (torch.float16, 5, 136)]
"""A row of 120 is a chunk short of two tiles, so that a full block of 16 rows lacks columns, too; 136 is taken several
rows at a time."""


def calls(dtype: torch.dtype, rows: int, width: int) -> list[Callable[[], Any]]:
    x, dy, bias = normal((rows, width), dtype), normal((rows, width), dtype), normal((width,), dtype)
    twice, biases = normal((rows, 2 * width), dtype), normal((2 * width,), dtype)
    return [
        lambda: call("act_dropout", x, bias, x, STATE, 6554, "gelu"),
        lambda: call("act_dropout", x, None, None, STATE, 6554, "relu"),
        lambda: call("act_dropout_grad", dy, x, bias, STATE, 6554, "gelu", False, True),
        lambda: call("act_dropout_grad", dy, x, None, None, 6554, "relu", True, True),
        lambda: call("gated_act_dropout", twice, biases, STATE, 6554, "silu"),
        lambda: call("gated_act_dropout_grad", dy, twice, None, STATE, 6554, "silu", True),
    ]


@pytest.mark.skipif(DEVICE.type != "cpu", reason="shown by the interpreter")
@pytest.mark.parametrize(("dtype", "rows", "width"), CASES, ids=str)
def test_what_masks_hide_is_not_used(
    dtype: torch.dtype, rows: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU leaves anything in the lanes of a masked load. The interpreter has zeros there; here it has NaNs."""
    operators = calls(dtype, rows, width)
    expected = [operator() for operator in operators]
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    load = interpreter.InterpreterBuilder.create_masked_load
    hidden = 0

    def load_beside_nans(builder: Any, pointers: Any, mask: Any, other: Any, *options: Any) -> Any:
        nonlocal hidden
        kind = pointers.get_element_ty()
        if other is None and kind.is_floating():
            hidden += int((~mask.data).sum())
            nan = 0x7FC0 if kind.is_bf16() else math.nan  # an integer, which NumPy has in its place
            other = interpreter.TensorHandle(load(builder, pointers, mask, None, *options).data * 0 + nan, kind)
        return load(builder, pointers, mask, other, *options)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", load_beside_nans)
    for operator, before in zip(operators, expected, strict=True):
        hidden = 0
        for now, then in zip(tensors(operator()), tensors(before), strict=True):
            assert bitwise_equal(now, then)
        assert hidden


def tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
