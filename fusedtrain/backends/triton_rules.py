"""The activation rules in Triton: fwd(x), grad(x) and, where the output a = fwd(x) determines it, grad_from_output(a).
The specification, with the equation and source of each, is `fusedtrain.rules`; updates are in `triton_updates`.

Each takes a tensor of fp32 or fp64 and how COARSE its result may be (see `triton_math`).
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fusedtrain.backends.triton_math import (
    clamp,
    divide,
    exp,
    expm1,
    log1p_unit,
    normal_cdf,
    normal_pdf,
    sigmoid,
    sigmoids,
    square_root,
    tanh,
)


@triton.jit
def identity(x, COARSE: tl.constexpr):
    return x


@triton.jit
def identity_grad(x, COARSE: tl.constexpr):
    return tl.full(x.shape, 1.0, x.dtype)


@triton.jit
def relu(x, COARSE: tl.constexpr):
    return tl.where(x <= 0, 0.0, x)


@triton.jit
def relu_grad(x, COARSE: tl.constexpr):
    return tl.where(x <= 0, 0.0, tl.full(x.shape, 1.0, x.dtype))


@triton.jit
def leaky_relu(x, COARSE: tl.constexpr):
    return tl.where(x > 0, x, 0.01 * x)


@triton.jit
def leaky_relu_grad(x, COARSE: tl.constexpr):
    return tl.where(x > 0, tl.full(x.shape, 1.0, x.dtype), 0.01)


@triton.jit
def squared_relu(x, COARSE: tl.constexpr):
    r = relu(x, COARSE)
    return r * r


@triton.jit
def squared_relu_grad(x, COARSE: tl.constexpr):
    return 2.0 * relu(x, COARSE)


@triton.jit
def squared_relu_grad_from_output(a, COARSE: tl.constexpr):
    return tl.where(a == 0, 0.0, 2.0 * square_root(a, COARSE))


@triton.jit
def elu(x, COARSE: tl.constexpr):
    return tl.where(x > 0, x, expm1(tl.where(x > 0, 0.0, x), COARSE))


@triton.jit
def elu_grad(x, COARSE: tl.constexpr):
    return exp(tl.where(x > 0, 0.0, x), COARSE)


@triton.jit
def elu_grad_from_output(a, COARSE: tl.constexpr):
    return tl.where(a > 0, 1.0, a + 1.0)


@triton.jit
def gelu(x, COARSE: tl.constexpr):
    return x * normal_cdf(x, COARSE)


@triton.jit
def gelu_grad(x, COARSE: tl.constexpr):
    return normal_cdf(x, COARSE) + x * normal_pdf(x, COARSE)


@triton.jit
def where_it_matters(x):
    """``x`` up to where a sigmoid of it has long been 0 or 1: no power or multiple of this overflows."""
    return clamp(x, -1e3, 1e3)


GELU_TANH_SCALE = tl.constexpr(0.79788456080286535588)  # sqrt(2 / pi)
GELU_TANH_CUBIC = tl.constexpr(0.044715)


@triton.jit
def twice_z(x):
    return (x + x * x * x * GELU_TANH_CUBIC) * (2 * GELU_TANH_SCALE)


@triton.jit
def gelu_tanh(x, COARSE: tl.constexpr):
    return x * sigmoid(twice_z(x), COARSE)


@triton.jit
def gelu_tanh_grad(x, COARSE: tl.constexpr):
    c = where_it_matters(x)
    s, one_minus_s = sigmoids(twice_z(c), COARSE)
    twice_dz = (c * c * (3 * GELU_TANH_CUBIC) + 1.0) * (2 * GELU_TANH_SCALE)
    return s + c * twice_dz * (s * one_minus_s)


@triton.jit
def quick_gelu(x, COARSE: tl.constexpr):
    return x * sigmoid(1.702 * x, COARSE)


@triton.jit
def quick_gelu_grad(x, COARSE: tl.constexpr):
    z = 1.702 * where_it_matters(x)
    s, one_minus_s = sigmoids(z, COARSE)
    return s * (1.0 + z * one_minus_s)


@triton.jit
def silu(x, COARSE: tl.constexpr):
    return x * sigmoid(x, COARSE)


@triton.jit
def silu_grad(x, COARSE: tl.constexpr):
    s, one_minus_s = sigmoids(x, COARSE)
    return s * (1.0 + x * one_minus_s)


@triton.jit
def mish_parts(x, COARSE: tl.constexpr):
    """u, n and d with tanh(softplus(x)) = n / d: with e = exp(x), n = e (e + 2) and d = n + 2, here over u = exp(-|x|),
    which cannot overflow."""
    u = exp(tl.abs(x) * -1.0, COARSE)
    n = tl.where(x < 0, u * (u + 2.0), 1.0 + 2.0 * u)
    return u, n, n + tl.where(x < 0, 2.0, 2.0 * u * u)


@triton.jit
def mish(x, COARSE: tl.constexpr):
    _, n, d = mish_parts(x, COARSE)
    return x * divide(n, d, COARSE)


@triton.jit
def mish_grad(x, COARSE: tl.constexpr):
    """w + x (1 - w^2) sigmoid(x) with 1 - w^2 = 4 (1 + e)^2 / d^2 and sigmoid = e / (1 + e)."""
    u, n, d = mish_parts(x, COARSE)
    slope = 4.0 * u * (1.0 + u) * tl.where(x < 0, 1.0, u)
    return divide(n, d, COARSE) + x * divide(slope, d * d, COARSE)


@triton.jit
def hardswish(x, COARSE: tl.constexpr):
    middle = divide(x * (x + 3.0), tl.full(x.shape, 6.0, x.dtype), COARSE)
    return tl.where(x <= -3, 0.0, tl.where(x < 3, middle, x))


@triton.jit
def hardswish_grad(x, COARSE: tl.constexpr):
    middle = (x + 1.5) * (1 / 3)
    return tl.where(x <= -3, 0.0, tl.where(x < 3, middle, 1.0))


@triton.jit
def sigmoid_grad(x, COARSE: tl.constexpr):
    return sigmoid(x, COARSE) * sigmoid(x * -1.0, COARSE)


@triton.jit
def not_negative(x):
    """Not below 0, where a rounded output is beyond 1; a NaN stays."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def sigmoid_grad_from_output(a, COARSE: tl.constexpr):
    return not_negative(a * (1.0 - a))


