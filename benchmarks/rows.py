"""The rows of `make bench`: workloads of `fusedtrain.bench`, each as a pair, with what it is built for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusedtrain import dispatch
from fusedtrain.bench import shapes
from fusedtrain.bench.optim_step import OptimStep
from fusedtrain.bench.step_providers import OURS
from fusedtrain.bench.workload import Workload
from fusedtrain.bench.workloads import WORKLOADS


@dataclass(frozen=True)
class Row:
    name: str
    workload: Workload
    theirs: str
    """The provider to compare with."""
    target: float | None = None
    """The ratio it is built for."""
    budget: float | None = None
    """Microseconds that our side may take."""

    @property
    def baseline(self) -> str:
        return BASELINES[self.theirs]

    def ours(self) -> str:
        """The provider of the backend that a user gets who asks for none."""
        chosen = dispatch.resolve("make bench", torch.device("cpu"), frozenset({self.workload.dtype}))
        return next(provider for provider, backend in OURS.items() if backend == chosen.name)


BASELINES = {"torch-fused": "clip_grad_norm_ + AdamW(fused=True)", "torch-eager": "F.dropout(F.gelu(x), 0.1)"}
_GPT2 = "clip + AdamW, GPT-2 small: 148 tensors, 124 M"


def _step(name: str, workload: str, target: float | None = None, budget: float | None = None) -> Row:
    return Row(name, WORKLOADS[f"clip + AdamW, {workload}"], "torch-fused", target, budget)


ROWS = [
    _step(_GPT2, "GPT-2 small", 1.4),
    _step("clip + AdamW, 1000 tensors of 100", "1000 tensors of 100", 25.0),
    _step("clip + AdamW, 465 groups of one tensor of 100", "465 groups of one tensor", 50.0),
    *(
        Row(
            f"gelu + dropout 0.1, 2048 x 4096 {kind}",
            WORKLOADS[f"gelu + dropout, 2048 x 4096 {kind}, both"],
            "torch-eager",
            4.0,
        )
        for kind in ("fp32", "bf16")
    ),
    _step("host time, 148 tensors of 1", "148 tensors of 1", budget=30 + 0.15 * 148),
    _step("host time, 1000 tensors of 1", "1000 tensors of 1", budget=30 + 0.15 * 1000),
]
QUICK: dict[str, Workload] = {_GPT2: OptimStep("clip + AdamW, small", lambda: shapes.gpt2(layers=2, width=256))}
"""Smaller stand-ins, for a look that proves nothing."""
