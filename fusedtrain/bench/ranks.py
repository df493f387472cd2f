"""Clip + AdamW on parameters that are sharded over processes (FSDP2's DTensors, over gloo): the cost of more ranks."""

from __future__ import annotations

import os
import queue
import socket
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_

from fusedtrain.bench import checked_steps, stats
from fusedtrain.bench.accuracy import Accuracy
from fusedtrain.bench.checked_steps import CheckedSteps
from fusedtrain.bench.measure import Row
from fusedtrain.bench.peers import TIMED, Settings
from fusedtrain.bench.workload import Call

ELEMENTS, TENSORS = 2**20, 16
_SECONDS_TO_START = 120.0
OURS, THEIRS = "fusedtrain-cpu", "torch-fused"
PROVIDERS = (OURS, THEIRS)


@dataclass(frozen=True)
class Ranks:
    """So many processes that share the parameters."""

    count: int
    providers: tuple[str, ...] = PROVIDERS
    """Those to be told of."""
    dtype: torch.dtype = torch.float32
    seed: int = 0

    @property
    def name(self) -> str:
        return f"scaling, ranks: {self.count}"

    def measure(self, visits: Sequence[int], seconds: float, limit: float) -> Row:
        """A row as `measure.Measurement` makes it, of the CPU: the slowest rank's time of each round. Every process has
        one thread, so that on a machine with fewer cores than ranks they wait for each other.

        Args:
            visits: the rounds of each. They follow each other at once, with new tensors and optimizers each.
        """
        row: Row = {
            "name": self.name,
            "suite": "scaling",
            "baseline": THEIRS,
            "device": "cpu",
            "dtype": str(self.dtype).removeprefix("torch."),
            "clock": "wall",
            "bytes": 0,
            "tensors": TENSORS,
            "elements": ELEMENTS,
            "axis": "ranks",
            "value": self.count,
            "providers": {},
        }
        if not (dist.is_available() and dist.is_gloo_available()):
            return {**row, "why_not": "torch was built without gloo"}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = mp.get_context("spawn")
        outcome = context.Queue()
        limit = min(limit, 60.0)
        arguments = (self, port, list(visits), seconds, limit, outcome)
        processes = [context.Process(target=_worker, args=(i, *arguments), daemon=True) for i in range(self.count)]
        for process in processes:
            process.start()
        found = _outcome(outcome, processes, _SECONDS_TO_START + 2 * limit)
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        if "providers" in found:
            found["providers"] = {name: told for name, told in found["providers"].items() if name in self.providers}
        return {**row, **found}


def _outcome(outcome: Any, processes: Sequence[Any], seconds: float) -> dict[str, Any]:
    """What a process tells; or that one died without a word, or all were silent for too long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        # One that ended before this look has told by now whatever it had to tell.
        died = [process.exitcode for process in processes if process.exitcode]
        try:
            found: dict[str, Any] = outcome.get(timeout=1.0)
            return found
        except queue.Empty:
            if died:
                return {"why_not": f"one of {len(processes)} processes ended with status {died[0]}"}
    return {"why_not": f"{len(processes)} processes were not done in time"}


def _worker(rank: int, ranks: Ranks, port: int, visits: list[int], seconds: float, limit: float, outcome: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(ranks.count))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # of torch about itself, once per process
    found: dict[str, Any]
    try:
        dist.init_process_group("gloo", rank=rank, world_size=ranks.count, timeout=timedelta(seconds=60))
        found = _timings(ranks, visits, seconds, limit)
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:  # whatever stops one of them stops the row
        wrong = isinstance(error, AssertionError)
        reason = f"rank {rank}: {type(error).__name__}: {error}".splitlines()[0]
        found = {"providers": {OURS: {"wrong": str(error)}}} if wrong else {"why_not": reason}
    if rank == 0 or "why_not" in found or "wrong" in found["providers"][OURS]:
        outcome.put(found)


def _numbers(ranks: Ranks) -> list[tuple[Tensor, Tensor]]:
    """Parameters and first gradients, whole and the same on every rank."""
    shape, cpu = (ELEMENTS // TENSORS // 64, 64), torch.device("cpu")
    first = 2 * TENSORS * ranks.seed
    drawn = [checked_steps.values(first + i, shape, cpu, ranks.dtype) for i in range(2 * TENSORS)]
    return list(zip(drawn[::2], drawn[1::2], strict=True))


def _sharded(numbers: list[tuple[Tensor, Tensor]]) -> list[Parameter]:
    params = [Parameter(_distributed(x)) for x, _ in numbers]
    _give(params, [g for _, g in numbers])
    return params


def _give(params: list[Parameter], grads: list[Tensor]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = _distributed(g)


def _distributed(x: Tensor) -> Tensor:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(x, init_device_mesh("cpu", (dist.get_world_size(),)), [Shard(0)])


def _stepper(provider: str, params: list[Parameter], settings: Settings) -> Call:
    if provider == OURS:
        import fusedtrain as ft

        return ft.optim.AdamW(params, **settings.adamw(), max_norm=settings.max_norm).step
    opt = torch.optim.AdamW(params, **settings.adamw(), fused=True)

    def call() -> None:
        clip_grad_norm_(params, settings.max_norm)
        opt.step()

    return call


def _check(numbers: list[tuple[Tensor, Tensor]]) -> Accuracy:
    """The steps of `checked_steps`, against a lone process in fp64."""
    steps = CheckedSteps.of([g for _, g in numbers])
    params = _sharded(numbers)
    call = _stepper(OURS, params, steps.settings)
    for turn in range(len(checked_steps.SCALES)):
        _give(params, [checked_steps.gradient(x, g, turn) for x, g in numbers])
        call()
    accuracy = Accuracy(roundings=checked_steps.ROUNDINGS)
    for p, (x, g) in zip(params, numbers, strict=True):
        whole: Tensor = p.detach().full_tensor()  # type: ignore[attr-defined]
        accuracy.add(whole, steps.plain(x, g), steps.exact(x, g))
    return accuracy


def _timings(ranks: Ranks, visits: list[int], seconds: float, limit: float) -> dict[str, Any]:
    """``providers`` and ``visits`` of the row."""
    numbers = _numbers(ranks)
    accuracy = _check(numbers)
    providers: dict[str, Any] = {name: {"seconds": []} for name in (OURS, THEIRS)}
    providers[OURS] |= {"max_error": accuracy.error, "max_error_of_torch": accuracy.theirs}
    done: list[int] = []
    began = time.monotonic()
    for rounds in visits:
        if len(done) >= stats.LEAST_VISITS and _slowest(float(time.monotonic() - began > limit)):
            break
        calls = {name: _stepper(name, _sharded(numbers), TIMED) for name in providers}
        for call in calls.values():
            call()
        for turn in range(rounds):
            for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
                providers[name]["seconds"].append(_timing(calls[name], providers[name]["seconds"], seconds))
        done.append(rounds)
    return {"providers": providers, "visits": done}


def _timing(call: Call, before: list[float], seconds: float) -> float:
    """The mean of so many calls as a tenth of ``seconds`` has room for."""
    repeats = max(1, round(seconds / 10 / max(before or [seconds / 10])))
    repeats = round(_slowest(float(repeats)))
    dist.barrier()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return _slowest((time.perf_counter() - start) / repeats)


def _slowest(value: float) -> float:
    """The largest over the ranks: all must do the same, or they wait for each other for ever."""
    x = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(x, dist.ReduceOp.MAX)
    return float(x)
