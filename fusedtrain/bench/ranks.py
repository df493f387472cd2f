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

from fusedtrain.bench.accuracy import Accuracy
from fusedtrain.bench.measure import Row
from fusedtrain.bench.peers import MAX_NORM, SETTINGS
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

    def measure(self, rounds: int, seconds: float, limit: float) -> Row:
        """A row as `measure.measure` makes it, of the CPU: the slowest rank's time of each round. Every process has
        one thread, so that on a machine with fewer cores than ranks they wait for each other."""
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
        arguments = (self, port, rounds, seconds, limit, outcome)
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


def _worker(rank: int, ranks: Ranks, port: int, rounds: int, seconds: float, limit: float, outcome: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(ranks.count))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # of torch about itself, once per process
    found: dict[str, Any]
    try:
        dist.init_process_group("gloo", rank=rank, world_size=ranks.count, timeout=timedelta(seconds=60))
        found = {"providers": _timings(ranks, rounds, seconds, limit)}
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:  # whatever stops one of them stops the row
        wrong = isinstance(error, AssertionError)
        reason = f"rank {rank}: {type(error).__name__}: {error}".splitlines()[0]
        found = {"providers": {OURS: {"wrong": str(error)}}} if wrong else {"why_not": reason}
    if rank == 0 or "why_not" in found or "wrong" in found["providers"][OURS]:
        outcome.put(found)


def _numbers(ranks: Ranks) -> list[tuple[Tensor, Tensor]]:
    """Parameters and gradients, whole and the same on every rank."""
    generator = torch.Generator().manual_seed(ranks.seed)
    shape = (ELEMENTS // TENSORS // 64, 64)
    drawn = [torch.randn(shape, generator=generator).to(ranks.dtype) for _ in range(2 * TENSORS)]
    return list(zip(drawn[::2], drawn[1::2], strict=True))


def _sharded(ranks: Ranks) -> list[Parameter]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (ranks.count,))
    params = []
    for x, g in _numbers(ranks):
        p = Parameter(distribute_tensor(x, mesh, [Shard(0)]))
        p.grad = distribute_tensor(g, mesh, [Shard(0)])
        params.append(p)
    return params


def _stepper(params: list[Parameter], **flags: Any) -> Call:
    opt = torch.optim.AdamW(params, **SETTINGS, **flags)

    def call() -> None:
        clip_grad_norm_(params, MAX_NORM)
        opt.step()

    return call


def _check(ranks: Ranks, ours: list[Parameter], theirs: list[Parameter]) -> Accuracy:
    """One step against a lone process in fp64."""
    exact = [Parameter(x.double()) for x, _ in _numbers(ranks)]
    for p, (_, g) in zip(exact, _numbers(ranks), strict=True):
        p.grad = g.double()
    _stepper(exact)()
    accuracy = Accuracy()
    for a, b, truth in zip(ours, theirs, exact, strict=True):
        whole, plain = (x.detach().full_tensor() for x in (a, b))  # type: ignore[attr-defined]
        accuracy.add(whole, plain, truth.detach())
    return accuracy


def _timings(ranks: Ranks, rounds: int, seconds: float, limit: float) -> dict[str, Any]:
    import fusedtrain as ft

    ours, theirs = _sharded(ranks), _sharded(ranks)
    fused = ft.optim.AdamW(ours, **SETTINGS, max_norm=MAX_NORM)
    calls = {OURS: fused.step, THEIRS: _stepper(theirs, fused=True)}
    for call in calls.values():
        call()
    accuracy = _check(ranks, ours, theirs)
    providers: dict[str, Any] = {name: {"seconds": []} for name in calls}
    providers[OURS] |= {"max_error": accuracy.error, "max_error_of_torch": accuracy.theirs}
    began = time.monotonic()
    for turn in range(rounds):
        if _slowest(float(turn >= 5 and time.monotonic() - began > limit)):
            break
        for name, call in calls.items():
            repeats = max(1, round(seconds / 10 / max(providers[name]["seconds"] or [seconds / 10])))
            repeats = round(_slowest(float(repeats)))
            dist.barrier()
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            mean = _slowest((time.perf_counter() - start) / repeats)
            providers[name]["seconds"].append(mean)
    return providers


def _slowest(value: float) -> float:
    """The largest over the ranks: all must do the same, or they wait for each other for ever."""
    x = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(x, dist.ReduceOp.MAX)
    return float(x)
