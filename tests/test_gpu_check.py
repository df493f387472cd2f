"""`python -m fusedtrain.gpu_check` on a machine without a GPU, and all of it that needs none, with processes played."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from fusedtrain.bench import budgets
from fusedtrain.bench.workloads import WORKLOADS
from fusedtrain.gpu_check import cli, machine, runner, slices
from fusedtrain.gpu_check.machine import Machine
from fusedtrain.gpu_check.step import Done, Found, Step

if not (runner.ROOT / "tests/gpu").exists():
    pytest.skip("gpu_check is for a clone of the sources, and this package is installed", allow_module_level=True)

TOOLS: dict[str, str | None] = {"nvcc": "/bin/nvcc", "compute-sanitizer": "/bin/compute-sanitizer"}
GPU = Machine(({"name": "Played", "capability": "9.0", "memory_bytes": 2**36},), "580", 4, TOOLS)
ALONE = Machine(GPU.gpus, "580", 1, TOOLS)
"""Where one step runs at a time."""
NEVER = threading.Event()
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.gpu.test_a" name="test_good[cuda]"/>
<testcase classname="tests.gpu.test_a" name="test_bad[cuda]"><failure message="1 != 2">trace</failure></testcase>
<testcase classname="tests.gpu.test_a" name="test_not[cuda]"><skipped message="needs two GPUs"/></testcase>
</testsuite></testsuites>"""
ALL_GOOD = JUNIT.replace('<failure message="1 != 2">trace</failure>', "")


def report(cuda: float = 1e-3, wrong: bool = False) -> str:
    """The measurement of the one tensor of 2^28, on a device that copies 4 TB/s."""
    name = "clip + AdamW, one tensor of 2^28"
    ours = {"wrong": "far off"} if wrong else {"seconds": [cuda] * 3, "launches": 2, "host_seconds": 2e-5}
    providers = {
        "fusedtrain-cuda": ours,
        "fusedtrain-triton": {"seconds": [2.3e-3] * 3, "launches": 2},
        "torch-fused": {"seconds": [3e-3] * 3},
        "apex": {"why_not": "import apex: ModuleNotFoundError"},
    }
    row = {"name": name, "bytes": 2**28 * 32, "providers": providers}
    return json.dumps({"copy_bandwidth": 4e12, "rows": [row]})


class Played:
    """Processes that leave what they are told to."""

    def __init__(self, junit: str = ALL_GOOD, bench: str = report(2.2e-3), output: str = "", status: int = 0) -> None:
        self.junit, self.bench, self.output, self.status = junit, bench, output, status
        self.calls: list[tuple[tuple[str, ...], Mapping[str, str], float]] = []

    def __call__(
        self, command: tuple[str, ...], env: Mapping[str, str], seconds: float, log: Path, stop: threading.Event
    ) -> Done:
        self.calls.append((command, env, seconds))
        log.write_text("output\n")
        for part in command:
            if part.endswith("junit.xml"):
                Path(part).write_text(self.junit)
            if part.endswith("bench.json"):
                Path(part).write_text(self.bench)
        return Done(self.status, 1.5, self.output)


def setting(command: str, **versions: str) -> dict[str, object]:
    """What is said of a machine, without a look at it."""
    return {"command": command, "versions": {"torch": "2.11.0+cu130", "triton": "3.6.0", **versions}}


def steps(folder: Path, name: str) -> dict[str, dict]:
    return {step["name"]: step for step in json.loads((folder / f"{name}.json").read_text())["steps"]}


