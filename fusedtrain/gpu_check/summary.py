"""The table at the end."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from fusedtrain.gpu_check.slices import OF_TESTS, details
from fusedtrain.gpu_check.step import CANNOT, FAILED, NO_TIME, RUNNING

_SHOWN = 5
"""Failures of a step that are shown; all are in its record."""


Results = Mapping[str, Mapping[str, dict[str, Any]]]
"""By slice, by step: its entry in the record."""


def table(results: Results) -> list[str]:
    """The lines: one per step, under it its failures and why tests were skipped."""
    slices = {name: list(steps.values()) for name, steps in results.items()}
    width = max(80, shutil.get_terminal_size((140, 24)).columns)
    names = [f"{name}: {step['name']}" for name, steps in slices.items() for step in steps]
    column = max((len(name) for name in names), default=0)
    lines = []
    for name, steps in slices.items():
        reasons = {step.get("reason") for step in steps}
        if len(steps) > 1 and len(reasons) == 1 and {step["status"] for step in steps} == {CANNOT}:
            lines.append(f"{CANNOT:<8} {name}: none of its {len(steps)} steps: {reasons.pop()}"[:width])
            continue
        for step in steps:
            label = f"{name}: {step['name']}".ljust(column)
            line = f"{step['status']:<8} {label} {step.get('seconds', 0.0):6.0f} s  {details(step)}"
            lines.append(line.rstrip()[:width])
            told = step.get("failures") or ([step["reason"]] if "reason" in step else [])
            lines += [f"         - {reason}"[:width] for reason in told[:_SHOWN]]
            if len(told) > _SHOWN:
                lines.append(f"         - and {len(told) - _SHOWN} more, in {name}.json")
            skipped = [*step.get("found", {}).get("skipped", {}).items()]
            lines += [f"         . {count} skipped: {why}"[:width] for why, count in skipped[:_SHOWN]]
    return lines


def status(results: Results, missing: Sequence[str]) -> int:
    """The exit status: 1 if anything failed, else 2 if anything could not be done here or now, else 0. Files of tests
    skip themselves for want of the modules that are missing, and their steps pass all the same."""
    seen = {step["status"] for steps in results.values() for step in steps.values()}
    undone = seen & {CANNOT, NO_TIME, RUNNING} or not seen or (missing and OF_TESTS & results.keys())
    return 1 if FAILED in seen else 2 if undone else 0
