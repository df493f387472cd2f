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
    library.emu_set_events_pending_after(-1)
    library.emu_set_capturing(0)
    library.emu_set_failing(None)


@pytest.fixture
def ops() -> Backend:
    return cuda_emulation.load()


@pytest.fixture
def empty_pool(ops: Backend, emulator: ctypes.CDLL) -> Iterator[None]:
    """All that earlier tests have left belongs to a graph meanwhile."""
    emulator.emu_set_capturing(1)
    made = emulator.emu_pinned()
    while emulator.emu_pinned() == made:
        ops.global_norm([torch.ones(9)], 2.0)
    emulator.emu_set_capturing(0)
    yield
    emulator.emu_destroy_graph()


def test_a_device_that_is_far_behind_is_asked_about_few_buffers(ops: Backend, emulator: ctypes.CDLL) -> None:
    """And when it has caught up, all that was made is used again."""
    x = [torch.ones(9)]
    emulator.emu_set_events_pending_after(0)
    queries = emulator.emu_event_queries()
    for _ in range(100):
        ops.global_norm(x, 2.0)
    assert emulator.emu_event_queries() - queries <= 4 * 100
    emulator.emu_set_events_pending_after(-1)
    made = emulator.emu_pinned()
    for _ in range(200):
        ops.global_norm(x, 2.0)
    assert emulator.emu_pinned() == made


def test_what_was_used_first_is_used_again_first(ops: Backend, emulator: ctypes.CDLL, empty_pool: None) -> None:
    """A device that stays as far behind as it is makes nobody pin more: one buffer is free whenever one is needed."""
    x = [torch.ones(9)]
    records, made = emulator.emu_event_records(), emulator.emu_pinned()
    emulator.emu_set_events_pending_after(records)
    for _ in range(8):
        ops.global_norm(x, 2.0)
    assert emulator.emu_pinned() == made + 8
    for happened in range(1, 20):
        emulator.emu_set_events_pending_after(records + happened)
        ops.global_norm(x, 2.0)
    assert emulator.emu_pinned() == made + 8


@pytest.mark.parametrize(
    ("function", "capturing"),
    [("cudaEventRecord", 0), ("cudaUserObjectCreate", 1), ("cudaGraphRetainUserObject", 1)],
)
def test_what_a_copy_may_still_read_is_not_used_again(
    ops: Backend, emulator: ctypes.CDLL, empty_pool: None, function: str, capturing: int
) -> None:
    """Where CUDA does not promise to tell when it is read no more."""
    x = [torch.ones(9)]
    emulator.emu_set_capturing(capturing)
    emulator.emu_set_failing(function.encode())
    with pytest.raises(RuntimeError, match="CUDA says"):
        ops.global_norm(x, 2.0)
    emulator.emu_set_failing(None)
    emulator.emu_set_capturing(0)
    made = emulator.emu_pinned()
    ops.global_norm(x, 2.0)
    assert emulator.emu_pinned() == made + 1


@pytest.mark.parametrize("when", ["asked about a buffer", "asked for another"])
def test_a_graph_may_be_destroyed_while_cuda_is_asked(
    ops: Backend, emulator: ctypes.CDLL, empty_pool: None, when: str
) -> None:
    """By another thread, which gives the memory of the graph back and must not be made to wait for an upload."""
    x = [torch.ones(9)]
    emulator.emu_set_capturing(1)
    ops.global_norm(x, 2.0)
    emulator.emu_set_capturing(0)
    emulator.emu_set_events_pending_after(0)
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
