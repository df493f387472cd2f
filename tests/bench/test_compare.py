"""Comparing runs: the same program is the same, a change is found, and other machines are not compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from fusedtrain.bench import compare, stats
from fusedtrain.bench.compare import BROKEN, FASTER, GONE, NEITHER, SAME, SLOWER

from .conftest import Run, results, row, timings, write


def verdicts(before: dict, after: dict) -> dict[str, compare.Change]:
    return {change.workload: change for change in compare.changes(before, after)}


def many(seed: int, ratio: float = 2.0, rows: int = 20, **how: float) -> dict:
    run = results()
    run["rows"] = [row(f"row {i}", **timings(seed * 1000 + i, ratio, **how)) for i in range(rows)]
    return run


@pytest.mark.parametrize("of_visits", [0.0, 0.05, 0.12])
@pytest.mark.parametrize("rounds", [16, 20])  # of a quick run, and of another
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


@pytest.mark.parametrize("rounds", [6, 16, 20])
def test_where_nothing_can_be_told_nothing_is_said(rounds: int) -> None:
    """Ours has become 1.7 times as slow, beyond the bound, and visits wander: to call that no change would be wrong."""
    said = []
    for seed in range(10):
        before = many(2 * seed, rounds=rounds, of_visits=0.4)
        found = verdicts(before, many(2 * seed + 1, ratio=2.0 / 1.7, rounds=rounds, of_visits=0.4)).values()
        said += [change.verdict for change in found]
        assert all(change.reason.startswith("\u00b1") for change in found if change.verdict == NEITHER)
    assert said.count(SAME) <= 10  # of 200
    assert said.count(NEITHER) >= 80


def test_no_change_is_within_the_bound_that_is_asked_for() -> None:
    how = {"rounds": 12, "of_visits": 0.02}
    before, after = many(0, **how), many(1, **how)
    for change in compare.changes(before, after, bound=0.05):
        within = change.low >= 1 / 1.05 and change.high <= 1.05
        assert change.verdict == (SAME if within else NEITHER)
    assert {change.verdict for change in compare.changes(before, after, bound=0.0)} == {NEITHER}
    assert {change.verdict for change in compare.changes(before, after, bound=1.0)} == {SAME}


def test_the_smallest_change_is_found_every_other_time() -> None:
    how = {"rounds": 20, "of_visits": 0.05, "rows": 1}
    smallest = np.median([verdicts(many(2 * s, **how), many(2 * s + 1, **how))["row 0"].smallest for s in range(40)])
    found = 0
    for seed in range(100):
        after = many(2 * seed + 1, ratio=2.0 * (1 + smallest), **how)
        found += verdicts(many(2 * seed, **how), after)["row 0"].verdict == FASTER
    assert 30 <= found <= 70


@pytest.mark.parametrize(("factor", "verdict"), [(1.1, FASTER), (1 / 1.1, SLOWER)])
@pytest.mark.parametrize(("rounds", "of_visits"), [(45, 0.01), (75, 0.02)])
def test_a_change_of_ten_per_cent_is_found(factor: float, verdict: str, rounds: int, of_visits: float) -> None:
    how = {"rounds": rounds, "of_visits": of_visits}
    before, after = many(0, **how), many(1, **how)
    after["rows"][7] = row("row 7", **timings(99, 2.0 * factor, **how))
    found = verdicts(before, after)
    assert found["row 7"].verdict == verdict
    assert found["row 7"].factor == pytest.approx(factor, rel=0.04)
    assert [change.verdict for change in found.values()].count(SAME) >= 18


def test_a_difference_within_the_margin_counts_as_none() -> None:
    before, after = many(0, rounds=150), many(1, ratio=2.0 * 1.02, rounds=150)
    assert {change.verdict for change in verdicts(before, after).values()} == {SAME}
    strict = compare.changes(before, after, margin=0.0)
    assert FASTER in {change.verdict for change in strict}


def test_too_few_visits_can_tell_nothing_and_say_so() -> None:
    found = verdicts(many(0, rounds=4), many(1, ratio=9.0, rounds=8))
    assert {change.verdict for change in found.values()} == {NEITHER}
    assert "too few visits, 2 and 4" in found["row 0"].reason
    assert found["row 0"].factor == pytest.approx(4.5, rel=0.1)


def test_what_only_one_run_has_is_told_or_passed_over() -> None:
    before, after = many(0, rows=2), many(1, rows=3)
    after["rows"][0]["providers"]["fusedtrain-cpu"] = {"wrong": "far off"}
    found = verdicts(before, after)
    assert set(found) == {"row 0", "row 1"}
    assert (found["row 0"].verdict, found["row 0"].reason) == (BROKEN, "WRONG: far off")


def test_what_is_gone_is_listed() -> None:
    before, after = many(0, rows=3), many(1, rows=2)
    del after["rows"][0]["providers"]["fusedtrain-cpu"]
    after["rows"][1] |= {"providers": {}, "why_not": "needs 99 GB"}
    found = [(c.workload, c.provider, c.verdict, c.reason) for c in compare.changes(before, after)]
    assert found == [
        ("row 0", "fusedtrain-cpu", GONE, "the later run did not take it"),
        ("row 1", "fusedtrain-cpu", GONE, "needs 99 GB"),
        ("row 1", "theirs", GONE, "needs 99 GB"),
        ("row 2", "", GONE, "no row of the later run"),
    ]


@pytest.mark.parametrize("ran_before", [True, False])
def test_what_is_ours_and_breaks_is_no_success(bench: Run, tmp_path: Path, ran_before: bool) -> None:
    before, after = many(0, rows=2), many(1, rows=2)
    if not ran_before:
        before["rows"][0]["providers"]["fusedtrain-cpu"] = {"why_not": "no [/usr/lib/x.so]"}
    after["rows"][0]["providers"]["fusedtrain-cpu"] = {"failed": "OSError: [/usr/lib/x.so] cannot be opened"}
    a, b = write(tmp_path / "a.json", before), write(tmp_path / "b.json", after)
    done = bench("compare", a, b)
    assert done.exit_code == 0
    assert "1 broken" in done.output and "[/usr/lib/x.so]" in done.output
    assert bench("compare", a, b, "--fail-slower").exit_code == 1


@pytest.mark.parametrize("ran_before", [True, False])
def test_what_is_ours_and_is_refused_where_it_ran_is_broken(ran_before: bool) -> None:
    before, after = many(0, rows=1), many(1, rows=1)
    refused = {"why_not": "no library"}
    after["rows"][0]["providers"]["fusedtrain-cpu"] = refused
    if not ran_before:
        before["rows"][0]["providers"]["fusedtrain-cpu"] = refused
    found = [(c.provider, c.verdict, c.reason) for c in compare.changes(before, after)]
    assert found == ([("fusedtrain-cpu", BROKEN, "no library")] if ran_before else [])


def test_no_change_is_said_with_what_it_is_worth(bench: Run, tmp_path: Path) -> None:
    before, after = (many(seed, rows=1, rounds=16, of_visits=0.05) for seed in (0, 1))
    (change,) = compare.changes(before, after)
    half = max(change.high / change.factor, change.factor / change.low) - 1
    assert (change.verdict, change.reason) == (SAME, f"\u00b1{half:.0%}")
    done = bench("compare", write(tmp_path / "a.json", before), write(tmp_path / "b.json", after))
    assert f"no change, \u00b1{half:.0%}" in done.output


def test_one_of_theirs_that_breaks_cannot_be_told() -> None:
    before, after = many(0, rows=1), many(1, rows=1)
    for run in (before, after):
        run["rows"][0]["providers"]["torch-loop"] = {"seconds": [1.0] * 15}
    after["rows"][0]["providers"]["torch-loop"] = {"failed": "RuntimeError: no"}
    (change,) = (c for c in compare.changes(before, after) if c.provider == "torch-loop")
    assert (change.verdict, change.reason) == (NEITHER, "it was timed only before: failed: RuntimeError: no")


def test_what_is_not_of_one_kind_is_not_compared() -> None:
    for what, now in (
        ({"clock": "device"}, "its clock was wall and is device"),
        ({"baseline": "torch-loop"}, "its baseline was theirs and is torch-loop"),
    ):
        before, after = many(0, rows=1), many(1, rows=1)
        after["rows"][0] |= what
        found = compare.changes(before, after)
        assert {(c.verdict, c.reason) for c in found if c.provider == "fusedtrain-cpu"} == {(NEITHER, now)}
    before, after = many(0, rows=1), many(1, rows=1)
    after["rows"][0]["providers"]["theirs"] = {"failed": "RuntimeError: no"}
    told = {c.provider: c.reason for c in compare.changes(before, after) if c.verdict == NEITHER}
    assert told["fusedtrain-cpu"] == "its baseline, theirs, was not timed now"


def test_versions_are_noted_and_cuda_graphs_refused(bench: Run, tmp_path: Path) -> None:
    before, after = many(0, rows=2), many(1, rows=2)
    after["versions"]["torch"] = "2.13.0"
    a, b = write(tmp_path / "a.json", before), write(tmp_path / "b.json", after)
    done = bench("compare", a, b)
    assert done.exit_code == 0
    assert "differs: torch: 2.11.0 and 2.13.0" in done.output
    assert "The smallest change that is found every other time" in " ".join(done.output.split())
    after["options"]["cudagraph"] = True
    assert "cudagraph: False and True" in " ".join(bench("compare", a, write(b, after)).output.split())


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
    visits = [[4.0, 8.0, 2.0], [8.0], [16.0, 16.0]]
    (low, high) = stats.median_interval(visits)
    theirs = scipy_stats.ttest_1samp(np.log([4.0, 8.0, 16.0]), 0.0).confidence_interval()
    assert (low, high) == pytest.approx((np.exp(theirs.low), np.exp(theirs.high)))
    assert stats.median_interval(visits[:2]) is None
    assert stats.median_interval([[3.0], [3.0], [3.0]]) == pytest.approx((3.0, 3.0))


def test_an_interval_holds_the_median_that_it_is_shown_beside() -> None:
    low, high = stats.median_interval([[1.0]] * 11 + [[2.0] * 20] * 2)
    assert low < 1.1 < high == 2.0


@pytest.mark.parametrize("visits", [3, 4, 5])
def test_an_interval_covers_as_often_as_it_says(visits: int) -> None:
    """The median of ratios that wander from visit to visit, and less from round to round."""
    random = np.random.default_rng(visits)
    covered = 0
    for _ in range(2000):
        logs = random.normal(0, 0.2, (visits, 1)) + random.normal(0, 0.05, (visits, 3))
        low, high = stats.median_interval(np.exp(logs).tolist())
        covered += low <= 1.0 <= high
    assert 0.92 <= covered / 2000 <= 0.98


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
