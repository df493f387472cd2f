"""How accurate the activations of 16-bit tensors are: every finite value that there is, against fp64.

A kernel that rounds to 16 bits may compute cheaply as long as the result is the value within half a unit in the last
place, before the half that the rounding itself may cost.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fusedtrain as ft
from fusedtrain import rules


def every_value(dtype: torch.dtype) -> Tensor:
    """All finite numbers of a 16-bit dtype."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[x.isfinite()]


def unit(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The unit in the last place of the dtype at these fp64 values; below the normal numbers it stays what it is."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(x.abs().clamp_min(info.tiny))
    return torch.ldexp(torch.full_like(x, info.eps), exponent - 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_every_16_bit_value(backend: str, device: torch.device, activation: str, dtype: torch.dtype) -> None:
    x = every_value(dtype)
    exact = rules.ACTIVATIONS[activation].fwd(x.double())
    y = ft.functional.act_dropout(x.to(device), activation, 0.0, backend=backend).cpu().double()
    # What rounds beyond the largest number is infinite. A factor below the normal fp32 numbers is as good as zero.
    fits = exact.abs() <= torch.finfo(dtype).max
    assert bool(y[~fits].isinf().all())
    nothing = torch.finfo(torch.float32).tiny * (1 + x.double().abs())
    off = ((y - exact).abs() - nothing)[fits].clamp_min(0) / unit(exact[fits], dtype)
    worst = int(off.argmax())
    assert float(off[worst]) <= 1.0, f"{activation}({float(x[fits][worst])}) is {float(off[worst])} units off"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", [a for a, rule in rules.ACTIVATIONS.items() if rule.saves == "input"])
def test_every_16_bit_slope(backend: str, device: torch.device, activation: str, dtype: torch.dtype) -> None:
    """The derivative crosses zero, where cancellation costs relative accuracy in any arithmetic: the unit there is that
    of its largest term, the factor by which the rule multiplies x."""
    x = every_value(dtype)
    rule, z = rules.ACTIVATIONS[activation], x.double()
    exact, factor = rule.grad(z), (rule.fwd(z) / z).nan_to_num()
    leaf = x.to(device, copy=True).requires_grad_()
    y = ft.functional.act_dropout(leaf, activation, 0.0, backend=backend)
    (dx,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    assert bool(dx.isfinite().all())
    computed = 16 * torch.finfo(torch.float32).eps * (1 + z.abs().clamp_max(64))
    allowed = unit(exact.abs().maximum(factor.abs()), dtype) + computed
    off = (dx.cpu().double() - exact).abs() / allowed
    worst = int(off.argmax())
    assert float(off[worst]) <= 1.0, f"{activation}'({float(x[worst])}) is off {float(off[worst])} times what it may"


def test_the_yardstick_can_see_an_error() -> None:
    """A unit of 1.5 is 2^-10 in fp16, and a result that is two of them off must not pass."""
    one = torch.tensor([1.5, 2.0**-14, 2.0**-20], dtype=torch.float64)
    assert unit(one, torch.float16).tolist() == [2.0**-10, 2.0**-24, 2.0**-24]
    assert math.isclose(float(unit(torch.tensor([1.0], dtype=torch.float64), torch.bfloat16)), 2.0**-7)
