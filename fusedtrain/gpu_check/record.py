"""The record of a slice: a JSON file that is whole after every step, so that a run that is cut off has said all it
knew, and the next can go on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fusedtrain.bench.results import write_json
from fusedtrain.gpu_check.step import PASSED

_TAIL = 4000
"""Characters of output that are kept of a step that did not pass."""


def _depends(setting: dict[str, Any]) -> list[Any]:
    """What a step depends on. KeyError if some of it is not known."""
    versions = setting["versions"]
    recorded = [setting[key] for key in ("sources", "gpus", "driver", "missing_modules")]
    return [*recorded, versions["torch"], versions["triton"]]


class Record:
    """``DIR/SLICE.json``: the setting, and an entry per step in the order in which they were run."""

    def __init__(self, folder: Path, name: str, setting: dict[str, Any], resume: bool = False) -> None:
        self.path, self.name, self.setting = folder / f"{name}.json", name, setting
        self.steps: dict[str, dict[str, Any]] = self._passed_before() if resume else {}
        self.save()

    def _passed_before(self) -> dict[str, dict[str, Any]]:
        """Entries of an earlier run that need no repetition: steps that passed, with all that they depend on."""
        try:
            before = json.loads(self.path.read_text("utf-8"))
            same = _depends(before["setting"]) == _depends(self.setting)
            kept = {step["name"]: step for step in before["steps"] if step["status"] == PASSED}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return kept if same else {}

    def has(self, step: str) -> bool:
        return step in self.steps

    def add(self, step: str, status: str, **entry: Any) -> None:
        if status == PASSED or not entry.get("output"):
            entry.pop("output", None)
        else:
            entry["output"] = entry["output"][-_TAIL:]
        self.steps[step] = {"name": step, "status": status, **entry}
        self.save()

    def save(self) -> None:
        write_json(self.path, {"slice": self.name, "setting": self.setting, "steps": list(self.steps.values())})
