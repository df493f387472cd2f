"""What `python -m fusedtrain.gpu_check` does with its time, and what is left of it when it is ended before."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_gpu_check import GPU, Played, check, setting, steps

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

    def __call__(self, command: tuple[str, ...], env: Mapping[str, str], seconds: float, log: Path) -> Done:
        done = super().__call__(command, env, seconds, log)
        self.now += 100.0
        return done


def test_all_slices_share_one_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which holds what the last step needs to end."""
    slow = Slow(monkeypatch)
    assert check(tmp_path, "--only", "sanitizer,bench", "--minutes", "9", run=slow) == 2
    assert [seconds for _, _, seconds in slow.calls] == [150, 150, 150, 150, 120, 540 - 500 - runner.GRACE]
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
        def __call__(self, command, env, seconds, log):
            if len(self.calls) == 1:
                self.seen = list(steps(tmp_path, "tests").values())[-1]
                raise KeyboardInterrupt
            return super().__call__(command, env, seconds, log)

    cut = Cut()
    assert check(tmp_path, "--only", "tests", run=cut) == 130
    assert cut.seen["status"] == "running"
    recorded = list(steps(tmp_path, "tests").values())
    assert [step["status"] for step in recorded] == ["passed", "running"]
    table = capsys.readouterr().out
    assert "running  tests: gpu every_kernel, triton" in table
    assert "passed   tests: gpu every_kernel, cuda" in table
    again = Played()
    assert check(tmp_path, "--only", "tests", "--resume", run=again) == 0
    assert len(again.calls) == len(slices.tests(GPU)) - 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_prints_the_table(
    number: signal.Signals, tmp_path: Path, monkeypatch, capsys
) -> None:
    """The step is of our session, so that whoever ends that ends it too, and a group of its own."""
    code = "import os, sys, time; print(os.getpid(), os.getpgrp(), os.getsid(0), flush=True)"
    code += f"; os.kill(os.getppid(), {int(number)}); time.sleep(600)"
    monkeypatch.setitem(slices.SLICES, "build", lambda machine: [Step("endless", (sys.executable, "-c", code))])
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
    assert "running  build: endless" in capsys.readouterr().out
    pid, group, session = map(int, (tmp_path / "build.log").read_text().splitlines()[-1].split())
    assert (pid, session) == (group, os.getsid(0))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_finds_the_package_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/before")
    code = "import os, sys; print(os.environ['PYTHONPATH'])"
    for env, old in (({}, "/before"), ({"PYTHONPATH": "/of/the/step"}, "/of/the/step")):
        done = runner.run((sys.executable, "-c", code), env, 60, tmp_path / "log")
        assert done.output.strip() == f"{runner.ROOT}{os.pathsep}{old}"
    monkeypatch.delenv("PYTHONPATH")
    assert runner.run((sys.executable, "-c", code), {}, 60, tmp_path / "log").output.strip() == str(runner.ROOT)
