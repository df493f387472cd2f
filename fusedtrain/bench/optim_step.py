"""Clip + AdamW over a list of parameters: the workload of `step_providers`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fusedtrain import rules
from fusedtrain.bench import availability
from fusedtrain.bench.accuracy import Accuracy, batch, one_thread
from fusedtrain.bench.peers import BETAS, EPS, LR, MAX_NORM, PEERS, SETTINGS, WEIGHT_DECAY, Groups
from fusedtrain.bench.shapes import Shapes, count
from fusedtrain.bench.step_providers import OURS, PROVIDERS
from fusedtrain.bench.workload import Call

_CHECKED_STEPS = 2
_SEEDS = 10**6
"""More than any list has tensors: the seeds of two runs with different ``--seed`` do not meet."""


@dataclass(frozen=True)
class OptimStep:
    """Clipping by global norm and a step of AdamW, gradients being there already.

    Providers share parameters and gradients, and each has states of its own. Some of them write the clipped gradients;
    after the first call there is nothing left to clip, which changes no provider's work.
    """

    name: str
    shapes: Callable[[], Shapes]
    group_per_tensor: bool = False
    host_bound: bool = False
    dtype: torch.dtype = torch.float32
    skip: tuple[str, ...] = ()
    """Providers that this list is too much for: a compiler takes minutes over a thousand tensors."""
    seed: int = 0
    suite: str = "optim"
    baseline: str = "torch-fused"

    def providers(self) -> list[str]:
        return [name for name in PROVIDERS if name not in self.skip]

    def why_not(self, provider: str, device: torch.device, dtype: torch.dtype) -> str | None:
        availability.check_provider(provider, PROVIDERS, self.name)
        if provider in OURS:
            return availability.backend_refusal(OURS[provider], device, dtype, "adamw")
        if provider in PEERS:
            return PEERS[provider].why_not(device, self.shapes())
        return None

    def once(self) -> tuple[str, ...]:
        """A graph of hundreds of tensors is compiled for the very tensors of its optimizer."""
        return ("torch-compiled",)

    def inputs(self, device: torch.device, dtype: torch.dtype) -> Groups:
        """The parameters in their groups, with gradients: the same numbers for every provider of one device."""
        first = _SEEDS * self.seed
        params = [_parameter(first + i, shape, device, dtype) for i, shape in enumerate(self.shapes())]
        return [[p] for p in params] if self.group_per_tensor else [params]

    def make(self, provider: str, device: torch.device, dtype: torch.dtype, inputs: Groups | None = None) -> Call:
        availability.check_provider(provider, PROVIDERS, self.name)
        return PROVIDERS[provider](self.inputs(device, dtype) if inputs is None else inputs)

    def check(self, provider: str, device: torch.device, dtype: torch.dtype) -> Accuracy:
        """Two steps with the same gradients: every parameter as near to fp64 as torch's loop over plain operators."""
        groups = self.inputs(device, dtype)
        params = [p for group in groups for p in group]
        before = [p.detach().clone() for p in params]
        grads = [p.grad.detach() for p in params if p.grad is not None]
        with one_thread():
            coef = rules.clip_coefficient(rules.vector_norm(grads, 2.0), MAX_NORM)
        call = self.make(provider, device, dtype, groups)
        for _ in range(_CHECKED_STEPS):
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()  # some providers write it
            call()
        accuracy = Accuracy()
        with one_thread():
            for part in _parts([p.numel() for p in params], batch(device)):
                x, g, stepped = (
                    torch.cat([tensors[i].detach().flatten()[where] for i, where in part])
                    for tensors in (before, grads, params)
                )
                accuracy.add(stepped, _plain_steps(x, g, coef), _exact_steps(x, g, coef))
        return accuracy

    def needs(self, dtype: torch.dtype, providers: int) -> int:
        """While it is timed: parameters and gradients once, two fp32 states for each provider, temporary lists of a
        foreach step. While one is checked: its own, a second copy of both, and their norm in fp64."""
        n, size = count(self.shapes()), dtype.itemsize
        states = 2 * n * max(4, size)
        while_timed = 2 * n * size + providers * states + 2 * n * max(4, size)
        while_checked = 4 * n * size + states + 12 * n
        return max(while_timed, while_checked) + 64 * min(n, 2**25)

    def bytes(self, dtype: torch.dtype) -> int:
        """The gradients once for their norm; then all is read and, but for the gradients, written. Two fp32 states."""
        n, size = count(self.shapes()), dtype.itemsize
        states = 2 * max(4, size)
        return n * (size + (2 * size + states) + (size + states))

    def facts(self) -> dict[str, Any]:
        shapes = self.shapes()
        groups = len(shapes) if self.group_per_tensor else 1
        return {"tensors": len(shapes), "elements": count(shapes), "groups": groups}


def _normal(seed: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def _parameter(i: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Parameter:
    p = Parameter(_normal(2 * i, shape, device, dtype))
    p.grad = _normal(2 * i + 1, shape, device, dtype)
    return p


def _parts(sizes: list[int], limit: int) -> Iterator[list[tuple[int, slice]]]:
    """All elements of all tensors in runs of at most ``limit``: (tensor, its elements)."""
    part: list[tuple[int, slice]] = []
    room = limit
    for i, size in enumerate(sizes):
        begin = 0
        while begin < size:
            end = min(size, begin + room)
            part.append((i, slice(begin, end)))
            room -= end - begin
            begin = end
            if room == 0:
                yield part
                part, room = [], limit
    if part:
        yield part


def _exact_steps(x: Tensor, g: Tensor, coef: Tensor) -> Tensor:
    """What the steps make of these elements, in fp64."""
    p, g = x.double(), g.double() * coef
    states: rules.States = (torch.zeros_like(p), torch.zeros_like(p))
    for t in range(1, _CHECKED_STEPS + 1):
        count = torch.tensor(float(t), dtype=torch.float64, device=x.device)
        u, states = rules.adamw(p, g, states, count, *BETAS, EPS, WEIGHT_DECAY)
        p = p - LR * u
    return p


def _plain_steps(x: Tensor, g: Tensor, coef: Tensor) -> Tensor:
    """What torch's plain operators of that dtype make of them."""
    p = Parameter(x.clone())
    opt = torch.optim.AdamW([p], **SETTINGS, foreach=False)
    for _ in range(_CHECKED_STEPS):
        p.grad = g * coef.to(g.dtype)
        opt.step()
    return p.detach()
