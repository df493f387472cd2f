"""The norm of each of many tensors, for logs of every parameter's gradient, layer-wise clipping and trust ratios."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fusedtrain import dispatch, distributed
from fusedtrain.clip import are_plain, check_norm_type, check_tensors
from fusedtrain.distributed import Shards


@torch.no_grad()
def tensor_norms(tensors: Tensor | Iterable[Tensor], norm_type: float = 2.0) -> Tensor:
    """The norm of each tensor, ``norms[i] = (sum_j |x_ij|^p)^(1/p)``, all by one operator. No gradient flows.

    Each is as exact as `global_norm`: no finite element overflows or underflows it. An inf or NaN shows in the entry
    of its own tensor alone; a tensor without elements has 0.

    Entry i has the very bits of ``global_norm([tensors[i]], norm_type)``. There are three exceptions, of rounding
    alone: beside an fp64 tensor on its device the norms of others are not rounded to fp32; CUDA adds up tensors of more
    than 2^27 elements in another order, and Triton all tensors of a list in which one has more than 2^28; norms of
    sharded DTensors are made of those of the shards, as `global_norm` does it too.

    Args:
        tensors: a tensor or any iterable of them; dense, real, floating; dtypes and devices may be mixed. One that is
            listed twice has two entries. The norm of a DTensor is that of the whole tensor, over all ranks: one
            collective for each dimension of a mesh that tensors are sharded over, however many they are, and one for
            each sum that is pending (Partial). All ranks must list them in the same order.
        norm_type: p > 0, or inf.

    Returns:
        (N,) fp32 tensor (fp64 if any input is), on the device of the first tensor; for no tensors empty, on the CPU.
        Plain, also for DTensors. It is not waited for, unless tensors are on several devices.

    Raises:
        TypeError: a sparse, complex or integer tensor. ValueError: ``norm_type`` not > 0.
    """
    call = "fusedtrain.tensor_norms"
    p = check_norm_type(call, norm_type)
    listed = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    check_tensors(call, listed, "tensor {}".format)
    if not listed:
        return torch.empty((0,), dtype=torch.float32, device="cpu")
    if are_plain(listed) and len({x.device for x in listed}) == 1:
        return _local_norms(call, listed, p)
    final = [distributed.without_pending_sum(x.detach()) for x in listed]
    alike: dict[tuple[Shards | None, torch.device], list[int]] = {}
    for i, x in enumerate(final):
        alike.setdefault((distributed.shards(x), distributed.local(x).device), []).append(i)
    found = []
    for (shards, _), at in alike.items():
        norms = _local_norms(call, [distributed.local(final[i]) for i in at], p)
        found.append(norms if shards is None else _over_ranks(call, norms, shards, p))
    return _in_order(found, list(alike.values()))


def _local_norms(call: str, tensors: list[Tensor], p: float) -> Tensor:
    """Of tensors on one device: (N,)."""
    backend = dispatch.resolve(call, tensors[0].device, frozenset({x.dtype for x in tensors}))
    return backend.tensor_norms(tensors, p)  # type: ignore[misc, no-any-return]


def _over_ranks(call: str, norms: Tensor, shards: Shards, p: float) -> Tensor:
    """The norms (N,) of whole tensors from those of their shards here: the norm of the norms on all ranks."""
    rows = distributed.gather(norms.double(), shards)  # (ranks, N)
    return _local_norms(call, list(rows.t().contiguous()), p).to(norms.dtype)


def _in_order(found: list[Tensor], at: list[list[int]]) -> Tensor:
    """The norms in the order of the tensors, where ``found[k][j]`` is that of tensor ``at[k][j]``."""
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in found) else torch.float32
    home = found[0].device
    if len(at) == 1:
        return found[0].to(dtype)
    norms = [norm for x in found for norm in x.to(home, dtype).unbind()]
    places = [i for group in at for i in group]
    # Not by an index, which would be copied from the host, and waited for.
    return torch.stack([norms[k] for k in sorted(range(len(places)), key=places.__getitem__)])
