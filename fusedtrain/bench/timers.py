"""Seconds of a call: of the device by triton's `do_bench`, of the wall by torch's benchmark timer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch.utils.benchmark import Timer as TorchTimer

from fusedtrain.bench.workload import Call


class Clock(Protocol):
    """Calls cost very different amounts: each is first looked at, and then repeated so that a timing takes a while."""

    def repeats(self, call: Call) -> int:
        """How often the call is to be repeated in a timing. Calls it a few times, which warms it up."""

    def seconds(self, call: Call, repeats: int) -> float:
        """One timing: the seconds of one call."""


@dataclass(frozen=True)
class Wall:
    """Calls back to back, host and device together, as in a training loop; the mean. torch's timer waits for the
    device before it reads the clock."""

    at_least: float = 0.3
    """Seconds that a timing takes."""
    threads: int = 1
    name: str = "wall"

    def repeats(self, call: Call) -> int:
        self.seconds(call, 2)
        return max(1, round(self.at_least / self.seconds(call, 1)))

    def seconds(self, call: Call, repeats: int) -> float:
        return TorchTimer("call()", globals={"call": call}, num_threads=self.threads).timeit(repeats).mean


@dataclass(frozen=True)
class Device:
    """Between two events of the device, the L2 cache flushed before each call; the median."""

    at_least: float = 0.1
    name: str = "device"

    def repeats(self, call: Call) -> int:
        for _ in range(3):
            call()
        return 1  # `do_bench` finds its own number

    def seconds(self, call: Call, repeats: int) -> float:
        from triton.testing import do_bench

        return do_bench(call, warmup=10, rep=round(self.at_least * 1000), return_mode="median") / 1e3
