"""Measuring: in turn, checked first, and honest about what was not measured."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fusedtrain.bench import bandwidth, budgets, figures, memory, observe, tables
from fusedtrain.bench.accuracy import Accuracy
from fusedtrain.bench.budgets import Budget
from fusedtrain.bench.compiling import compiled, limits
from fusedtrain.bench.measure import Measurement, by_visit, measure, median_seconds, ratios, timed
from fusedtrain.bench.measure import bandwidth as bytes_per_second
from fusedtrain.bench.optim_step import OptimStep
from fusedtrain.bench.timers import Wall

ROOT = Path(__file__).resolve().parent.parent.parent

CPU = torch.device("cpu")
SMALL = OptimStep("small", lambda: [(7,), (3, 2)])


class Counted:
    """A clock that plays, and remembers who came when."""

    name = "played"

    def __init__(self, seconds: dict[object, float]) -> None:
        self.known, self.order = seconds, []

    def repeats(self, call: object) -> int:
        return 1

    def seconds(self, call: object, repeats: int) -> float:
        self.order.append(call)
        return self.known[call]


class Played(OptimStep):
    """A workload whose providers play: one is wrong, one cannot, one breaks, one needs too much."""

    def providers(self):
        return ["ours", "theirs", "wrong", "absent", "broken", "greedy"]

    def why_not(self, provider, device, dtype):
        return "not installed" if provider == "absent" else None

    def check(self, provider, device, dtype):
        if provider == "wrong":
            raise AssertionError("far off")
        if provider == "broken":
            raise RuntimeError("no such kernel\nand a long story")
        return Accuracy(1e-7, 2e-7)

    def make(self, provider, device, dtype, inputs=None):
        if provider == "greedy":
            raise torch.OutOfMemoryError("tried to allocate too much")
        return CALLS[provider]


CALLS = {"ours": lambda: None, "theirs": lambda: 1}


def test_rounds_are_in_turn_and_only_the_right_are_timed() -> None:
    clock = Counted({CALLS["ours"]: 1.0, CALLS["theirs"]: 3.0})
    row = measure(Played("played", list), CPU, clock, rounds=3, observed=False)
    ours, theirs = CALLS["ours"], CALLS["theirs"]
    assert clock.order == [ours, theirs, theirs, ours, ours, theirs]
    assert ratios(row, "ours", "theirs") == [3.0] * 3
    found = row["providers"]
    assert found["wrong"] == {"wrong": "far off"}
    assert found["absent"] == {"why_not": "not installed"}
    assert found["broken"] == {"failed": "RuntimeError: no such kernel"}
    assert "out of memory" in found["greedy"]["failed"]
    assert found["ours"]["max_error"] == 1e-7
    assert [p for p in found if timed(row, p)] == ["ours", "theirs"]
    json.dumps(row)
    shown = "\n".join(tables.lines(row, 1.0))
    assert "WRONG: far off" in shown
    assert "failed: RuntimeError: no such kernel" in shown
    assert not any(cell in tables.as_csv({"rows": [row]}) for cell in ("wrong,,0", "broken,,0"))


def test_a_budget_has_no_figure_where_nothing_was_timed() -> None:
    clock = Counted({CALLS["ours"]: 1.0, CALLS["theirs"]: 3.0})
    row = measure(Played("played", list), CPU, clock, rounds=1, observed=False)
    good = budgets.faster("played", "theirs", 2.0, "ours")
    assert good.judge(row, 1.0) == {
        "workload": "played", "what": "ours against theirs", "bound": ">= 2", "figure": 3.0, "met": True,
    }  # fmt: skip
    assert budgets.faster("played", "theirs", 4.0, "ours").judge(row, 1.0)["met"] is False
    for other in ("wrong", "absent", "greedy", "unknown"):
        verdict = budgets.faster("played", other, 2.0, "ours").judge(row, 1.0)
        assert "figure" not in verdict
        assert verdict["missing"].startswith(other)
    assert Budget("played", "x", ("ours",), lambda row, copy: 3.0, at_most=2.0).judge(row, 1.0)["met"] is False


def test_every_visit_has_its_rounds_and_new_tensors() -> None:
    made, checked = [], []

    class Noted(Played):
        def check(self, provider, device, dtype):
            checked.append(provider)

        def make(self, provider, device, dtype, inputs=None):
            made.append(provider)
            return CALLS[provider]

        def once(self):
            return ("theirs",)

    clock = Counted({CALLS["ours"]: 1.0, CALLS["theirs"]: 3.0})
    one = Measurement(Noted("played", list), CPU, clock, providers=["ours", "theirs"], observed=False)
    one.check()
    for rounds in (2, 3):
        one.visit(rounds)
    assert checked == ["ours", "theirs"]
    assert made == ["ours", "theirs", "ours"]  # theirs takes minutes to make
    assert one.row["visits"] == [2, 3]
    assert one.row["providers"]["ours"]["seconds"] == [1.0] * 5
    assert ratios(one.row, "ours", "theirs") == [3.0] * 2
    assert by_visit(one.row, [1, 2, 3, 4, 5]) == [[1, 2], [3, 4, 5]]
    assert by_visit(one.row, [1, 2]) == [[1, 2]]


def test_nothing_of_a_workload_is_alive_between_visits() -> None:
    alive = weakref.WeakSet()

    class Held:
        def __call__(self):
            return None

    class Noted(Played):
        def make(self, provider, device, dtype, inputs=None):
            call = Held()
            alive.add(call)
            return call

    one = Measurement(Noted("played", list), CPU, Wall(0.001), providers=["ours"], observed=False)
    one.check()
    one.visit(2)
    assert len(alive) == 0
    assert len(one.row["providers"]["ours"]["seconds"]) == 2


def test_a_row_stops_at_its_limit_with_as_many_rounds_for_all() -> None:
    row = measure(SMALL, CPU, Wall(0.002), providers=["fusedtrain-reference", "torch-loop"], rounds=1000, limit=0.05)
    (rounds,) = row["visits"]
    assert {len(found["seconds"]) for found in row["providers"].values()} == {rounds}
    assert 1 <= rounds < 1000


class Ending(Counted):
    """A clock that raises something when it has been asked so often."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__({CALLS["ours"]: 1.0, CALLS["theirs"]: 3.0})
        self.at, self.error = at, error

    def seconds(self, call: object, repeats: int) -> float:
        if len(self.order) == self.at:
            self.order.append(None)
            raise self.error
        return super().seconds(call, repeats)


