"""The processes that train together: one, or as many as torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fusedtrain.train.errors import TrainError


def size_from_env() -> int:
    """The number of processes, from torchrun's WORLD_SIZE; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_from_env() -> int:
    """The index of this process, from torchrun's RANK; 0 without it."""
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True)
class World:
    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, in place, the same to the bit on each: what they decide from it they agree on."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        """This tensor of every process, by rank; it must have one shape everywhere. On the CPU."""
        if self.size == 1:
            return [values.cpu()]
        sent = values.to(self.device)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent)
        return [r.cpu() for r in received]


@contextmanager
def world(device: str) -> Iterator[World]:
    """The processes of this run: gloo between CPUs, NCCL between GPUs, nothing for a single one. Where they are joined
    already, that is used and left as it is."""
    size, rank = size_from_env(), rank_from_env()
    if size == 1:
        yield World(device=torch.device(device))
        return
    where = torch.device(device)
    if where.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise TrainError(
                "--nproc-per-node",
                size,
                f"there are {torch.cuda.device_count()} GPUs",
                "Start at most one process each",
            )
        where = torch.device("cuda", local)
        torch.cuda.set_device(where)
    if dist.is_initialized():
        yield World(rank, size, where)
        return
    on_gpu = where.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=where if on_gpu else None)
    try:
        yield World(rank, size, where)
    finally:
        dist.destroy_process_group()
