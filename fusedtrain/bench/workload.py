"""What a workload is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from fusedtrain.bench.accuracy import Accuracy

Call = Callable[[], object]
"""What is timed."""

SUITES = {
    "optim": "clipping by global norm and an AdamW step, gradients being there already. Ours has fp32 states; torch's "
    "own steps, optimi, flashoptim and torchao keep theirs in the parameters' dtype, in bf16 fewer bytes to move",
    "clip": "clipping by global norm alone",
    "act": "activation + dropout, forward and backward. liger takes gate and up as two tensors: the copies that make "
    "them of the one output of a projection, and torch's dropout after it, are timed with it",
    "model": "whole training steps of a model",
    "scaling": "cost against tensors, elements, groups, threads and ranks, with fits",
}


class Workload(Protocol):
    """One piece of work that several providers can do, on inputs that depend on nothing but device, dtype and seed."""

    @property
    def name(self) -> str: ...

    @property
    def suite(self) -> str:
        """One of `SUITES`."""

    @property
    def baseline(self) -> str:
        """The provider that the others are compared with: what a careful user of torch has now."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the inputs, where the caller does not say."""

    @property
    def host_bound(self) -> bool:
        """Whether the device waits for the host: then what counts is the time of the wall, not of the kernels."""

    def providers(self) -> list[str]:
        """Those that it can be made for, ours first."""

    def why_not(self, provider: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why this provider cannot do it here, or None if it can. ValueError: no such provider."""

    def once(self) -> Sequence[str]:
        """Providers that take minutes to make: they are made, and timed, in the first visit only."""

    def no_graph(self) -> str | None:
        """Why no CUDA graph of its calls says anything, or None."""

    def needs(self, dtype: torch.dtype, providers: int) -> int:
        """Bytes of memory that it takes, about, with so many providers beside each other."""

    def inputs(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Tensors that the calls of all providers may share."""

    def make(self, provider: str, device: torch.device, dtype: torch.dtype, inputs: Any = None) -> Call:
        """The work, ready to be called again and again; on ``inputs`` of its own if none are given."""

    def check(self, provider: str, device: torch.device, dtype: torch.dtype) -> Accuracy | None:
        """Raises AssertionError unless the provider's result is right: as near to fp64 as torch's plain operators of
        that dtype are, and, for dropout, of the mask that it should have. Returns how near."""

    def bytes(self, dtype: torch.dtype, provider: str | None = None) -> int:
        """The least that must be read from and written to the memory of the device; 0 if that bounds nothing.
        ``provider``: with what this one keeps in another dtype than ours do."""

    def facts(self) -> dict[str, Any]:
        """Numbers that say how large it is, for the report: ``tensors``, ``elements``, ``mode``."""
