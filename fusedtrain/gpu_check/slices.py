"""What is proven, in slices: each makes its steps for a machine."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusedtrain.bench.budgets import BUDGETS, CUDA, TRITON, judge
from fusedtrain.bench.workload import Workload
from fusedtrain.bench.workloads import WORKLOADS
from fusedtrain.gpu_check import junit
from fusedtrain.gpu_check.machine import Machine
from fusedtrain.gpu_check.runner import ROOT
from fusedtrain.gpu_check.step import Done, Found, Step

BACKENDS = ("cuda", "triton")
SMALL = "tests/gpu/test_every_kernel.py"
"""Every kernel on small tensors of every alignment: what a sanitizer can sit through."""
HUGE = "tests/gpu/test_huge.py"
"""One test at a time has room."""
ROOMY = 64 * 2**30
"""Bytes of GPU memory with which other tests may run beside a huge one, which needs up to 40 GB; with less it is
alone."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""For steps that run beside others: there are more processes than cores."""
WITHOUT_A_GPU = ("tests/cuda_on_cpu", "tests/test_cuda_compile.py", "tests/test_build_cuda.py")
"""Minutes of compilers, of the kernels for a CPU too, that find the same without a GPU."""
_OF_BENCH = ("cli", "measure", "model", "results", "scaling")
CHANGED = ("tests/test_compile.py", *(f"tests/bench/test_{name}.py" for name in _OF_BENCH))
"""Where tests that name no backend go another way if there is a GPU: by the device that is taken if none is named."""
RACY = ("test_step", "test_global_norm", "test_tensor_norms", "test_act_dropout")
"""Of those, what shares memory between threads."""
LARGEST = "clip + AdamW, one tensor of 2^28"

# ---- build


def read_build(done: Done, scratch: Path) -> Found:
    """The compilers' warnings, and whether it built."""
    warnings = [line.strip() for line in done.output.splitlines() if re.search(r"\bwarning\b", line, re.I)]
    failures = [] if done.status == 0 else [f"the build ended with status {done.status}"]
    return Found({"warnings": warnings}, failures)


def read_env(done: Done, scratch: Path) -> Found:
    """The report of ``python -m fusedtrain env --json``: both GPU backends must be available. Whatever warns may have
    printed before it."""
    report = next(filter(None, map(_report, re.finditer(r"^\{", done.output, re.M))), None)
    if report is None:
        return Found(failures=[f"no report; exit status {done.status}"])
    lacking = {name: report["backends"][name] for name in BACKENDS}
    return Found(report, [f"{name}: {why}" for name, why in lacking.items() if not why.startswith("available")])


def _report(brace: re.Match[str]) -> dict[str, Any] | None:
    try:
        found, _ = json.JSONDecoder().raw_decode(brace.string, brace.start())
    except ValueError:
        return None
    return found if "backends" in found else None


def build(machine: Machine) -> list[Step]:
    """The extension, in place, for the card that is there; then what it says of itself."""
    python = sys.executable
    env = {"FUSEDTRAIN_BUILD": "cuda", "FUSEDTRAIN_CUDA_ARCHS": machine.arch}
    cannot = None if machine.tools.get("nvcc") else "the build finds no nvcc: install the CUDA toolkit or set CUDA_HOME"
    return [
        Step("build", (python, "setup.py", "build_ext", "--inplace"), read_build, env, cannot),
        Step("env", (python, "-m", "fusedtrain", "env", "--json"), read_env),
    ]


# ---- tests


def _pytest(*arguments: str, workers: int = 0) -> tuple[str, ...]:
    parallel = ("-n", str(workers)) if workers > 1 else ()
    # Each name before its test: the log of a process that was killed ends with the one that hung.
    report = ("--junitxml", "{scratch}/junit.xml", "-p", "no:cacheprovider", "-v")
    return (sys.executable, "-m", "pytest", *report, *parallel, *arguments)


def _gpu_files() -> list[str]:
    """The files of tests/gpu: every kernel first, huge tensors last."""
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests/gpu").glob("test_*.py")]
    return sorted(files, key=lambda file: (file == HUGE, file != SMALL, file))


def _beside(name: str, *chosen: str, workers: int = 1, limit: float = 240, resource: str | None = None) -> Step:
    """A step of pytest that runs beside others; its limit allows for their load."""
    command = _pytest(*chosen, workers=workers)
    return Step(name, command, junit.read, ONE_THREAD, limit=limit, workers=workers, resource=resource)


