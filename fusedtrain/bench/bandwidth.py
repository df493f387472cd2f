"""How fast this device copies memory: the yardstick of everything that is bound by memory."""

from __future__ import annotations

import torch

from fusedtrain.bench.timers import Clock

BYTES = {"cuda": 2**31, "cpu": 2**28}
"""Of the source: far beyond every cache."""


def copy_bandwidth(device: torch.device, clock: Clock, size: int | None = None) -> float:
    """Bytes per second of ``y.copy_(x)``, reads and writes counted, the best of three timings.

    Args:
        size: bytes of ``x``, by default `BYTES` of the device.
    """
    # Not one value over and over, which may move faster than what tensors hold.
    x = torch.randint(256, (size or BYTES[device.type],), dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    repeats = clock.repeats(lambda: y.copy_(x))
    return 2 * x.numel() / min(clock.seconds(lambda: y.copy_(x), repeats) for _ in range(3))
