"""The specification: every rule in plain PyTorch, with its equation and its source.

Two kinds of rule live here and every backend is checked against them:

* an *activation* maps ``x`` to ``a = act(x)`` and has a derivative in ``x`` and, where ``a`` determines it, in ``a``;
* an *update* maps a gradient to a *direction* ``u`` and new states. It never writes ``p``: the caller applies
  ``p - lr * u`` and owns unscaling, clipping, precision and the skipping of steps.

All functions are elementwise, differentiable, and compute in the dtype they are given: fp32 or fp64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# ---- activations


def identity(x: Tensor) -> Tensor:
    """``x``."""
    return x


def identity_grad(x: Tensor) -> Tensor:
    """``1``."""
    return torch.ones_like(x)


def relu(x: Tensor) -> Tensor:
    """``max(x, 0)``, NaN propagates (Nair & Hinton 2010)."""
    return torch.relu(x)


def relu_grad(x: Tensor) -> Tensor:
    """``1 if x > 0 else 0``; as torch, a NaN input lets the gradient through."""
    return torch.where(x <= 0, torch.zeros_like(x), 1.0)


LEAKY_SLOPE = 0.01


def leaky_relu(x: Tensor) -> Tensor:
    """``x if x > 0 else 0.01 x`` (Maas et al. 2013)."""
    return torch.where(x > 0, x, LEAKY_SLOPE * x)


def leaky_relu_grad(x: Tensor) -> Tensor:
    """``1 if x > 0 else 0.01``; the same function of the output, whose sign is that of ``x``."""
    return torch.where(x > 0, torch.ones_like(x), LEAKY_SLOPE)


def squared_relu(x: Tensor) -> Tensor:
    """``max(x, 0)^2`` (So et al. 2021, "Primer")."""
    return torch.relu(x).square()


def squared_relu_grad(x: Tensor) -> Tensor:
    """``2 max(x, 0)``."""
    return 2 * torch.relu(x)


def squared_relu_grad_from_output(a: Tensor) -> Tensor:
    """``2 sqrt(a)``, with the derivative of the square root at zero taken as zero."""
    positive = a > 0
    return torch.where(positive, 2 * torch.where(positive, a, 1.0).sqrt(), a)  # `a` keeps a NaN


def elu(x: Tensor) -> Tensor:
    """``x if x > 0 else exp(x) - 1`` (Clevert et al. 2015, alpha = 1)."""
    return torch.where(x > 0, x, torch.expm1(torch.where(x > 0, 0.0, x)))


def elu_grad(x: Tensor) -> Tensor:
    """``1 if x > 0 else exp(x)``."""
    return torch.where(x > 0, 1.0, torch.exp(torch.where(x > 0, 0.0, x)))


def elu_grad_from_output(a: Tensor) -> Tensor:
    """``1 if a > 0 else a + 1``."""
    return torch.where(a > 0, 1.0, a + 1)


def normal_cdf(x: Tensor) -> Tensor:
    """``Phi(x) = erfc(-x / sqrt 2) / 2``: unlike ``(1 + erf) / 2`` it does not cancel in the negative tail."""
    return 0.5 * torch.special.erfc(-x * math.sqrt(0.5))


def normal_pdf(x: Tensor) -> Tensor:
    """``phi(x) = exp(-x^2 / 2) / sqrt(2 pi)``."""
    return torch.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


def gelu(x: Tensor) -> Tensor:
    """``x Phi(x)``, Phi the normal distribution (Hendrycks & Gimpel 2016)."""
    return x * normal_cdf(x)


def gelu_grad(x: Tensor) -> Tensor:
    """``Phi(x) + x phi(x)``."""
    return normal_cdf(x) + x * normal_pdf(x)


_GELU_TANH_SCALE = math.sqrt(2 / math.pi)
_GELU_TANH_CUBIC = 0.044715


def _where_it_matters(x: Tensor) -> Tensor:
    """``x`` up to where a sigmoid of it has long been 0 or 1: no power or multiple of this overflows."""
    return torch.clamp(x, -1e3, 1e3)


def gelu_tanh(x: Tensor) -> Tensor:
    """``x sigmoid(2 z)``, ``z = sqrt(2/pi) (x + 0.044715 x^3)``: ``x/2 (1 + tanh z)`` without its cancellation
    (Hendrycks & Gimpel 2016)."""
    c = _where_it_matters(x)
    z = _GELU_TANH_SCALE * (c + _GELU_TANH_CUBIC * c * c * c)
    return x * torch.sigmoid(2 * z)


def gelu_tanh_grad(x: Tensor) -> Tensor:
    """``s + 2 x s (1 - s) dz/dx`` with ``s = sigmoid(2 z)``; ``1 - s`` as ``sigmoid(-2 z)``."""
    x = _where_it_matters(x)
    z = _GELU_TANH_SCALE * (x + _GELU_TANH_CUBIC * x * x * x)
    dz = _GELU_TANH_SCALE * (1 + 3 * _GELU_TANH_CUBIC * x * x)
    s, one_minus_s = torch.sigmoid(2 * z), torch.sigmoid(-2 * z)
    return s + 2 * x * (s * one_minus_s) * dz


QUICK_GELU_SLOPE = 1.702


def quick_gelu(x: Tensor) -> Tensor:
    """``x sigmoid(1.702 x)`` (Hendrycks & Gimpel 2016, section 2)."""
    return x * torch.sigmoid(QUICK_GELU_SLOPE * _where_it_matters(x))


def quick_gelu_grad(x: Tensor) -> Tensor:
    """``s (1 + 1.702 x (1 - s))``, ``s = sigmoid(1.702 x)``."""
    z = QUICK_GELU_SLOPE * _where_it_matters(x)
    return torch.sigmoid(z) * (1 + z * torch.sigmoid(-z))


def silu(x: Tensor) -> Tensor:
    """``x sigmoid(x)`` (Elfwing et al. 2017; Ramachandran et al. 2017, "Swish")."""
    return x * torch.sigmoid(x)


def silu_grad(x: Tensor) -> Tensor:
    """``s (1 + x (1 - s))``, ``s = sigmoid(x)``."""
    return torch.sigmoid(x) * (1 + x * torch.sigmoid(-x))


def mish(x: Tensor) -> Tensor:
    """``x tanh(softplus(x))`` (Misra 2019)."""
    return x * torch.tanh(softplus(x))


def mish_grad(x: Tensor) -> Tensor:
    """``w + x (1 - w^2) sigmoid(x)``, ``w = tanh(softplus(x))``."""
    w = torch.tanh(softplus(x))
    return w + x * (1 - w * w) * torch.sigmoid(x)


def hardswish(x: Tensor) -> Tensor:
    """``0`` up to -3, ``x (x + 3) / 6`` between, ``x`` from 3 (Howard et al. 2019)."""
    middle = torch.clamp(x, -3, 3)
    return torch.where(x <= -3, torch.zeros_like(x), torch.where(x < 3, middle * (middle + 3) / 6, x))


def hardswish_grad(x: Tensor) -> Tensor:
    """``0`` up to -3, ``(x + 3/2) / 3`` between, ``1`` from 3."""
    return torch.where(x <= -3, torch.zeros_like(x), torch.where(x < 3, (x + 1.5) / 3, 1.0))


def sigmoid(x: Tensor) -> Tensor:
    """``1 / (1 + exp(-x))``."""
    return torch.sigmoid(x)


def sigmoid_grad(x: Tensor) -> Tensor:
    """``s (1 - s)``."""
    return torch.sigmoid(x) * torch.sigmoid(-x)


def sigmoid_grad_from_output(a: Tensor) -> Tensor:
    """``a (1 - a)``; not below 0, where a rounded ``a`` is beyond 1."""
    return torch.clamp(a * (1 - a), min=0)


def tanh(x: Tensor) -> Tensor:
    """``tanh(x)``."""
    return torch.tanh(x)


def tanh_grad(x: Tensor) -> Tensor:
    """``1 - tanh(x)^2``."""
    return tanh_grad_from_output(torch.tanh(x))


def tanh_grad_from_output(a: Tensor) -> Tensor:
    """``1 - a^2``; not below 0, where a rounded ``a`` is beyond 1."""
    return torch.clamp(1 - a * a, min=0)


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))`` as ``max(x, 0) + log1p(exp(-|x|))``: exact everywhere, where torch turns linear at 20."""
    return torch.logaddexp(x, torch.zeros_like(x))


