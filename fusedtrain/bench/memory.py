"""Whether a workload fits into the memory that is free now."""

from __future__ import annotations

import torch

_RESERVE = 0.2
"""The part of what is free that is left to everybody else."""


def free_bytes(device: torch.device) -> int:
    """What can be allocated on the device without pushing anything out, with what torch keeps for its next tensors."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    import psutil  # of the extra `bench`

    return int(psutil.virtual_memory().available)


def refusal(needed: int, device: torch.device, free: int | None = None) -> str | None:
    """Why ``needed`` bytes are too many, or None."""
    free = free_bytes(device) if free is None else free
    if needed <= (1 - _RESERVE) * free:
        return None
    return f"needs {needed / 1e9:,.1f} GB with these providers, {free / 1e9:,.1f} GB are free on {device}"
