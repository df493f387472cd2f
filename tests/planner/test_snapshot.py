"""Whether dicts hold the same objects as before."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

plan = pytest.importorskip("fusedtrain._plan")

DICTS = st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers()), max_size=5)


@given(DICTS, st.data())
def test_sees_every_change(dicts: list[dict[str, Any]], data: st.DataObject) -> None:
    snapshot = plan.Snapshot(dicts)
    assert snapshot.same(dicts)
    assert snapshot.same([dict(d) for d in dicts])
    assert not snapshot.same([*dicts, {}])
    if not dicts:
        return
    i = data.draw(st.integers(0, len(dicts) - 1))
    changed = [dict(d) for d in dicts]
    changed[i][data.draw(st.sampled_from("abcdefg"))] = object()
    assert not snapshot.same(changed)
    if dicts[i]:
        fewer = [dict(d) for d in dicts]
        fewer[i].popitem()
        assert not snapshot.same(fewer)


def test_equal_is_not_the_same() -> None:
    assert not plan.Snapshot([{"lr": float("0.25")}]).same([{"lr": float("0.25")}])


def test_what_is_no_dict() -> None:
    with pytest.raises(ValueError, match="dicts"):
        plan.Snapshot([1])
    assert not plan.Snapshot([{}]).same([1])


def test_is_seen_by_the_collector() -> None:
    class Thing:
        pass

    thing = Thing()
    thing.snapshot = plan.Snapshot([{"thing": thing}])  # type: ignore[attr-defined]
    gone = weakref.ref(thing)
    del thing
    gc.collect()
    assert gone() is None
