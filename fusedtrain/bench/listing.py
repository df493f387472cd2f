"""What can be measured: the table of ``bench list``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console

from fusedtrain.bench import scaling
from fusedtrain.bench.errors import unknown
from fusedtrain.bench.workload import SUITES
from fusedtrain.bench.workloads import FOR_GPU, QUICK, WORKLOADS


def show(suites: Sequence[str], device: torch.device, console: Console) -> None:
    """Prints suites and workloads, then every provider: that it can run on the device, or why not.

    Raises:
        BenchError: an unknown suite.
    """
    for name in suites:
        if name not in SUITES:
            raise unknown("SUITE", name, "suite", SUITES)
    reasons: dict[str, str | None] = {}

    def line(text: str, style: str | None = None) -> None:
        console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)

    for suite in suites or SUITES:
        line(f"{suite}: {SUITES[suite]}", "bold")
        if suite == "scaling":
            for axis, what in scaling.AXES.items():
                line(f"  {axis}: {what}")
        for workload in WORKLOADS.values():
            if workload.suite != suite:
                continue
            marks = [m for m, names in (("quick", QUICK), ("GPU, or by name", FOR_GPU)) if workload.name in names]
            line(f"  {workload.name}" + (f"  [{', '.join(marks)}]" if marks else ""))
            for provider in workload.providers():
                found = workload.why_not(provider, device, workload.dtype)
                # What one workload cannot have another may: a reason stands only if it is that of all of them.
                reasons[provider] = None if reasons.get(provider, "") is None else found
    line(f"providers on {device}", "bold")
    for provider, why in reasons.items():
        line(f"  {provider:<22} {'yes' if why is None else why}")
