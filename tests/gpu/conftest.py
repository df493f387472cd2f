"""Tests of what only a GPU shows. Those that need none to be meaningful also run on the backends of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

GPU_BACKENDS = ("cuda", "triton")


def _backend(item: pytest.Item) -> object:
    chosen = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return chosen.get("backend", chosen.get("on_gpu"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With a GPU, what runs on a GPU backend is a test of the GPU: ``-m gpu`` finds it. Without one the tests that need
    none show on the CPU backend that they are right; emulated and interpreted kernels have tests of their own."""
    here = [item for item in items if item.path.parent.name == "gpu"]
    if torch.cuda.is_available():
        for item in here:
            if _backend(item) in GPU_BACKENDS:
                item.add_marker(pytest.mark.gpu)
        return
    left_out = {item for item in here if _backend(item) not in (None, "cpu") and not item.get_closest_marker("gpu")}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(params=GPU_BACKENDS)
def on_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a GPU backend that can run here, also for calls that take no ``backend=``."""
    from fusedtrain import dispatch

    why_not = dispatch.load(request.param).why_not
    if why_not:
        pytest.skip(f"backend {request.param}: {why_not}")
    monkeypatch.setenv("FUSEDTRAIN_BACKEND", request.param)
    return str(request.param)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Anything that waits for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def chosen(backend: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`backend`, also for calls that take no ``backend=``."""
    monkeypatch.setenv("FUSEDTRAIN_BACKEND", backend)
    return backend
