"""What the steps of `python -m fusedtrain.gpu_check` take: every test of a GPU, few others, and what budgets need."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from _pytest.mark import deselect_by_keyword, deselect_by_mark
from test_gpu_check import ALONE, GPU, Played, check

from fusedtrain.bench import memory
from fusedtrain.bench.budgets import BUDGETS
from fusedtrain.bench.workloads import WORKLOADS
from fusedtrain.gpu_check import machine, schedule, slices
from fusedtrain.gpu_check.machine import Machine
from fusedtrain.gpu_check.runner import ROOT
from fusedtrain.gpu_check.step import Step

LARGE = Machine(({"name": "Played", "capability": "9.0", "memory_bytes": 80 * 2**30},), "580", 16, GPU.tools)


class Selecting:
    """What each step selects of all that is collected; pytest itself judges the conditions."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps, self.selected = steps, dict[str, list[str]]()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self.marked = {item.nodeid for item in items if item.get_closest_marker("gpu")}
        self.everything = [item.nodeid for item in items]
        for step in self.steps:
            options = dict(zip(step.command, step.command[1:], strict=False))
            paths = tuple(x for x in step.command if x.startswith("tests"))
            left_out = tuple(x.removeprefix("--ignore=") for x in step.command if x.startswith("--ignore="))
            chosen = [x for x in items if x.nodeid.startswith(paths) and not x.nodeid.startswith(left_out or "-")]
            config.option.keyword = options.get("-k", "")
            config.option.markexpr = options["-m"] if options["-m"] != "pytest" else ""
            deselect_by_keyword(chosen, config)
            deselect_by_mark(chosen, config)
            self.selected[step.name] = [item.nodeid for item in chosen]


@pytest.fixture(scope="module")
def selecting() -> Iterator[Selecting]:
    """Of files of tests/gpu, with marks of the GPU, and that no step may select from, as if torch saw a GPU."""
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "@pytest.mark.gpu" in path.read_text("utf-8")]
    wanted = {path for path in marked if path != Path(__file__)} | {*(ROOT / "tests/gpu").glob("test_*.py")}
    unwanted = [ROOT / path for path in slices.WITHOUT_A_GPU]
    files = [*sorted(wanted), *(path for path in unwanted if path.exists())]
    plugin, before = Selecting([*slices.tests(ALONE), *slices.sanitizer(ALONE)]), set(sys.modules)
    quiet = [x for name in ("faulthandler", "cacheprovider", "xdist") for x in ("-p", f"no:{name}")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        pytest.main([*quiet, "-qq", "-s", "--collect-only", *map(str, files)], plugins=[plugin])
    yield plugin
    for name in set(sys.modules) - before:  # what was imported under the pretence
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "tests")):
            del sys.modules[name]


def test_every_test_of_a_gpu_is_of_a_step(selecting: Selecting) -> None:
    times = Counter(test for step in slices.tests(ALONE) for test in selecting.selected[step.name])
    elsewhere = re.compile(r"[\[-](cpu|reference)[]-]")
    here = {x for x in selecting.everything if x.startswith("tests/gpu/") and not elsewhere.search(x)}
    others = {x for x in selecting.marked if not x.startswith("tests/gpu/")}
    assert len(here) > 600 and others
    assert {test: times[test] for test in here if times[test] != 1} == {}
    assert {test for test in others if not times[test]} == set()


def test_no_step_takes_what_needs_no_gpu(selecting: Selecting) -> None:
    assert all((ROOT / path).exists() for path in (*slices.WITHOUT_A_GPU, *slices.CHANGED))
    needless = {test for test in selecting.everything if test.startswith(slices.WITHOUT_A_GPU)}
    assert {path for path in slices.WITHOUT_A_GPU if any(test.startswith(path) for test in needless)} == {
        *slices.WITHOUT_A_GPU
    }
    for name, tests in selecting.selected.items():
        assert not needless & set(tests), name
        assert tests or name == "suite, changed by a gpu", f"{name} takes nothing"


def test_races_are_looked_for_where_threads_share_memory(selecting: Selecting) -> None:
    for backend in slices.BACKENDS:
        seen, raced = (selecting.selected[f"{check}, {backend}"] for check in ("memcheck", "racecheck"))
        every = selecting.selected[f"gpu every_kernel, {backend}"]
        left_out = ("torch.float64", "torch.float16") if backend == "triton" else ()
        assert set(raced) < set(seen) == {test for test in every if not any(dtype in test for dtype in left_out)}
        assert all(any(f"::{name}" in test for test in raced) for name in slices.RACY)


