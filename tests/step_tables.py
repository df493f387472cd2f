"""Steps by tables, for the tests that need them."""

from __future__ import annotations

from typing import Any

import pytest

from fusedtrain import dispatch
from fusedtrain.backends import Backend

BY_TABLE = [name for name in dispatch.ORDER if name != "reference"]
"""The backends that step by tables: all that have kernels."""


def launcher_of(backend: Backend) -> Any:
    """What steps tables of a backend. Skips where the backend or `_plan` is not built; where both are and there is no
    launcher, that is a fault, and steps would go by lists with nobody the wiser."""
    if backend.why_not:
        pytest.skip(f"backend {backend.name}: {backend.why_not}")
    pytest.importorskip("fusedtrain._plan", reason="fusedtrain._plan is not built")
    assert backend.step_launcher is not None, f"backend {backend.name} has no launcher of tables"
    return backend.step_launcher
