"""Modules around `fusedtrain.functional`: drop-in dropout, activation + dropout, and a linear layer ending in both."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from fusedtrain import checks, dispatch, functional, rules


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` on the RNG contract of this package: no stored mask, one mask on every backend.

    Args:
        p: the probability to drop, in [0, 1].
        inplace: overwrite the input.
        backend: a name of `fusedtrain.backends`; default: the first that can run the call.

    Raises:
        TypeError, ValueError: ``p`` is no probability, or the backend is unknown.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False, *, backend: str | None = None) -> None:
        _check(type(self).__name__, None, p, backend)
        super().__init__(p, inplace)
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:
        return functional.act_dropout(
            input, "identity", self.p, self.training, inplace=self.inplace, backend=self.backend
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + _repr_backend(self.backend)


class ActDropout(nn.Module):
    """``dropout(act(x))`` in one pass: (\\*) -> (\\*), any floating dtype, which is kept.

    The gradient of relu, leaky_relu, squared_relu, elu, sigmoid, tanh and softplus is computed from the result, which
    then may not be changed in place before the backward (``h += x``): torch raises.

    Args:
        activation: a name of `fusedtrain.rules.ACTIVATIONS`.
        p: the probability to drop, in [0, 1].
        inplace: overwrite the input (for activations whose gradient needs it, a clone is saved).
        backend: a name of `fusedtrain.backends`; default: the first that can run the call.

    Raises:
        TypeError, ValueError: unknown activation or backend, or ``p`` is no probability.
    """

    def __init__(
        self, activation: str = "relu", p: float = 0.5, inplace: bool = False, *, backend: str | None = None
    ) -> None:
        _check(type(self).__name__, activation, p, backend)
        super().__init__()
        self.activation, self.p, self.inplace, self.backend = activation, p, inplace, backend

    def forward(self, input: Tensor) -> Tensor:
        return functional.act_dropout(
            input, self.activation, self.p, self.training, inplace=self.inplace, backend=self.backend
        )

    def extra_repr(self) -> str:
        return f"{self.activation!r}, p={self.p}, inplace={self.inplace}{_repr_backend(self.backend)}"


class GatedActDropout(nn.Module):
    """``dropout(act(gate) * up)`` with ``[gate, up] = x`` on the last dimension: (\\*, 2 D) -> (\\*, D).

    With ``silu`` the SwiGLU of Shazeer 2020.

    Args:
        activation, p, backend: as for `ActDropout`.

    Raises:
        TypeError, ValueError: unknown activation or backend, or ``p`` is no probability.
    """

    def __init__(self, activation: str = "silu", p: float = 0.5, *, backend: str | None = None) -> None:
        _check(type(self).__name__, activation, p, backend)
        super().__init__()
        self.activation, self.p, self.backend = activation, p, backend

    def forward(self, input: Tensor) -> Tensor:
        return functional.gated_act_dropout(input, self.activation, self.p, self.training, backend=self.backend)

    def extra_repr(self) -> str:
        return f"{self.activation!r}, p={self.p}{_repr_backend(self.backend)}"


XAVIER = ("identity", "sigmoid", "tanh")
"""Activations that are linear around zero, initialised after Glorot & Bengio 2010; all others after He et al. 2015."""


@functools.cache
def he_gain(activation: str) -> float:
    """``1 / sqrt(E[act(z)^2])``, z standard normal: what He et al. 2015 (section 2.2) ask of a weight, so that the next
    layer sees the same variance. sqrt(2) for relu, sqrt(2 / (1 + a^2)) for leaky_relu, sqrt(2 / 3) for squared_relu,
    about 1.53 for gelu and 1.68 for silu."""
    with _disable_current_modes():  # a number is wanted, also where tensors are fake or of another device
        z = torch.linspace(-12, 12, 4801, dtype=torch.float64, device="cpu")
        square = rules.ACTIVATIONS[activation].fwd(z).square()
        return 1 / math.sqrt(float(torch.trapezoid(rules.normal_pdf(z) * square, z)))


class LinearActDropout(nn.Linear):
    """``dropout(act(x W^T + b))``: a matrix product, then bias, activation and dropout in one pass.

    The weight is initialised for its activation: uniform in +-gain sqrt(6 / (fan_in + fan_out)) for `XAVIER` (gain 1,
    for tanh 5/3 as ``torch.nn.init.calculate_gain``), else normal of standard deviation `he_gain` / sqrt(fan_in). The
    bias starts at zero. Parameters are named and shaped as in ``torch.nn.Linear``, so state dicts interchange.

    Args:
        in_features, out_features: x is (\\*, in_features), the result (\\*, out_features).
        activation: a name of `fusedtrain.rules.ACTIVATIONS`.
        p: the probability to drop, in [0, 1].
        bias: learn a bias (out_features,).
        backend: a name of `fusedtrain.backends`; default: the first that can run the call.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: unknown activation or backend, or ``p`` is no probability.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "relu",
        p: float = 0.5,
        bias: bool = True,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check(type(self).__name__, activation, p, backend)
        # `reset_parameters`, which the constructor of Linear calls, needs it: a plain attribute may precede `__init__`.
        self.activation = activation
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.p, self.backend = p, backend

    def reset_parameters(self) -> None:
        """Initialises the parameters for the activation."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if self.weight.numel() == 0:
            return
        if self.activation in XAVIER:
            nn.init.xavier_uniform_(self.weight, gain=5 / 3 if self.activation == "tanh" else 1.0)
        else:
            nn.init.normal_(self.weight, std=he_gain(self.activation) / math.sqrt(self.in_features))

    def forward(self, input: Tensor) -> Tensor:
        y = nn.functional.linear(input, self.weight)
        return functional.act_dropout(y, self.activation, self.p, self.training, bias=self.bias, backend=self.backend)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}, p={self.p}{_repr_backend(self.backend)}"


def _check(name: str, activation: str | None, p: float, backend: str | None) -> None:
    call = f"fusedtrain.nn.{name}"
    if activation is not None:
        checks.check_activation(call, activation)
    checks.check_probability(call, p)
    dispatch.check_name(backend, call)


def _repr_backend(backend: str | None) -> str:
    return "" if backend is None else f", backend={backend!r}"