def softplus_grad(x: Tensor) -> Tensor:
    """``sigmoid(x)``."""
    return torch.sigmoid(x)


def softplus_grad_from_output(a: Tensor) -> Tensor:
    """``1 - exp(-a)``."""
    return -torch.expm1(-a)


@dataclass(frozen=True)
class Activation:
    """A row of the table: ``fwd(x)``, ``grad(x)`` and, where the output determines the derivative, ``grad(a)``."""

    fwd: Callable[[Tensor], Tensor]
    grad: Callable[[Tensor], Tensor]
    grad_from_output: Callable[[Tensor], Tensor] | None = None
    saves: str = "input"
    """What the backward needs besides the mask: ``"nothing"``, ``"output"`` or ``"input"``."""


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(identity, identity_grad, identity_grad, saves="nothing"),
    "relu": Activation(relu, relu_grad, relu_grad, saves="output"),
    "leaky_relu": Activation(leaky_relu, leaky_relu_grad, leaky_relu_grad, saves="output"),
    "squared_relu": Activation(squared_relu, squared_relu_grad, squared_relu_grad_from_output, saves="output"),
    "elu": Activation(elu, elu_grad, elu_grad_from_output, saves="output"),
    "gelu": Activation(gelu, gelu_grad),
    "gelu_tanh": Activation(gelu_tanh, gelu_tanh_grad),
    "quick_gelu": Activation(quick_gelu, quick_gelu_grad),
    "silu": Activation(silu, silu_grad),
    "mish": Activation(mish, mish_grad),
    "hardswish": Activation(hardswish, hardswish_grad),
    "sigmoid": Activation(sigmoid, sigmoid_grad, sigmoid_grad_from_output, saves="output"),
    "tanh": Activation(tanh, tanh_grad, tanh_grad_from_output, saves="output"),
    "softplus": Activation(softplus, softplus_grad, softplus_grad_from_output, saves="output"),
}

