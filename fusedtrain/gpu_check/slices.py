"""What is proven, in slices: each makes its steps for a machine."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusedtrain.bench.budgets import BUDGETS, judge
from fusedtrain.bench.workloads import WORKLOADS
from fusedtrain.gpu_check import junit
from fusedtrain.gpu_check.machine import Machine
from fusedtrain.gpu_check.step import Done, Found, Step

BACKENDS = ("cuda", "triton")
SMALL = "tests/gpu/test_every_kernel.py"
"""Every kernel on small tensors of every alignment: what a sanitizer can sit through."""

# ---- build


def read_build(done: Done, scratch: Path) -> Found:
    """The compilers' warnings, and whether it built."""
    warnings = [line.strip() for line in done.output.splitlines() if re.search(r"\bwarning\b", line, re.I)]
    failures = [] if done.status == 0 else [f"the build ended with status {done.status}"]
    return Found({"warnings": warnings}, failures)


def read_env(done: Done, scratch: Path) -> Found:
    """The report of ``python -m fusedtrain env --json``: both GPU backends must be available."""
    try:
        report = json.loads(done.output[done.output.index("{") :])
    except ValueError:
        return Found(failures=[f"no report; exit status {done.status}"])
    lacking = {name: report["backends"][name] for name in BACKENDS}
    return Found(report, [f"{name}: {why}" for name, why in lacking.items() if not why.startswith("available")])


def build(machine: Machine) -> list[Step]:
    """The extension, in place, for the card that is there; then what it says of itself."""
    python = sys.executable
    env = {"FUSEDTRAIN_BUILD": "cuda", "FUSEDTRAIN_CUDA_ARCHS": machine.arch}
    cannot = None if machine.tools.get("nvcc") else "nvcc is not on PATH: the CUDA library cannot be built here"
    return [
        Step("build", (python, "setup.py", "build_ext", "--inplace"), read_build, env, cannot),
        Step("env", (python, "-m", "fusedtrain", "env", "--json"), read_env),
    ]


# ---- tests


def _pytest(*arguments: str, workers: int = 0) -> tuple[str, ...]:
    parallel = ("-n", str(workers)) if workers > 1 and importlib.util.find_spec("xdist") else ()
    report = ("--junitxml", "{scratch}/junit.xml", "-p", "no:cacheprovider", "-q")
    return (sys.executable, "-m", "pytest", *report, *parallel, *arguments)


def tests(machine: Machine) -> list[Step]:
    """The tests that need a GPU, then the whole suite with each backend."""
    workers = min(8, machine.cpus)
    suite = ("tests", "--ignore=tests/gpu")
    # Each process brings a context of its own, and one thread is enough beside seven others.
    env = {"OMP_NUM_THREADS": "1"} if workers > 1 else {}
    return [
        *(Step(f"gpu tests, {b}", _pytest("-m", "gpu", "-k", b, "tests/gpu"), junit.read) for b in BACKENDS),
        *(Step(f"suite, {b}", _pytest(*suite, "-k", b, workers=workers), junit.read, env) for b in BACKENDS),
        Step("suite, the rest", _pytest(*suite, "-k", "not cuda and not triton", workers=workers), junit.read, env),
    ]


# ---- sanitizer


def read_sanitizer(done: Done, scratch: Path) -> Found:
    """The tests' own report, and the sanitizer's summary."""
    if "Device not supported" in done.output:
        return Found(cannot="compute-sanitizer does not support this device: it needs the counters of a real one")
    found = junit.read(done, scratch)
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (\w+)", done.output)
    if not summaries:
        found.failures.append("compute-sanitizer left no summary")
    found.details["summary"] = [" ".join(summary) for summary in summaries]
    bad = [" ".join(summary) for summary in summaries if summary[0] != "0"]
    found.failures += [f"compute-sanitizer found {summary}" for summary in bad]
    if bad:
        found.details["first"] = re.findall(r"^=+ ((?!COMPUTE|ERROR|RACECHECK).*)", done.output, re.M)[:40]
    return found


def sanitizer(machine: Machine) -> list[Step]:
    """A reduced set under compute-sanitizer. Without torch's caching allocator every tensor is an allocation of its
    own, whose end the sanitizer knows."""
    tool = machine.tools.get("compute-sanitizer")
    cannot = None if tool else "compute-sanitizer is not on PATH: it comes with the CUDA toolkit"
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_LAUNCH_BLOCKING": "1"}
    steps = []
    for backend in BACKENDS:
        for check in ("memcheck", "racecheck"):
            wrapped = ("compute-sanitizer", "--tool", check, "--target-processes", "all", "--print-limit", "20")
            command = (*wrapped, *_pytest("-m", "gpu", "-k", backend, SMALL))
            steps.append(Step(f"{check}, {backend}", command, read_sanitizer, env, cannot))
    return steps


# ---- bench


def read_bench(done: Done, scratch: Path) -> Found:
    """The row of one workload, and the verdicts of its budgets. A provider of ours that is wrong is a failure; one of
    others is not ours to mend."""
    try:
        report = json.loads((scratch / "bench.json").read_text("utf-8"))
    except (OSError, ValueError):
        return Found(failures=[f"no measurement; exit status {done.status}"])
    rows, copy = report["rows"], report["copy_bandwidth"]
    verdicts = judge(rows, copy)
    failures = [
        f"{provider} is wrong: {found.get('wrong') or found['failed']}"
        for row in rows
        for provider, found in row["providers"].items()
        if provider.startswith("fusedtrain-") and ("wrong" in found or "failed" in found)
    ]
    for verdict in verdicts:
        if "missing" in verdict:
            failures.append(f"{verdict['what']}: not measured: {verdict['missing']}")
        elif not verdict["met"]:
            failures.append(f"{verdict['what']}: {verdict['figure']:.3g}, budget {verdict['bound']}")
    return Found({"copy_bandwidth": copy, "rows": rows, "budgets": verdicts}, failures)


def bench(machine: Machine) -> list[Step]:
    """Every workload in a process of its own, each with the copy bandwidth of its own minute."""
    steps = []
    budgeted = {budget.workload for budget in BUDGETS}  # first, should the time be over before the end
    for workload in sorted(WORKLOADS.values(), key=lambda w: w.name not in budgeted):
        elsewhere = ("fusedtrain-cpu", "fusedtrain-reference", "torch-loop")
        providers = ",".join(p for p in workload.providers() if p not in elsewhere)
        what = ("--device", "cuda", "--workload", workload.name, "--providers", providers, "--keep-going")
        command = (sys.executable, "-m", "fusedtrain", "bench", "run", *what, "--json", "{scratch}/bench.json")
        steps.append(Step(workload.name, command, read_bench))
    return steps


SLICES: dict[str, Callable[[Machine], list[Step]]] = {
    "build": build,
    "tests": tests,
    "sanitizer": sanitizer,
    "bench": bench,
}


def details(step: dict[str, Any]) -> str:
    """What a step found, in a few words."""
    found = step.get("found", {})
    if "counts" in found:
        return ", ".join(f"{n} {kind}" for kind, n in sorted(found["counts"].items()))
    if "warnings" in found:
        return f"{len(found['warnings'])} warnings"
    if "budgets" in found:
        return "; ".join(_figure(v) for v in found["budgets"])
    return ""


def _figure(verdict: dict[str, Any]) -> str:
    figure = "not measured" if "missing" in verdict else f"{verdict['figure']:.3g}"
    return f"{verdict['what']} {figure} ({verdict['bound']})"
