"""One row: every provider of a workload checked against fp64, then all of them timed in turn."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fusedtrain.bench import memory, observe
from fusedtrain.bench.timers import Clock
from fusedtrain.bench.workload import Call, Workload

Row = dict[str, Any]
Told = Callable[[], None]
FEWEST = 8
"""Rounds, below which a comparison of two runs can tell nothing."""


def measure(
    workload: Workload,
    device: torch.device,
    clock: Clock,
    *,
    providers: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    rounds: int = 5,
    observed: bool = True,
    setups: int = 1,
    limit: float = math.inf,
    fewest: int = FEWEST,
    told: Told = lambda: None,
) -> Row:
    """Measures a workload.

    Args:
        providers: those to compare, by default all that it has.
        dtype: of the tensors, by default the workload's.
        rounds: each times every provider once, so that what else the machine does then touches all alike.
        observed: also count launches, the host's time and memory.
        setups: how often tensors and optimizers are made anew during the rounds: where they come to lie in memory is a
            part of a timing that more rounds alone do not average out.
        limit: seconds after which no further round is begun, once there are ``fewest``.
        told: is called after each check and each timing; what it raises stops the row.

    Returns:
        What JSON can hold: ``name``, ``suite``, ``baseline``, ``device``, ``dtype``, ``clock``, ``bytes``, the facts of
        the workload, and ``providers``. Each of these has ``why_not`` if it cannot run here, ``failed`` if it raised,
        ``wrong`` if its result is not right, and then no time; else ``seconds``, a list with an entry per round,
        ``max_error`` against fp64 and what was observed. A row that does not fit into the memory has ``why_not``
        itself, and no providers.

    Raises:
        ValueError: a provider that the workload does not have.
    """
    dtype = workload.dtype if dtype is None else dtype
    names = workload.providers() if providers is None else list(providers)
    found: dict[str, dict[str, Any]] = {name: _refusal(workload, name, device, dtype) for name in names}
    row: Row = {
        "name": workload.name,
        "suite": workload.suite,
        "baseline": workload.baseline,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "clock": getattr(clock, "name", type(clock).__name__),
        "bytes": workload.bytes(dtype),
        **workload.facts(),
    }
    able = [name for name, verdict in found.items() if not verdict]
    no_room = memory.refusal(workload.needs(dtype, len(able)), device) if able else None
    if no_room:
        return {**row, "why_not": no_room, "providers": {}}
    for name in able:
        found[name] = _check(workload, name, device, dtype)
        told()
    right = [name for name in able if "max_error" in found[name] or not found[name]]
    spent, done = 0.0, 0
    for part in _parts(rounds, setups):
        calls = _prepare(workload, [n for n in right if "failed" not in found[n]], device, dtype, clock, found)
        if observed and any("host_seconds" not in found[name] for name in calls):
            for name, (call, _) in calls.items():
                found[name] |= _observe(workload, name, call, device, dtype)
        for _ in range(part):
            if done >= fewest and spent > limit:
                break
            done, began = done + 1, time.monotonic()
            for name, (call, repeats) in calls.items():
                found[name]["seconds"].append(clock.seconds(call, repeats))
                told()
            spent += time.monotonic() - began
        del calls
    return {**row, "providers": found}


def _parts(rounds: int, setups: int) -> list[int]:
    """The rounds of each set-up, as even as can be and none empty."""
    setups = max(1, min(setups, rounds))
    return [rounds // setups + (i < rounds % setups) for i in range(setups)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _failed(error: Exception) -> dict[str, Any]:
    if isinstance(error, torch.OutOfMemoryError):
        return {"failed": f"out of memory beside the others: {_first_line(error)}"}
    return {"failed": f"{type(error).__name__}: {_first_line(error)}".rstrip(": ")}


def _refusal(workload: Workload, provider: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Empty if the provider can run here."""
    reason = workload.why_not(provider, device, dtype)
    return {} if reason is None else {"why_not": reason}


def _check(workload: Workload, provider: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    try:
        accuracy = workload.check(provider, device, dtype)
    except AssertionError as error:
        return {"wrong": str(error)}
    except Exception as error:  # of one provider: the others still have a row
        return _failed(error)
    return {} if accuracy is None else {"max_error": accuracy.error, "max_error_of_torch": accuracy.theirs}


def _prepare(
    workload: Workload,
    providers: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    clock: Clock,
    found: dict[str, dict[str, Any]],
) -> dict[str, tuple[Call, int]]:
    """The calls of one set-up, warmed up, and how often a timing repeats each. Notes in ``found`` which fail."""
    calls: dict[str, tuple[Call, int]] = {}
    inputs = workload.inputs(device, dtype) if providers else None
    for name in providers:
        try:
            call = workload.make(name, device, dtype, inputs)
            repeats = found[name].get("calls_per_timing")
            if repeats is None:
                repeats = clock.repeats(call)
            else:
                call()  # optimizers make their states in their first step
            calls[name] = call, repeats
        except Exception as error:
            found[name] = _failed(error)
            continue
        found[name].setdefault("calls_per_timing", repeats)
        found[name].setdefault("seconds", [])
    return calls


def _observe(workload: Workload, provider: str, call: Call, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    seen: dict[str, Any] = {"host_seconds": observe.host_seconds(call)}
    kernels, seen["peak_bytes"] = observe.launches_and_peak(call)
    if device.type == "cuda":
        seen["launches"] = sum(kernels.values())
        if len(kernels) <= 8:
            seen["kernels"] = kernels
    forward = getattr(workload, "forward", None)  # of what has one: a step saves nothing for a backward
    if forward is not None:
        seen["saved_bytes"] = observe.saved_bytes(lambda: forward(provider, device, dtype))
    return seen


def timed(row: Row, provider: str) -> bool:
    """Whether the provider ran, and was right."""
    return bool(row["providers"].get(provider, {}).get("seconds"))


def reason(found: dict[str, Any]) -> str:
    """Why a provider has no time."""
    for key, word in (("wrong", "WRONG: "), ("failed", "failed: "), ("why_not", "")):
        if key in found:
            return word + str(found[key])
    return "not timed"


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