# ---- updates
#
# direction(p, g, states, t, *hyper) -> (u, states)
#   p, g, states: tensors of one shape, fp32 or fp64 (D)     t: the number of this step, from 1, fp64 ()
#   hyper: Python floats (or fp64 ()), in the order of the table; bias corrections are computed in fp64.

States = tuple[Tensor, ...]
Scalar = float | Tensor


def decay(p: Tensor, weight_decay: Scalar) -> Tensor:
    """``weight_decay p``, 0 for an infinite ``p``: it stays what it is, as a logit held at -inf should, and is not NaN
    for a ``weight_decay`` of 0."""
    return torch.where(p.isfinite(), weight_decay * p, 0.0)


def sgd(p: Tensor, g: Tensor, states: States, t: Tensor, weight_decay: Scalar) -> tuple[Tensor, States]:
    """``u = g + weight_decay p`` (Robbins & Monro 1951)."""
    return g + decay(p, weight_decay), ()


def sgd_momentum(
    p: Tensor,
    g: Tensor,
    states: States,
    t: Tensor,
    weight_decay: Scalar,
    momentum: Scalar,
    dampening: Scalar,
    nesterov: Scalar,
) -> tuple[Tensor, States]:
    """``b = momentum b + (1 - dampening) g``, on the first step ``b = g``; ``u = b``, or ``g + momentum b`` with
    Nesterov's momentum. As torch: Sutskever et al. 2013 with the learning rate outside the buffer."""
    (b,) = states
    g = g + decay(p, weight_decay)
    b = torch.where(t <= 1, g, momentum * b + (1 - dampening) * g)
    return torch.where(torch.as_tensor(nesterov, device=g.device) != 0, g + momentum * b, b), (b,)


