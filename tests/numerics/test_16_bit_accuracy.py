"""The cheaper arithmetic of 16-bit tensors (csrc/rules/coarse.h, fusedtrain/backends/triton_math.py), over every 16-bit
input, against fp64.

On the CPU, emulated and interpreted, exponentials and quotients are exact, so what is measured is the error of the
polynomials; the hardware's own approximations add 2^-21 of a value, a thousandth of a unit in the last place of half
precision.
"""

from __future__ import annotations

import pytest
import torch
from cuda_on_cpu import backend as cuda_emulation
from torch import Tensor

from fusedtrain import dispatch, rules
from fusedtrain.backends import Backend

ROUNDING = 0.5  # units in the last place
# Below, powers of x times what is flushed to zero at 2^-126 may be missing, and the fit of gelu for bfloat16 ends.
SMALLEST = 2.0**-118
THROUGH_ZERO = ("gelu", "gelu_tanh", "quick_gelu", "silu", "mish", "hardswish")  # x times a factor: slopes cross zero


pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # NumPy's, which interprets Triton


@pytest.fixture(scope="module", params=["cuda", "triton"])
def ops(request: pytest.FixtureRequest) -> Backend:
    if request.param == "triton" and torch.cuda.is_available():
        pytest.skip("tests/gpu does it there")
    emulated = request.param == "cuda" and not torch.cuda.is_available()
    backend = cuda_emulation.load() if emulated else dispatch.load(request.param)
    if backend.why_not:
        pytest.skip(backend.why_not)
    return backend


@pytest.fixture(scope="module")
def place() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def every_value(dtype: torch.dtype) -> Tensor:
    x = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    return x[x.isfinite() & (x.double().abs() < 1e18)].clone()  # squares of more leave the range of fp32


def units(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A unit in the last place of each value, as the dtype has it."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(x.abs().clamp(min=info.tiny))
    return torch.ldexp(torch.full_like(x, info.eps), exponent - 1)


def added(activation: str, x: Tensor) -> Tensor | float:
    """Units in the last place that coarse.h may add to the rounding."""
    if activation == "gelu" and x.dtype == torch.bfloat16:
        return torch.where(x.double() > -4, 1 / 10, 1 / 5)
    return 1 / 32


def assert_within_units(activation: str, got: Tensor, exact: Tensor, x: Tensor, *, size: Tensor | None = None) -> None:
    fits = exact.abs() <= torch.finfo(got.dtype).max
    difference = (got.double() - exact).abs()
    allowed = (ROUNDING + added(activation, x)) * units(exact if size is None else size, got.dtype)
    missed = torch.where(exact.abs() < SMALLEST, difference - SMALLEST, difference - allowed)
    missed = missed.nan_to_num(nan=float("inf"))[fits]
    worst = missed.argmax()
    assert float(missed[worst]) <= 0, f"at {float(x[fits][worst])}: {float(difference[fits][worst])} off"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_values(ops: Backend, place: torch.device, activation: str, dtype: torch.dtype) -> None:
    x = every_value(dtype)
    y = ops.act_dropout(x.to(place), None, None, None, 0, activation).cpu()
    exact = rules.ACTIVATIONS[activation].fwd(x.double())
    assert_within_units(activation, y, exact, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_slopes(ops: Backend, place: torch.device, activation: str, dtype: torch.dtype) -> None:
    x = every_value(dtype)
    ones = torch.ones_like(x, device=place)
    dx, _ = ops.act_dropout_grad(ones, x.to(place), None, None, 0, activation, False, False)
    rule, z = rules.ACTIVATIONS[activation], x.double()
    exact = 1 / torch.cosh(z) ** 2 if activation == "tanh" else rule.grad(z)  # 1 - tanh^2 cancels even in fp64
    size = exact.abs()
    if activation in THROUGH_ZERO:  # the factor is one of the terms of the slope
        size = size.maximum((rule.fwd(z) / z).nan_to_num().abs())
    assert_within_units(activation, dx.cpu(), exact, x, size=size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "activation", [n for n, rule in rules.ACTIVATIONS.items() if rule.grad_from_output is not None]
)
def test_slopes_from_the_output(ops: Backend, place: torch.device, activation: str, dtype: torch.dtype) -> None:
    x = every_value(dtype)
    y = x[(x >= 0) & (x <= 1)]
    ones = torch.ones_like(y, device=place)
    dx, _ = ops.act_dropout_grad(ones, y.to(place), None, None, 0, activation, True, False)
    slope = rules.ACTIVATIONS[activation].grad_from_output
    assert slope is not None
    exact = slope(y.double())
    assert_within_units(activation, dx.cpu(), exact, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_what_is_not_finite_is_as_in_the_reference(
    ops: Backend, place: torch.device, activation: str, dtype: torch.dtype
) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf")] * 4, dtype=dtype)
    rule = rules.ACTIVATIONS[activation]
    y = ops.act_dropout(x.to(place), None, None, None, 0, activation).cpu()
    assert torch.equal(y.double().nan_to_num(nan=7.0), rule.fwd(x.float()).double().nan_to_num(nan=7.0))
