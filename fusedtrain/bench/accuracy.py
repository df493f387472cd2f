"""The error of a result against fp64, and how much of it is allowed: `testing.assert_as_accurate`, part by part."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fusedtrain import testing

FACTOR = 2.0


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For the many small operators that compare a result: where other programs run, two threads that wait for each
    other after each of them take a hundred times as long as one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def batch(device: torch.device) -> int:
    """Elements to check at once: few launches on a GPU, and on a CPU fp64 temporaries that stay in its caches."""
    return 2**25 if device.type == "cuda" else 2**18


def error(actual: Tensor, truth: Tensor) -> float:
    """`testing.error`, with a short way for the finite tensors of benchmarks."""
    if not actual.numel():
        return 0.0
    largest = float((actual.detach().double() - truth.detach().double()).abs().max())
    return largest if math.isfinite(largest) else testing.error(actual, truth)


@dataclass
class Accuracy:
    """The largest errors over the parts of a result."""

    error: float = 0.0
    """Ours, absolute, against fp64."""
    theirs: float = 0.0
    """What torch's plain operators of that dtype err, at least so many eps of the largest value."""
    roundings: float = 1.0
    """Those many: of a few elements torch's own may err by less than the arithmetic must allow anybody."""

    def add(self, actual: Tensor, theirs: Tensor, truth: Tensor) -> None:
        """Takes a part. Raises AssertionError if it errs more than `FACTOR` times as much as torch's own does."""
        if not truth.numel():
            return
        ours = error(actual, truth)
        floor = self.roundings * torch.finfo(actual.dtype).eps * float(truth.abs().max().nan_to_num(0.0, 0.0))
        plain = error(theirs, truth)
        # Where torch's own overflows, it is no yardstick: everything would pass.
        allowed = max(plain if math.isfinite(plain) else 0.0, floor, torch.finfo(actual.dtype).tiny)
        self.error, self.theirs = max(self.error, ours), max(self.theirs, allowed)
        if not ours <= FACTOR * allowed:
            raise AssertionError(
                f"error {ours:.3e} against fp64 exceeds {FACTOR * allowed:.3e} ({FACTOR} x torch's own, {actual.dtype})"
            )