def _moments(g: Tensor, m: Tensor, v: Tensor, beta1: Scalar, beta2: Scalar) -> tuple[Tensor, Tensor]:
    return m + (1 - beta1) * (g - m), v + (1 - beta2) * (g * g - v)


def _adam_direction(m: Tensor, v: Tensor, t: Tensor, beta1: Scalar, beta2: Scalar, eps: Scalar) -> Tensor:
    bias_correction1 = 1 - beta1**t
    bias_correction2 = 1 - beta2**t
    return (m / bias_correction1) / ((v.sqrt() / bias_correction2**0.5) + eps)


def adam(
    p: Tensor, g: Tensor, states: States, t: Tensor, beta1: Scalar, beta2: Scalar, eps: Scalar, weight_decay: Scalar
) -> tuple[Tensor, States]:
    """``m = beta1 m + (1 - beta1) g``, ``v = beta2 v + (1 - beta2) g^2``, ``u = m^ / (sqrt(v^) + eps)`` with
    ``m^ = m / (1 - beta1^t)``, ``v^ = v / (1 - beta2^t)`` (Kingma & Ba 2015). ``weight_decay`` is added to the
    gradient (L2)."""
    m, v = states
    m, v = _moments(g + decay(p, weight_decay), m, v, beta1, beta2)
    return _adam_direction(m, v, t, beta1, beta2, eps), (m, v)


def adam_amsgrad(
    p: Tensor, g: Tensor, states: States, t: Tensor, beta1: Scalar, beta2: Scalar, eps: Scalar, weight_decay: Scalar
) -> tuple[Tensor, States]:
    """Adam with ``w = max(w, v)`` in place of ``v`` in the denominator (Reddi et al. 2018)."""
    m, v, w = states
    m, v = _moments(g + decay(p, weight_decay), m, v, beta1, beta2)
    w = torch.maximum(w, v)
    return _adam_direction(m, w, t, beta1, beta2, eps), (m, v, w)


def adamw(
    p: Tensor, g: Tensor, states: States, t: Tensor, beta1: Scalar, beta2: Scalar, eps: Scalar, weight_decay: Scalar
) -> tuple[Tensor, States]:
    """Adam with decoupled decay: ``u = m^ / (sqrt(v^) + eps) + weight_decay p`` (Loshchilov & Hutter 2019)."""
    u, states = adam(p, g, states, t, beta1, beta2, eps, 0.0)
    return u + decay(p, weight_decay), states


def adamw_amsgrad(
    p: Tensor, g: Tensor, states: States, t: Tensor, beta1: Scalar, beta2: Scalar, eps: Scalar, weight_decay: Scalar
) -> tuple[Tensor, States]:
    """AMSGrad with decoupled decay."""
    u, states = adam_amsgrad(p, g, states, t, beta1, beta2, eps, 0.0)
    return u + decay(p, weight_decay), states


def lion(
    p: Tensor, g: Tensor, states: States, t: Tensor, beta1: Scalar, beta2: Scalar, weight_decay: Scalar
) -> tuple[Tensor, States]:
    """``u = sign(beta1 m + (1 - beta1) g) + weight_decay p``, ``m = beta2 m + (1 - beta2) g``
    (Chen et al. 2023, algorithm 2). The sign of NaN is NaN: a poisoned gradient shows."""
    (m,) = states
    c = m + (1 - beta1) * (g - m)
    return torch.where(c.isnan(), c, c.sign()) + decay(p, weight_decay), (m + (1 - beta2) * (g - m),)


def adagrad(
    p: Tensor, g: Tensor, states: States, t: Tensor, lr_decay: Scalar, eps: Scalar, weight_decay: Scalar
) -> tuple[Tensor, States]:
    """``s = s + g^2``, ``u = g / (sqrt(s) + eps) / (1 + (t - 1) lr_decay)`` (Duchi et al. 2011). ``weight_decay`` is
    added to the gradient."""
    (s,) = states
    g = g + decay(p, weight_decay)
    s = s + g * g
    return g / (s.sqrt() + eps) / (1 + (t - 1) * lr_decay), (s,)


