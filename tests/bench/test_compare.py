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


@pytest.mark.parametrize("of_visits", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("rounds", [12, 30])
def test_two_runs_of_one_program_have_no_change(rounds: int, of_visits: float) -> None:
    """Although the second machine is half as fast in the meantime, timings wander by tens of per cent, and the ratio of
    one visit differs from that of the next by more than its rounds do."""
    same = 0
    for seed in range(10):
        before = many(2 * seed, rounds=rounds, of_visits=of_visits)
        found = verdicts(before, many(2 * seed + 1, drift=2.0, rounds=rounds, of_visits=of_visits))
        assert len(found) == 20
        same += [change.verdict for change in found.values()].count(SAME)
    assert same >= 190


@pytest.mark.parametrize(("factor", "verdict"), [(1.1, FASTER), (1 / 1.1, SLOWER)])
@pytest.mark.parametrize(("rounds", "of_visits"), [(45, 0.01), (75, 0.02)])
def test_a_change_of_ten_per_cent_is_found(factor: float, verdict: str, rounds: int, of_visits: float) -> None:
    how = {"rounds": rounds, "of_visits": of_visits}
    before, after = many(0, **how), many(1, **how)
    after["rows"][7] = row("row 7", **timings(99, 2.0 * factor, **how))
    found = verdicts(before, after)
    assert found["row 7"].verdict == verdict
    assert found["row 7"].factor == pytest.approx(factor, rel=0.04)
    assert [change.verdict for change in found.values()].count(SAME) >= 19 - 1


def test_a_difference_within_the_margin_counts_as_none() -> None:
    before, after = many(0, rounds=150), many(1, ratio=2.0 * 1.02, rounds=150)
    assert {change.verdict for change in verdicts(before, after).values()} == {SAME}
    strict = compare.changes(before, after, margin=0.0)
    assert FASTER in {change.verdict for change in strict}


def test_too_few_visits_can_tell_nothing_and_say_so() -> None:
    found = verdicts(many(0, rounds=6), many(1, ratio=9.0, rounds=12))
    assert {change.verdict for change in found.values()} == {NEITHER}
    assert "too few visits, 2 and 4" in found["row 0"].reason
    assert found["row 0"].factor == pytest.approx(4.5, rel=0.1)


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
    shifts = [stats.shift(random.normal(0, 1, 5), random.normal(0, 2, 4)) for _ in range(400)]
    rejected = sum(one.beyond(0.0) < 0.05 for one in shifts)
    assert rejected <= scipy_stats.binom.ppf(0.999, 400, 0.05)
    assert rejected >= 4  # a test that never rejects keeps every level
    assert sum(one.beyond(2.0) < 0.05 for one in shifts) <= 4
    covered = sum(low < 0 < high for low, high in (one.interval() for one in shifts))
    assert covered >= scipy_stats.binom.ppf(0.001, 400, 0.95)


def test_a_shift_is_scipys() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(0, 1, 5), random.normal(1, 2, 8)
    ours, theirs = stats.shift(a, b), scipy_stats.ttest_ind(b, a, equal_var=False)
    assert ours.beyond(0.0) == pytest.approx(theirs.pvalue)
    assert ours.interval(0.9) == pytest.approx(tuple(theirs.confidence_interval(0.9)))
    assert ours.by == pytest.approx(b.mean() - a.mean())
    same = stats.shift([1.0, 1.0], [1.25, 1.25])
    assert same.beyond(0.3) == 1.0 and same.beyond(0.2) < 1e-6


def test_an_interval_is_of_whole_visits() -> None:
    random = np.random.default_rng(0)
    values = random.normal(5, 1, 200).tolist()
    low, high = stats.median_interval([values])
    assert low < float(np.median(values)) < high
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 / 200**0.5, rel=0.35)  # of the median of a normal
    assert stats.median_interval([[3.0]]) == (3.0, 3.0)
    assert stats.median_interval([[3.0, 3.0], [3.0]]) == (3.0, 3.0)
    assert stats.median_interval([values]) == (low, high)
    visits = [[5 + wander + noise for noise in random.normal(0, 0.1, 3)] for wander in random.normal(0, 1, 9)]
    together = stats.median_interval(visits)
    apart = stats.median_interval([[value for visit in visits for value in visit]])
    assert together[1] - together[0] > 1.2 * (apart[1] - apart[0])


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
