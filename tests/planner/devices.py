"""Devices that are not there, for tables that stay on one: what they are told to do is counted, and they fail, capture
and change streams when told to."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cuda_on_cpu import backend as cuda_emulation
from step_tables import launcher_of

from fusedtrain import dispatch

SHAPES: list[tuple[int, ...]] = [(3, 5), (0,), (), (700,), (1, 4, 1)]
HYPER = 8 * 8  # bytes, of a group with AdamW: four numbers of every step and four of the rule


class Device(ABC):
    """As a context: while it lasts, ``backend=`` of this name means what is counted."""

    backend: str
    failure: str
    """What the error of a launch that failed says, as a pattern."""
    launches_by_table: Callable[[int], int]
    """Of a step with a norm, by the number of dtypes, each of parameters with gradients and states of their own."""
    launches_by_lists: Callable[[int], int]

    def __init__(self) -> None:
        self._seen = (0, 0, 0)

    @abstractmethod
    def __enter__(self) -> Device: ...

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abstractmethod
    def totals(self) -> tuple[int, int, int]: ...

    def since(self) -> tuple[int, ...]:
        """``(launches, copies, bytes copied)`` since the last time one asked."""
        now = self.totals()
        before, self._seen = self._seen, now
        return tuple(b - a for a, b in zip(before, now, strict=True))

    @abstractmethod
    def bytes_of_rows(self, first: int, last: int) -> int:
        """How many a copy has that brings what lies between these two tensors of `SHAPES`, with AdamW."""

    @abstractmethod
    def set_stream(self, number: int) -> None: ...

    @abstractmethod
    def set_capturing(self, capturing: bool) -> None: ...

    @abstractmethod
    def fail_launch_after(self, launches: int) -> None:
        """The launch after so many, and that one alone."""


class Emulated(Device):
    """A device of CUDA, by tests/cuda_on_cpu."""

    backend = "cuda"
    failure = r"fusedtrain\.optim_step_: CUDA says cudaError"
    launches_by_table = staticmethod(lambda dtypes: 2)
    launches_by_lists = staticmethod(lambda dtypes: 1 + dtypes)
    ROW = 88  # bytes of a StepRow

    def __enter__(self) -> Emulated:
        self._installed = cuda_emulation.installed()
        launcher_of(self._installed.__enter__())
        self.library: ctypes.CDLL = cuda_emulation.emulator()
        return self

    def __exit__(self, *_: object) -> None:
        self.set_stream(0)
        self.fail_launch_after(-1)
        self.set_capturing(False)
        self._installed.__exit__(None, None, None)

    def totals(self) -> tuple[int, int, int]:
        return self.library.emu_launches(), self.library.emu_copies(), self.library.emu_copied_bytes()

    def bytes_of_rows(self, first: int, last: int) -> int:
        return (last - first + 1) * self.ROW

    def set_stream(self, number: int) -> None:
        self.library.emu_set_current_stream(number)

    def set_capturing(self, capturing: bool) -> None:
        self.library.emu_set_capturing(int(capturing))
        if not capturing:
            self.library.emu_destroy_graph()

    def fail_launch_after(self, launches: int) -> None:
        self.library.emu_fail_launch_after(launches)


class Interpreted(Device):
    """Triton's interpreter, with a counter before every kernel and every copy."""

    backend = "triton"
    failure = "a launch that failed"
    launches_by_table = launches_by_lists = staticmethod(lambda dtypes: 2 * dtypes)

    def __enter__(self) -> Interpreted:
        launcher_of(dispatch.load(self.backend))
        from fusedtrain.backends import triton_norm, triton_planned, triton_step, triton_table

        self._patch = pytest.MonkeyPatch()
        self._launches = self._copies = self._bytes = self._stream = 0
        self._until_failure, self._capturing = -1, False
        for module, name in ((triton_norm, "norm_kernel"), (triton_step, "step_kernel")):
            self._patch.setattr(module, name, _Counted(self, getattr(module, name)))
        refill, upload = triton_planned.refill, triton_table._upload

        def counted_refill(to: torch.Tensor, values: torch.Tensor) -> None:
            self._copied(values.numel())
            refill(to, values)

        def counted_upload(values: Any, device: torch.device) -> torch.Tensor:
            self._copied(len(values))
            return upload(values, device)

        self._patch.setattr(triton_planned, "refill", counted_refill)
        self._patch.setattr(triton_table, "_upload", counted_upload)
        self._patch.setattr(triton_planned, "stream_of", lambda device: self._stream)
        self._patch.setattr(triton_planned, "capturing", lambda device: self._capturing)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _copied(self, integers: int) -> None:
        self._copies += 1
        self._bytes += 8 * integers

    def launched(self) -> None:
        self._until_failure -= 1
        if self._until_failure == -1:
            raise RuntimeError(self.failure)
        self._launches += 1

    def totals(self) -> tuple[int, int, int]:
        return self._launches, self._copies, self._bytes

    def bytes_of_rows(self, first: int, last: int) -> int:
        """From a row of the norm's table to one of the step's, which is the next: small tables go in one copy."""
        from fusedtrain.backends.triton_norm import WIDTH
        from fusedtrain.backends.triton_step import OTHERS
        from fusedtrain.backends.triton_table import FIELDS, HEAD

        of_norm, of_step = WIDTH.value, FIELDS.value + 4 + OTHERS.value
        return 8 * ((len(SHAPES) - first) * of_norm + HEAD.value + (last + 1) * of_step)

    def set_stream(self, number: int) -> None:
        self._stream = number

    def set_capturing(self, capturing: bool) -> None:
        self._capturing = capturing

    def fail_launch_after(self, launches: int) -> None:
        self._until_failure = launches


class _Counted:
    """A kernel whose launches a device counts."""

    def __init__(self, device: Interpreted, kernel: Any) -> None:
        self.device, self.kernel = device, kernel

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        self.device.launched()
        return self.kernel[grid]  # type: ignore[no-any-return]


DEVICES: dict[str, type[Device]] = {"cuda": Emulated, "triton": Interpreted}
