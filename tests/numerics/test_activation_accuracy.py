"""Every activation and its slope against fp64, over every 16-bit input and a wide sweep of fp32, in rounding errors.

The specification in fp64 is the truth; `tests/test_rules.py` holds it to 50-digit arithmetic.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusedtrain import dispatch, rules
from fusedtrain.functional import act_dropout

ACTIVATIONS = sorted(rules.ACTIVATIONS)
BACKENDS = [name for name in ("cpu", "reference") if dispatch.load(name).why_not is None]


def every_16_bit(dtype: torch.dtype) -> Tensor:
    x = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    return x[x.isfinite()]


def wide_fp32() -> Tensor:
    """Every 2**13th float, both signs: all exponents, 1024 mantissas each."""
    x = (torch.arange(0, 2**32, 2**13, dtype=torch.int64) + 4321).to(torch.int32).view(torch.float32)
    return x[x.isfinite()]


def truth(activation: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """act, act' and act'' at x, in fp64."""
    rule = rules.ACTIVATIONS[activation]
    z = x.double().requires_grad_()
    f, df = rule.fwd(z), rule.grad(z)
    ddf = torch.autograd.grad(df.sum(), z)[0] if df.requires_grad else torch.zeros_like(z)
    return f.detach(), df.detach(), ddf.nan_to_num()


def errors(got: Tensor, exact: Tensor, sensitivity: Tensor, x: Tensor, absolute: float) -> Tensor:
    """The error in rounding errors of the dtype: of the value, or of what a relative error in x makes of it. What is
    lost by underflow on the way to a product with powers of x is fp32's own."""
    info, compute = torch.finfo(got.dtype), torch.finfo(torch.float32)
    tiny = max(info.tiny * info.eps, compute.tiny) * (1 + x.double().abs()) ** 3
    rounded = exact.to(got.dtype).double()
    unit = info.eps / 2 * exact.abs() + compute.eps * (sensitivity + absolute)
    error = ((got.double() - exact).abs() - tiny).clamp(min=0) / unit.clamp(min=compute.tiny)
    return torch.where(got.double() == rounded, 0.0, error)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_activation_within_rounding_errors(activation: str, dtype: torch.dtype, backend: str) -> None:
    """16 bits: rounded once from fp32, so half a unit in the last place and a little. fp32: a few of its roundings."""
    x = (wide_fp32() if dtype == torch.float32 else every_16_bit(dtype)).requires_grad_()
    y = act_dropout(x, activation, training=False, backend=backend)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    x = x.detach()
    f, df, ddf = truth(activation, x)
    within = x.double().abs() < 1e18  # beyond, squares on the way leave the range of fp32
    absolute = 1.0 if rules.ACTIVATIONS[activation].saves == "output" else 0.0
    largest = torch.finfo(dtype).max
    fits = within & (f.abs() <= largest) & (df.abs() <= largest)
    allowed = 8.0, 16.0  # of the value, of the slope
    worst = errors(y.detach(), f, (x.double() * df).abs(), x, 0.0)[fits]
    assert float(worst.max()) <= allowed[0], float(x[fits][worst.argmax()])
    # A slope that comes from the output has seen the output rounded to its dtype.
    from_output = absolute * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps * 2
    worst = errors(dx, df, (x.double() * ddf).abs() + df.abs(), x, from_output)[fits]
    assert float(worst.max()) <= allowed[1], float(x[fits][worst.argmax()])


def test_the_tail_of_gelu_is_not_torchs(record_property: object) -> None:
    """What the bound above excludes: torch's own fp32 gelu, as 1 + erf cancels."""
    x = torch.linspace(-6, -4, 2001)
    f = rules.gelu(x.double())
    relative = lambda y: float(((y.double() - f) / f).abs().max())  # noqa: E731
    assert relative(act_dropout(x, "gelu", training=False)) < 1e-5 < 1e-3 < relative(torch.nn.functional.gelu(x))