def test_a_provider_that_breaks_while_it_is_timed_does_not_stop_the_others() -> None:
    clock = Ending(2, RuntimeError("device lost\nand a long story"))
    row = measure(Played("played", list), CPU, clock, providers=["ours", "theirs"], rounds=3, observed=False)
    assert row["providers"]["theirs"] == {"failed": "RuntimeError: device lost"}
    assert row["providers"]["ours"]["seconds"] == [1.0] * 3


def test_what_cannot_be_observed_has_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("no profiler")

    monkeypatch.setattr(observe, "launches_and_peak", fails)
    row = measure(SMALL, CPU, Wall(0.001), providers=["torch-loop"], rounds=1)
    assert row["providers"]["torch-loop"] == {"failed": "RuntimeError: no profiler"}


def test_an_interrupted_round_counts_for_nobody() -> None:
    clock = Ending(3, KeyboardInterrupt())
    one = Measurement(Played("played", list), CPU, clock, providers=["ours", "theirs"], observed=False)
    one.check()
    with pytest.raises(KeyboardInterrupt):
        one.visit(3)
    assert one.row["providers"]["ours"]["seconds"] == [1.0]
    assert one.row["visits"] == [1]
    assert ratios(one.row, "ours", "theirs") == [3.0]


def test_what_is_called_compiled_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives up on a code object after eight times, and runs it as it is."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile(f, backend=seen, **options))
    graphs = []

    def seen(graph: torch.fx.GraphModule, example: object) -> object:
        graphs.append(graph)
        return graph.forward

    def made(scale: float) -> object:
        return compiled(lambda x: x * scale)

    from torch._dynamo import config

    before = config.recompile_limit, config.accumulated_recompile_limit, config.fail_on_recompile_limit_hit
    with limits():
        for i in range(10):
            x = torch.ones(i + 2)
            assert torch.equal(made(float(i))(x), x * i)
        assert config.recompile_limit > before[0]
    assert before == (config.recompile_limit, config.accumulated_recompile_limit, config.fail_on_recompile_limit_hit)
    with pytest.raises(RuntimeError, match=r"outside of compiling.limits\(\)"):
        made(1.0)
    assert len(graphs) == 10
    assert not any("s" in str(node.meta["example_value"].shape) for g in graphs for node in g.graph.nodes
                   if isinstance(node.meta.get("example_value"), torch.Tensor))  # fmt: skip


def test_what_does_not_fit_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = OptimStep("huge", lambda: [(2**40,)])
    row = measure(huge, CPU, Wall(0.002), providers=["torch-fused", "fusedtrain-reference"])
    assert row["providers"] == {}
    assert "GB with these providers" in row["why_not"]
    assert row["elements"] == 2**40
    assert "GB with these providers" in "\n".join(tables.lines(row, None))
    assert memory.refusal(80, CPU, free=100) is None
    assert memory.refusal(81, CPU, free=100) is not None
    assert huge.needs(torch.float32, 4) > huge.needs(torch.float32, 2) > 2**40 * 24


def test_what_torch_keeps_for_its_next_tensors_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, said in (("mem_get_info", (5, 80)), ("memory_reserved", 40), ("memory_allocated", 10)):
        monkeypatch.setattr(torch.cuda, name, lambda device, said=said: said)
    assert memory.free_bytes(torch.device("cuda")) == 35


