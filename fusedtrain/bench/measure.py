"""One row: every provider of a workload checked against fp64, then all of them timed in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fusedtrain.bench import observe
from fusedtrain.bench.act_dropout import ActDropout
from fusedtrain.bench.timers import Clock
from fusedtrain.bench.workload import Call, Workload

Row = dict[str, Any]


def measure(
    workload: Workload,
    device: torch.device,
    clock: Clock,
    *,
    providers: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    rounds: int = 5,
    observed: bool = True,
) -> Row:
    """Measures a workload.

    Args:
        providers: those to compare, by default all that it has.
        dtype: of the tensors, by default the workload's.
        rounds: each times every provider once, so that what else the machine does then touches all alike.
        observed: also count launches, the host's time and memory.

    Returns:
        What JSON can hold: ``name``, ``suite``, ``device``, ``dtype``, ``clock``, ``bytes`` and ``providers``. Each of
        these has ``why_not`` if it cannot run here, ``wrong`` if its result is not right, and then no time; else
        ``seconds``, a list with an entry per round, and what was observed.

    Raises:
        ValueError: a provider that the workload does not have.
    """
    dtype = workload.dtype if dtype is None else dtype
    found: dict[str, dict[str, Any]] = {}
    for provider in workload.providers() if providers is None else providers:
        found[provider] = _verdict(workload, provider, device, dtype)
    inputs = workload.inputs(device, dtype)
    calls: dict[str, tuple[Call, int]] = {}
    for provider in [name for name, verdict in found.items() if not verdict]:
        try:
            call = workload.make(provider, device, dtype, inputs)
            calls[provider] = call, clock.repeats(call)
        except torch.OutOfMemoryError as error:
            found[provider] = {"why_not": f"out of memory beside the others: {_first_line(error)}"}
            continue
        found[provider] = {"calls_per_timing": calls[provider][1], "seconds": []}
        if observed:
            found[provider] |= _observe(workload, provider, call, device, dtype)
    for _ in range(rounds):
        for provider, (call, repeats) in calls.items():
            found[provider]["seconds"].append(clock.seconds(call, repeats))
    return {
        "name": workload.name,
        "suite": workload.suite,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "clock": getattr(clock, "name", type(clock).__name__),
        "bytes": workload.bytes(dtype),
        "providers": found,
    }


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _verdict(workload: Workload, provider: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Empty if the provider can be timed."""
    reason = workload.why_not(provider, device, dtype)
    if reason is not None:
        return {"why_not": reason}
    try:
        workload.check(provider, device, dtype)
    except AssertionError as error:
        return {"wrong": str(error)}
    except torch.OutOfMemoryError as error:
        return {"why_not": f"out of memory in its check: {_first_line(error)}"}
    except Exception as error:  # of one provider: the others still have a row
        return {"wrong": f"{type(error).__name__}: {_first_line(error)}"}
    return {}


def _observe(workload: Workload, provider: str, call: Call, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    seen: dict[str, Any] = {"host_seconds": observe.host_seconds(call)}
    if device.type == "cuda":
        kernels = observe.launches(call)
        seen |= {"launches": sum(kernels.values()), "peak_bytes": observe.peak_bytes(call)}
        if len(kernels) <= 8:
            seen["kernels"] = kernels
    if isinstance(workload, ActDropout) and workload.mode == "both":
        seen["saved_bytes"] = observe.saved_bytes(lambda: workload.forward(provider, device, dtype))
    return seen


def timed(row: Row, provider: str) -> bool:
    """Whether the provider ran, and was right."""
    return bool(row["providers"].get(provider, {}).get("seconds"))


def median_seconds(row: Row, provider: str) -> float:
    return statistics.median(row["providers"][provider]["seconds"])


def ratios(row: Row, ours: str, theirs: str) -> list[float]:
    """Of every round: how many times as long theirs takes."""
    pairs = zip(row["providers"][ours]["seconds"], row["providers"][theirs]["seconds"], strict=True)
    return [b / a for a, b in pairs]


def bandwidth(row: Row, provider: str) -> float:
    """Bytes per second, of the bytes that the work needs at least."""
    return row["bytes"] / median_seconds(row, provider)


def ratio(row: Row, ours: str, theirs: str, summarize: Callable[[list[float]], float] = statistics.median) -> float:
    return summarize(ratios(row, ours, theirs))
