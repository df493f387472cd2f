"""What the activation rules are written in: functions that Triton lacks, or has only as approximations, on tensors of
fp32 or fp64.

They are arithmetic, and so the interpreter and every GPU compute the same. In fp32 each is within a few units in the
last place, with the minimax fits of ``csrc/rules/platform.h``. With COARSE, for results that are stored in 16 bits, x
is fp32 and the fits are those of ``csrc/rules/coarse.h``: within 2^-16, a 32nd of a unit in the last place of half
precision, but the normal distribution, whose fit goes by the type; exponentials, quotients and roots are then the
approximations of the hardware, which may flush what is below 2^-126 to 0, as the interpreter does not. COARSE is the
number of binary digits of the type of the results, or 0.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from fusedtrain.backends.triton_target import INTERPRETED, NVIDIA

LOG2_E = tl.constexpr(1.44269504088896340736)


@triton.jit
def polynomial(x, C: tl.constexpr):
    """Of these coefficients, from that of the highest power down."""
    y = x * C[0] + C[1]
    for k in tl.static_range(2, len(C)):
        y = y * x + C[k]
    return y


@triton.jit
def polynomial_on(y, x, C: tl.constexpr):
    """The same, going on from y."""
    for k in tl.static_range(len(C)):
        y = y * x + C[k]
    return y


@triton.jit
def clamp(x, low, high):
    """``min(max(x, low), high)`` that keeps a NaN."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def coarse_reciprocal(y):
    """``1 / y`` of fp32; for y beyond 2^126 it may be 0. NVIDIA's `/` takes four instructions more, for those."""
    if NVIDIA and not INTERPRETED:
        z = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [y], tl.float32, is_pure=True, pack=1)
    else:
        z = 1.0 / y
    return z


@triton.jit
def divide(x, y, COARSE: tl.constexpr):
    """``x / y`` of tensors. In fp32 `/` is an approximation on a GPU. With COARSE y is below 2^126."""
    if COARSE:
        z = x * coarse_reciprocal(y)
    else:
        z = x / y if x.dtype == tl.float64 else tl.div_rn(x, y)
    return z


@triton.jit
def square_root(x, COARSE: tl.constexpr):
    return tl.sqrt(x) if COARSE or x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def power_of_two(n):
    """2^n in fp32 for -128 < n < 129, where 2^-127 is 0 and 2^128 is inf."""
    return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def reduce(x):
    """``(r, n)`` with exp(x) = 2^n exp(r), |r| <= ln(2) / 2, for fp32."""
    # Adding 1.5 2^23 rounds to an integer, which the low bits then hold.
    shifted = x * LOG2_E + 12582912.0
    n = shifted - 12582912.0
    # ln 2 in two parts
    return (x - n * 0.693359375) - n * -2.12194440e-4, shifted.to(tl.int32, bitcast=True) - 0x4B400000


@triton.jit
def reduced_expm1(r):
    """``exp(r) - 1`` for |r| <= ln(2) / 2, relative error 1.4e-8."""
    return r + r * r * polynomial(r, (0.00139475707, 0.00836723391, 0.0416662656, 0.166665375, 0.5))


@triton.jit
def exp(x, COARSE: tl.constexpr):
    if COARSE:
        y = tl.exp2(x * LOG2_E)
    elif x.dtype == tl.float64:
        y = tl.exp(x)
    else:
        r, n = reduce(clamp(x, -104.0, 89.0))  # beyond, the result is 0 or inf
        half = n >> 1
        # Scaled in two steps it is rounded once, also where it is subnormal or overflows.
        y = (1.0 + reduced_expm1(r)) * power_of_two(half) * power_of_two(n - half)
    return y


@triton.jit
def expm1(x, COARSE: tl.constexpr):
    if COARSE:
        near = x * x * polynomial(x, (0.0416370407, 0.167098254, 0.50000447)) + x  # relative error 2^-17
        y = tl.where(tl.abs(x) < 0.25, near, exp(x, COARSE) - 1.0)
    elif x.dtype == tl.float64:
        # Where the power is near 1 the difference would lose what its rounding lost: the logarithm of the rounded power
        # tells how far off it is (Kahan).
        power = tl.exp(x)
        near = (power > 0.5) & (power < 2) & (power != 1)
        away = (power - 1) * x / tl.log(tl.where(near, power, 2.0))
        y = tl.where(power == 1, x, tl.where(near, away, power - 1))
    else:
        r, n = reduce(clamp(x, -30.0, 89.0))
        s = power_of_two(n - 1)
        y = 2.0 * (s * reduced_expm1(r) + (s - 0.5))
    return y


@triton.jit
def log1p_unit(u, COARSE: tl.constexpr):
    """``log(1 + u)`` for u in [0, 1]."""
    if u.dtype == tl.float64:
        sum = 1 + u
        exact = sum == 1
        y = tl.where(exact, u, tl.log(sum) * u / tl.where(exact, 1.0, sum - 1))  # as in expm1
    else:
        z = divide(u, 2.0 + u, COARSE)  # log(1 + u) = 2 atanh(z)
        w = z * z
        if COARSE:  # relative error 2^-17
            y = z * (w * polynomial(w, (0.339974612, 0.396338165, 0.66673559)) + 2.0)
        else:  # 1.2e-10
            q = polynomial(w, (0.121287324, 0.10720095, 0.143078059, 0.199994653, 0.333333373))
            y = 2.0 * (z + z * w * q)
    return y