def check(tmp_path: Path, *arguments: str, run: Played, where: Machine = GPU) -> int:
    return cli.main(["--out", str(tmp_path), *arguments], run, where)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking what the machine is takes a process; every test but one has no need to know."""
    monkeypatch.setattr(machine, "setting", setting)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_exits_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.undo()  # the machine is asked
    assert cli.main(["--out", str(tmp_path), "--only", "tests"]) == 2
    assert "Nothing can be proven here" in capsys.readouterr().out
    recorded = json.loads((tmp_path / "tests.json").read_text())
    assert recorded["setting"]["versions"]["torch"] == torch.__version__
    assert {step["status"] for step in recorded["steps"]} == {"cannot"}
    assert all("torch" in step["reason"] for step in recorded["steps"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "build"], "--out"),
        (["--out", "x", "--only", "biuld"], "no slice 'biuld'; choose from build, tests, sanitizer, bench"),
        (["--out", "x", "--only", ","], "no slice named"),
        (["--out", "x", "--minutes", "0"], "no number of minutes above 0"),
        (["--out", "x", "--minutes", "nan"], "no number of minutes above 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], says: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments, Played(), GPU)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_refused(capsys) -> None:
    assert cli.main(["--out", "/proc/nowhere"], Played(), GPU) == 2
    assert "/proc/nowhere" in capsys.readouterr().out


def test_build_is_for_the_card_and_counts_warnings(tmp_path: Path) -> None:
    env = json.dumps({"backends": {"cuda": "available", "triton": "available"}})
    played = Played(output=f"a.cu(3): Warning #177-D: unused\n{{0}}\n{{}}\n{env}\nand {{more}}")
    assert check(tmp_path, "--only", "build", run=played) == 0
    command, env_of_build, _ = played.calls[0]
    assert command[1:] == ("setup.py", "build_ext", "--inplace")
    assert env_of_build == {"FUSEDTRAIN_BUILD": "cuda", "FUSEDTRAIN_CUDA_ARCHS": "90"}
    assert len(steps(tmp_path, "build")["build"]["found"]["warnings"]) == 1


def test_a_backend_that_is_not_available_after_the_build_is_a_failure(tmp_path: Path) -> None:
    env = json.dumps({"backends": {"cuda": "_C_cuda.so does not load: x", "triton": "available"}})
    assert check(tmp_path, "--only", "build", run=Played(output=env)) == 1
    step = steps(tmp_path, "build")["env"]
    assert step["status"] == "failed"
    assert step["failures"] == ["cuda: _C_cuda.so does not load: x"]


def test_no_nvcc_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    where = Machine(GPU.gpus, "580", 4, {**TOOLS, "nvcc": None, "compute-sanitizer": None})
    env = json.dumps({"backends": {"cuda": "available", "triton": "available"}})
    assert check(tmp_path, "--only", "build,sanitizer", run=Played(output=env), where=where) == 2
    build = steps(tmp_path, "build")
    assert (build["build"]["status"], build["env"]["status"]) == ("cannot", "passed")
    assert "nvcc" in build["build"]["reason"]
    assert {step["status"] for step in steps(tmp_path, "sanitizer").values()} == {"cannot"}


def test_failures_are_named_and_stop_nothing(tmp_path: Path, capsys) -> None:
    played = Played(junit=JUNIT, status=1)
    assert check(tmp_path, "--only", "tests", run=played) == 1
    recorded = steps(tmp_path, "tests")
    assert len(recorded) == len(played.calls) == len(slices.tests(GPU))
    step = recorded["gpu every_kernel, cuda"]
    assert step["failures"] == ["tests/gpu/test_a::test_bad[cuda]: 1 != 2"]
    assert step["found"] == {"counts": {"passed": 1, "failure": 1, "skipped": 1}, "skipped": {"needs two GPUs": 1}}
    said = capsys.readouterr().out
    assert "test_bad[cuda]: 1 != 2" in said
    assert "1 skipped: needs two GPUs" in said


@pytest.mark.parametrize(
    ("junit", "status", "says"),
    [
        (
            "<nonsense",
            1,
            "exit status 1; the last test begun was tests/gpu/a.py::test_2",
        ),
        ("<testsuites><testsuite/></testsuites>", 5, "no test ran"),
        (ALL_GOOD, 3, "status 3"),
    ],
)
def test_a_run_of_pytest_that_proves_nothing_fails(tmp_path: Path, junit: str, status: int, says: str) -> None:
    log = "tests/gpu/a.py::test_1[cuda] PASSED [ 50%]\ntests/gpu/a.py::test_2[cuda] "
    assert check(tmp_path, "--only", "tests", run=Played(junit=junit, status=status, output=log)) == 1
    assert all(says in step["failures"][0] for step in steps(tmp_path, "tests").values())


@pytest.mark.parametrize(
    ("output", "code", "status"),
    [
        ("========= ERROR SUMMARY: 0 errors", 0, "passed"),
        ("========= Invalid __global__ read\n========= ERROR SUMMARY: 3 errors", 1, "failed"),
        ("========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)", 1, "failed"),
        ("", 1, "failed"),
        ("========= Error: Device not supported", 2, "cannot"),
    ],
)
def test_the_sanitizer_is_believed(tmp_path: Path, output: str, code: int, status: str) -> None:
    played = Played(output=output)
    assert check(tmp_path, "--only", "sanitizer", run=played) == code
    assert {step["status"] for step in steps(tmp_path, "sanitizer").values()} == {status}
    assert all(env["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1" for _, env, _ in played.calls)
    assert all(command[0] == "/bin/compute-sanitizer" for command, _, _ in played.calls)
    assert all("all" not in command for command, _, _ in played.calls)  # its compilers would be wrapped too
    assert (Path(__file__).parents[1] / slices.SMALL).exists()


def test_bench_judges_the_budgets_and_names_what_is_missed(tmp_path: Path) -> None:
    assert check(tmp_path, "--only", "bench", "--steps", "2^28", run=Played()) == 0
    (step,) = steps(tmp_path, "bench").values()
    figures = {verdict["what"]: verdict for verdict in step["found"]["budgets"]}
    assert figures["fusedtrain-cuda: share of copy bandwidth"]["figure"] == pytest.approx(2**28 * 32 / 2.2e-3 / 4e12)
    assert figures["fusedtrain-cuda against torch-fused"]["figure"] == pytest.approx(3 / 2.2)
    assert check(tmp_path, "--only", "bench", "--steps", "2^28", run=Played(bench=report(2.5e-3))) == 1
    (step,) = steps(tmp_path, "bench").values()
    assert any("share of copy bandwidth: 0.859, budget >= 0.92" in f for f in step["failures"])


def test_no_figure_of_a_wrong_result(tmp_path: Path) -> None:
    assert check(tmp_path, "--only", "bench", "--steps", "2^28", run=Played(bench=report(wrong=True))) == 1
    (step,) = steps(tmp_path, "bench").values()
    assert "fusedtrain-cuda is wrong: far off" in step["failures"]
    cuda = [v for v in step["found"]["budgets"] if v["what"].startswith("fusedtrain-cuda")]
    assert cuda and all("figure" not in verdict for verdict in cuda)


def test_every_budget_is_of_a_workload_and_of_providers_that_it_has() -> None:
    for budget in budgets.BUDGETS:
        assert set(budget.providers) <= set(WORKLOADS[budget.workload].providers()), budget


def test_resume_repeats_nothing_that_passed_of_these_sources(tmp_path: Path, monkeypatch) -> None:
    class Flaky(Played):
        def __call__(self, command, *arguments):
            self.junit = JUNIT if "triton" in command else ALL_GOOD
            return super().__call__(command, *arguments)

    assert check(tmp_path, "--only", "tests", run=Flaky(), where=ALONE) == 1
    again = Played()
    assert check(tmp_path, "--only", "tests", "--resume", run=again, where=ALONE) == 0
    assert list(steps(tmp_path, "tests")) == [step.name for step in slices.tests(ALONE)]
    assert len(again.calls) == sum("triton" in step.command for step in slices.tests(GPU)) > 1
    assert all("triton" in command for command, _, _ in again.calls)
    monkeypatch.setattr(machine, "fingerprint", lambda: "other sources")
    anew = Played()
    assert check(tmp_path, "--only", "tests", "--resume", run=anew) == 0
    assert len(anew.calls) == len(slices.tests(GPU))


@pytest.mark.parametrize(
    ("version", "driver", "missing", "repeated"),
    [
        ({}, "580", (), False),
        ({"torch": "2.13.0+cu130"}, "580", (), True),
        ({"triton": "3.7.0"}, "580", (), True),
        ({}, "590", (), True),
        ({}, "580", ("scipy",), True),
    ],
    ids=["nothing", "torch", "triton", "driver", "modules"],
)
def test_resume_repeats_what_passed_with_something_else(
    tmp_path: Path, monkeypatch, version: dict[str, str], driver: str, missing: tuple[str, ...], repeated: bool
) -> None:
    check(tmp_path, "--only", "tests", run=Played())
    monkeypatch.setattr(machine, "setting", lambda command: setting(command, **version))
    again = Played()
    where = Machine(GPU.gpus, driver, 4, TOOLS, missing)
    check(tmp_path, "--only", "tests", "--resume", run=again, where=where)
    assert len(again.calls) == (len(slices.tests(GPU)) if repeated else 0)


def test_a_broken_record_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "tests.json").write_text('{"steps": [')
    assert check(tmp_path, "--only", "tests", "--resume", run=Played()) == 0


def test_what_has_no_time_left_is_said(tmp_path: Path) -> None:
    assert check(tmp_path, "--only", "tests", "--minutes", "0.01", run=Played()) == 2
    assert {step["status"] for step in steps(tmp_path, "tests").values()} == {"no time"}


def test_a_step_that_leaves_anything_at_all_stops_nothing() -> None:
    def read(done: Done, scratch: Path) -> Found:
        raise KeyError("rows")

    class Kept:
        name = "x"

        def add(self, name: str, status: str, **entry: object) -> None:
            self.status, self.failures = status, entry["failures"]

    kept = Kept()
    cli.run_step(kept, Step("broken", ("x",), read), Played(), 1.0, Path(os.devnull), NEVER)  # type: ignore[arg-type]
    assert kept.status == "failed"
    assert "KeyError" in str(kept.failures)


# ---- the runner itself


def test_the_runner_keeps_output_and_status(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import os, sys; print(os.environ['PLAYED']); print('err', file=sys.stderr); sys.exit(3)"
    done = runner.run((sys.executable, "-c", code), {"PLAYED": "env"}, 60, log, NEVER)
    assert (done.status, done.timed_out) == (3, False)
    assert set(done.output.split()) == {"env", "err"}
    runner.run((sys.executable, "-c", "print('more')"), {}, 60, log, NEVER)
    assert "env" in log.read_text() and "more" in log.read_text()


def test_the_runner_interrupts_then_kills_all_that_was_started(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    code = (
        "import subprocess, sys, time\n"
        "try:\n"
        f"    print(subprocess.Popen([sys.executable, '-S', '-c', {deaf!r}]).pid, flush=True)\n"
        "    time.sleep(600)\n"
        "except KeyboardInterrupt:\n"
        "    print('report', flush=True)\n"
    )
    began = time.monotonic()
    done = runner.run((sys.executable, "-S", "-c", code), {}, 3.0, tmp_path / "log", NEVER)
    assert done.timed_out
    assert time.monotonic() - began < 100
    child, said = done.output.split()[:2]
    assert said == "report"
    for _ in range(100):
        try:
            os.kill(int(child), 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        os.kill(int(child), signal.SIGKILL)
        pytest.fail("the grandchild still runs")


def test_a_command_that_does_not_exist_is_a_failed_step(tmp_path: Path) -> None:
    done = runner.run(("/nowhere/to/be/found",), {}, 5.0, tmp_path / "log", NEVER)
    assert done.status == 127
    assert "/nowhere/to/be/found" in done.output


def test_without_the_sources_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {"torch": "2.13.0", "cuda": "13.0", "gpus": [{"name": "Played"}], "path": None}
    monkeypatch.setattr(machine, "_ask", lambda *command: (seen, ""))
    assert machine.look().cannot is None
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert "run it in a clone of the sources" in str(machine.look().cannot)