def _moving_average(old: Tensor, scaled: Tensor, alpha: Scalar) -> Tensor:
    """``alpha old + scaled``, where ``scaled`` is ``1 - alpha`` times something. Without alpha: by what two rounded
    constants miss of 1, averages would be off. Large ones are rounded once; for a small alpha the old goes first."""
    rest = torch.as_tensor(1 - alpha, dtype=torch.float64, device=old.device)
    return torch.where(rest > 0.5, (old - rest * old) + scaled, old + (scaled - rest * old))


def _mean_square(g: Tensor, v: Tensor, alpha: Scalar) -> Tensor:
    # Squared last: so it reaches as far as torch's.
    return _moving_average(v, (1 - alpha) * g * g, alpha)


def _variance(v: Tensor, a: Tensor) -> Tensor:
    """``v - a^2``, but not less than the rounding of ``v``, which it cannot be known to."""
    variance, least = v - a * a, torch.finfo(v.dtype).eps * v
    return torch.where(variance < least, least, variance)


def rmsprop(
    p: Tensor, g: Tensor, states: States, t: Tensor, alpha: Scalar, eps: Scalar, weight_decay: Scalar
) -> tuple[Tensor, States]:
    """``v = alpha v + (1 - alpha) g^2``, ``u = g / (sqrt(v) + eps)`` (Tieleman & Hinton 2012). ``weight_decay`` is
    added to the gradient."""
    (v,) = states
    g = g + decay(p, weight_decay)
    v = _mean_square(g, v, alpha)
    return g / (v.sqrt() + eps), (v,)


def rmsprop_momentum(
    p: Tensor,
    g: Tensor,
    states: States,
    t: Tensor,
    alpha: Scalar,
    eps: Scalar,
    weight_decay: Scalar,
    momentum: Scalar,
) -> tuple[Tensor, States]:
    """RMSprop whose direction is ``b = momentum b + g / (sqrt(v) + eps)``, from 0, as torch's."""
    v, b = states
    u, (v,) = rmsprop(p, g, (v,), t, alpha, eps, weight_decay)
    b = momentum * b + u
    return b, (v, b)


def rmsprop_centered(
    p: Tensor, g: Tensor, states: States, t: Tensor, alpha: Scalar, eps: Scalar, weight_decay: Scalar
) -> tuple[Tensor, States]:
    """RMSprop by the variance ``v - a^2``, with ``a = alpha a + (1 - alpha) g``, in place of ``v`` in the denominator
    (Graves 2013). Where a gradient stays the same the variance falls below the rounding of ``v``: it is that much
    then, where torch takes what comes out, whose square root may be NaN."""
    v, a = states
    g = g + decay(p, weight_decay)
    v, a = _mean_square(g, v, alpha), _moving_average(a, (1 - alpha) * g, alpha)
    return g / (_variance(v, a).sqrt() + eps), (v, a)


def rmsprop_centered_momentum(
    p: Tensor,
    g: Tensor,
    states: States,
    t: Tensor,
    alpha: Scalar,
    eps: Scalar,
    weight_decay: Scalar,
    momentum: Scalar,
) -> tuple[Tensor, States]:
    """`rmsprop_centered` whose direction is gathered as that of `rmsprop_momentum`."""
    v, b, a = states
    u, (v, a) = rmsprop_centered(p, g, (v, a), t, alpha, eps, weight_decay)
    b = momentum * b + u
    return b, (v, b, a)


@dataclass(frozen=True)
class Update:
    """A row of the table: the direction, the names of its states (torch's keys) and of its hyperparameters."""

    direction: Callable[..., tuple[Tensor, States]]
    slots: tuple[str, ...]
    hyper: tuple[str, ...]


_ADAM_HYPER = ("beta1", "beta2", "eps", "weight_decay")
_RMS_HYPER = ("alpha", "eps", "weight_decay")

