"""Memory of one training step, measured on a throw-away copy of a side so that the run itself is not disturbed."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fusedtrain.train.settings import Settings
from fusedtrain.train.sides import Clock, Side
from fusedtrain.train.tasks import Batch, Task
from fusedtrain.train.world import World

_CHATTER = (b"SyncActivityProfilerHandler", b"Memory block of unknown size was allocated before the profiling")


@dataclass(frozen=True)
class Memory:
    """Bytes.

    saved: what autograd keeps from the forward for the backward, each storage once, without the parameters and the
        batch, which stay alive anyway.
    resident: the storages of parameters and optimizer states, each once.
    peak: the most that was allocated at once in a step, by torch's allocator, on top of what was there before the step
        (gradients, activations, temporaries). Memory that a kernel takes elsewhere (a C++ vector) is not seen.
    """

    saved: int
    resident: int
    peak: int


def memory(kind: type[Side], settings: Settings, task: Task) -> Memory:
    """Measures the third step of a fresh side of this kind: by then states exist and kernels are loaded. Leaves the
    random number generators as they were."""
    device = torch.device(settings.device)
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        side = kind(settings, World(device=device))
        batch = task.batch(0)
        for _ in range(2):
            side.step(task, batch, settings.lr)
        saved = saved_for_backward(side, task, batch)
        peak = (peak_cuda if device.type == "cuda" else peak_cpu)(lambda: _one_step(side, task, batch))
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in side.tensors().values()}
        resident = sum(storage.nbytes() for storage in storages.values())
        return Memory(saved, resident, peak)


def saved_for_backward(side: Side, task: Task, batch: Batch) -> int:
    """Bytes of distinct storages that the graph of one forward holds, parameters and batch excluded."""
    known = {t.untyped_storage().data_ptr() for t in (*side.model.parameters(), *batch)}
    held: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return t

    # The graph keeps every packed tensor alive until the loss goes, so that no address is used twice.
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = task.loss(side.model(batch[0]), batch[1])
    del loss
    return sum(held.values())


def _one_step(side: Side, task: Task, batch: Batch) -> None:
    """A step as `Side.step` runs it, less its own measurements."""
    task.loss(side.model(batch[0]), batch[1]).backward()
    side.clip_and_step(Clock(side.world.device))
    side.optimizer.zero_grad()


def peak_cuda(work: Callable[[], None]) -> int:
    """The most bytes that the work had allocated at once on the current GPU."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_cpu(work: Callable[[], None]) -> int:
    """The most bytes that the work had allocated at once on the CPU.

    The allocator keeps no peak, but reports each allocation and release to the profiler: their running sum."""
    with _without_profiler_chatter(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results = profiler.profiler.kineto_results if profiler.profiler else None
    events = [event for event in results.events() if event.name() == "[memory]"] if results else []
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@contextlib.contextmanager
def _without_profiler_chatter() -> Iterator[None]:
    """The profiler says on standard error that it starts, stops, and met memory older than itself: no news here.
    Anything else written meanwhile still comes out."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            rest = b"".join(line for line in caught if not any(word in line for word in _CHATTER))
            if rest:
                os.write(2, rest)


def peak_resident_set() -> int:
    """Bytes: the most this whole process, both sides and all libraries, ever had in memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
