"""The suite `scaling`: its points, the laws fitted to them, and the ranks."""

from __future__ import annotations

import dataclasses
import json
import queue
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fusedtrain.bench import figures, fits, ranks, scaling, selection
from fusedtrain.bench.measure import timed
from fusedtrain.bench.selection import Wanted, items

from .conftest import Run, row


@pytest.mark.parametrize(("a", "b", "k"), [(2e-5, 1e-6, 1.0), (1e-4, 3e-9, 1.1), (5e-6, 2e-5, 0.5)])
def test_a_law_is_found_again(a: float, b: float, k: float) -> None:
    sizes = [4**i for i in range(9)]
    noise = np.exp(np.random.default_rng(0).normal(0, 0.02, len(sizes)))
    law = fits.fit(sizes, [(a + b * n**k) * e for n, e in zip(sizes, noise, strict=True)])
    assert law is not None
    assert law.exponent == pytest.approx(k, abs=0.08)
    assert law.fixed == pytest.approx(a, rel=0.15)
    assert law.misfit < 0.1
    assert law(sizes[-1]) == pytest.approx(a + b * sizes[-1] ** k, rel=0.1)


def test_too_few_sizes_have_no_law() -> None:
    assert fits.fit([1, 10, 100], [1.0, 2.0, 3.0]) is None
    assert fits.fit([1, 1, 1, 1, 1], [1.0] * 5) is None


def test_one_point_that_stands_out_is_no_law() -> None:
    """Flat to 20, twice as much at 100: every exponent would do, the larger the better."""
    seconds = {1: 1.91e-4, 5: 2.09e-4, 20: 1.47e-4, 100: 3.91e-4}
    assert fits.fit(list(seconds), list(seconds.values())) is None
    rows = [{**row("x", fusedtrain_cpu=[s]), "axis": "groups", "value": n} for n, s in seconds.items()]
    (told,) = fits.of_rows(rows)
    assert told["why_not"] == "no law of this form describes the points"


def test_laws_are_of_each_axis_and_provider() -> None:
    rows = []
    for n in (1, 10, 100, 1000):
        made = row(f"scaling, tensors: {n}", fusedtrain_cpu=[1e-5 + 1e-6 * n], theirs=[1e-4 + 2e-5 * n])
        rows.append({**made, "axis": "tensors", "value": n})
    rows.append({**row("scaling, ranks: 1", fusedtrain_cpu=[1e-3]), "axis": "ranks", "value": 1})
    rows.append(row("no part of it", fusedtrain_cpu=[1e-3]))
    found = {(law["axis"], law["provider"]): law for law in fits.of_rows(rows)}
    assert set(found) == {("tensors", "fusedtrain-cpu"), ("tensors", "theirs"), ("ranks", "fusedtrain-cpu")}
    assert found["tensors", "fusedtrain-cpu"]["scale"] == pytest.approx(1e-6, rel=0.01)
    assert found["tensors", "theirs"]["exponent"] == pytest.approx(1.0, abs=0.01)
    assert found["ranks", "fusedtrain-cpu"]["why_not"] == "too few points for a law"
    json.dumps(fits.of_rows(rows))


def test_points_span_what_they_should() -> None:
    along: dict[str, list[int]] = {}
    for point in scaling.points(quick=False):
        along.setdefault(point.axis, []).append(point.value)
        facts = point.workload.facts()
        if point.axis in ("tensors", "groups", "elements"):
            assert facts[point.axis] == point.value
    assert set(along) | {"ranks"} == set(scaling.AXES)
    assert (along["tensors"][0], along["tensors"][-1]) == (1, 20_000)
    assert (along["elements"][0], along["elements"][-1]) == (2**10, 2**30)
    assert (along["groups"][0], along["groups"][-1]) == (1, 500)
    assert along["threads"][0] == 1
    assert len(scaling.points(quick=True)) < len(scaling.points(quick=False))


def test_the_suite_is_measured_and_fitted(bench: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    options = ("--providers", "torch-fused", "--rounds", "1", "--seconds", "0.001", "--threads", "1", "--json", path)
    done = bench("run", "--scaling", "--quick", "--workload", "scaling, tensors", *options)
    assert done.exit_code == 0, done.output
    written = json.loads(path.read_text())
    assert [(r["axis"], r["value"]) for r in written["rows"]] == [("tensors", n) for n in (1, 10, 100, 1000)]
    (law,) = written["fits"]
    assert (law["axis"], law["provider"], law["points"]) == ("tensors", "torch-fused", 4)
    assert "exponent" in law
    assert "x n^" in done.output


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo")
def test_ranks_are_checked_and_timed() -> None:
    found = ranks.Ranks(2, dtype=torch.bfloat16, seed=3).measure(visits=[1, 2, 1], seconds=0.01, limit=20.0)
    if not timed(found, ranks.OURS):
        pytest.fail(str(found.get("why_not") or found["providers"]))
    assert len(found["providers"][ranks.OURS]["seconds"]) == len(found["providers"][ranks.THEIRS]["seconds"]) == 4
    assert found["visits"] == [1, 2, 1]
    assert figures.figure(found, ranks.OURS, None).ratio_low is not None
    ours = found["providers"][ranks.OURS]
    assert 0 < ours["max_error"] <= 2 * ours["max_error_of_torch"]
    assert (found["axis"], found["value"], found["dtype"]) == ("ranks", 2, "bfloat16")


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_step_of_shards_is_found(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ranks._stepper
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        numbers = ranks._numbers(ranks.Ranks(1, dtype=dtype))[:2]
        ranks._check(numbers)
        unclipped = {"max_norm": 1e30}
        for wrong in (
            lambda *args: lambda: None,
            lambda name, params, settings: right(name, params, dataclasses.replace(settings, **unclipped)),
        ):
            monkeypatch.setattr(ranks, "_stepper", wrong)
            with pytest.raises(AssertionError, match="against fp64"):
                ranks._check(numbers)
    finally:
        dist.destroy_process_group()


def test_a_process_that_dies_is_not_waited_for() -> None:
    class Dead:
        exitcode = -9

    found = ranks._outcome(queue.Queue(), [Dead(), Dead()], 60.0)
    assert found == {"why_not": "one of 2 processes ended with status -9"}


def test_options_reach_every_point() -> None:
    wanted = Wanted(
        suites=["scaling"], workloads=["scaling, groups", "scaling, ranks"], dtype="bf16", seed=5, quick=True
    )
    points = [item.workload for item in items(wanted) if item.point is not None]
    assert len(points) == len({w.name for w in points}) == 4
    assert {(w.dtype, w.seed) for w in points} == {(torch.bfloat16, 5)}
    of_ranks = selection.ranks(wanted)
    assert [(r.count, r.dtype, r.seed, r.providers) for r in of_ranks] == [
        (n, torch.bfloat16, 5, ranks.PROVIDERS) for n in (1, 2)
    ]
    only = dataclasses.replace(wanted, providers="torch-fused")
    assert [r.providers for r in selection.ranks(only)] == [("torch-fused",)] * 2
    assert selection.ranks(dataclasses.replace(wanted, providers="torch-foreach")) == []
    assert selection.ranks(dataclasses.replace(wanted, workloads=["scaling, groups"])) == []
    assert [i.workload.name for i in items(dataclasses.replace(wanted, workloads=["scaling, ranks"]))] == []
    assert not any(p.axis == "threads" for p in scaling.points(quick=True, threaded=False))
