"""What the host does in an eager step of the Triton backend, by lists against by a table: kernels do nothing.

    python benchmarks/triton_host.py [--rounds 15]      on any machine; on a GPU copies to it are among the work

AdamW with ``max_norm=1`` over tensors of one element. The ways are timed in turn; per round one step of each.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import typer
from rich.console import Console
from rich.table import Table

import fusedtrain as ft
from fusedtrain.backends import triton_norm, triton_step
from fusedtrain.optim import planned


class Nothing:
    """A kernel that does nothing."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def optimizer(tensors: int) -> Any:
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    params = [torch.nn.Parameter(torch.ones(1, device=place)) for _ in range(tensors)]
    for p in params:
        p.grad = torch.ones_like(p)
    return ft.optim.AdamW(params, max_norm=1.0, backend="triton")


def by_lists(opt: Any) -> None:
    opt._planner = planned.Planner()
    opt._planner.wait = 1  # so no table is built
    opt.step()


def by_table(opt: Any) -> None:
    opt.step()


def after_move(opt: Any) -> None:
    """By a table, with gradients at other addresses than in the step before: see `move`."""
    opt.step()


def move(opt: Any) -> list[torch.Tensor]:
    """Gives all gradients other memory; returns the former, so that it is not used again at once."""
    params = opt.param_groups[0]["params"]
    former = [p.grad for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    return former


def microseconds(way: Callable[[Any], None], opt: Any) -> float:
    former = move(opt) if way is after_move else []
    begin = time.perf_counter()
    way(opt)
    end = time.perf_counter()
    del former
    return 1e6 * (end - begin)


def main(rounds: Annotated[int, typer.Option(min=3, help="steps of each way that are timed")] = 15) -> None:
    triton_norm.norm_kernel = triton_step.step_kernel = Nothing()
    ways = {"by lists": by_lists, "by a table": by_table, "by a table, gradients moved": after_move}
    shown = Table("tensors", *(f"{name}, us" for name in ways), "lists / table", title=f"load {os.getloadavg()[0]:.1f}")
    for tensors in (1, 148, 1000):
        opts = {name: optimizer(tensors) for name in ways}
        for name, way in ways.items():
            for _ in range(3):
                microseconds(way, opts[name])
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                times[name].append(microseconds(way, opts[name]))
        if opts["by a table"]._planner.table is None or opts["by lists"]._planner.table is not None:
            raise SystemExit("a step did not go the way that it is timed for")
        medians = [statistics.median(found) for found in times.values()]
        shown.add_row(str(tensors), *(f"{x:.0f}" for x in medians), f"{medians[0] / medians[1]:.1f}")
    Console().print(shown)


if __name__ == "__main__":
    typer.run(main)
