"""Options of ``pytest benchmarks``."""

from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fusedtrain")
    group.addoption("--workload", action="append", default=[], help="a part of its name; default: the quick ones")
    group.addoption("--providers", default="", help="comma-separated; default: as bench run --quick")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each workload and provider that ``bench run`` would take with these options."""
    if "item" not in metafunc.fixturenames:
        return
    from fusedtrain.bench.errors import BenchError
    from fusedtrain.bench.plans import device_of
    from fusedtrain.bench.selection import Wanted, items

    option = metafunc.config.getoption
    names = option("--workload")
    try:
        device = str(device_of(option("--device")))
        wanted = Wanted(workloads=names, providers=option("--providers"), device=device, quick=not names)
        chosen = [(i.workload, provider) for i in items(wanted) for provider in i.providers]
    except BenchError as error:
        raise pytest.UsageError(str(error)) from None
    metafunc.parametrize("item", chosen, ids=[f"{w.name}-{provider}" for w, provider in chosen])
