"""What a step found and the next one tells: that gradients were not finite, with ``nonfinite="raise"``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Pending:
    """The flag of one step. It comes to the host as soon as its stream is there: whoever asks a step later waits for
    that step alone, which is long done, and not for the forward and backward that have been queued since."""

    def __init__(self, nonfinite: Tensor, step: int) -> None:
        """
        Args:
            nonfinite: 0-dim, not 0 if the gradients were not finite. Not written again.
            step: its number, for the error.
        """
        self._flag, self._step = nonfinite, step
        self._arrived: Any = None
        device, here = nonfinite.device, torch.accelerator.current_accelerator()
        if here is None or device.type != here.type:  # nothing to wait for, or nothing to wait with
            return
        with torch.accelerator.device_index(device.index):  # whose stream it is that is recorded
            self._flag = torch.empty_like(nonfinite, device="cpu", pin_memory=True)
            self._flag.copy_(nonfinite, non_blocking=True)
            self._arrived = torch.Event(device.type)
            self._arrived.record()

    def tell(self, optimizer: str) -> None:
        """Raises FloatingPointError if the gradients were not finite."""
        if self._bad():
            raise FloatingPointError(
                f"{optimizer}: the gradients of step {self._step} were not finite; that step was skipped and nothing "
                "changed (nonfinite='raise'; 'skip' would go on)"
            )

    def _bad(self) -> bool:
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._flag.item() != 0)

    def __reduce__(self) -> tuple[Callable[..., Pending], tuple[Tensor, int]]:
        return Pending, (torch.tensor(float(self._bad()), device="cpu"), self._step)  # an event is of this process


def check_not_captured(call: str, param: Tensor | None) -> None:
    """Raises RuntimeError while a CUDA graph is captured: replays do not call ``step()``, and nobody would be told.
    ``param``: one of those that are stepped."""
    if param is not None and param.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{call}: nonfinite='raise' cannot be captured into a CUDA graph: its replays tell nobody; use 'skip' "
            "and look at skipped_steps"
        )
