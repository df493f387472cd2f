"""The pinned memory that tables are uploaded from: used again, never waited for, and behind no lock that CUDA holds
up."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator

import pytest
import torch
from cuda_on_cpu import backend as cuda_emulation

from fusedtrain.backends import Backend

pytestmark = pytest.mark.skipif("torch.cuda.is_available()", reason="only an emulated GPU is busy at will")


@pytest.fixture
def emulator() -> Iterator[ctypes.CDLL]:
    if why_not := cuda_emulation.load().why_not:
        pytest.skip(why_not)
    library = cuda_emulation.emulator()
    yield library
    library.emu_set_events_pending(0)
    library.emu_set_capturing(0)


@pytest.fixture
def ops() -> Backend:
    return cuda_emulation.load()


def test_a_device_that_is_far_behind_is_asked_about_few_buffers(ops: Backend, emulator: ctypes.CDLL) -> None:
    """And when it has caught up, all that was made is used again."""
    x = [torch.ones(9)]
    emulator.emu_set_events_pending(1)
    queries = emulator.emu_event_queries()
    for _ in range(100):
        ops.global_norm(x, 2.0)
    assert emulator.emu_event_queries() - queries <= 4 * 100
    emulator.emu_set_events_pending(0)
    made = emulator.emu_pinned()
    for _ in range(200):
        ops.global_norm(x, 2.0)
    assert emulator.emu_pinned() == made


@pytest.mark.parametrize("when", ["asked about a buffer", "asked for another"])
def test_a_graph_may_be_destroyed_while_cuda_is_asked(ops: Backend, emulator: ctypes.CDLL, when: str) -> None:
    """By another thread, which gives the memory of the graph back and must not be made to wait for an upload."""
    x = [torch.ones(9)]
    emulator.emu_set_capturing(1)
    ops.global_norm(x, 2.0)
    emulator.emu_set_capturing(0)
    emulator.emu_set_events_pending(1)
    for _ in range(6):
        ops.global_norm(x, 2.0)
    seen = []

    def come_between() -> None:
        seen.append(emulator.emu_event_queries())
        if len(seen) == (1 if when == "asked about a buffer" else 5):
            emulator.emu_destroy_graph()

    call = ctypes.CFUNCTYPE(None)(come_between)
    emulator.emu_set_between(call)
    thread = threading.Thread(target=ops.global_norm, args=(x, 2.0), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "the lock of the pool was held while CUDA was asked"
    emulator.emu_set_between(None)
    assert len(seen) == 5  # four times about a buffer, then for another
