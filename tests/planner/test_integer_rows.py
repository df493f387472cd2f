"""Rows of a table as integers: any fields in any order, and no integer where a caller does not expect it."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from step_tables import launcher_of

from fusedtrain import dispatch

plan = pytest.importorskip("fusedtrain._plan", reason="fusedtrain._plan is not built")
FIELDS = ("first_chunk", "numel", "aligned", "p", "g", "state0", "state1", "step", "step_type", "group")
KEYS = ("exp_avg", "exp_avg_sq")
TYPES = (torch.float32, torch.float64, torch.int64)


class Rows:
    """A table of tensors of these sizes, a group each, and all that a row of it is made of."""

    def __init__(self, sizes: list[int]) -> None:
        self.params = [torch.ones(n) for n in sizes]
        self.entries = [{key: torch.zeros(n) for key in KEYS} for n in sizes]
        self.steps = [torch.zeros((), dtype=TYPES[i % 3]) for i in range(len(sizes))]
        self.groups = [{"params": [p]} for p in self.params]
        self.state = dict(zip(self.params, self.entries, strict=True))
        self.give_gradients([0] * len(sizes))
        rows = [3 * i for i in range(len(sizes))]
        launcher = launcher_of(dispatch.load("cpu"))
        self.table = launcher.table(self.groups, rows, self.state, KEYS, self.entries, self.steps)

    def give_gradients(self, offsets: list[int]) -> None:
        for p, offset in zip(self.params, offsets, strict=True):
            p.grad = torch.ones(p.numel() + offset)[offset:]

    def write(self, rows: Any, to: Any) -> tuple[int, int]:
        assert self.table.refresh(self.groups, self.state)
        self.table.begin()
        try:
            return self.table.write(rows, to)  # type: ignore[no-any-return]
        finally:
            self.table.end()

    def expected(self, fields: list[str], chosen: list[int], chunk: int, alignment: int) -> list[int]:
        integers, chunks = [], 0
        for i in chosen:
            p = self.params[i]
            assert p.grad is not None
            runs = {"p": p, "g": p.grad, **{f"state{k}": self.entries[i][key] for k, key in enumerate(KEYS)}}
            row = {name: x.data_ptr() for name, x in runs.items()}
            row["aligned"] = int(all(row[name] % alignment == 0 for name in runs if name in fields))
            row |= {"first_chunk": chunks, "numel": p.numel(), "group": 3 * i}
            row |= {"step": self.steps[i].data_ptr(), "step_type": i % 3}
            integers += [row[name] for name in fields]
            chunks += -(-p.numel() // chunk)
        return integers


@given(
    sizes=st.lists(st.sampled_from([0, 1, 7, 8, 9, 100]), min_size=1, max_size=6),
    fields=st.lists(st.sampled_from(FIELDS), unique=True, max_size=len(FIELDS)),
    chunk=st.sampled_from([1, 8, 1000]),
    alignment=st.sampled_from([1, 4, 16, 64]),
    data=st.data(),
)
def test_integers_are_what_the_fields_say(
    sizes: list[int], fields: list[str], chunk: int, alignment: int, data: st.DataObject
) -> None:
    made = Rows(sizes)
    chosen = data.draw(st.lists(st.sampled_from(range(len(sizes))), unique=True))
    rows = plan.IntegerRows(made.table, chosen, fields, chunk, alignment)
    assert (len(rows), rows.width) == (len(chosen), len(fields))
    assert rows.chunks == sum(-(-sizes[i] // chunk) for i in chosen)
    to, width = array("q", [-1] * (len(rows) * rows.width)), len(fields)
    assert made.write(rows, to) == (0, len(to))
    assert to.tolist() == made.expected(fields, chosen, chunk, alignment)
    assert made.write(rows, to) == (0, 0)

    before = to.tolist()
    kept = [p.grad for p in made.params]
    made.give_gradients(data.draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes))))
    begin, end = made.write(rows, to)
    assert to.tolist() == made.expected(fields, chosen, chunk, alignment)
    differing = [i for i in range(len(to)) if to[i] != before[i]]
    whole = (min(differing) // width * width, (max(differing) // width + 1) * width) if differing else (0, 0)
    assert (begin, end) == whole
    del kept


def test_types_are_named_by_row() -> None:
    made = Rows([3, 0])
    assert made.table.types() == [["float32"] * 4] * 2
    assert made.table.elements == 3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([0], ["numel", "weight"], 1, 16), "no field is called weight"),
        (([0, 2], ["numel"], 1, 16), "there is no row 2"),
        (([0], ["numel"], 0, 16), "chunk must be > 0"),
        (([0], ["numel"], 1, 12), "power of two"),
        (([0], ["numel"], 1, 0), "power of two"),
    ],
)
def test_rows_that_cannot_be_are_refused(arguments: tuple[Any, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        plan.IntegerRows(Rows([3, 4]).table, *arguments)


def test_only_a_buffer_of_the_right_size_is_written_and_only_during_a_step() -> None:
    made = Rows([3, 4])
    rows = plan.IntegerRows(made.table, [0, 1], ["numel", "p"], 8, 16)
    for wrong in (
        array("q", [0] * 3),
        array("d", [0.0] * 4),
        array("i", [0] * 4),
        memoryview(array("q", [0] * 8))[::2],
    ):
        with pytest.raises(ValueError, match="takes a buffer of 4 int64"):
            made.write(rows, wrong)
    with pytest.raises(BufferError):
        made.write(rows, bytes(32))
    right = array("q", [0] * 4)
    with pytest.raises(RuntimeError, match="begin"):
        made.table.write(rows, right)
    assert right.tolist() == [0] * 4
    assert made.write(rows, right) == (0, 4)


def test_a_step_begins_once_and_lets_the_gradients_go() -> None:
    made = Rows([3])
    with pytest.raises(RuntimeError, match="refresh"):
        made.table.begin()
    assert made.table.refresh(made.groups, made.state)
    made.table.begin()
    with pytest.raises(RuntimeError, match="refresh"):
        made.table.begin()
    assert not made.table.refresh(made.groups, made.state)  # it is in the middle of a step
    made.table.end()
    with pytest.raises(RuntimeError, match="refresh"):
        made.table.begin()
    assert made.table.refresh(made.groups, made.state)
