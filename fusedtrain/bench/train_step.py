"""Whole training steps of a model: forward, backward, clipping and AdamW, with torch's parts or with ours."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fusedtrain as ft
from fusedtrain.bench import availability, factory
from fusedtrain.bench.accuracy import Accuracy
from fusedtrain.bench.factory import Training
from fusedtrain.bench.optim_step import OptimStep
from fusedtrain.bench.peers import TIMED
from fusedtrain.bench.shapes import Shapes, count
from fusedtrain.bench.step_providers import OURS
from fusedtrain.bench.step_providers import PROVIDERS as STEPS
from fusedtrain.bench.workload import Call

CPU = torch.device("cpu")
PROVIDERS = [*OURS, "torch-fused", "torch-foreach"]
"""Of the step, those of `step_providers`."""
MODELS = {
    "transformer encoder": "fusedtrain.bench.models:encoder",
    "MLP": "fusedtrain.bench.models:mlp",
    "two blocks of GPT-2 small": "fusedtrain.bench.models:gpt2_blocks",
    "deep and thin net": "fusedtrain.bench.models:many_small",
}


@dataclass(frozen=True)
class Phases:
    """The parts of a step, each to be timed alone."""

    forward: Callable[[], Tensor]
    backward: Callable[[Tensor], None]
    update: Call
    """Clipping and the step."""
    sites: list[str]
    """Where `fuse_` swapped something."""


@functools.cache
def shapes_of(path: str, device: torch.device = CPU) -> Shapes:
    """The shapes of the parameters that are trained. ``device``: where the model is built."""
    model = factory.build(path, device).model
    return [tuple(p.shape) for p in model.parameters() if p.requires_grad]


@dataclass(frozen=True)
class TrainStep:
    """One training step on the same batch, again and again. In training mode: the masks of the dropouts differ."""

    name: str
    path: str
    """``package.module:factory``."""
    host_bound: bool = True
    dtype: torch.dtype = torch.float32
    seed: int = 0
    capturable: bool = False
    """Whether its steps are to become a part of a CUDA graph."""
    device: torch.device = CPU
    """Where the model is built to be asked for its size."""
    suite: str = "model"
    baseline: str = "torch-fused"

    def providers(self) -> list[str]:
        return list(PROVIDERS)

    def why_not(self, provider: str, device: torch.device, dtype: torch.dtype) -> str | None:
        availability.check_provider(provider, PROVIDERS, self.name)
        return availability.backend_refusal(OURS[provider], device, dtype, "adamw") if provider in OURS else None

    def shapes(self) -> Shapes:
        return shapes_of(self.path, self.device)

    def needs(self, dtype: torch.dtype, providers: int) -> int:
        """Every provider trains a model of its own. Activations are not counted: only a run tells them."""
        return providers * count(self.shapes()) * (2 * dtype.itemsize + 2 * max(4, dtype.itemsize))

    def once(self) -> tuple[str, ...]:
        return ()

    def no_graph(self) -> None:
        return None

    def inputs(self, device: torch.device, dtype: torch.dtype) -> None:
        """Nothing is shared: each provider has its own model, of the same numbers."""

    def phases(self, provider: str, device: torch.device, dtype: torch.dtype) -> Phases:
        training, sites = self._build(provider, device, dtype)
        params = [p for p in training.model.parameters() if p.requires_grad]

        settings = dataclasses.replace(TIMED, capturable=self.capturable)

        def backward(loss: Tensor) -> None:
            training.model.zero_grad()
            loss.backward()

        return Phases(training.loss, backward, STEPS[provider]([params], settings), sites)

    def _build(self, provider: str, device: torch.device, dtype: torch.dtype) -> tuple[Training, list[str]]:
        training = factory.build(self.path, device, dtype, self.seed)
        sites = ft.fuse_(training.model, backend=OURS[provider]) if provider in OURS else []
        return training, sites

    def make(self, provider: str, device: torch.device, dtype: torch.dtype, inputs: None = None) -> Call:
        availability.check_provider(provider, PROVIDERS, self.name)
        phases = self.phases(provider, device, dtype)

        def call() -> None:
            phases.backward(phases.forward())
            phases.update()

        return call

    def forward(self, provider: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The loss, whose graph holds what the backward needs: weights too, the same for every provider."""
        return self._build(provider, device, dtype)[0].loss()

    def check(self, provider: str, device: torch.device, dtype: torch.dtype) -> Accuracy:
        """Without dropout, in evaluation mode: the gradients err, as one vector, at most twice as much against fp64 as
        torch's. The step is checked on parameters of these shapes, and the dropout in its own suite."""
        ours, _ = self._build(provider, device, dtype)
        stock = factory.build(self.path, device, dtype, self.seed)
        g, theirs = _gradient(ours), _gradient(stock)
        if stock.example is None:  # a callable makes its input itself, and cannot be asked for fp64
            truth, plain = theirs, torch.finfo(dtype).eps ** 0.5 * float(theirs.norm()) / 2
        else:
            exact = factory.build(self.path, device, dtype, self.seed)
            exact.model.double()
            example = factory.moved(stock.example, device, torch.float64)
            exact.loss = lambda: factory.loss_of(factory.call(exact.model, example))
            truth = _gradient(exact)
            plain = max(float((theirs - truth).norm()), torch.finfo(dtype).eps * float(truth.norm()))
        error = float((g - truth).norm())
        if not error <= 2 * plain:
            raise AssertionError(f"gradients err {error:.3e} against fp64, more than twice torch's {plain:.3e}")
        return OptimStep(self.name, self.shapes, capturable=self.capturable).check(provider, device, dtype)

    def bytes(self, dtype: torch.dtype, provider: str | None = None) -> int:
        """Nothing that is known: a step is bound by its matrix products."""
        return 0

    def facts(self) -> dict[str, Any]:
        shapes = self.shapes()
        return {"tensors": len(shapes), "elements": count(shapes)}


def _gradient(training: Training) -> Tensor:
    """All gradients of one backward in evaluation mode, in fp64."""
    training.model.eval()
    training.loss().backward()
    found = [p.grad.double().flatten() for p in training.model.parameters() if p.grad is not None]
    return torch.cat(found)
