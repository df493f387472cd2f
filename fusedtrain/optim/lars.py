"""LARS, which torch does not have."""

from __future__ import annotations

from torch import Tensor
from torch.optim.optimizer import ParamsT

from fusedtrain.optim import hyper
from fusedtrain.optim.sgd import SGD
from fusedtrain.optim.trust import TrustRatio


class LARS(TrustRatio, SGD):  # type: ignore[misc]
    """LARS (You et al. 2017, "Large Batch Training of Convolutional Networks") with clipping in the step: the direction
    ``u`` of SGD, and ``p -= lr r u`` with ``r = trust_coefficient |p| / |u|`` for each tensor by itself, without the
    quotient where either norm is 0 or not finite.

    ``u`` is the direction with its momentum, as in LAMB; the paper scales the gradient before it is gathered in the
    buffer, which is the same while the ratio stays the same.

    Args:
        params: iterable of parameters, of named parameters, or of dicts that define groups.
        lr: learning rate >= 0. With the default of 1 a tensor moves by ``trust_coefficient`` of its norm.
        momentum, dampening, weight_decay, nesterov: as in `SGD`, but for the default of momentum.
        trust_coefficient: >= 0. None steps as SGD does: for groups of biases and norms, say.
        maximize, foreach, differentiable, fused, max_norm and what follows: as in `SGD`, of which it is a subclass.

    State: ``momentum_buffer``, as SGD. What a step costs, takes and refuses: see `TrustRatio`.
    """

    _reads = (*SGD._reads, "trust_coefficient")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        trust_coefficient: float | None = 1e-3,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        clip_value: float | None = None,
        l1: float = 0.0,
        nonfinite: str = "propagate",
        backend: str | None = None,
    ) -> None:
        hyper.check_trust_coefficient(type(self).__name__, trust_coefficient)
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
            max_norm=max_norm,
            norm_type=norm_type,
            clip_value=clip_value,
            l1=l1,
            nonfinite=nonfinite,
            backend=backend,
        )
        self._own_defaults = {**self._own_defaults, "trust_coefficient": trust_coefficient}
        for settings in (self.defaults, *self.param_groups):
            settings.setdefault("trust_coefficient", trust_coefficient)
