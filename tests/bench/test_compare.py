"""Comparing runs: the same program is the same, a change is found, and other machines are not compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from fusedtrain.bench import compare, stats
from fusedtrain.bench.compare import FASTER, NEITHER, SAME, SLOWER

from .conftest import Run, results, row, timings, write


def verdicts(before: dict, after: dict) -> dict[str, compare.Change]:
    return {change.workload: change for change in compare.changes(before, after)}


def many(seed: int, ratio: float = 2.0, rows: int = 20, **how: float) -> dict:
    run = results()
    run["rows"] = [row(f"row {i}", **timings(seed * 1000 + i, ratio, **how)) for i in range(rows)]
    return run


@pytest.mark.parametrize("seed", range(5))
def test_two_runs_of_one_program_have_no_change(seed: int) -> None:
    """Although the second machine is half as fast in the meantime, and timings wander by tens of per cent."""
    found = verdicts(many(2 * seed), many(2 * seed + 1, drift=2.0))
    assert len(found) == 20
    assert [change.verdict for change in found.values()].count(SAME) >= 19


@pytest.mark.parametrize(("factor", "verdict"), [(1.1, FASTER), (1 / 1.1, SLOWER)])
def test_a_change_of_ten_per_cent_is_found(factor: float, verdict: str) -> None:
    before, after = many(0, rounds=25), many(1, rounds=25)
    after["rows"][7] = row("row 7", **timings(99, 2.0 * factor, rounds=25))
    found = verdicts(before, after)
    assert found["row 7"].verdict == verdict
    assert found["row 7"].factor == pytest.approx(factor, rel=0.04)
    assert [change.verdict for change in found.values()].count(SAME) >= 19 - 1


def test_a_difference_within_the_margin_counts_as_none() -> None:
    before, after = many(0, rounds=40), many(1, ratio=2.0 * 1.02, rounds=40)
    assert {change.verdict for change in verdicts(before, after).values()} == {SAME}
    strict = compare.changes(before, after, margin=0.0)
    assert FASTER in {change.verdict for change in strict}


def test_too_few_rounds_can_tell_nothing_and_say_so() -> None:
    found = verdicts(many(0, rounds=3), many(1, ratio=9.0, rounds=3))
    assert {change.verdict for change in found.values()} == {NEITHER}
    assert "too few rounds, 3 and 3" in found["row 0"].reason


def test_what_only_one_run_has_is_told_or_passed_over() -> None:
    before, after = many(0, rows=2), many(1, rows=3)
    after["rows"][0]["providers"]["fusedtrain-cpu"] = {"wrong": "far off"}
    found = verdicts(before, after)
    assert set(found) == {"row 0", "row 1"}
    assert found["row 0"].verdict == NEITHER
    assert found["row 0"].reason == "it was timed only before"


def test_without_a_baseline_the_times_are_compared() -> None:
    before, after = results(fusedtrain_cpu=[2.0 + i / 100 for i in range(12)]), results()
    after["rows"] = [row("played", fusedtrain_cpu=[1.0 + i / 100 for i in range(12)])]
    (change,) = compare.changes(before, after)
    assert change.verdict == FASTER
    assert change.factor == pytest.approx(2.0, rel=0.05)


def test_holm_is_statsmodels_example() -> None:
    """Holm (1979): p-values 0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_the_test_keeps_its_level() -> None:
    """Of two samples of one distribution it rejects at most as often as it says; with a margin, hardly ever."""
    random = np.random.default_rng(0)
    pairs = [(random.normal(0, 1, 12), random.normal(0, 1, 12)) for _ in range(400)]
    rejected = sum(stats.beyond(list(a), list(b), 0.0) < 0.05 for a, b in pairs)
    assert rejected <= scipy_stats.binom.ppf(0.999, 400, 0.05)
    assert rejected >= 4  # a test that never rejects keeps every level
    assert sum(stats.beyond(list(a), list(b), 1.0) < 0.05 for a, b in pairs) <= 2


def test_least_p_value_is_that_of_the_most_extreme_samples() -> None:
    for n, m in ((3, 3), (5, 4), (8, 8)):
        assert stats.beyond(list(range(n)), list(range(100, 100 + m)), 0.0) == pytest.approx(stats.least_p_value(n, m))


def test_interval_and_shift() -> None:
    values = np.random.default_rng(0).normal(5, 1, 200).tolist()
    low, high = stats.median_interval(values)
    assert low < float(np.median(values)) < high
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 / 200**0.5, rel=0.35)  # of the median of a normal
    assert stats.median_interval([3.0]) == (3.0, 3.0)
    assert stats.median_interval(values) == (low, high)
    assert stats.shift(values, [v + 0.25 for v in values]) == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [("machine", "cpu", "Babbage"), ("machine", "gpus", [{"name": "H100"}]), ("options", "threads", 1)],
)
def test_other_machines_are_refused_unless_forced(
    bench: Run, tmp_path: Path, where: str, key: str, value: object
) -> None:
    before, after = many(0, rows=2), many(1, rows=2)
    after[where][key] = value
    a, b = write(tmp_path / "a.json", before), write(tmp_path / "b.json", after)
    refused = bench("compare", a, b)
    assert refused.exit_code == 2
    assert "different machines or settings" in refused.output and "--force" in refused.output
    forced = bench("compare", a, b, "--force")
    assert forced.exit_code == 0
    assert "differs: " + key in forced.output
    assert "2 no change" in forced.output


def test_the_command_fails_for_what_is_slower_if_told_to(bench: Run, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.json", many(0, rows=2)), write(tmp_path / "b.json", many(1, ratio=1.0, rows=2))
    assert bench("compare", a, b).exit_code == 0
    slower = bench("compare", a, b, "--fail-slower")
    assert slower.exit_code == 1
    assert "2 slower" in slower.output


def test_runs_without_a_common_row_are_an_error(bench: Run, tmp_path: Path) -> None:
    other = results()
    other["rows"] = [row("another", **timings(0, 2.0))]
    a, b = write(tmp_path / "a.json", many(0, rows=2)), write(tmp_path / "b.json", other)
    failed = bench("compare", a, b)
    assert failed.exit_code == 2
    assert "no row in common" in failed.output
