"""The record of a slice: a JSON file that is whole after every step, so that a run that is cut off has said all it
knew, and the next can go on from there."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fusedtrain.bench.results import write_json
from fusedtrain.gpu_check.step import PASSED

_TAIL = 4000
"""Characters of output that are kept of a step that did not pass."""
_RUNNING = ".running.log"


def _depends(setting: dict[str, Any]) -> list[Any]:
    """What a step depends on. KeyError if some of it is not known."""
    versions = setting["versions"]
    recorded = [setting[key] for key in ("sources", "gpus", "driver", "missing_modules")]
    return [*recorded, versions["torch"], versions["triton"]]


class Record:
    """``DIR/SLICE.json``: the setting, and an entry per step, in the order of the slice; and ``DIR/SLICE.log``: what
    each step printed, one after the other. Threads that run steps share it."""

    def __init__(
        self, folder: Path, name: str, setting: dict[str, Any], resume: bool = False, order: Sequence[str] = ()
    ) -> None:
        self.path, self.name, self.setting = folder / f"{name}.json", name, setting
        self._lock, self._order = threading.Lock(), list(order)
        for old in (self.path.with_suffix(".log"), *folder.glob(f"{name}.*{_RUNNING}")):
            old.unlink(missing_ok=True)
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
        with self._lock:
            self.steps[step] = {"name": step, "status": status, **entry}
            for name in sorted(self.steps, key=self._place):  # in place, for whoever holds it: the table at the end
                self.steps[name] = self.steps.pop(name)
            self.save()

    def _place(self, step: str) -> int:
        return self._order.index(step) if step in self._order else len(self._order)

    @contextlib.contextmanager
    def log(self, step: str) -> Iterator[Path]:
        """A log of the step's own while it runs, ``DIR/SLICE.STEP.running.log``: it stays if all is killed."""
        own = self.path.with_name(f"{self.name}.{re.sub(r'[^a-zA-Z0-9_]+', '-', step)}{_RUNNING}")
        own.touch()
        try:
            yield own
        finally:
            with self._lock, own.open("rb") as output, self.path.with_suffix(".log").open("ab") as whole:
                shutil.copyfileobj(output, whole)
            own.unlink()

    def save(self) -> None:
        write_json(self.path, {"slice": self.name, "setting": self.setting, "steps": list(self.steps.values())})