def _share(machine: Machine, of_16: int) -> int:
    """How many workers a step has, of so many where there are 16 cores; one without xdist."""
    if importlib.util.find_spec("xdist") is None:
        return 1
    return -(-of_16 * min(machine.cpus, 16) // 16)


def _gpu_step(file: str, backend: str, machine: Machine) -> Step:
    name, chosen = f"gpu {Path(file).stem.removeprefix('test_')}, {backend}", ("-m", "gpu", "-k", backend, file)
    if file == HUGE:
        roomy = all(gpu["memory_bytes"] >= ROOMY for gpu in machine.gpus[:1])
        return _beside(name, *chosen, workers=int(roomy), resource="memory of the GPU")
    if backend == "triton":
        # What Triton's tests wait for is its compiler. It keeps what it has compiled, for later steps too.
        most, limit = (6, 300) if file == SMALL else (2, 240)
        return _beside(name, *chosen, workers=_share(machine, most), limit=limit)
    return _beside(name, *chosen)


def tests(machine: Machine) -> list[Step]:
    """The tests that need a GPU, a process for each file and backend, as an error of the device is the end of all later
    tests of its process; then the suite with each backend, and what names none but is of the GPU all the same."""
    suite = ("tests", *(f"--ignore={path}" for path in ("tests/gpu", *WITHOUT_A_GPU)))
    others = "not cuda and not triton"
    several = _share(machine, 5)
    return [
        *(_gpu_step(file, backend, machine) for file in _gpu_files() for backend in BACKENDS),
        _beside("gpu tests of no backend", "-k", f"{others} and not cpu and not reference", "tests/gpu"),
        _beside("suite, cuda", *suite, "-k", "cuda", workers=several, limit=300),
        _beside("suite, triton", *suite, "-k", "triton", workers=_share(machine, 8), limit=300),
        _beside("suite, marked gpu", *suite, "-k", others, "-m", "gpu"),
        _beside("suite, changed by a gpu", *CHANGED, "-k", others, workers=several),
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
    """A reduced set under compute-sanitizer; after the tests, which have compiled what Triton would compile under its
    eyes. Without torch's caching allocator every tensor is an allocation of its own, whose end the sanitizer knows."""
    tool = machine.tools.get("compute-sanitizer")
    cannot = None if tool else "compute-sanitizer is not found: it comes with the CUDA toolkit (PATH, or set CUDA_HOME)"
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_LAUNCH_BLOCKING": "1", **ONE_THREAD}
    checks = {
        # torch and Triton ask the driver things that it may refuse. Kernels are what is checked.
        "memcheck": (("--report-api-errors", "no"), ""),
        "racecheck": ((), f" and ({' or '.join(RACY)})"),
    }
    steps = []
    # All of Triton's would take twice the limit.
    dtypes = {"triton": " and not torch.float64 and not torch.float16"}
    for backend in BACKENDS:
        for check, (options, only) in checks.items():
            # Not the compilers that are started meanwhile.
            wrapped = (tool or "compute-sanitizer", "--tool", check, "--target-processes", "application-only")
            chosen = _pytest("-m", "gpu", "-k", f"{backend}{only}{dtypes.get(backend, '')}", SMALL)
            command = (*wrapped, "--print-limit", "20", *options, *chosen)
            steps.append(Step(f"{check}, {backend}", command, read_sanitizer, env, cannot, limit=240, workers=1))
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


def _order(workload: Workload) -> tuple[bool, bool]:
    """What the kernels are built for comes first, should the time be over before the end: the one large tensor and the
    activations that have budgets, then the other budgets."""
    budgeted = workload.name in {budget.workload for budget in BUDGETS}
    return not budgeted, not (workload.suite == "act" or workload.name == LARGEST)


def _providers(workload: Workload) -> list[str]:
    """Ours for GPUs, the baseline, and those that a budget names. More would cost minutes of compiling, and memory that
    the large workloads have not."""
    named = {name for budget in BUDGETS if budget.workload == workload.name for name in budget.providers}
    return [name for name in workload.providers() if name in {CUDA, TRITON, workload.baseline, *named}]


def bench(machine: Machine) -> list[Step]:
    """Every workload in a process of its own, each with the copy bandwidth of its own minute."""
    steps = []
    for workload in sorted(WORKLOADS.values(), key=_order):
        what = ("--device", "cuda", "--workload", workload.name, "--providers", ",".join(_providers(workload)))
        timing = ("--rounds", "6", "--seconds", "0.05", "--limit", "10", "--keep-going")
        command = (sys.executable, "-m", "fusedtrain", "bench", "run", *what, *timing, "--json", "{scratch}/bench.json")
        steps.append(Step(workload.name, command, read_bench, limit=120))
    return steps


SLICES: dict[str, Callable[[Machine], list[Step]]] = {
    "build": build,
    "tests": tests,
    "sanitizer": sanitizer,
    "bench": bench,
}
OF_TESTS = {"tests", "sanitizer"}
"""Slices whose steps are runs of pytest."""


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
