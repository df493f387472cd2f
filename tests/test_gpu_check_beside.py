"""Steps that `python -m fusedtrain.gpu_check` runs side by side: which, in what order, and what each leaves."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest
from test_gpu_check import ALONE, GPU, check, steps

from fusedtrain.gpu_check import cli, machine, runner, schedule, slices
from fusedtrain.gpu_check.machine import Machine
from fusedtrain.gpu_check.record import Record
from fusedtrain.gpu_check.step import Done, Step

PYTHON = (sys.executable, "-S", "-c")


class Together:
    """Processes that take a moment each, and which of them were there at once."""

    def __init__(self, seconds: float = 0.2) -> None:
        self.seconds, self.lock = seconds, threading.Lock()
        self.begun: list[str] = []
        self.running: set[str] = set()
        self.met: list[set[str]] = []

    def __call__(self, command, env, seconds: float, log: Path, stop: threading.Event) -> Done:
        (name,) = command
        with self.lock:
            self.begun.append(name)
            self.running.add(name)
            self.met.append(set(self.running))
        time.sleep(self.seconds)
        with self.lock:
            self.running.remove(name)
        return Done(0, self.seconds, "")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "setting", lambda command: {"command": command})


def played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *listed: Step, where: Machine = GPU, run=None, status: int = 0
) -> Together:
    run = Together() if run is None else run
    monkeypatch.setitem(slices.SLICES, "tests", lambda machine: list(listed))
    assert check(tmp_path, "--only", "tests", run=run, where=where) == status
    assert list(steps(tmp_path, "tests")) == [step.name for step in listed]
    return run


def beside(name: str, workers: int = 1, **more) -> Step:
    return Step(name, (name,), workers=workers, **more)


def test_steps_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits until the others are there."""
    barrier = threading.Barrier(3)

    def run(command, env, seconds, log, stop) -> Done:
        barrier.wait(30)
        return Done(0, 0.0, "")

    played(tmp_path, monkeypatch, *map(beside, "abc"), run=run)


def test_what_excludes_each_other_and_what_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = [beside(f"huge {i}", resource="memory") for i in range(3)]
    alone = [Step(name, (name,)) for name in ("timed", "built")]
    run = played(tmp_path, monkeypatch, alone[0], *huge, alone[1], beside("small"))
    assert all(len([name for name in met if name.startswith("huge")]) < 2 for met in run.met)
    assert any("small" in met and len(met) > 1 for met in run.met)
    assert run.begun[-2:] == ["timed", "built"]
    assert run.met[-2:] == [{"timed"}, {"built"}]


def test_no_more_run_than_the_machine_has_cores_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = {"a": 4, "b": 3, "c": 3, "d": 2, "e": 1, "more than all": 9}
    listed = [beside(name, count) for name, count in workers.items()]
    run = played(tmp_path, monkeypatch, *listed)
    most = schedule.capacity(GPU)
    assert all(sum(workers[name] for name in met) <= most or len(met) == 1 for met in run.met)
    assert any(len(met) > 1 for met in run.met)
    one_core = played(tmp_path, monkeypatch, *listed, where=ALONE)
    assert all(len(met) == 1 for met in one_core.met)


def test_the_longest_begin_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        beside("short", limit=240),
        beside("two workers", 2, limit=240),
        beside("huge", limit=240, resource="memory"),
        beside("long", limit=300),
        beside("long, eight workers", 8, limit=300),
    ]
    run = played(tmp_path, monkeypatch, *listed, where=ALONE)
    assert run.begun == ["long, eight workers", "long", "huge", "two workers", "short"]
    names = [step.name for step in sorted(slices.tests(Machine(GPU.gpus, "580", 16)), key=schedule._order)]
    assert names[:3] == ["suite, triton", "gpu every_kernel, triton", "suite, cuda"]


def test_one_that_hangs_does_not_hold_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = Step("hangs", (*PYTHON, "import time; time.sleep(600)"), workers=1, limit=2.0)
    quick = [Step(f"quick {i}", (*PYTHON, f"print('output', {i})"), workers=1, resource="one") for i in range(3)]
    played(tmp_path, monkeypatch, hangs, *quick, run=runner.run, status=1)
    recorded = steps(tmp_path, "tests")
    assert [step["status"] for step in recorded.values()] == ["failed", "passed", "passed", "passed"]
    assert recorded["hangs"]["failures"][-1] == f"not done after {recorded['hangs']['seconds']:.0f} s"
    assert sum(recorded[step.name]["seconds"] for step in quick) < 60


def test_each_output_is_whole_in_the_log_and_apart_while_it_comes(tmp_path: Path, monkeypatch) -> None:
    """Two processes that print in turn: neither prints its second line before the other has printed its first."""
    out, begun = tmp_path / "out", tmp_path / "begun"
    out.mkdir()
    begun.mkdir()
    (out / "tests.before.running.log").write_text("of a run that was killed")
    (out / "tests.log").write_text("of an earlier run")
    (out / "tests.txt").write_text("of somebody else")
    code = (
        "import os, pathlib, sys, time\n"
        "name, log, begun = sys.argv[1:]\n"
        "print(name, 'begins', flush=True)\n"
        "(pathlib.Path(begun) / name).touch()\n"
        "while len(os.listdir(begun)) < 2:\n"
        "    time.sleep(0.01)\n"
        "print(name, 'ends', flush=True)\n"
        "assert pathlib.Path(log).read_text().endswith(f'{name} begins\\n{name} ends\\n')\n"
    )
    commands = {x: (*PYTHON, code, x, str(out / f"tests.step-{x}.running.log"), str(begun)) for x in "ab"}
    listed = [Step(f"step {x}", command, workers=1, limit=60) for x, command in commands.items()]
    played(out, monkeypatch, *listed, run=runner.run)
    whole = (out / "tests.log").read_text()
    assert all(f"{x} begins\n{x} ends\n" in whole for x in "ab")
    assert "earlier" not in whole
    assert sorted(path.name for path in out.iterdir()) == ["tests.json", "tests.log", "tests.txt"]


def test_every_step_has_a_log_of_its_own(tmp_path: Path) -> None:
    for name, make in slices.SLICES.items():
        record, logs = Record(tmp_path, name, {}), set()
        listed = make(GPU)
        for step in listed:
            with record.log(step.name) as log:
                logs.add(log.name)
        assert len(logs) == len(listed)


def test_what_cannot_be_recorded_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a full disk, which no later step would find otherwise."""
    seen, stopped = threading.Event(), []

    def run(command, env, seconds, log, stop) -> Done:
        if command == ("waits",):
            seen.set()
            stopped.append(stop.wait(30))
        assert seen.wait(30)
        return Done(0, 0.0, "")

    def add(self: Record, step: str, status: str, **entry: object) -> None:
        if step == "full" and status == "passed":
            raise OSError("no space left")

    monkeypatch.setattr(Record, "add", add)
    monkeypatch.setitem(slices.SLICES, "tests", lambda machine: [beside("full"), beside("waits")])
    with pytest.raises(OSError, match="no space left"):
        cli.main(["--out", str(tmp_path), "--only", "tests"], run, GPU)
    assert stopped == [True]


def test_the_record_is_whole_whoever_adds_to_it(tmp_path: Path) -> None:
    names = [f"step {i}" for i in range(40)]
    record = Record(tmp_path, "tests", {}, order=names)
    threads = [threading.Thread(target=record.add, args=(name, "passed")) for name in reversed(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(record.steps) == list(steps(tmp_path, "tests")) == names
