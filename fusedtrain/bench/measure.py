"""One row: every provider of a workload checked against fp64, then all of them timed in turn, in several visits."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fusedtrain.bench import compiling, memory, observe
from fusedtrain.bench.timers import Clock
from fusedtrain.bench.workload import Call, Workload

Row = dict[str, Any]
Told = Callable[[], None]


class Measurement:
    """One row in the making: `check` it once, then `visit` it as often as there is time.

    The rounds of one visit lie within seconds of each other, and a machine that is slow for a while is slow for all of
    them. Visits that lie far apart tell how much a figure wanders, which the rounds of one visit cannot; and each makes
    tensors and optimizers anew, for where these come to lie in memory is a part of a timing too. Between visits nothing
    of the workload is alive.

    Args:
        providers: those to compare, by default all that it has.
        dtype: of the tensors, by default the workload's.
        observed: also count launches, the host's time and memory.
        told: is called after each check and each timing.

    Attributes:
        row: what JSON can hold: ``name``, ``suite``, ``baseline``, ``device``, ``dtype``, ``clock``, ``bytes``, the
            facts of the workload, ``visits``, which are the numbers of their rounds, and ``providers``. Each of these
            has ``why_not`` if it cannot run here, ``failed`` if it raised, ``wrong`` if its result is not right, and
            then no time; else ``seconds``, a list with an entry per round, ``max_error`` against fp64, ``bytes`` where
            they are not the row's, and what was observed. A row that does not fit into the memory has ``why_not``
            itself, and no providers.

    Raises:
        ValueError: a provider that the workload does not have.
    """

    def __init__(
        self,
        workload: Workload,
        device: torch.device,
        clock: Clock,
        *,
        providers: Sequence[str] | None = None,
        dtype: torch.dtype | None = None,
        observed: bool = True,
        told: Told = lambda: None,
    ) -> None:
        self._workload, self._device, self._clock, self._told = workload, device, clock, told
        self._dtype = workload.dtype if dtype is None else dtype
        self._observed = observed
        names = workload.providers() if providers is None else list(providers)
        self._found = {name: _refusal(workload, name, device, self._dtype) for name in names}
        self.row: Row = {
            "name": workload.name,
            "suite": workload.suite,
            "baseline": workload.baseline,
            "device": str(device),
            "dtype": str(self._dtype).removeprefix("torch."),
            "clock": getattr(clock, "name", type(clock).__name__),
            "bytes": workload.bytes(self._dtype),
            **workload.facts(),
            "visits": [],
            "providers": self._found,
        }

    @property
    def _able(self) -> list[str]:
        """Those whom nothing has stopped so far."""
        return [name for name, found in self._found.items() if not found.keys() & {"why_not", "wrong", "failed"}]

    def check(self) -> None:
        """Checks every provider that can run here, if there is room for them."""
        able = self._able
        no_room = memory.refusal(self._workload.needs(self._dtype, len(able)), self._device) if able else None
        if no_room:
            self._found.clear()
            self.row["why_not"] = no_room
        for name in self._able:
            with compiling.limits():
                self._found[name] |= _check(self._workload, name, self._device, self._dtype)
            self._told()

    def visit(self, rounds: int, limit: float = math.inf) -> None:
        """Times every provider once in each of so many rounds, so that what else the machine does then touches all
        alike; each round begins with another one, so that none has always the same one before it. No further round is
        begun ``limit`` seconds after the first one."""
        with compiling.limits():
            calls = self._prepare()
            if not calls:
                return
            self.row["visits"].append(0)
            began = time.monotonic()
            for done in range(rounds):
                if done and time.monotonic() - began > limit:
                    break
                self._round(calls)

    def _round(self, calls: dict[str, Call]) -> None:
        timings: dict[str, float] = {}
        first = sum(self.row["visits"]) % len(calls) if calls else 0
        for name in [*calls][first:] + [*calls][:first]:
            try:
                timings[name] = self._clock.seconds(calls[name], self._found[name]["calls_per_timing"])
            except Exception as error:  # of one provider: the others still have a row
                self._found[name] = _failed(error)
                del calls[name]
            self._told()
        # A round that is interrupted counts for nobody: all have the same ones.
        for name, seconds in timings.items():
            self._found[name]["seconds"].append(seconds)
        self.row["visits"][-1] += 1

    def _prepare(self) -> dict[str, Call]:
        """The calls of one visit, warmed up; observed, if it is the first."""
        first = not self.row["visits"]
        names = [name for name in self._able if first or name not in self._workload.once()]
        calls: dict[str, Call] = {}
        try:
            inputs = self._workload.inputs(self._device, self._dtype) if names else None
        except Exception as error:
            self._found.update({name: _failed(error) for name in names})
            return {}
        for name in names:
            try:
                call = self._workload.make(name, self._device, self._dtype, inputs)
                if first:
                    self._found[name] |= {"calls_per_timing": self._clock.repeats(call), "seconds": []}
                    moved = self._workload.bytes(self._dtype, name)
                    if moved != self.row["bytes"]:
                        self._found[name]["bytes"] = moved
                else:
                    call()  # optimizers make their states in their first step
                calls[name] = call
            except Exception as error:
                self._found[name] = _failed(error)
        if first and self._observed:
            for name in list(calls):
                try:
                    self._found[name] |= _observe(self._workload, name, calls[name], self._device, self._dtype)
                except Exception as error:
                    self._found[name] = _failed(error)
                    del calls[name]
        return calls


def measure(
    workload: Workload,
    device: torch.device,
    clock: Clock,
    *,
    providers: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    rounds: int = 5,
    observed: bool = True,
    limit: float = math.inf,
) -> Row:
    """The row of a `Measurement` of one visit."""
    one = Measurement(workload, device, clock, providers=providers, dtype=dtype, observed=observed)
    one.check()
    one.visit(rounds, limit)
    return one.row


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


def _observe(workload: Workload, provider: str, call: Call, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    seen: dict[str, Any] = {"host_seconds": observe.host_seconds(call, device)}
    kernels, seen["peak_bytes"] = observe.launches_and_peak(call, device)
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
    """Of every round that both have: how many times as long theirs takes."""
    pairs = zip(row["providers"][ours]["seconds"], row["providers"][theirs]["seconds"], strict=False)
    return [b / a for a, b in pairs]


def by_visit(row: Row, values: Sequence[float]) -> list[list[float]]:
    """The values of rounds, from the first on, as the visits that they are of."""
    ends = list(itertools.accumulate(row.get("visits") or [len(values)]))
    parts = [list(values[begin:end]) for begin, end in itertools.pairwise([0, *ends])]
    return [part for part in parts if part]


def bytes_of(row: Row, provider: str) -> int:
    """Those that its work needs at least: the row's, unless it keeps something in another dtype."""
    return row["providers"][provider].get("bytes", row["bytes"])


def bandwidth(row: Row, provider: str) -> float:
    """Bytes per second, of the bytes that the work needs at least."""
    return bytes_of(row, provider) / median_seconds(row, provider)


def share_of_copy(row: Row, provider: str, copy_bandwidth: float | None) -> float | None:
    """Of the copy bandwidth that was measured in the same run: the row's own, where runs were merged."""
    copy = row.get("copy_bandwidth", copy_bandwidth)
    return bandwidth(row, provider) / copy if copy and row["bytes"] else None


def ratio(row: Row, ours: str, theirs: str, summarize: Callable[[list[float]], float] = statistics.median) -> float:
    return summarize(ratios(row, ours, theirs))
