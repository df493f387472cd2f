"""What all tests share: the backends that exist here, seeds of their own, and a loud count of what was skipped."""

from __future__ import annotations

import os
import random
import signal
import zlib
from collections import Counter
from collections.abc import Generator
from contextlib import nullcontext
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from cuda_on_cpu import backend as cuda_emulation

from fusedtrain import dispatch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton asks when it is imported, and kernels when they are defined

# A shell starts what it puts in the background with interrupts ignored; what tests start, to interrupt it, would be so.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Derandomised: a run is a function of the source. Kernels that compile on first use know no deadline.
hypothesis.settings.register_profile(
    "fusedtrain",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fusedtrain")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test starts from a seed made of its name, so that neither order nor selection changes what it sees."""
    seed = zlib.crc32(item.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Without a GPU, tests of ``backend="cuda"`` have it emulated on the CPU, and they alone: the fixture lives for a
    session, and would leave the emulation to whichever test comes next."""
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    emulated = parameters.get("backend") == "cuda" and not torch.cuda.is_available()
    with cuda_emulation.installed() if emulated else nullcontext():
        return (yield)


@pytest.fixture(scope="session", params=dispatch.ORDER)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of each backend that can run here; the others are skipped with their reason."""
    why_not = dispatch.load(request.param).why_not
    if why_not:
        pytest.skip(f"backend {request.param}: {why_not}")
    return request.param


@pytest.fixture(scope="session")
def device(backend: str) -> torch.device:
    """Where tensors for ``backend`` live. Without a GPU those for GPUs run on CPU tensors, emulated or interpreted."""
    return torch.device("cuda" if backend in ("cuda", "triton") and torch.cuda.is_available() else "cpu")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A green run that skipped half of itself must not look like one that did not."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
        for report in terminalreporter.stats.get("skipped", [])
    )
    if not reasons:
        return
    terminalreporter.section(f"{sum(reasons.values())} TESTS SKIPPED", sep="!", yellow=True, bold=True)
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:5d}  {reason}", yellow=True)
