"""Tests of tables once more where nobody knows the place of torch's tensor in a Python one (see
csrc/plan/payload.h): gradients and parameters are read through DLPack."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from step_tables import launcher_of
from test_table import (  # noqa: F401
    test_A17_exchanged_parameters_states_and_gradients,
    test_A17_gradients_freed_and_reallocated,
    test_a_gradient_of_another_layout_dtype_or_kind_goes_by_lists,
    test_a_parameter_exchanged_in_its_group,
    test_equals_the_step_by_lists,
    test_several_groups,
)
from test_table_pitfalls import (  # noqa: F401
    test_A17_freed_storage_is_an_error,
    test_A17_gradients_that_are_read_as_their_negative,
)

from fusedtrain import dispatch
from fusedtrain.backends import step_tables


@pytest.fixture(scope="module")
def backend() -> str:
    return "cpu"


@pytest.fixture(scope="module")
def stepped_by(backend: str) -> Iterator[None]:
    launcher = launcher_of(dispatch.load(backend))
    parts = step_tables.parts()
    assert parts is not None
    slower = step_tables.TableMaker(parts._replace(payload=None), backend, parts.holder, backend)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "_library", slower._library)
        patch.setenv("FUSEDTRAIN_BACKEND", backend)
        yield
