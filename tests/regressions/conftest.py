from __future__ import annotations

import os
from collections.abc import Iterator

import kit
import pytest
import torch

from fusedtrain import dispatch


@pytest.fixture(params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every backend of CPU tensors that runs here, also for the calls that take no ``backend=``."""
    why_not = dispatch.load(request.param).why_not
    if why_not:
        pytest.skip(f"backend {request.param}: {why_not}")
    monkeypatch.setenv("FUSEDTRAIN_BACKEND", request.param)
    return str(request.param)


@pytest.fixture(params=kit.CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """E13 runs a part of this folder with empty tensors filled with NaN."""
    torch.use_deterministic_algorithms("FUSEDTRAIN_NAN_FILLED" in os.environ, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)
