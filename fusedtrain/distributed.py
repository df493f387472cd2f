"""Sharded tensors (DTensor): what of them is here, and the norm of the whole from the norms of the shards.

No collective is called for tensors that are not sharded, and nothing here imports ``torch.distributed.tensor`` by
itself: where it is not imported there are no DTensors.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Shards(NamedTuple):
    """Over which ranks a tensor is split: the dimensions of its mesh with a shard on each rank. Replicas are not among
    them, so that nothing is counted twice."""

    mesh: Any
    dims: tuple[int, ...]


WHOLE: Shards | None = None
"""The `Shards` of a tensor that every rank has whole."""


def is_dtensor(x: Tensor) -> bool:
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Tensor) -> Tensor:
    """The shard of ``x`` on this rank; ``x`` itself unless it is a DTensor. Shares memory with it."""
    return x.to_local() if is_dtensor(x) else x  # type: ignore[attr-defined]


def whole(x: Tensor) -> Tensor:
    """All of ``x`` as a plain tensor. A collective, if it is sharded."""
    return x.full_tensor() if is_dtensor(x) else x  # type: ignore[attr-defined]


def has_pending_sum(x: Tensor) -> bool:
    """Whether ``x`` is a DTensor of which each rank holds but an addend (Partial)."""
    return is_dtensor(x) and any(placement.is_partial() for placement in x.placements)  # type: ignore[attr-defined]


def without_pending_sum(x: Tensor) -> Tensor:
    """A DTensor whose values are final: pending reductions (Partial) are carried out, into replicas."""
    if has_pending_sum(x):
        from torch.distributed.tensor import Replicate

        placements = [Replicate() if p.is_partial() else p for p in x.placements]  # type: ignore[attr-defined]
        return x.redistribute(placements=placements)  # type: ignore[attr-defined]
    return x


def like(x: Tensor, target: Tensor) -> Tensor:
    """``x`` with the mesh and placements of ``target``; both are DTensors or neither is (checked by the caller)."""
    if not is_dtensor(target) or x.placements == target.placements:  # type: ignore[attr-defined]
        return x
    return x.redistribute(target.device_mesh, target.placements)  # type: ignore[attr-defined]


def shards(x: Tensor) -> Shards | None:
    """Over which ranks ``x`` is split; `WHOLE` if it is not."""
    if not is_dtensor(x):
        return WHOLE
    mesh, placements = x.device_mesh, x.placements  # type: ignore[attr-defined]
    dims = tuple(i for i, p in enumerate(placements) if not p.is_replicate() and mesh.size(i) > 1)
    return Shards(mesh, dims) if dims else WHOLE


def gather(part: Tensor, split: Shards) -> Tensor:
    """The ``part`` (k,) of every rank that holds a shard, in the order of the ranks: (ranks, k). One collective for
    each sharded dimension of the mesh; every rank gets the same values, so that all take the same decision."""
    rows = part[None]  # (1, k)
    for dim in split.dims:
        group = split.mesh.get_group(dim)
        out = rows.new_empty((split.mesh.size(dim) * rows.shape[0], rows.shape[1]))
        torch.distributed.all_gather_into_tensor(out, rows.contiguous(), group=group)
        rows = out
    return rows
