"""The two sides of the comparison: one training step by stock PyTorch, and the same step by fusedtrain."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm

import fusedtrain as ft
from fusedtrain.train import models
from fusedtrain.train.settings import Settings, seed_for
from fusedtrain.train.tasks import Batch, Task
from fusedtrain.train.world import World

PARTS = ("forward", "backward", "clip_step")


class Clock:
    """Splits a stretch of work on one device into named parts: wall time on a CPU, CUDA events on a GPU, so that the
    work is not synchronised between parts."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def part(self, name: str) -> Any:
        start = self._now()
        yield
        self._spans.append((name, start, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds by part; waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
        total = dict.fromkeys(PARTS, 0.0)
        for name, start, end in self._spans:
            total[name] += start.elapsed_time(end) / 1e3 if self._cuda else end - start
        return total


@dataclass(frozen=True)
class Measured:
    """What one step of one side shows: loss, gradient norms before and after clipping, the factor, seconds by part."""

    loss: Tensor
    grad_norm: float
    grad_norm_clipped: float
    clip_coef: float
    seconds: dict[str, float]


def rng_state(device: torch.device) -> Tensor:
    """The state of the default generator of the device, uint8, on the CPU."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_rng_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


class Side(ABC):
    """A model, its optimizer and its own stream of random numbers.

    The stream is switched in for each step, so that neither side's draws move the other's, and so that the state of
    each is saved and restored on its own.
    """

    name: str

    def __init__(self, settings: Settings, world: World) -> None:
        self.settings, self.world = settings, world
        self.model = models.build(self.parts(settings), settings)
        generator = torch.Generator().manual_seed(seed_for(settings.seed, "weights"))
        models.initialise(self.model, settings, generator)
        self.wrapped = world.wrap(self.model)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self.build_optimizer()
        # Differs by process: equal masks on different rows would correlate what the processes average.
        dropout = torch.Generator(world.device).manual_seed(seed_for(settings.seed, "dropout", world.rank))
        self.rng = dropout.get_state()

    @abstractmethod
    def parts(self, settings: Settings) -> models.Parts: ...

    @abstractmethod
    def build_optimizer(self) -> torch.optim.Optimizer: ...

    @abstractmethod
    def clip_and_step(self, clock: Clock) -> tuple[Tensor | None, Tensor | None]:
        """Clips by norm, then by value, adds the L1 subgradient, steps. Returns the norm before clipping, if it was
        computed, and after, if only this side can tell."""
        ...

    def groups(self) -> list[dict[str, Any]]:
        """Decay and L1 for matrices; neither for biases, norms and embeddings' vectors of one dimension."""
        decayed = [p for p in self.params if p.dim() >= 2]
        rest = [p for p in self.params if p.dim() < 2]
        return [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]

    def step(self, task: Task, batch: Batch, lr: float) -> Measured:
        """One training step. Only the parts of it that a user's script would run are timed."""
        device, clock = self.world.device, Clock(self.world.device)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        set_rng_state(self.rng, device)
        x, target = batch
        with clock.part("forward"):
            loss = task.loss(self.wrapped(x), target)
        with clock.part("backward"):
            loss.backward()
        norm, clipped = self.clip_and_step(clock)
        if norm is None:
            norm = get_total_norm([p.grad for p in self.params if p.grad is not None])
        if clipped is None:
            clipped = self.clipped_norm(norm)
        with clock.part("clip_step"):
            self.optimizer.zero_grad()
        self.rng = rng_state(device)
        before = float(norm)
        coef = min(1.0, self.settings.max_norm / (before + 1e-6))
        return Measured(loss.detach(), before, float(clipped), coef, clock.seconds())

    def clipped_norm(self, norm: Tensor) -> Tensor:
        """The norm after clipping from the one before and the gradients as they stand before any clipping."""
        coef = torch.clamp(self.settings.max_norm / (norm + 1e-6), max=1.0)
        if self.settings.clip_value == float("inf"):
            return norm * coef
        grads = [p.grad for p in self.params if p.grad is not None]
        grads = list(torch._foreach_mul(grads, float(coef)))
        torch._foreach_clamp_min_(grads, -self.settings.clip_value)
        torch._foreach_clamp_max_(grads, self.settings.clip_value)
        return get_total_norm(grads)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer states by name, for a checkpoint."""
        found = {f"model/{name}": p.detach() for name, p in self.model.named_parameters()}
        for index, state in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
        return found

    @torch.no_grad()
    def load_tensors(self, found: dict[str, Tensor]) -> None:
        """The inverse of `tensors`: continues to the bit."""
        for name, p in self.model.named_parameters():
            p.copy_(found[f"model/{name}"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in found.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/")
                state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


class Stock(Side):
    """As a careful user writes it today: modules of ``torch.nn``, multi-tensor clipping, the fused AdamW."""

    name = "stock"

    def parts(self, settings: Settings) -> models.Parts:
        return models.StockParts()

    def build_optimizer(self) -> torch.optim.Optimizer:
        s = self.settings
        return torch.optim.AdamW(self.groups(), lr=s.lr, weight_decay=s.weight_decay, fused=True)

    def clip_and_step(self, clock: Clock) -> tuple[Tensor | None, Tensor | None]:
        s, norm, clipped = self.settings, None, None
        with clock.part("clip_step"):
            if s.max_norm != float("inf"):
                norm = clip_grad_norm_(self.params, s.max_norm, foreach=True)
            if s.clip_value != float("inf"):
                clip_grad_value_(self.params, s.clip_value, foreach=True)
        # Between the parts because the gradients are about to take the L1 term; it costs this side no time.
        if s.clip_value != float("inf"):
            clipped = get_total_norm([p.grad for p in self.params if p.grad is not None])
        with clock.part("clip_step"):
            if s.l1:
                with torch.no_grad():
                    decayed = [p for p in self.optimizer.param_groups[0]["params"] if p.grad is not None]
                    signs = torch._foreach_sign(decayed)
                    torch._foreach_add_([p.grad for p in decayed], signs, alpha=s.l1)
            self.optimizer.step()
        return norm, clipped


class Fused(Side):
    name = "fused"
    optimizer: ft.optim.AdamW

    def parts(self, settings: Settings) -> models.Parts:
        return models.FusedParts(settings.backend)

    def build_optimizer(self) -> ft.optim.AdamW:
        s = self.settings
        groups = self.groups()
        groups[1]["l1"] = 0.0
        return ft.optim.AdamW(
            groups,
            lr=s.lr,
            weight_decay=s.weight_decay,
            max_norm=None if s.max_norm == float("inf") else s.max_norm,
            clip_value=None if s.clip_value == float("inf") else s.clip_value,
            l1=s.l1,
            backend=s.backend,
        )

    def clip_and_step(self, clock: Clock) -> tuple[Tensor | None, Tensor | None]:
        with clock.part("clip_step"):
            self.optimizer.step()
        return self.optimizer.grad_norm, None


SIDES: tuple[type[Side], ...] = (Stock, Fused)


def build_all(settings: Settings, world: World, kinds: Iterable[type[Side]] = SIDES) -> list[Side]:
    """Both sides, with the same initial weights."""
    return [kind(settings, world) for kind in kinds]
