"""The update rules in Triton, and what happens to a gradient before its rule sees it. The specification, with the
equation and source of each, is `fusedtrain.rules`.

A rule has two halves. ``constants(h, t)``: what does not depend on the element, from a row of its hyperparameters and
the number t of this step, from 1, all fp64. ``direction(p, g, s, c) -> (u, s)``: the direction and the new states, in
the dtype of the arithmetic, to which the caller has brought the constants; it never writes p.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


@triton.jit
def clip_coefficient(norm, max_norm):
    coef = max_norm / (norm + 1e-6)
    return tl.where((max_norm < 0) | (max_norm == float("inf")) | (coef > 1), 1.0, coef)


@triton.jit
def sign(x):
    # NaN stays NaN: a poisoned value shows.
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))


@triton.jit
def prepare_gradient(p, g, scale, clip_value, l1):
    """``scale`` is sign, inverse loss scale and clip coefficient in one."""
    g = g * scale
    # By comparisons, which a NaN survives.
    g = tl.where(g < -clip_value, -clip_value, g)
    return tl.where(g > clip_value, clip_value, g) + l1 * sign(p)


@triton.jit
def decay(p, weight_decay):
    return tl.where(tl.abs(p) < float("inf"), weight_decay * p, 0.0)


@triton.jit
def divide(x, y):
    # `/` of fp32 is an approximation on a GPU.
    return tl.div_rn(x, y) if x.dtype == tl.float32 else x / y


@triton.jit
def square_root(x):
    return tl.sqrt_rn(x) if x.dtype == tl.float32 else tl.sqrt(x)


@triton.jit
def bias_correction(beta, t):
    """``1 - beta^t``. Where the power is near 1 the difference would lose what its rounding lost: the logarithm of the
    rounded power tells how far off it is (Kahan's expm1)."""
    x = t * tl.log(tl.where(beta > 0, beta, 1.0))
    power = tl.exp(x)
    near = (power > 0.5) & (power < 1)
    away = tl.where(near, (1 - power) * x / tl.log(tl.where(near, power, 0.5)), 1 - power)
    away = tl.where(power == 1, -x, away)
    return tl.where(beta == 0, 1.0, tl.where(t <= 1, 1 - beta, away))


@triton.jit
def sgd_constants(h, t):
    return h


@triton.jit
def sgd(p, g, s, c):
    return g + decay(p, c[0]), s


@triton.jit
def sgd_momentum_constants(h, t):
    weight_decay, momentum, dampening, nesterov = h
    return weight_decay, momentum, 1 - dampening, nesterov, tl.where(t <= 1, 1.0, 0.0)


@triton.jit
def sgd_momentum(p, g, s, c):
    weight_decay, momentum, one_minus_dampening, nesterov, first = c
    g = g + decay(p, weight_decay)
    # Selected: what the buffer held before the first step does not count.
    b = tl.where(first != 0, g, momentum * s[0] + one_minus_dampening * g)
    return tl.where(nesterov != 0, g + momentum * b, b), (b,)


@triton.jit
def adam_constants(h, t):
    beta1, beta2, eps, weight_decay = h
    inv_bias_correction1 = 1 / bias_correction(beta1, t)
    inv_sqrt_bias_correction2 = 1 / tl.sqrt(bias_correction(beta2, t))
    return 1 - beta1, 1 - beta2, inv_bias_correction1, inv_sqrt_bias_correction2, eps, weight_decay


@triton.jit
def moments(g, m, v, c):
    return m + c[0] * (g - m), v + c[1] * (g * g - v)


@triton.jit
def adam_direction(m, v, c):
    return divide(m * c[2], square_root(v) * c[3] + c[4])


@triton.jit
def adam(p, g, s, c):
    m, v = moments(g + decay(p, c[5]), s[0], s[1], c)
    return adam_direction(m, v, c), (m, v)


@triton.jit
def adamw(p, g, s, c):
    m, v = moments(g, s[0], s[1], c)
    return adam_direction(m, v, c) + decay(p, c[5]), (m, v)


@triton.jit
def larger(w, v):
    # As torch.maximum: a NaN on either side wins.
    return tl.where((w > v) | (w != w), w, v)


@triton.jit
def adam_amsgrad(p, g, s, c):
    m, v = moments(g + decay(p, c[5]), s[0], s[1], c)
    w = larger(s[2], v)
    return adam_direction(m, w, c), (m, v, w)


@triton.jit
def adamw_amsgrad(p, g, s, c):
    m, v = moments(g, s[0], s[1], c)
    w = larger(s[2], v)
    return adam_direction(m, w, c) + decay(p, c[5]), (m, v, w)


@triton.jit
def lion_constants(h, t):
    beta1, beta2, weight_decay = h
    return 1 - beta1, 1 - beta2, weight_decay


@triton.jit
def lion(p, g, s, c):
    d = g - s[0]
    return sign(s[0] + c[0] * d) + decay(p, c[2]), (s[0] + c[1] * d,)


@triton.jit
def adagrad_constants(h, t):
    lr_decay, eps, weight_decay = h
    return 1 / (1 + (t - 1) * lr_decay), eps, weight_decay


@triton.jit
def adagrad(p, g, s, c):
    g = g + decay(p, c[2])
    total = s[0] + g * g
    return divide(g * c[0], square_root(total) + c[1]), (total,)


@triton.jit
def rmsprop_constants(h, t):
    alpha, eps, weight_decay = h
    return 1 - alpha, eps, weight_decay


@triton.jit
def rmsprop_momentum_constants(h, t):
    alpha, eps, weight_decay, momentum = h
    return 1 - alpha, eps, weight_decay, momentum


@triton.jit
def moving_average(old, scaled, c):
    """``alpha old + scaled``, without alpha: by what two rounded constants miss of 1, averages would be off."""
    lost = c[0] * old
    return tl.where(c[0] > 0.5, (old - lost) + scaled, old + (scaled - lost))


@triton.jit
def mean_square(g, v, c):
    # Squared last: so it reaches as far as torch's.
    return moving_average(v, c[0] * g * g, c)


@triton.jit
def variance(v, a):
    least = v * (1.1920928955078125e-07 if v.dtype == tl.float32 else 2.220446049250313e-16)
    difference = v - a * a
    return tl.where(difference < least, least, difference)


@triton.jit
def rmsprop(p, g, s, c):
    g = g + decay(p, c[2])
    v = mean_square(g, s[0], c)
    return divide(g, square_root(v) + c[1]), (v,)


@triton.jit
def rmsprop_momentum(p, g, s, c):
    u, new = rmsprop(p, g, (s[0],), c)
    b = c[3] * s[1] + u
    return b, (new[0], b)


@triton.jit
def rmsprop_centered(p, g, s, c):
    g = g + decay(p, c[2])
    v = mean_square(g, s[0], c)
    a = moving_average(s[1], c[0] * g, c)
    return divide(g, square_root(variance(v, a)) + c[1]), (v, a)


@triton.jit
def rmsprop_centered_momentum(p, g, s, c):
    u, new = rmsprop_centered(p, g, (s[0], s[2]), c)
    b = c[3] * s[1] + u
    return b, (new[0], b, new[1])


class Update(NamedTuple):
    """A row of the table: the two halves of a rule."""

    constants: Any
    direction: Any


UPDATES: dict[str, Update] = {
    "sgd": Update(sgd_constants, sgd),
    "sgd_momentum": Update(sgd_momentum_constants, sgd_momentum),
    "adam": Update(adam_constants, adam),
    "adam_amsgrad": Update(adam_constants, adam_amsgrad),
    "adamw": Update(adam_constants, adamw),
    "adamw_amsgrad": Update(adam_constants, adamw_amsgrad),
    "lion": Update(lion_constants, lion),
    "adagrad": Update(adagrad_constants, adagrad),
    "rmsprop": Update(rmsprop_constants, rmsprop),
    "rmsprop_momentum": Update(rmsprop_momentum_constants, rmsprop_momentum),
    "rmsprop_centered": Update(rmsprop_constants, rmsprop_centered),
    "rmsprop_centered_momentum": Update(rmsprop_momentum_constants, rmsprop_centered_momentum),
}
