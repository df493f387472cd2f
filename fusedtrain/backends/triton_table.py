"""The device table of a launch over any number of tensors: an int64 tensor. That of a call with lists is written anew
each time, since gradients are freed and allocated again between steps; `triton_planned` keeps its tables.

It begins with a head; a row per tensor follows. Rows are cut into chunks, numbered through, and a program finds the row
of a chunk by search. Sizes and counts are read from the table rather than passed: Triton compiles anew for integer
arguments that are 1, divisible by 16, or beyond 32 bits.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import functools
from array import array
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedtrain.backends.triton_target import NVIDIA

# The head: programs that are done, rows, chunks; then what a kernel wants besides, integers or the bits of fp64.
TICKET = tl.constexpr(0)
ROWS = tl.constexpr(1)
CHUNKS = tl.constexpr(2)
EXTRA = tl.constexpr(3)
HEAD = tl.constexpr(7)

# A row: its first chunk, elements, whether all addresses are aligned; then addresses and what a kernel wants besides.
FIRST = tl.constexpr(0)
NUMEL = tl.constexpr(1)
ALIGNED = tl.constexpr(2)
FIELDS = tl.constexpr(3)

ALIGNMENT = tl.constexpr(16)
"""Bytes of the widest load of a thread."""

Key = TypeVar("Key", bound=Hashable)

TYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit
def row_of(table, chunk, WIDTH: tl.constexpr):
    """The row of a chunk: the last one whose first chunk is not beyond it, so never an empty one."""
    lo = chunk * 0
    hi = tl.load(table + ROWS)
    while hi - lo > 1:
        mid = (lo + hi) // 2
        before = tl.load(table + HEAD + mid * WIDTH + FIRST) <= chunk
        lo = tl.where(before, mid, lo)
        hi = tl.where(before, hi, mid)
    return table + HEAD + lo * WIDTH


@triton.jit
def run_at(address, begin, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    """Where element ``begin`` of the run of memory at an address is. The promise of alignment is what makes loads wide;
    it holds for this pointer alone, so that another branch may go without."""
    return tl.multiple_of(address.to(tl.pointer_type(DTYPE)), ALIGNMENT if WIDE else 1) + begin


@triton.jit
def lanes(BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """The elements of a block. Where loads are narrow it has another shape: among accesses of one shape Triton lets all
    threads take as many elements as the widest, and narrow ones would no longer be coalesced."""
    lane = tl.arange(0, BLOCK)
    return lane if WIDE else lane[None, :]


@triton.jit
def double_at(address):
    """The fp64 whose bits an entry of the table is."""
    return tl.load(address).to(tl.float64, bitcast=True)


@triton.jit
def arrived_last(ticket, mine, total):
    """Whether this program, which comes with so many parts, is the last to come with some of a total. What the others
    have read and written by then is behind them: the barrier holds back the ticket until all threads of a program have
    arrived."""
    tl.debug_barrier()
    return tl.atomic_add(ticket, mine) == total - mine


@triton.jit
def done_last(table):
    """Whether all other programs of this launch have come here before. The last one puts the ticket back, for the next
    launch with this table."""
    last = arrived_last(table + TICKET, 1, tl.num_programs(0))
    if last:
        tl.store(table + TICKET, 0)
    return last


def fields(runs: Sequence[str], more: Mapping[str, tl.constexpr] | None = None) -> list[str]:
    """The fields of a row by name, in their order, for `fusedtrain._plan.IntegerRows`: those of every row, addresses of
    runs, and what a kernel wants besides, with its position after the addresses."""
    head = {"first_chunk": FIRST, "numel": NUMEL, "aligned": ALIGNED}
    return [*_by_position(head), *runs, *_by_position(more or {})]


def _by_position(positions: Mapping[str, tl.constexpr]) -> list[str]:
    return sorted(positions, key=lambda name: int(positions[name].value))


class Rows:
    """The rows of a table, on the host, as they are written."""

    def __init__(self, chunk: int) -> None:
        self.chunk, self.chunks, self.count = chunk, 0, 0
        self._flat: list[int] = []

    def add(self, numel: int, addresses: Sequence[int], more: Iterable[int] = ()) -> None:
        """A row of runs of memory with ``numel`` elements each."""
        together = 0
        for address in addresses:
            together |= address
        self._flat += (self.chunks, numel, together % ALIGNMENT.value == 0, *addresses, *more)
        self.chunks += -(-numel // self.chunk)
        self.count += 1

    def table(self, device: torch.device, extra: Sequence[int] = (), tail: Sequence[int] = ()) -> Tensor:
        """The table on the device, in one upload that nobody waits for: int64 (HEAD + rows * width + tail,)."""
        return _upload(array("q", [*head(self.count, self.chunks, extra), *self._flat, *tail]), device)


def head(rows: int, chunks: int, extra: Sequence[int] = ()) -> list[int]:
    """The head of a table that no launch has used yet, (HEAD,)."""
    return [0, rows, chunks, *extra, *[0] * (HEAD.value - EXTRA.value - len(extra))]


_captured: list[Tensor] = []
"""What a captured graph uploads again each time it is replayed, for as long as the process lives."""


def _upload(values: array[int], device: torch.device) -> Tensor:
    host = torch.frombuffer(values, dtype=torch.int64)
    if device.type == "cpu":
        return host
    # The allocator of pinned memory reuses a block only when the copies from it are done.
    pinned = host.pin_memory()
    if capturing(device):
        _captured.append(pinned)
    return pinned.to(device, non_blocking=True)


def refill(to: Tensor, values: Tensor) -> None:
    """Copies values of the host to a tensor on a device, behind what its current stream does already. Nobody waits, and
    the values may be changed at once."""
    to.copy_(values if to.device.type == "cpu" else values.pin_memory(), non_blocking=True)


def capturing(device: torch.device) -> bool:
    """Whether the current stream of a device is being captured into a graph."""
    if device.type != "cuda":
        return False
    with current(device):
        return torch.cuda.is_current_stream_capturing()


def stream_of(device: torch.device) -> Any:
    """The current stream of a device, to be compared with others."""
    return None if device.type == "cpu" else torch.accelerator.current_stream(device)


def bits(values: Iterable[float]) -> list[int]:
    """The bits of fp64 numbers, as integers."""
    return array("q", array("d", values).tobytes()).tolist()


class AotCase(NamedTuple):
    """What a kernel is compiled for where there is no GPU to launch it on."""

    name: str
    kernel: Any
    signature: dict[str, str]
    """Types of the runtime arguments; those that are None are among the constants."""
    constants: dict[str, Any]
    options: dict[str, int]

    def without(self, *optional: str, implied: tuple[str, ...] = ()) -> AotCase:
        """The same of a call in which these arguments are None, and those that go with them."""
        absent = (*optional, *implied)
        types = {name: type_ for name, type_ in self.signature.items() if name not in absent}
        constants = {**self.constants, **dict.fromkeys(absent)}
        name = self.name.removesuffix("]") + f", no {', '.join(optional)}]" if optional else self.name
        return self._replace(name=name, signature=types, constants=constants)

    def given(self, *optional: str) -> dict[str, str | None]:
        """The types of these arguments, None of those that are."""
        return {name: self.signature.get(name) for name in optional}

    def of_size(self, size: Size) -> AotCase:
        return self._replace(options=size.options())


@functools.cache
def _processors(device: torch.device) -> int:
    """Multiprocessors; for the interpreter a few, so that programs there share work and wait for the last."""
    if device.type == "cpu":
        return 1
    properties: Any = torch.get_device_module(device).get_device_properties(device)
    return int(getattr(properties, "multi_processor_count", None) or properties.gpu_subslice_count)


class Size(NamedTuple):
    """The size of a program, on which depends how many are resident at once on a multiprocessor."""

    warps: int
    registers: int
    """Bound for a thread. Without one, ptxas spills a few to fit in one more program than there will be."""

    def grid(self, device: torch.device, chunks: int) -> tuple[int]:
        """Programs of a launch, which walk over the chunks: as many as are resident at once, for more would leave the
        last of them to work alone; at least one."""
        resident = 65536 // (self.warps * 32 * self.registers)
        return (max(1, min(chunks, resident * _processors(device))),)

    def options(self) -> dict[str, int]:
        """As keyword arguments of a launch."""
        # Said, because from Triton 3.10 on the default is another.
        fusion = {"enable_fp_fusion": True}
        return {"num_warps": self.warps, **fusion, **({"maxnreg": self.registers} if NVIDIA.value else {})}


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whatever its arguments are on."""
    return nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


def positions(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """Where each of the different keys is, in the order in which they come first, as the operators go by."""
    found: dict[Key, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return found


def by_dtype(tensors: list[Tensor]) -> dict[torch.dtype, list[Tensor]]:
    """The tensors of each dtype: a launch works on one."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for x in tensors:
        groups.setdefault(x.dtype, []).append(x)
    return groups


def runs(tensors: list[Tensor], chunk: int) -> Rows:
    """A row for each of the dense tensors, with its memory alone."""
    rows = Rows(chunk)
    for x in tensors:
        rows.add(x.numel(), (x.data_ptr(),))
    return rows