UPDATES: dict[str, Update] = {
    "sgd": Update(sgd, (), ("weight_decay",)),
    "sgd_momentum": Update(sgd_momentum, ("momentum_buffer",), ("weight_decay", "momentum", "dampening", "nesterov")),
    "adam": Update(adam, ("exp_avg", "exp_avg_sq"), _ADAM_HYPER),
    "adam_amsgrad": Update(adam_amsgrad, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), _ADAM_HYPER),
    "adamw": Update(adamw, ("exp_avg", "exp_avg_sq"), _ADAM_HYPER),
    "adamw_amsgrad": Update(adamw_amsgrad, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), _ADAM_HYPER),
    "lion": Update(lion, ("exp_avg",), ("beta1", "beta2", "weight_decay")),
    "adagrad": Update(adagrad, ("sum",), ("lr_decay", "eps", "weight_decay")),
    "rmsprop": Update(rmsprop, ("square_avg",), _RMS_HYPER),
    "rmsprop_momentum": Update(rmsprop_momentum, ("square_avg", "momentum_buffer"), (*_RMS_HYPER, "momentum")),
    "rmsprop_centered": Update(rmsprop_centered, ("square_avg", "grad_avg"), _RMS_HYPER),
    "rmsprop_centered_momentum": Update(
        rmsprop_centered_momentum, ("square_avg", "momentum_buffer", "grad_avg"), (*_RMS_HYPER, "momentum")
    ),
}

# ---- what happens to a gradient before its rule sees it

LAUNCH_HYPER = ("lr", "sign", "clip_value", "l1")
"""The columns that precede a rule's own in a hyperparameter row: learning rate; -1 to maximize, else 1; the bound of
clipping by value, inf for none; the L1 coefficient."""


def prepare_gradient(
    p: Tensor, g: Tensor, inv_scale: Scalar, clip_coef: Scalar, sign: Scalar, clip_value: Scalar, l1: Scalar
) -> Tensor:
    """``clamp(sign inv_scale clip_coef g, -clip_value, clip_value) + l1 sign(p)``: unscale, clip by norm, then by
    value, then the subgradient of ``l1 |p|``, which like weight decay is not clipped."""
    g = g * inv_scale * clip_coef * sign
    return torch.clamp(g, -clip_value, clip_value) + l1 * torch.sign(p)  # type: ignore[arg-type]


def trust_ratio(p_norm: Tensor, u_norm: Tensor) -> Tensor:
    """``|p| / |u|`` in fp64 (You et al. 2017, 2020): with it a step moves every tensor by the same share of its norm.
    1 where either norm is 0 or not finite."""
    p_norm, u_norm = p_norm.double(), u_norm.double()
    usable = (p_norm > 0) & (u_norm > 0) & p_norm.isfinite() & u_norm.isfinite()
    return torch.where(usable, p_norm / u_norm, 1.0)


def clip_coefficient(norm: Tensor, max_norm: float) -> Tensor:
    """``min(1, max_norm / (norm + 1e-6))`` as ``torch.nn.utils.clip_grad_norm_`` (Pascanu et al. 2013); NaN stays."""
    return torch.clamp(max_norm / (norm + 1e-6), max=1.0) if math.isfinite(max_norm) else torch.ones_like(norm)


def vector_norm(tensors: list[Tensor], norm_type: float) -> Tensor:
    """``(sum |x|^p)^(1/p)`` over all elements of all tensors, in fp64; ``max |x|`` for p = inf. Scaled by the largest
    magnitude first, so that no finite input overflows or underflows. Returns fp64 (), 0 for no elements."""
    flat = [x.detach().abs().double().reshape(-1) for x in tensors if x.numel()]
    if not flat:
        device = tensors[0].device if tensors else None
        return torch.zeros((), dtype=torch.float64, device=device)
    largest = torch.stack([x.max() for x in flat]).max()
    if norm_type == math.inf:
        return largest
    scalable = torch.isfinite(largest) & (largest > 0)
    unit = torch.where(scalable, largest, 1.0)
    total = torch.stack([(x / unit).pow(norm_type).sum() for x in flat]).sum()
    return unit * total ** (1 / norm_type)
