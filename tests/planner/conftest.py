"""Tables are tested with every backend that steps by them. Without a GPU that of CUDA is emulated, and Triton
interpreted. That of the CPU is tested once more with tensors that are read through DLPack, as where nobody knows where
torch's tensor lies in a Python one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from step_tables import BY_TABLE, launcher_of

from fusedtrain import dispatch
from fusedtrain.backends import step_tables

WAYS = [*((backend, False) for backend in BY_TABLE), ("cpu", True)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stepped_by" in metafunc.fixturenames:
        names = [backend + " by DLPack" * by_dlpack for backend, by_dlpack in WAYS]
        metafunc.parametrize(("backend", "by_dlpack"), WAYS, indirect=["backend"], ids=names, scope="module")


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def stepped_by(backend: str, by_dlpack: bool) -> Iterator[None]:
    """Steps are by this backend, also where none is named."""
    launcher = launcher_of(dispatch.load(backend))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEDTRAIN_BACKEND", backend)
        if by_dlpack:
            parts = step_tables.parts()
            assert parts is not None
            maker = step_tables.TableMaker(parts._replace(tensor_offset=None), backend, parts.holder, backend)
            patch.setattr(launcher, "library", maker.library)
        yield
