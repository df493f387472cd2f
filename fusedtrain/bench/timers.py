"""Seconds of a call: of the device by triton's `do_bench`, of the wall by the standard library's `timeit` over torch's
clock, which waits for the device."""

from __future__ import annotations

import timeit
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.utils.benchmark import timer as torch_clock

from fusedtrain.bench.workload import Call


class Clock(Protocol):
    """Calls cost very different amounts: each is first looked at, and then repeated so that a timing takes a while."""

    def repeats(self, call: Call) -> int:
        """How often the call is to be repeated in a timing. Calls it a few times, which warms it up."""

    def seconds(self, call: Call, repeats: int) -> float:
        """One timing: the seconds of one call."""


@dataclass(frozen=True)
class Wall:
    """Calls back to back, host and device together, as in a training loop; the mean."""

    at_least: float = 0.3
    """Seconds that a timing takes."""
    threads: int | None = None
    """Of torch; by default as many as it has."""
    name: str = "wall"

    def repeats(self, call: Call) -> int:
        self.seconds(call, 1)
        least = self.seconds(call, 1)
        for _ in range(3):  # one that something interrupts would make every timing too short
            if least < self.at_least / 3:
                least = min(least, self.seconds(call, 1))
        return max(1, round(self.at_least / least))

    def seconds(self, call: Call, repeats: int) -> float:
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        if repeats > 1:
            call()  # what ran before has left its own data in the caches
        return timeit.Timer(call, timer=torch_clock).timeit(repeats) / repeats


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


@dataclass(frozen=True)
class Graph:
    """A CUDA graph of the call, replayed: no host at all. The L2 cache is not flushed."""

    at_least: float = 0.1
    name: str = "cudagraph"

    def repeats(self, call: Call) -> int:
        call()
        return 1

    def seconds(self, call: Call, repeats: int) -> float:
        from triton.testing import do_bench_cudagraph

        return do_bench_cudagraph(call, rep=round(self.at_least * 1000), return_mode="median") / 1e3
