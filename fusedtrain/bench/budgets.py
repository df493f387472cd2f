"""What our GPU kernels are built for, in numbers, and whether a row reaches them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fusedtrain.bench.measure import Row, bandwidth, ratio, timed

CUDA, TRITON = "fusedtrain-cuda", "fusedtrain-triton"
Figure = Callable[[Row, float], float]
"""``figure(row, copy bandwidth)``."""


@dataclass(frozen=True)
class Budget:
    workload: str
    what: str
    providers: tuple[str, ...]
    """That must have been timed."""
    figure: Figure
    at_least: float | None = None
    at_most: float | None = None

    def judge(self, row: Row, copy_bandwidth: float) -> dict[str, Any]:
        """``workload``, ``what``, ``bound``, and ``figure`` with ``met``, or why there is none: ``missing``."""
        bound = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        verdict: dict[str, Any] = {"workload": self.workload, "what": self.what, "bound": bound}
        missing = [p for p in self.providers if not timed(row, p)]
        if missing:
            reasons = (row["providers"].get(p, {"why_not": "not asked for"}) for p in missing)
            told = (r.get("wrong") or r.get("failed") or r.get("why_not") for r in reasons)
            return {**verdict, "missing": "; ".join(f"{p}: {why}" for p, why in zip(missing, told, strict=True))}
        figure = self.figure(row, copy_bandwidth)
        low = self.at_least is None or figure >= self.at_least
        return {**verdict, "figure": figure, "met": low and (self.at_most is None or figure <= self.at_most)}


def share_of_copy(workload: str, at_least: float, provider: str = CUDA) -> Budget:
    figure: Figure = lambda row, copy: bandwidth(row, provider) / copy  # noqa: E731
    return Budget(workload, f"{provider}: share of copy bandwidth", (provider,), figure, at_least)


def faster(workload: str, theirs: str, at_least: float, ours: str = CUDA) -> Budget:
    figure: Figure = lambda row, copy: ratio(row, ours, theirs)  # noqa: E731
    return Budget(workload, f"{ours} against {theirs}", (ours, theirs), figure, at_least)


def observed(workload: str, key: str, at_most: float, provider: str, unit: float = 1.0) -> Budget:
    figure: Figure = lambda row, copy: row["providers"][provider][key] / unit  # noqa: E731
    return Budget(workload, f"{provider}: {key}", (provider,), figure, at_most=at_most)


def _host_budget(workload: str, tensors: int) -> Budget:
    return observed(workload, "host_seconds", 30 + 0.15 * tensors, CUDA, 1e-6)


_GELU, _SIDE = "gelu + dropout, 16384 x 16384 bf16", 16384
_LARGE = ("clip + AdamW, one tensor of 2^28", "clip + AdamW, GPT-2 XL", "clip + AdamW, Llama 3 8B, 1 of 8 shards")
_COUNTED = (
    "clip + AdamW, one tensor of 2^28",
    "clip + AdamW, LoRA, 20000 tensors",
    "clip + AdamW, 465 groups of one tensor",
)

BUDGETS: list[Budget] = [
    *(share_of_copy(name, 0.92) for name in _LARGE),
    *(faster(name, "torch-fused", 1.25) for name in _LARGE),
    *(faster(name, CUDA, 0.9, TRITON) for name in _LARGE[:1]),
    faster("clip + AdamW, GPT-2 small", "torch-fused", 2),
    faster("clip + AdamW, 1000 tensors of 1000", "torch-fused", 10),
    faster("clip + AdamW, 465 groups of one tensor", "torch-fused", 30),
    *(observed(name, "launches", 2, provider) for name in _COUNTED for provider in (CUDA, TRITON)),
    _host_budget("clip + AdamW, 148 tensors of 1", 148),
    _host_budget("clip + AdamW, 1000 tensors of 1", 1000),
    _host_budget("clip + AdamW, LoRA, 20000 tensors", 20000),
    share_of_copy(f"{_GELU}, forward", 0.90),
    share_of_copy(f"{_GELU}, backward", 0.90),
    faster(f"{_GELU}, both", "torch-eager", 2),
    faster(f"{_GELU}, both", "torch-compiled", 1.15),
    faster(f"{_GELU}, forward", CUDA, 0.9, TRITON),
    faster(f"{_GELU}, both", CUDA, 0.9, TRITON),
    # x itself and a state of 16 bytes, which the allocator rounds up; relu's backward works from its result.
    *(observed(f"{_GELU}, both", "saved_bytes", 2 * _SIDE**2 + 16, provider) for provider in (CUDA, TRITON)),
    *(
        observed(f"relu + dropout, {_SIDE} x {_SIDE} bf16, both", "saved_bytes", 0, provider)
        for provider in (CUDA, TRITON)
    ),
]


def judge(rows: list[Row], copy_bandwidth: float) -> list[dict[str, Any]]:
    """The verdict of each budget whose workload has a row."""
    by_name = {row["name"]: row for row in rows}
    return [b.judge(by_name[b.workload], copy_bandwidth) for b in BUDGETS if b.workload in by_name]
