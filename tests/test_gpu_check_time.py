"""What `python -m fusedtrain.gpu_check` does with its time, and what is left of it when it is ended before."""

from __future__ import annotations

import os
import re
import runpy
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_gpu_check import ALONE, GPU, NEVER, Played, check, setting, steps

from fusedtrain.gpu_check import cli, machine, runner, slices
from fusedtrain.gpu_check.step import Done, Step


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often a process was asked for the setting, which takes seconds."""
    commands: list[str] = []
    monkeypatch.setattr(machine, "setting", lambda command: (commands.append(command), setting(command))[1])
    return commands


class Slow(Played):
    """Each process takes 100 s of a clock that stands still otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(output="========= ERROR SUMMARY: 0 errors")
        self.now = 0.0
        monkeypatch.setattr(cli, "time", SimpleNamespace(monotonic=lambda: self.now))

    def __call__(self, *arguments: Any) -> Done:
        done = super().__call__(*arguments)
        self.now += 100.0
        return done


def test_all_slices_share_one_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which holds what the last step needs to end."""
    slow = Slow(monkeypatch)
    assert check(tmp_path, "--only", "sanitizer,bench", "--minutes", "9", run=slow, where=ALONE) == 2
    left = [540 - past - runner.GRACE for past in range(0, 600, 100)]
    assert [seconds for _, _, seconds in slow.calls] == [240, 240, 240, left[3], 120, left[5]]
    assert {step["status"] for step in steps(tmp_path, "sanitizer").values()} == {"passed"}
    assert {step["status"] for step in list(steps(tmp_path, "bench").values())[2:]} == {"no time"}


def test_the_time_is_less_than_ten_minutes() -> None:
    """Which many a scheduler allows a command, its start and its end included."""
    assert cli.parser().parse_args(["--out", "x"]).minutes <= 9


def test_no_step_can_take_all_of_it() -> None:
    for name in ("tests", "sanitizer", "bench"):
        assert all(step.limit <= 300 for step in slices.SLICES[name](GPU)), name


def test_the_setting_is_asked_for_again_only_after_a_build(tmp_path: Path, asked: list[str]) -> None:
    assert check(tmp_path, "--only", "tests,sanitizer,bench", "--steps", "no such", run=Played()) == 2
    assert len(asked) == 1
    check(tmp_path, "--steps", "no such", run=Played())
    assert len(asked) == 1 + 2


def test_a_step_that_never_ends_is_in_the_record_and_in_the_table(tmp_path: Path, capsys) -> None:
    class Cut(Played):
        def __call__(self, *arguments):
            if len(self.calls) == 1:
                self.seen = list(steps(tmp_path, "sanitizer").values())[-1]
                raise KeyboardInterrupt
            return super().__call__(*arguments)

    good = "========= ERROR SUMMARY: 0 errors"
    cut = Cut(output=good)
    assert check(tmp_path, "--only", "sanitizer", run=cut, where=ALONE) == 130
    assert cut.seen["status"] == "running"
    recorded = list(steps(tmp_path, "sanitizer").values())
    assert [step["status"] for step in recorded] == ["passed", "running"]
    table = capsys.readouterr().out
    assert "running  sanitizer: racecheck, cuda" in table
    assert "passed   sanitizer: memcheck, cuda" in table
    again = Played(output=good)
    assert check(tmp_path, "--only", "sanitizer", "--resume", run=again) == 0
    assert len(again.calls) == len(slices.sanitizer(GPU)) - 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("together", [1, 3])
def test_a_signal_ends_every_step_and_prints_the_table(
    number: signal.Signals, together: int, tmp_path: Path, monkeypatch, capsys
) -> None:
    """A step is of our session, so that whoever ends that ends it too, and a group of its own."""
    code = (
        "import os, pathlib, sys, time\n"
        "print(os.getpid(), os.getpgrp(), os.getsid(0), flush=True)\n"
        "begun = pathlib.Path(sys.argv[2])\n"
        "(begun / sys.argv[1]).touch()\n"
        f"while len(os.listdir(begun)) < {together}:\n"
        "    time.sleep(0.01)\n"
        f"if sys.argv[1] == '0': os.kill(os.getppid(), {int(number)})\n"
        "time.sleep(600)\n"
    )
    begun = tmp_path / "begun"
    begun.mkdir()
    commands = [(sys.executable, "-S", "-c", code, str(i), str(begun)) for i in range(together)]
    endless = [Step(f"endless {i}", command, workers=int(together > 1)) for i, command in enumerate(commands)]
    monkeypatch.setitem(slices.SLICES, "build", lambda machine: endless)
    monkeypatch.setattr(machine, "look", lambda: GPU)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path), "--only", "build"])
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    began = time.monotonic()
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("fusedtrain.gpu_check", run_name="__main__", alter_sys=False)
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert ended.value.code == 130
    assert time.monotonic() - began < 60
    table = capsys.readouterr().out
    assert all(f"running  build: endless {i}" in table for i in range(together))
    assert [step["status"] for step in steps(tmp_path, "build").values()] == ["running"] * together
    lines = [line for line in (tmp_path / "build.log").read_text().splitlines() if re.fullmatch(r"\d+ \d+ \d+", line)]
    assert len(lines) == together
    for line in lines:
        pid, group, session = map(int, line.split())
        assert (pid, session) == (group, os.getsid(0))
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_process_finds_the_package_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/before")
    code = "import os, sys; print(os.environ['PYTHONPATH'])"
    for env, old in (({}, "/before"), ({"PYTHONPATH": "/of/the/step"}, "/of/the/step")):
        done = runner.run((sys.executable, "-c", code), env, 60, tmp_path / "log", NEVER)
        assert done.output.strip() == f"{runner.ROOT}{os.pathsep}{old}"
    monkeypatch.delenv("PYTHONPATH")
    done = runner.run((sys.executable, "-c", code), {}, 60, tmp_path / "log", NEVER)
    assert done.output.strip() == str(runner.ROOT)
