"""Where a Python tensor keeps torch's: found if there is exactly one place, and not used if there is not."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fusedtrain.backends import step_tables

plan = pytest.importorskip("fusedtrain._plan", reason="fusedtrain._plan is not built")


class Box:
    """Three words behind the head of an object: what it says its tensor is, `first` and `second`."""

    __slots__ = ("_cdata", "first", "second")

    def __init__(self, first: Any, second: Any, tensor: Any) -> None:
        self._cdata, self.first, self.second = id(tensor), first, second


TENSOR, OTHER = object(), object()
HEAD, WORD = object.__basicsize__, tuple.__itemsize__  # of an object, and of what it has slots for
IN_FIRST, IN_SECOND = Box(TENSOR, OTHER, TENSOR), Box(OTHER, TENSOR, TENSOR)


@pytest.mark.parametrize(
    ("examples", "place"),
    [
        ([IN_FIRST], HEAD + WORD),
        ([IN_SECOND, IN_SECOND], HEAD + 2 * WORD),
        ([IN_FIRST, IN_SECOND], None),
        ([Box(TENSOR, TENSOR, TENSOR)], None),
        ([Box(OTHER, OTHER, TENSOR)], None),
        ([IN_FIRST, Box(OTHER, OTHER, TENSOR)], None),
        ([], None),
    ],
    ids=["first", "second", "here and there", "twice", "nowhere", "once nowhere", "no example"],
)
def test_the_only_place_or_none(examples: list[Box], place: int | None) -> None:
    assert plan.payload(examples) == place


def test_this_torch_has_one() -> None:
    """Else steps are right and slower; then payload.h is to be thought over."""
    assert step_tables.payload(plan) in range(HEAD, torch.Tensor.__basicsize__)


@pytest.mark.parametrize("context", [FakeTensorMode, torch.inference_mode, lambda: torch.device("meta")])
def test_it_is_found_wherever_the_first_step_is_made(context: Any) -> None:
    with context():
        assert step_tables.payload(plan) is not None


def test_a_place_that_a_swapped_tensor_does_not_leave_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if tensors kept a copy of the address beside the one that counts, or in its place."""
    monkeypatch.setattr(torch.utils, "swap_tensors", lambda a, b: seen.append((a, b)))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Plan:
        """A torch whose place moved when tensors were swapped."""

        @staticmethod
        def payload(examples: list[torch.Tensor]) -> int:
            return HEAD + WORD * len(seen)

    assert step_tables.payload(Plan) is None  # type: ignore[arg-type]
    assert len(seen) == 1


def test_nothing_is_counted_or_kept() -> None:
    tensor = torch.ones(3)
    before = sys.getrefcount(tensor)
    for _ in range(10):
        plan.payload([tensor])
    assert sys.getrefcount(tensor) == before
