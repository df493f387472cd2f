"""How the cost of clip + AdamW grows: with tensors, elements, groups and threads. Ranks are in `ranks`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusedtrain.bench import shapes
from fusedtrain.bench.optim_step import OptimStep
from fusedtrain.bench.ranks import Ranks
from fusedtrain.bench.workload import Workload

PROVIDERS = ["fusedtrain-cuda", "fusedtrain-triton", "fusedtrain-cpu", "torch-fused", "torch-foreach"]
AXES = {
    "tensors": "tensors of one element",
    "elements": "elements of one tensor",
    "groups": "groups of one tensor of 100",
    "threads": "threads, 2^22 elements",
    "ranks": "processes, 2^20 elements sharded over them",
}


@dataclass(frozen=True)
class Point:
    """A workload, and where on which axis it lies."""

    axis: str
    value: int
    workload: Workload
    threads: int | None = None


def _step(axis: str, value: int, listed: shapes.Shapes, groups: bool = False, threads: int | None = None) -> Point:
    name = f"scaling, {axis}: {value}"
    return Point(axis, value, OptimStep(name, lambda: listed, groups, host_bound=True, suite="scaling"), threads)


def points(quick: bool, threaded: bool = True) -> list[Point]:
    """Every point, from small to large. Those that do not fit into the memory become a row that says so.

    Args:
        threaded: also the threads, which are no matter of a GPU.
    """
    tensors = (1, 10, 100, 1000) if quick else (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 20_000)
    exponents = (10, 14, 18, 22) if quick else range(10, 31, 2)
    groups = (1, 5, 20, 100) if quick else (1, 5, 20, 50, 100, 200, 500)
    threads = sorted({2**i for i in range(10) if 2**i <= torch.get_num_threads()} | {torch.get_num_threads()})
    return [
        *(_step("tensors", n, shapes.many(n, 1)) for n in tensors),
        *(_step("elements", 2**e, [(2**e,)]) for e in exponents),
        *(_step("groups", n, shapes.many(n, 100), groups=True) for n in groups),
        *(_step("threads", n, [(2**22,)], threads=n) for n in threads if threaded),
    ]


def ranks(quick: bool) -> list[Ranks]:
    """The last axis, which is of several processes."""
    return [Ranks(n) for n in ((1, 2) if quick else (1, 2, 4))]
