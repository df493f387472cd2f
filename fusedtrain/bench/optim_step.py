"""Clip + AdamW over a list of parameters: the workload of `step_providers`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fusedtrain.bench import availability, checked_steps
from fusedtrain.bench.accuracy import Accuracy, batch, one_thread
from fusedtrain.bench.checked_steps import CheckedSteps
from fusedtrain.bench.peers import PEERS, TIMED, Groups, Settings, params_of
from fusedtrain.bench.shapes import Shapes, count
from fusedtrain.bench.step_providers import OURS, OWN_DTYPE, PROVIDERS
from fusedtrain.bench.workload import Call

Values = Callable[[int, tuple[int, ...], torch.device, torch.dtype], Tensor]
_SEEDS = 10**6
"""More than any list has tensors: the seeds of two runs with different ``--seed`` do not meet."""


@dataclass(frozen=True)
class OptimStep:
    """Clipping by global norm and a step of AdamW, gradients being there already.

    Providers share parameters and gradients, and each has states of its own: in bf16 and fp16 ours are fp32, and those
    of `OWN_DTYPE`, torch's AdamW among them, of the parameters' dtype, which is less to move and less to keep. Some
    write the clipped gradients; after the first call there is nothing left to clip, which changes no provider's work.
    """

    name: str
    shapes: Callable[[], Shapes]
    group_per_tensor: bool = False
    host_bound: bool = False
    dtype: torch.dtype = torch.float32
    skip: tuple[str, ...] = ()
    """Providers that this list is too much for: a compiler takes minutes over a thousand tensors."""
    seed: int = 0
    capturable: bool = False
    """Whether its steps are to become a part of a CUDA graph."""
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

    def no_graph(self) -> None:
        return None

    def inputs(self, device: torch.device, dtype: torch.dtype) -> Groups:
        """The parameters in their groups, with gradients: the same numbers for every provider of one device."""
        return self._groups(_normal, device, dtype)

    def _groups(self, values: Values, device: torch.device, dtype: torch.dtype) -> Groups:
        params, first = [], 2 * _SEEDS * self.seed
        for i, shape in enumerate(self.shapes()):
            p = Parameter(values(first + 2 * i, shape, device, dtype))
            p.grad = values(first + 2 * i + 1, shape, device, dtype)
            params.append(p)
        return [[p] for p in params] if self.group_per_tensor else [params]

    def make(self, provider: str, device: torch.device, dtype: torch.dtype, inputs: Groups | None = None) -> Call:
        availability.check_provider(provider, PROVIDERS, self.name)
        return PROVIDERS[provider](self.inputs(device, dtype) if inputs is None else inputs, self._settings(TIMED))

    def _settings(self, settings: Settings) -> Settings:
        return dataclasses.replace(settings, capturable=self.capturable)

    def check(self, provider: str, device: torch.device, dtype: torch.dtype) -> Accuracy:
        """After the steps of `checked_steps`, every parameter as near to fp64 as torch's loop over plain operators."""
        availability.check_provider(provider, PROVIDERS, self.name)
        groups = self._groups(checked_steps.values, device, dtype)
        params = params_of(groups)
        before = [p.detach().clone() for p in params]
        grads = [p.grad.detach() for p in params if p.grad is not None]
        peer = PEERS.get(provider)
        eps = TIMED.eps if peer is not None and peer.least_eps else checked_steps.EPS
        steps = CheckedSteps.of(grads, eps)
        call = PROVIDERS[provider](groups, self._settings(steps.settings))
        for turn in range(len(checked_steps.SCALES)):
            for p, x, g in zip(params, before, grads, strict=True):
                p.grad = checked_steps.gradient(x, g, turn)  # some providers write it
            call()
        accuracy = Accuracy(roundings=checked_steps.ROUNDINGS)
        with one_thread():
            for part in _parts([p.numel() for p in params], batch(device)):
                x, g, stepped = (
                    torch.cat([tensors[i].detach().flatten()[where] for i, where in part])
                    for tensors in (before, grads, params)
                )
                accuracy.add(stepped, steps.plain(x, g), steps.exact(x, g))
        return accuracy

    def needs(self, dtype: torch.dtype, providers: int) -> int:
        """While it is timed: parameters and gradients once, two fp32 states for each provider, temporary lists of a
        foreach step. While one is checked: its own, a second copy of both, and their norm in fp64."""
        n, size = count(self.shapes()), dtype.itemsize
        states = 2 * n * max(4, size)
        while_timed = 2 * n * size + providers * states + 2 * n * max(4, size)
        while_checked = 4 * n * size + states + 12 * n
        return max(while_timed, while_checked) + 64 * min(n, 2**25)

    def bytes(self, dtype: torch.dtype, provider: str | None = None) -> int:
        """The gradients once for their norm; then all is read and, but for the gradients, written. Two fp32 states; of
        providers that keep them in the dtype of the parameters, as torch's own, two of that."""
        n, size = count(self.shapes()), dtype.itemsize
        states = 2 * (size if provider in OWN_DTYPE else max(4, size))
        return n * (size + (2 * size + states) + (size + states))

    def facts(self) -> dict[str, Any]:
        shapes = self.shapes()
        groups = len(shapes) if self.group_per_tensor else 1
        return {"tensors": len(shapes), "elements": count(shapes), "groups": groups}


def _normal(seed: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


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