def test_a_step_of_the_gpu_is_one_file_and_one_backend() -> None:
    """An error of the device is the end of all later tests of its process."""
    by_name = {step.name: step for step in slices.tests(LARGE)}
    for path in (ROOT / "tests/gpu").glob("test_*.py"):
        for backend in slices.BACKENDS:
            step = by_name[f"gpu {path.stem.removeprefix('test_')}, {backend}"]
            assert f"tests/gpu/{path.name}" in step.command and backend in step.command and "-v" in step.command
            parallel = backend == "triton" and path.name != "test_huge.py"  # it waits for its compiler
            assert ("-n" in step.command) is parallel


def test_what_is_not_timed_runs_beside_others() -> None:
    tests, sanitizer = slices.tests(LARGE), slices.sanitizer(LARGE)
    assert all(step.workers and step.env["OMP_NUM_THREADS"] == "1" for step in (*tests, *sanitizer))
    assert not any(step.workers for step in (*slices.build(LARGE), *slices.bench(LARGE)))
    most = schedule.capacity(LARGE)
    assert max(step.workers for step in tests) <= most <= 2 * LARGE.cpus
    assert sum(step.workers for step in sanitizer) <= most
    for step in tests:
        assert step.workers == int(dict(zip(step.command, step.command[1:], strict=False)).get("-n", 1))
    assert all(step.workers == 1 for step in slices.tests(ALONE))
    assert schedule.capacity(ALONE) < 2


def test_huge_tensors_have_the_room_that_they_need() -> None:
    small = Machine(({**GPU.gpus[0], "memory_bytes": 24 * 2**30},), "580", 16, GPU.tools)
    for where, workers in ((LARGE, 1), (small, 0)):
        huge = [step for step in slices.tests(where) if "huge" in step.name]
        assert [step.workers for step in huge] == [workers] * len(slices.BACKENDS)
        assert {step.resource for step in huge} == {"memory of the GPU"}
    assert schedule.capacity(small) < schedule.capacity(LARGE)


# ---- bench


def providers(command: tuple[str, ...]) -> list[str]:
    return command[command.index("--providers") + 1].split(",")


def test_bench_begins_with_the_budgets() -> None:
    names = [step.name for step in slices.bench(GPU)]
    budgeted = list(dict.fromkeys(budget.workload for budget in BUDGETS))
    assert set(names[: len(budgeted)]) == set(budgeted)
    acts = {name for name in budgeted if WORKLOADS[name].suite == "act"}
    assert set(names[: len(acts) + 1]) == {"clip + AdamW, one tensor of 2^28", *acts}
    assert sorted(names) == sorted(WORKLOADS)


def test_bench_asks_for_what_budgets_name_and_nothing_slower() -> None:
    for step in slices.bench(GPU):
        budgets, asked = [b for b in BUDGETS if b.workload == step.name], providers(step.command)
        assert {name for b in budgets for name in b.providers} <= set(asked)
        assert ("torch-compiled" in asked) == any("torch-compiled" in b.providers for b in budgets), step.name


def test_the_largest_workload_fits_a_gpu_of_80_gb() -> None:
    """Of which torch and the driver leave about 78.4 GiB."""
    (step,) = (step for step in slices.bench(GPU) if step.name == "clip + AdamW, GPT-2 XL")
    workload = WORKLOADS[step.name]
    for few, fits in ((providers(step.command), True), (workload.providers(), False)):
        refused = memory.refusal(workload.needs(torch.float32, len(few)), torch.device("cuda"), int(78.4 * 2**30))
        assert (refused is None) is fits


# ---- what there is


def tool(folder: Path, name: str) -> str:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_the_compiler_is_the_one_that_the_build_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NVCC", "CUDA_PATH", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    nvcc, sanitizer = (tool(tmp_path, name) for name in ("nvcc", "compute-sanitizer"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert (machine._nvcc(), machine._tool("compute-sanitizer")) == (nvcc, sanitizer)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "elsewhere"))
    assert machine._nvcc() is None  # the build is not content with another one either
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]))
    assert (machine._nvcc(), machine._tool("compute-sanitizer")) == (nvcc, sanitizer)


@pytest.mark.parametrize(("name", "status"), [("tests", 2), ("sanitizer", 2), ("build", 0)])
def test_what_is_not_installed_is_said(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, name: str, status: int
) -> None:
    """Files of tests skip themselves then, so that not all is proven."""
    monkeypatch.setattr(machine, "setting", lambda command: {"command": command})
    lacking = Machine(GPU.gpus, "580", 4, GPU.tools, missing=("expecttest",))
    env = json.dumps({"backends": {"cuda": "available", "triton": "available"}})
    played = Played(output=f"{env}\n========= ERROR SUMMARY: 0 errors")
    assert check(tmp_path, "--only", name, run=played, where=lacking) == status
    assert "Not installed, though tests need it: expecttest." in capsys.readouterr().out
    assert json.loads((tmp_path / f"{name}.json").read_text())["setting"]["missing_modules"] == ["expecttest"]