def test_bytes_are_those_of_the_provider() -> None:
    row = measure(SMALL, CPU, Wall(0.001), providers=["torch-loop"], dtype=torch.bfloat16, rounds=1, observed=False)
    assert (row["bytes"], row["providers"]["torch-loop"]["bytes"]) == (24 * 13, 16 * 13)
    row["providers"]["torch-loop"]["seconds"] = [2.0]
    assert bytes_per_second(row, "torch-loop") == 8 * 13
    assert figures.figure(row, "torch-loop", 16.0 * 13).share_of_copy == 0.5
    assert (
        "bytes" not in measure(SMALL, CPU, Wall(0.001), providers=["torch-loop"], rounds=1)["providers"]["torch-loop"]
    )


def test_peak_bytes_are_those_of_the_call() -> None:
    x = torch.ones(1000)
    assert 4000 <= observe.launches_and_peak(lambda: x + 1, CPU)[1] < 5000
    assert 8000 <= observe.launches_and_peak(lambda: (x + 1, x * x), CPU)[1] < 9000
    assert observe.launches_and_peak(lambda: x.add_(1), CPU)[1] < 100


def test_a_real_row_observes_host_time() -> None:
    row = measure(SMALL, CPU, Wall(0.002), providers=["fusedtrain-reference", "torch-loop"], rounds=2)
    for provider in row["providers"]:
        assert 0 < row["providers"][provider]["host_seconds"] < 10
        assert median_seconds(row, provider) > 0
    with pytest.raises(ValueError, match="no provider 'nobody'"):
        measure(SMALL, CPU, Wall(0.001), providers=["nobody"])


def test_the_wall_clock_tells_the_time() -> None:
    clock = Wall(0.02)

    def nap() -> None:
        time.sleep(0.01)

    repeats = clock.repeats(nap)
    assert 1 <= repeats <= 2
    assert 0.01 <= clock.seconds(nap, repeats) < 1


def test_copy_bandwidth_is_of_this_world() -> None:
    assert 1e7 < bandwidth.copy_bandwidth(CPU, Wall(0.01), 2**22) < 1e14


def test_saved_bytes_counts_each_storage_once_and_not_the_result() -> None:
    x = torch.ones(100, requires_grad=True)
    assert observe.saved_bytes(lambda: x * x) == 400
    assert observe.saved_bytes(lambda: x.exp()) == 0
    assert observe.saved_bytes(lambda: x.sin()) == 400


def _ratios(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}  # a script finds rows.py
    command = [sys.executable, str(ROOT / "benchmarks" / "ratios.py"), *arguments]
    return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_make_bench_refuses_what_it_cannot_do_before_it_measures(tmp_path: Path) -> None:
    typo = _ratios(tmp_path, "--only", "host tme, 148")
    assert typo.returncode == 2
    assert "--only host tme, 148: no such row. Did you mean 'host time, 148 tensors of 1'?" in typo.stderr
    folder = _ratios(tmp_path, "--only", "host time, 148", "--json", str(tmp_path))
    assert folder.returncode == 2 and "it is a folder" in folder.stderr and "us" not in folder.stdout


def test_make_bench_writes_rows_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    ratios_py = importlib.import_module("ratios")
    path = tmp_path / "deep" / "cpu.json"
    seen = []

    def figures(row: Any, *args: object) -> dict[str, Any]:
        seen.append([r["name"] for r in json.loads(path.read_text())["rows"]] if path.exists() else [])
        if len(seen) == 3:
            raise KeyboardInterrupt
        return {"name": row.name, "wrong": "[/usr/lib/x.so]"}

    monkeypatch.setattr(ratios_py, "figures", figures)
    with pytest.raises(KeyboardInterrupt):
        ratios_py.main(json_path=path)
    names = [row.name for row in ratios_py.ROWS]
    assert seen == [[], names[:1], names[:2]]
    shown = Console(file=io.StringIO(), width=200)
    ratios_py.show([{"name": "a", "baseline": "b", "wrong": "[/usr/lib/x.so]"}], shown)
    assert "[/usr/lib/x.so]" in shown.file.getvalue()


def test_make_bench_keeps_its_rows_and_its_format(tmp_path: Path) -> None:
    """The README's figures are looked up by these names in files of this format."""
    path = tmp_path / "cpu.json"
    done = _ratios(tmp_path, "--quick", "--rounds", "1", "--only", "host time, 148", "--json", str(path))
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(path.read_text())["rows"]
    assert row["name"] == "host time, 148 tensors of 1"
    assert {"baseline", "target", "budget_us", "ratio", "ratios", "seconds", "ours_us", "theirs_us", "load"} <= set(row)
    assert row["ratio"] == pytest.approx(row["theirs_us"] / row["ours_us"])
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from rows import QUICK, ROWS
    finally:
        sys.path.pop(0)
    names = [r.name for r in ROWS]
    assert names == [
        "clip + AdamW, GPT-2 small: 148 tensors, 124 M",
        "clip + AdamW, 1000 tensors of 100",
        "clip + AdamW, 465 groups of one tensor of 100",
        "gelu + dropout 0.1, 2048 x 4096 fp32",
        "gelu + dropout 0.1, 2048 x 4096 bf16",
        "host time, 148 tensors of 1",
        "host time, 1000 tensors of 1",
    ]
    assert set(QUICK) <= set(names)
