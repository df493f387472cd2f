"""The pure planner: which pieces of which tensors make up a task. No tensor is needed, so sizes may be anything."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

plan = pytest.importorskip("fusedtrain._plan")

SIZES = st.one_of(st.just(0), st.integers(1, 300), st.integers(plan.CHUNK - 2, 4 * plan.CHUNK + 2))


def check(sizes: list[int]) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Plans, and asserts what holds of every plan."""
    chunks, tasks = plan.plan(sizes)
    expected = [
        (row, begin, min(plan.CHUNK, size - begin))
        for row, size in enumerate(sizes)
        for begin in range(0, size, plan.CHUNK)
    ]
    assert chunks == expected  # every element once, in order, and none of an empty tensor
    assert tasks[0] == 0
    assert tasks[-1] == len(chunks)
    assert all(a < b for a, b in itertools.pairwise(tasks))  # no task is empty
    return chunks, tasks


@settings(deadline=None)
@given(st.lists(SIZES, max_size=60))
def test_every_element_is_in_one_chunk(sizes: list[int]) -> None:
    check(sizes)


@settings(deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=200))
def test_tasks_are_of_about_equal_work(sizes: list[int]) -> None:
    chunks, tasks = check(sizes)
    work = [sum(size for _, _, size in chunks[a:b]) for a, b in itertools.pairwise(tasks)]
    assert all(w < 2 * plan.CHUNK for w in work)
    # Small tensors cost more than their elements, but a task other than the last is never cheap.
    counts = [b - a for a, b in itertools.pairwise(tasks)]
    assert all(w + 64 * n >= plan.CHUNK for w, n in zip(work[:-1], counts[:-1], strict=True))


@pytest.mark.parametrize("size", [2**31 - 1, 2**31, 2**31 + 8, 2**32, 2**32 + 1])
def test_A1_sizes_beyond_32_bits(size: int) -> None:
    """pytorch#101449, DeepSpeed#7640: sizes and offsets in 32 bits. No memory is touched here."""
    chunks, _ = plan.plan([3, size, 5])
    assert chunks[0] == (0, 0, 3)
    assert chunks[-1] == (2, 0, 5)
    middle = chunks[1:-1]
    assert len(middle) == -(-size // plan.CHUNK)
    assert all(begin == i * plan.CHUNK for i, (_, begin, _) in enumerate(middle))
    assert sum(n for _, _, n in middle) == size
    assert middle[-1][1] + middle[-1][2] == size


@pytest.mark.parametrize("n", [1, 2, 30, 48, 64, 110, 320])
def test_A10_an_empty_tensor_in_every_place(n: int) -> None:
    """TE#3202: metadata written out of bounds when an empty tensor took the last place."""
    for place in range(n):
        check([0 if i == place else 7 for i in range(n)])
    check([0] * n)


def test_A8_orders_of_empty_tensors() -> None:
    """pytorch#100701: the tensor before a trailing empty one was not stepped."""
    for sizes in set(itertools.permutations([1, 1, 0, 1, 0])):
        check(list(sizes))


def test_many_tensors() -> None:
    chunks, tasks = check([100] * 20_000)
    assert len(chunks) == 20_000
    assert 50 < len(tasks) < 200


def test_no_tensors() -> None:
    assert plan.plan([]) == ([], [0])


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sizes must be >= 0, not -1"):
        plan.plan([1, -1])