@triton.jit
def tanh_grad(x, COARSE: tl.constexpr):
    """4 e / (1 + e)^2: 1 - tanh^2 without its cancellation."""
    e = exp(-2.0 * tl.abs(x), COARSE)
    return divide(4.0 * e, (1.0 + e) * (1.0 + e), COARSE)


@triton.jit
def tanh_grad_from_output(a, COARSE: tl.constexpr):
    return not_negative(1.0 - a * a)


@triton.jit
def softplus(x, COARSE: tl.constexpr):
    return tl.where(x > 0, x, 0.0) + log1p_unit(exp(tl.abs(x) * -1.0, COARSE), COARSE)


@triton.jit
def softplus_grad_from_output(a, COARSE: tl.constexpr):
    return 0.0 - expm1(0.0 - a, COARSE)


class Activation(NamedTuple):
    """A row of the table, as in the specification."""

    fwd: Any
    grad: Any
    grad_from_output: Any = None


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(identity, identity_grad, identity_grad),
    "relu": Activation(relu, relu_grad, relu_grad),
    "leaky_relu": Activation(leaky_relu, leaky_relu_grad, leaky_relu_grad),
    "squared_relu": Activation(squared_relu, squared_relu_grad, squared_relu_grad_from_output),
    "elu": Activation(elu, elu_grad, elu_grad_from_output),
    "gelu": Activation(gelu, gelu_grad),
    "gelu_tanh": Activation(gelu_tanh, gelu_tanh_grad),
    "quick_gelu": Activation(quick_gelu, quick_gelu_grad),
    "silu": Activation(silu, silu_grad),
    "mish": Activation(mish, mish_grad),
    "hardswish": Activation(hardswish, hardswish_grad),
    "sigmoid": Activation(sigmoid, sigmoid_grad, sigmoid_grad_from_output),
    "tanh": Activation(tanh, tanh_grad, tanh_grad_from_output),
    "softplus": Activation(softplus, sigmoid, softplus_grad_from_output),
}
