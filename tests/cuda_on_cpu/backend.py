"""The CUDA backend as tests without a GPU have it: emulated, for CPU tensors, served by name only."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cuda_on_cpu import build
from fusedtrain import dispatch, functional, rules, schemas
from fusedtrain.backends import Backend, native

NAMESPACE = "fusedtrain_emulated"


@functools.cache
def emulator() -> ctypes.CDLL:
    """The library as C sees it, with the switches of emulator.h.

    Raises:
        CannotBuild: it cannot be built here.
    """
    path = build.library()
    schemas.define(NAMESPACE)
    functional.register_gradients(NAMESPACE)
    torch.ops.load_library(path)
    library = ctypes.CDLL(str(path))
    for count in ("launches", "copies", "copied_bytes", "event_records", "event_queries", "pinned"):
        getattr(library, f"emu_{count}").restype = ctypes.c_int64
    for switch in (
        "set_resident_blocks",
        "set_current_stream",
        "set_events_pending_after",
        "fail_launch_after",
        "fail_allocation_after",
    ):
        getattr(library, f"emu_{switch}").argtypes = [ctypes.c_int64]
    return library


@functools.cache
def load() -> Backend:
    """The backend "cuda" on CPU tensors; it says `why_not` where it cannot be built."""
    try:
        emulator()
    except build.CannotBuild as error:
        return Backend(name="cuda", why_not=f"no GPU, and its emulation cannot be built: {error}")
    ops = {op: native.telling(getattr(getattr(torch.ops, NAMESPACE), op).default) for op in schemas.SCHEMAS}
    return Backend(
        name="cuda",
        why_not=None,
        note="emulated on the CPU",
        device_types=frozenset({"cpu"}),
        dtypes=frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16}),
        rules=frozenset(rules.ACTIVATIONS) | frozenset(rules.UPDATES),
        by_name_only=True,
        step_launcher=native.step_launcher("cuda", emulator(), "cpu"),
        **ops,
    )


@contextmanager
def installed() -> Iterator[Backend]:
    """While it lasts, ``backend="cuda"`` means the emulation."""
    before = dispatch.load("cuda")
    backend = load()
    try:
        dispatch._loaded["cuda"] = backend
        dispatch._choose.cache_clear()
        yield backend
    finally:
        dispatch._loaded["cuda"] = before
        dispatch._choose.cache_clear()
