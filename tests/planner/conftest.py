"""Tables are tested with every backend that steps by them. Without a GPU that of CUDA is emulated, and Triton
interpreted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from step_tables import BY_TABLE, launcher_of

from fusedtrain import dispatch


@pytest.fixture(scope="module", params=BY_TABLE)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def stepped_by(backend: str) -> Iterator[None]:
    """Steps are by this backend, also where none is named."""
    launcher_of(dispatch.load(backend))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEDTRAIN_BACKEND", backend)
        yield
