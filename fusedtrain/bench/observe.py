"""What a call costs besides its time: launches, the host's part, memory."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text("utf-8"))["traceEvents"]
    return Counter((event["cat"], event["name"]) for event in trace if event.get("ph") == "X" and "cat" in event)


def launches(call: Call) -> dict[str, int]:
    """The kernels that one call launches, by name. Copies and fills of memory are none. Empty without a GPU."""
    return {name: n for (category, name), n in events(call).items() if category == "kernel"}


def host_seconds(call: Call, repeats: int = 20) -> float:
    """How long a call keeps the host while the device has nothing else to do; the median."""
    timings = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        timings.append(time.perf_counter() - began)
    return statistics.median(timings)


def peak_bytes(call: Call) -> int | None:
    """The most that a call had allocated at once on the GPU, beyond what was there; None without one."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


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