@triton.jit
def tanh(x, COARSE: tl.constexpr):
    e = expm1(-2.0 * tl.abs(x), COARSE)
    y = divide(e, 2.0 + e, COARSE)
    return tl.where(x < 0, y, 0.0 - y)


@triton.jit
def sigmoids(x, COARSE: tl.constexpr):
    """sigmoid(x) and sigmoid(-x) for the price of one; small results keep their relative accuracy, down to
    2^-126 where they are COARSE, but the second of these: it is for sums with terms of the order of 1."""
    if COARSE:
        s = coarse_reciprocal(1.0 + exp(x * -1.0, COARSE))  # 0.0 - x would be an addition, for the sign of its zero
        t = 1.0 - s
    else:
        e = exp(tl.abs(x) * -1.0, COARSE)
        larger = divide(tl.full(e.shape, 1.0, e.dtype), 1.0 + e, COARSE)
        smaller = e * larger
        s = tl.where(x < 0, smaller, larger)
        t = tl.where(x < 0, larger, smaller)
    return s, t


@triton.jit
def sigmoid(x, COARSE: tl.constexpr):
    return sigmoids(x, COARSE)[0]


@triton.jit
def coarse_log2_tail(a, COARSE: tl.constexpr):
    """log2(Phi(-a)) for a >= 0. Beyond 13.5, where Phi is below any float, it falls on to -inf."""
    if COARSE <= 8:
        q = polynomial(a, (-4.09772127e-7, 2.16630888e-5, -0.000482369476, 0.00597702153, -0.0465528741))
        q = polynomial_on(q, a, (-0.468846828, -1.14577234, -1.00047135))
    else:
        q = polynomial(a, (-2.07809014e-9, 1.50915056e-7, -4.79825212e-6, 8.84734545e-5, -0.00106105721))
        q = polynomial_on(q, a, (0.00886007119, -0.0544718765, -0.458104759, -1.15134513, -0.999991357))
    return q


@triton.jit
def mills_ratio(a):
    """Phi(-a) exp(a^2 / 2) in fp32 for a in [0, 15], relative error 6e-9. All coefficients are positive: nothing
    cancels."""
    p = polynomial(a, (0.00412382279, 0.0406837314, 0.183384776, 0.438496649, 0.5))
    q = polynomial(a, (0.0103367725, 0.101985365, 0.46986571, 1.20312417, 1.67487824, 1.0))
    return tl.div_rn(p, q)


@triton.jit
def mills_ratio_double(a):
    """... in fp64 for a in [0, 39], relative error 2e-16: a polynomial in a variable that maps this to [-1, 1)."""
    t = (a - 5) / (a + 5)
    p = polynomial(t, (2.1621886600626955e-09, 1.5217844896582098e-09, -2.6312251032435434e-08))
    p = polynomial_on(p, t, (-2.132764978647033e-08, 1.913425386291301e-07, 1.2201788648993488e-07))
    p = polynomial_on(p, t, (-1.3043694027638602e-06, -6.629713457668531e-08, 9.058634526041778e-06))
    p = polynomial_on(p, t, (-9.897834128581297e-06, -5.360729114396236e-05, 0.0001823346133791683))
    p = polynomial_on(p, t, (7.79155305641523e-06, -0.0016760724222617009, 0.006522000671975574))
    p = polynomial_on(p, t, (-0.015170415395054367, 0.024536963243440887, -0.026401042966673536))
    p = polynomial_on(p, t, (0.010002352385236698, 0.031030368425970647, -0.09155228183400911, 0.46151582985003775))
    return p / (1 + a)


@triton.jit
def normal_cdf(x, COARSE: tl.constexpr):
    """The normal distribution Phi, accurate in its negative tail."""
    if COARSE:
        tail = tl.exp2(coarse_log2_tail(tl.abs(x), COARSE))
    elif x.dtype == tl.float64:
        a = clamp(tl.abs(x), 0.0, 39.0)  # where Phi(-a) is below any number
        # exp(-a^2 / 2) by parts, since the square of all digits would be rounded.
        high = a.to(tl.float32).to(tl.float64)
        density = tl.exp(-0.5 * high * high) * tl.exp(-0.5 * (a - high) * (a + high))
        tail = density * mills_ratio_double(a)
    else:
        a = clamp(tl.abs(x), 0.0, 13.27)  # where the power of two is 0
        r, n = reduce(-0.5 * a * a)
        tail = (1.0 + reduced_expm1(r)) * power_of_two(n) * mills_ratio(a)
    return tl.where(x > 0, 1.0 - tail, tail)


@triton.jit
def normal_pdf(x, COARSE: tl.constexpr):
    """``exp(-x^2 / 2) / sqrt(2 pi)``."""
    if COARSE:
        y = tl.exp2(x * x * (-0.5 * LOG2_E) - 1.32574806)
    else:
        y = 0.39894228040143267794 * exp(-0.5 * x * x, COARSE)
    return y
