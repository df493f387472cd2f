"""What a call costs besides its time: launches, the host's part, memory."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fusedtrain.bench.workload import Call


def events(call: Call) -> Counter[tuple[str, str]]:
    """How often each ``(category, name)`` occurs in a trace of one call by torch's profiler: kernels of the device have
    the category ``"kernel"``, copies ``"gpu_memcpy"``, fills ``"gpu_memset"``, operators ``"cpu_op"``."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    if on_gpu:
        torch.cuda.synchronize()
    with profile(activities=activities) as profiler:
        call()
        if on_gpu:
            torch.cuda.synchronize()
    trace = _trace(profiler)
    return Counter((event["cat"], event["name"]) for event in trace if event.get("ph") == "X" and "cat" in event)


def _trace(profiler: profile) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text("utf-8"))["traceEvents"]


def launches(call: Call) -> dict[str, int]:
    """The kernels that one call launches, by name. Copies and fills of memory are none. Empty without a GPU."""
    return {name: n for (category, name), n in events(call).items() if category == "kernel"}


def host_seconds(call: Call, device: torch.device, repeats: int = 20, at_most: float = 0.1) -> float:
    """How long a call keeps the host while the device has nothing else to do; the median of so many calls, or of what
    ``at_most`` seconds have room for."""
    timings: list[float] = []
    while len(timings) < repeats and sum(timings) <= at_most:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        call()
        timings.append(time.perf_counter() - began)
    return statistics.median(timings)


def launches_and_peak(call: Call, device: torch.device) -> tuple[dict[str, int], int]:
    """`launches` and `peak_bytes` of one call each."""
    if device.type == "cuda":
        return launches(call), _peak_bytes_of_gpu(call)
    return {}, _peak_bytes_of_cpu(call)


def _peak_bytes_of_gpu(call: Call) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_bytes_of_cpu(call: Call) -> int:
    """The most that was allocated at once, as torch's profiler sees it: tensors, not what a library takes itself."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    held = peak = 0
    for event in _trace(profiler):
        if event.get("name") == "[memory]":
            held += event["args"]["Bytes"]
            peak = max(peak, held)
    return peak


def peak_bytes(call: Call) -> int:
    """The most that a call had allocated at once, beyond what was there: on the GPU, or on the CPU if there is none."""
    return _peak_bytes_of_gpu(call) if torch.cuda.is_available() else _peak_bytes_of_cpu(call)


def saved_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes of distinct storages that autograd keeps from the forward for the backward, beyond the result itself."""
    held: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    # The graph keeps every packed tensor alive until the result goes, so that no address is used twice.
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = forward()
    held.pop(y.untyped_storage().data_ptr(), None)
    return sum(held.values())
