"""Clipping by global norm alone: `clip_grad_norm_`, ours and torch's."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_

import fusedtrain as ft
from fusedtrain import rules
from fusedtrain.bench import availability
from fusedtrain.bench.accuracy import Accuracy, one_thread
from fusedtrain.bench.optim_step import OptimStep
from fusedtrain.bench.peers import params_of
from fusedtrain.bench.shapes import Shapes, count
from fusedtrain.bench.step_providers import OURS
from fusedtrain.bench.workload import Call

Clip = Callable[[list[Parameter], float], object]
_CHECKED, _NONE = 1.0, 1e30
"""Bounds: that of the check, and one that no norm reaches."""
_SHRINK, _LOWEST = 0.97, 2**-8
"""By more than torch's own norm and coefficient err in bf16; and by how much gradients are let shrink, which fp16 has
room for."""


class Falling:
    """Gradients, and a bound that falls with every call of whichever provider: otherwise only the first call would
    find something to clip, or only those of the provider that calls most often.

    When all has shrunk to 1/256 the gradients are put back, in every 183rd call: half a per cent of the work, the same
    for all.
    """

    def __init__(self, params: list[Parameter]) -> None:
        self.params = params
        self._grads = [p.grad for p in params if p.grad is not None]
        self._kept = [g.clone() for g in self._grads]
        self._first = 0.5 * math.sqrt(sum(g.numel() for g in self._grads))  # they are normal, of variance 1
        self._bound = self._first

    def next(self) -> float:
        """A bound that is below the norm."""
        if self._bound < self._first * _LOWEST:
            torch._foreach_copy_(self._grads, self._kept)
            self._bound = self._first
        bound, self._bound = self._bound, self._bound * _SHRINK
        return bound


def _fused(backend: str) -> Clip:
    def clip(params: list[Parameter], bound: float) -> object:
        before = os.environ.get("FUSEDTRAIN_BACKEND")
        os.environ["FUSEDTRAIN_BACKEND"] = backend  # torch's signature has no argument for it
        try:
            return ft.clip_grad_norm_(params, bound)
        finally:
            if before is None:
                del os.environ["FUSEDTRAIN_BACKEND"]
            else:
                os.environ["FUSEDTRAIN_BACKEND"] = before

    return clip


PROVIDERS: dict[str, Clip] = {
    **{provider: _fused(backend) for provider, backend in OURS.items()},
    "torch-loop": lambda params, bound: clip_grad_norm_(params, bound, foreach=False),
    "torch-foreach": lambda params, bound: clip_grad_norm_(params, bound, foreach=True),
}


@dataclass(frozen=True)
class ClipNorm:
    """``clip_grad_norm_`` over the gradients of a list of parameters."""

    name: str
    shapes: Callable[[], Shapes]
    clips: bool = True
    """Whether the norm is above the bound; else there is nothing to scale."""
    host_bound: bool = False
    dtype: torch.dtype = torch.float32
    skip: tuple[str, ...] = ()
    seed: int = 0
    suite: str = "clip"
    baseline: str = "torch-foreach"
    _steps: OptimStep = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_steps", OptimStep(self.name, self.shapes, seed=self.seed))

    def providers(self) -> list[str]:
        return [name for name in PROVIDERS if name not in self.skip]

    def why_not(self, provider: str, device: torch.device, dtype: torch.dtype) -> str | None:
        availability.check_provider(provider, PROVIDERS, self.name)
        return availability.backend_refusal(OURS[provider], device, dtype, None) if provider in OURS else None

    def needs(self, dtype: torch.dtype, providers: int) -> int:
        n = count(self.shapes())
        return 5 * n * dtype.itemsize + 16 * n

    def once(self) -> tuple[str, ...]:
        return ()

    def no_graph(self) -> str | None:
        if not self.clips:
            return None
        return "a CUDA graph has one bound for ever: after its first replay there is nothing to clip"

    def inputs(self, device: torch.device, dtype: torch.dtype) -> Falling:
        return Falling(self._params(device, dtype))

    def _params(self, device: torch.device, dtype: torch.dtype) -> list[Parameter]:
        return params_of(self._steps.inputs(device, dtype))

    def make(self, provider: str, device: torch.device, dtype: torch.dtype, inputs: Falling | None = None) -> Call:
        availability.check_provider(provider, PROVIDERS, self.name)
        shared, clip = self.inputs(device, dtype) if inputs is None else inputs, PROVIDERS[provider]
        if not self.clips:
            return lambda: clip(shared.params, _NONE)
        return lambda: clip(shared.params, shared.next())

    def check(self, provider: str, device: torch.device, dtype: torch.dtype) -> Accuracy:
        """The gradients after one call, as near to fp64 as torch's loop leaves them."""
        params = self._params(device, dtype)
        grads = [p.grad.detach().clone() for p in params if p.grad is not None]
        bound = _CHECKED if self.clips else _NONE
        PROVIDERS[provider](params, bound)
        with one_thread():
            coef = rules.clip_coefficient(rules.vector_norm(grads, 2.0), bound)
            plain = [Parameter(torch.empty_like(g)) for g in grads]
            for p, g in zip(plain, grads, strict=True):
                p.grad = g.clone()
            clip_grad_norm_(plain, bound, foreach=False)
            accuracy = Accuracy()
            for p, theirs, g in zip(params, plain, grads, strict=True):
                if p.grad is None or theirs.grad is None:
                    raise AssertionError("a gradient is gone")
                accuracy.add(p.grad, theirs.grad, g.double() * coef)
            if not self.clips and not all(torch.equal(_grad(p), g) for p, g in zip(params, grads, strict=True)):
                raise AssertionError("gradients changed although there was nothing to clip")
        return accuracy

    def bytes(self, dtype: torch.dtype, provider: str | None = None) -> int:
        """The gradients once for their norm; read and written once more if they are scaled."""
        return count(self.shapes()) * dtype.itemsize * (3 if self.clips else 1)

    def facts(self) -> dict[str, Any]:
        shapes = self.shapes()
        return {"tensors": len(shapes), "elements": count(shapes)}


def _grad(p: Parameter) -> Tensor:
    return torch.zeros(()) if p.grad is None else p.grad
