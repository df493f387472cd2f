"""Which steps of a slice run at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from fusedtrain.gpu_check.machine import Machine
from fusedtrain.gpu_check.step import Step

_MEMORY = 2 * 2**30
"""Bytes of GPU memory per worker: half for its context and small tensors, half so that huge tensors have room."""


def capacity(machine: Machine) -> int:
    """How many workers may be busy at once: two for each core but one, as tests wait for the device much of their time.
    With one core, or little GPU memory, the steps are run one after the other."""
    return min([2 * (machine.cpus - 1), *(gpu["memory_bytes"] // _MEMORY for gpu in machine.gpus[:1])])


def run_all(steps: Sequence[Step], most: int, run_one: Callable[[Step, threading.Event], None]) -> None:
    """Calls ``run_one(step, stop)`` for each step, in a thread that waits for the step's process. An interrupt reaches
    the main thread alone, which waits for the threads here: then, or if one of them raises, ``stop`` is set for all."""
    waiting, running, stop = sorted(steps, key=_order), dict[Future[None], Step](), threading.Event()
    with ThreadPoolExecutor(max(1, len(steps))) as pool:
        try:
            while waiting or running:
                for step in list(waiting):
                    if _fits(step, running.values(), most):
                        waiting.remove(step)
                        running[pool.submit(run_one, step, stop)] = step
                over, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in over:
                    del running[future]
                    future.result()
        finally:
            stop.set()


def _order(step: Step) -> tuple[float, bool, int]:
    """Of those that run beside others first what may take longest, so that it is not what all wait for at the end, and
    what waits for its turn; then, as they are listed, those that run alone."""
    return (-step.limit, step.resource is None, -step.workers) if step.workers else (0.0, False, 0)


def _fits(step: Step, running: Collection[Step], most: int) -> bool:
    if not running:
        return True
    beside = all(other.workers for other in (step, *running))
    free = step.resource is None or step.resource not in {other.resource for other in running}
    return beside and free and step.workers + sum(other.workers for other in running) <= most
