"""Activation + dropout on one tensor: the workload of `act_providers`."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusedtrain import rng, rules
from fusedtrain.bench import availability
from fusedtrain.bench.accuracy import Accuracy, batch, error, one_thread
from fusedtrain.bench.act_providers import PEERS, PROVIDERS, Function, plain
from fusedtrain.bench.step_providers import OURS
from fusedtrain.bench.workload import Call


@dataclass(frozen=True)
class ActDropout:
    """``dropout(act(x), p)`` in training: the forward alone, the backward alone, or both."""

    name: str
    activation: str
    shape: tuple[int, int]
    """Of the result; a gated input is twice as wide."""
    dtype: torch.dtype
    mode: str = "both"
    """``"forward"``, ``"backward"`` or ``"both"``."""
    p: float = 0.1
    gated: bool = False
    host_bound: bool = False
    model: str = ""
    """Whose activations have this shape, if anybody's."""
    seed: int = 0
    suite: str = "act"
    baseline: str = "torch-eager"

    def providers(self) -> list[str]:
        return list(PROVIDERS)

    def why_not(self, provider: str, device: torch.device, dtype: torch.dtype) -> str | None:
        availability.check_provider(provider, PROVIDERS, self.name)
        if provider in OURS:
            return availability.backend_refusal(OURS[provider], device, dtype, self.activation)
        if provider in PEERS:
            return PEERS[provider].why_not(self.activation, self.p, self.gated, device)
        if provider == "torch-compiled" and self.mode == "backward" and device.type != "cpu":
            return "its backward writes over what was saved for it, and runs once: measure both, --mode full"
        return None

    def once(self) -> tuple[str, ...]:
        return ()

    def no_graph(self) -> str | None:
        if self.mode != "backward":
            return None
        return "a CUDA graph of a backward needs its forward within: measure both, --mode full"

    def inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``(x, dy)``."""
        generator = torch.Generator(device).manual_seed(self.seed)
        rows, width = self.shape
        x, dy = (
            torch.randn((rows, n), generator=generator, device=device).to(dtype)
            for n in (width * (2 if self.gated else 1), width)
        )
        return x.requires_grad_(), dy

    def make(
        self, provider: str, device: torch.device, dtype: torch.dtype, inputs: tuple[Tensor, Tensor] | None = None
    ) -> Call:
        availability.check_provider(provider, PROVIDERS, self.name)
        f = PROVIDERS[provider](self.activation, self.p, self.gated)
        x, dy = self.inputs(device, dtype) if inputs is None else inputs
        if self.mode == "forward":
            return lambda: f(x)
        if self.mode == "backward":
            y = f(x)
            return lambda: torch.autograd.grad(y, x, dy, retain_graph=True)
        return lambda: torch.autograd.grad(f(x), x, dy)

    def forward(self, provider: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The result of one forward, whose graph holds what the backward needs."""
        x, _ = self.inputs(device, dtype)
        return PROVIDERS[provider](self.activation, self.p, self.gated)(x)

    def check(self, provider: str, device: torch.device, dtype: torch.dtype) -> Accuracy:
        """Values and gradients as near to fp64 as torch's operators, masked, are; our masks to the bit."""
        x, dy = self.inputs(device, dtype)
        state = torch.tensor([5, 8], device=device)
        f = PROVIDERS[provider](self.activation, self.p, self.gated)
        ours = provider in OURS
        y = f(x, rng_state=state) if ours else f(x)  # type: ignore[call-arg]
        (dx,) = torch.autograd.grad(y, x, dy)
        threshold = rng.drop_threshold(self.p)
        scale = rng.keep_scale(threshold) if ours else 1 / (1 - self.p)
        accuracy = Accuracy()
        rows = max(1, batch(device) // self.shape[1])
        with one_thread():
            for begin in range(0, self.shape[0], rows):
                part = slice(begin, begin + rows)
                writes = (y[part], *dx[part].chunk(2 if self.gated else 1, dim=-1))
                if ours:
                    lanes = rng.lanes(state, y[part].numel(), begin * self.shape[1])
                    keep = (lanes >= threshold).reshape(y[part].shape)
                    if any(bool(((written != 0) & ~keep).any()) for written in writes):
                        raise AssertionError("an element that the mask drops is not zero")
                else:
                    keep = _kept(writes) if self.p else torch.ones_like(y[part], dtype=torch.bool)
                self._check_part(x.detach()[part], dy[part], y.detach()[part], dx[part], keep, scale, accuracy)
            self._check_rate(y.detach())
        return accuracy

    def _check_part(
        self, x: Tensor, dy: Tensor, y: Tensor, dx: Tensor, keep: Tensor, scale: float, accuracy: Accuracy
    ) -> None:
        d = torch.where(keep, dy.double() * scale, 0.0)

        def both(f: Function, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            z = x.to(dtype).requires_grad_()
            a = f(z)
            (dz,) = torch.autograd.grad(a, z, d.to(dtype))
            return torch.where(keep, a.detach().double() * scale, 0.0), dz.double()

        exact_y, exact_dx = both(self._specified, torch.float64)
        plain_y, plain_dx = both(lambda z: plain(self.activation, z, self.gated), x.dtype)
        accuracy.add(y, plain_y.to(y.dtype), exact_y)
        # How a slope is rounded depends on how its formula is arranged: torch's own, or the one torch derives.
        _, derived = both(self._specified, torch.promote_types(x.dtype, torch.float32))
        yardstick = max((g.to(dx.dtype) for g in (plain_dx, derived)), key=lambda g: error(g, exact_dx))
        accuracy.add(dx, yardstick, exact_dx)

    def _specified(self, x: Tensor) -> Tensor:
        fwd = rules.ACTIVATIONS[self.activation].fwd
        if not self.gated:
            return fwd(x)
        gate, up = x.chunk(2, dim=-1)
        return fwd(gate) * up

    def _check_rate(self, y: Tensor) -> None:
        """A provider that drops nothing, or all, is fast and wrong: within 6 sigma."""
        if self.activation in ("relu", "hardswish"):  # whose zeros are no drops
            return
        dropped = float((y == 0).float().mean())
        sigma = math.sqrt(self.p * (1 - self.p) / y.numel())
        if abs(dropped - self.p) > 6 * sigma + 1 / rng.LEVELS:
            raise AssertionError(f"drops {dropped:.5f} of the elements instead of {self.p}")

    def bytes(self, dtype: torch.dtype, provider: str | None = None) -> int:
        """x once and y once; dy once, what the backward saves once, dx once."""
        n = self.shape[0] * self.shape[1] * dtype.itemsize
        wide = 2 * n if self.gated else n
        forward, backward = wide + n, n + wide + wide
        return {"forward": forward, "backward": backward, "both": forward + backward}[self.mode]

    def needs(self, dtype: torch.dtype, providers: int) -> int:
        """x and dy once; a result and a gradient for each provider, whose call may hold them; what the check holds in
        fp64."""
        n = self.shape[0] * self.shape[1]
        wide = 3 * n if self.gated else 2 * n
        return 2 * wide * dtype.itemsize + providers * wide * dtype.itemsize + 100 * min(n, 2**25)

    def facts(self) -> dict[str, Any]:
        return {"elements": self.shape[0] * self.shape[1], "mode": self.mode, "p": self.p}


def _kept(writes: tuple[Tensor, ...]) -> Tensor:
    """torch's masks are its own affair: what it dropped came out as zero, in the result and in its gradients. Among
    many elements there are kept ones whose result is zero all the same, but not their gradient."""
    return functools.reduce(torch.logical_or, (written != 0 for written in writes))


SHORT = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float16: "fp16", torch.float64: "fp64"}


def named(act: ActDropout) -> ActDropout:
    """With the name that says what it is."""
    kind = f"{act.activation} gated" if act.gated else act.activation
    what = f"{kind} + dropout" if act.p else f"{kind}, no dropout"
    size = f"{act.shape[0]} x {act.shape[1]} {SHORT[act.dtype]}"
    return dataclasses.replace(act, name=f"{act.model + ': ' if act.model else ''}{what}, {size}, {act.mode}")
