"""Runs of the command, and results to play with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from fusedtrain.bench import bandwidth, cli

Run = Callable[..., Result]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """``python -m fusedtrain bench``, in this process, with little to copy and torch's threads kept."""
    threads = torch.get_num_threads()
    monkeypatch.setitem(bandwidth.BYTES, "cpu", 2**20)

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(cli.app, [str(a) for a in arguments], prog_name="python -m fusedtrain bench")

    yield run
    torch.set_num_threads(threads)


def results(**providers: list[float]) -> dict[str, Any]:
    """A run of one row, `played`, of this schema."""
    return {
        "kind": "fusedtrain-bench",
        "schema": 1,
        "machine": {"cpu": "Abacus", "cpus": 2, "gpus": []},
        "versions": {"torch": "2.11.0"},
        "options": {"device": "cpu", "threads": 2},
        "commit": "0" * 40,
        "complete": True,
        "copy_bandwidth": 1e10,
        "load": 0.1,
        "rows": [row("played", **providers)],
    }


def row(name: str, **providers: list[float]) -> dict[str, Any]:
    return {
        "name": name,
        "suite": "optim",
        "baseline": "theirs",
        "device": "cpu",
        "dtype": "float32",
        "clock": "wall",
        "bytes": 10**7,
        "tensors": 10,
        "elements": 10**6,
        "visits": _visits(max(map(len, providers.values()), default=0)),
        "providers": {name.replace("_", "-"): {"seconds": list(s)} for name, s in providers.items()},
    }


def _visits(rounds: int) -> list[int]:
    """Of two rounds each."""
    return [min(2, rounds - begin) for begin in range(0, rounds, 2)]


def timings(
    seed: int, ratio: float, rounds: int = 15, drift: float = 1.0, of_visits: float = 0.0
) -> dict[str, list[float]]:
    """Ours and theirs, in rounds that wander together; ``ratio``: how many times as long theirs takes.

    ``of_visits``: how much the ratio of a whole visit differs from it, relative; neighbouring visits alike, as where a
    machine is slow for a minute.
    """
    random = np.random.default_rng(seed)
    common = drift * np.exp(np.cumsum(random.normal(0, 0.1, rounds)))
    sizes = _visits(rounds)
    wander = np.zeros(len(sizes))
    for i in range(len(sizes)):
        wander[i] = (0.5 * wander[i - 1] if i else 0.0) + random.normal(0, of_visits * (0.75**0.5 if i else 1.0))
    ours, theirs = (common * scale * np.exp(random.normal(0, 0.02, rounds)) for scale in (1e-3, ratio * 1e-3))
    return {"fusedtrain_cpu": (ours / np.exp(np.repeat(wander, sizes))).tolist(), "theirs": theirs.tolist()}


def write(path: Path, value: dict[str, Any]) -> Path:
    path.write_text(json.dumps(value))
    return path
