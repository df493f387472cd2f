"""Where torch's tensor lies in a Python one: found if there is exactly one place, used if it is, and without it tensors
are read through DLPack."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

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


def parts() -> step_tables.Parts:
    found = step_tables.parts()
    if found is None:
        pytest.skip("the library of cpu is not built")
    return found


@pytest.mark.parametrize(
    ("examples", "offset"),
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
def test_the_only_place_or_none(examples: list[Box], offset: int | None) -> None:
    assert plan.tensor_offset(examples) == offset


def test_this_torch_has_one() -> None:
    """Else steps are right and slower; then tensor_offset.h is to be thought over."""
    assert parts().tensor_offset in range(HEAD, torch.Tensor.__basicsize__)


class Plan:
    """Says of torch's tensors that they are at these places, one after the other."""

    def __init__(self, *offsets: int | None) -> None:
        self.offsets = list(offsets)

    def tensor_offset(self, examples: list[torch.Tensor]) -> int | None:
        return self.offsets.pop(0)


def test_a_place_that_tensors_do_not_leave_when_they_are_swapped_is_not_used() -> None:
    """As if a copy of the address lay beside the one that counts."""
    holder = parts().holder
    found = [step_tables.tensor_offset(Plan(*offsets), holder) for offsets in ((16, 16), (16, None), (None, 16))]  # type: ignore[arg-type]
    assert found == [16, None, None]


def test_a_torch_that_hands_over_something_else_is_not_looked_into() -> None:
    real = parts().holder
    real.ft_first_word.restype = ctypes.c_size_t
    found = []
    for difference in (0, 8):
        word = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p)(
            lambda held, difference=difference: real.ft_first_word(ctypes.c_void_p(held)) + difference
        )
        holder = SimpleNamespace(ft_first_word=word, ft_release_tensors=real.ft_release_tensors)
        found.append(step_tables.tensor_offset.__wrapped__(Plan(16, 16), holder))
    assert found == [16, None]


@pytest.mark.parametrize("what", ["_cdata", "swap_tensors"])
def test_a_torch_without_what_is_private_to_it(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no error: that would be one of every backend."""
    if what == "_cdata":
        with pytest.raises(AttributeError):
            plan.tensor_offset([object()])
        asked: Any = SimpleNamespace(tensor_offset=lambda examples: plan.tensor_offset([object()]))
    else:
        monkeypatch.delattr(torch.utils, "swap_tensors")
        asked = Plan(16, 16)
    assert step_tables.tensor_offset.__wrapped__(asked, parts().holder) is None


@pytest.mark.parametrize("known", [True, False])
def test_tensors_are_looked_at_there_or_not_at_all(known: bool) -> None:
    found = parts()
    looks = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    def look(tensor: int, to: int) -> int:
        looks.append(tensor)
        return int(found.holder.ft_look(ctypes.c_void_p(tensor), ctypes.c_void_p(to)))

    holder: Any = SimpleNamespace(
        ft_held_unchanged=found.holder.ft_held_unchanged,
        ft_release_tensors=found.holder.ft_release_tensors,
        ft_look=look,
    )
    offset = found.tensor_offset
    ours = found._replace(holder=holder, tensor_offset=offset if known else None)
    maker = step_tables.TableMaker(ours, "cpu", found.holder, "cpu")
    p = torch.ones(3)
    p.grad = torch.ones(3)
    groups, state = [{"params": [p]}], {p: {"exp_avg": torch.zeros(3)}}
    table = maker.table(groups, [0], state, ("exp_avg",), [state[p]], [torch.zeros(())])
    looks.clear()
    assert table.refresh(groups, state)
    assert looks == ([id(p) + offset, id(p.grad) + offset] if known and offset is not None else [])


FIRST_CALLS = {
    "export": "return torch.export.export(model, (x,)).graph.nodes",
    "make_fx": "return make_fx(model)(x).graph.nodes",
    "a mode that remembers": "with Remembers() as mode: model(x)\n    return mode.seen",
}


@pytest.mark.parametrize("name", FIRST_CALLS)
def test_the_search_is_not_seen_by_whoever_watches_the_first_call(name: str) -> None:
    """The first call of all loads a backend, and with it the place is searched; the second does not."""
    parts()
    program = f"""
import weakref
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
import fusedtrain as ft

class Remembers(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {{}}))
        self.seen.append(weakref.ref(result))
        return result

def watched():
    {FIRST_CALLS[name]}

model, x = ft.nn.ActDropout("relu", 0.5), torch.ones(2, 8)
first, second = len(watched()), len(watched())
from fusedtrain.backends import step_tables
print(first, second, step_tables.parts().tensor_offset)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    first, second, offset = run.stdout.split()
    assert first == second
    assert int(first) > 0
    assert offset == str(parts().tensor_offset)
