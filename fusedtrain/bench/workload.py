"""What a workload is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

Call = Callable[[], object]
"""What is timed."""


class Workload(Protocol):
    """One piece of work that several providers can do, on inputs that depend on nothing but device and dtype."""

    @property
    def name(self) -> str: ...

    @property
    def suite(self) -> str:
        """The operator that it is about: ``"optim_step"`` or ``"act_dropout"``."""

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

    def inputs(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Tensors that the calls of all providers may share."""

    def make(self, provider: str, device: torch.device, dtype: torch.dtype, inputs: Any = None) -> Call:
        """The work, ready to be called again and again; on ``inputs`` of its own if none are given."""

    def check(self, provider: str, device: torch.device, dtype: torch.dtype) -> None:
        """Raises AssertionError unless the provider's result is right: as near to fp64 as torch's plain operators of
        that dtype are, and, for dropout, of the mask that it should have."""

    def bytes(self, dtype: torch.dtype) -> int:
        """The least that must be read from and written to the memory of the device."""
