from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from fusedtrain.train import checkpoint, job, measure, metrics, plots

SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"width": 32, "batch": 32, "steps": 24, "eval_every": 6, "warmup": 4, "l1": 1e-3},
    "conv": {"model": "conv", "width": 16, "activation": "gelu", "batch": 16, "steps": 12, "eval_every": 4},
    "text": {
        "task": "text",
        "width": 16,
        "depth": 1,
        "heads": 2,
        "context": 16,
        "batch": 4,
        "steps": 12,
        "eval_every": 4,
    },
}
"""Runs that take a second, by name: every task and model is in one."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models here are too small to share: threads that wait for each other only make it slower, much slower where
    test processes run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The options of a run of `SMALL`, with a corpus where it needs one."""

    def options(kind: str, **more: Any) -> dict[str, Any]:
        given = {"device": "cpu", **SMALL[kind], **more}
        if kind == "text":
            corpus = tmp_path / "corpus.txt"
            corpus.write_text("".join(f"{i} * {i} = {i * i}\n" for i in range(4000)))
            given["text"] = str(corpus)
        return given

    return options


class Finished:
    """A run folder, read back."""

    def __init__(self, folder: Path, status: int, printed: str) -> None:
        self.folder, self.status, self.printed = folder, status, printed
        self.rows = metrics.read(folder, len((folder / metrics.JSONL).read_text().splitlines()))
        summary = folder / job.SUMMARY
        self.summary = json.loads(summary.read_text()) if summary.exists() else None

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / checkpoint.FILE)

    def column(self, name: str) -> torch.Tensor:
        return torch.tensor([row[name] for row in self.rows], dtype=torch.float64)


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finished]:
    """Runs the job in this process: ``train(given, name)`` makes a run, ``train(given, name, resume=True)`` goes on.
    Plots and the measuring of memory take longer than such a run: only with ``report=True``."""

    def go(given: dict[str, Any], name: str = "run", resume: bool = False, **more: Any) -> Finished:
        report = more.pop("report", False)
        printed = io.StringIO()
        folder = tmp_path / name
        console = Console(file=printed, width=80)
        rng = torch.get_rng_state()
        target = {"out": None, "resume": folder} if resume else {"out": folder, "resume": None}
        try:
            with monkeypatch.context() as patch:
                if not report:
                    patch.setattr(plots, "all_plots", lambda *_: None)
                    patch.setattr(measure, "memory", lambda *_: measure.Memory(0, 0, 0))
                status = job.run(given, **target, max_seconds=more.get("max_seconds"), console=console)
        finally:
            torch.set_rng_state(rng)
        return Finished(folder, status, printed.getvalue())

    return go


def assert_same_run(a: Finished, b: Finished) -> None:
    """The same to the bit: weights, optimizer states, best weights, random numbers, and every figure but the times."""
    assert a.state.keys() == b.state.keys()
    different = [name for name in a.state if not torch.equal(a.state[name], b.state[name])]
    assert not different
    timeless = [[{k: v for k, v in row.items() if not k.endswith("_s")} for row in run.rows] for run in (a, b)]
    assert timeless[0] == timeless[1]
