"""What runs here and why the rest does not: the report of ``python -m fusedtrain env``."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import fusedtrain
from fusedtrain import dispatch, rules, schemas
from fusedtrain.backends import Backend
from fusedtrain.backends.libraries import cpu_isa, load_library

PACKAGE = Path(__file__).resolve().parent
_SETTINGS = ("FUSEDTRAIN_", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET")


def build_info() -> dict[str, Any]:
    """``_build_info.json`` as the build wrote it, or ``{"missing": reason}``."""
    path = PACKAGE / "_build_info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"missing": "no build has been run on this source tree (make build, or pip install .)"}
    except (OSError, ValueError) as error:
        return {"missing": f"{path.name} is not readable: {error}"}
    return info if isinstance(info, dict) else {"missing": f"{path.name} is not a JSON object"}


def versions() -> dict[str, str | None]:
    def installed(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "fusedtrain": fusedtrain.__version__,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "triton": installed("triton"),
        "nvcc": _last_line("nvcc", "--version"),
    }


def _last_line(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines and done.returncode == 0 else None


def machine() -> dict[str, Any]:
    """What a measurement on this machine depends on."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            gpus.append(
                {"name": gpu.name, "capability": f"{gpu.major}.{gpu.minor}", "memory_bytes": int(gpu.total_memory)}
            )
    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": affinity,
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "gpus": gpus,
        "settings": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SETTINGS)},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def libraries() -> dict[str, dict[str, Any]]:
    """For each native part: ``built``, ``loads``, and the ``reason`` if it does not."""
    info = build_info()
    cpu = _library("_C", info, load_library("cpu"))
    if cpu["loads"]:
        used, error = cpu_isa()
        cpu["isa_used"] = error or used
    return {
        "_C": cpu,
        "_plan": _library("_plan", info, _import_plan()),
        "_C_cuda": _library("_C_cuda", info, load_library("cuda")),
    }


def _library(name: str, info: dict[str, Any], load_error: str | None) -> dict[str, Any]:
    part = info.get("parts", {}).get(name, {})
    if load_error is None:
        return {"loads": True, "flags": part.get("flags"), "isa": part.get("isa", [])}
    if any(PACKAGE.glob(f"{name}.*")):
        return {"loads": False, "reason": load_error}
    reason = info.get("missing") or part.get("reason") or "its file is not in the package, though a build recorded it"
    return {"loads": False, "reason": f"not built: {reason}"}


def _import_plan() -> str | None:
    try:
        importlib.import_module("fusedtrain._plan")
    except Exception as error:  # a file for another Python or machine fails in many ways
        return f"_plan does not import: {error}"
    return None


@functools.cache
def backend_states() -> dict[str, str]:
    """`dispatch.available()`, with what the build recorded in the place of "is not built"."""
    states = dispatch.available()
    for name, part in (("cpu", "_C"), ("cuda", "_C_cuda")):
        library = libraries()[part]
        if not library["loads"]:
            states[name] = f"{part}: {library['reason']}"
    return states


def operators() -> dict[str, dict[str, str]]:
    """For each operator and backend: ``"available"``, or the exact reason why not."""
    fields = {field.name for field in dataclasses.fields(Backend)}
    ours = [op for op in schemas.SCHEMAS if op in fields]
    return {op: {name: _operator(op, dispatch.load(name)) for name in dispatch.ORDER} for op in ours}


def _operator(op: str, backend: Backend) -> str:
    state = backend_states()[backend.name]
    if not state.startswith("available"):
        return state
    if getattr(backend, op) is None:
        return f"the {backend.name} backend has no kernel for {op}"
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(backend.name)
    if key and not torch._C._dispatch_has_kernel_for_dispatch_key(f"fusedtrain::{op}", key):
        return f"the library of the {backend.name} backend has no kernel for {op}: it is of another version"
    wanted = set(rules.UPDATES) if op == "optim_step_" else set(rules.ACTIVATIONS) if "act" in op else set()
    lacking = sorted(wanted - backend.rules)
    return f"available, without {', '.join(lacking)}" if lacking else "available"


def report() -> dict[str, Any]:
    return {
        "versions": versions(),
        "machine": machine(),
        "build": build_info(),
        "libraries": libraries(),
        "backends": backend_states(),
        "operators": operators(),
    }


def as_json() -> str:
    """The whole report, for a bug report or next to measured figures."""
    return json.dumps(report(), indent=1)


def as_text() -> str:
    """The report for people: what was built, what runs here, and a numbered reason for each thing that does not."""
    found = report()
    lines = [f"fusedtrain {found['versions'].pop('fusedtrain')} in {PACKAGE}", ""]
    lines += [f"{name:<12} {value or 'none'}" for name, value in found["versions"].items()]
    here = found["machine"]
    lines += [
        f"{'cpu':<12} {here['cpu']}, {here['cpus']} usable, {here['torch_threads']} threads, {here['cpu_capability']}",
        *(f"{'gpu':<12} {gpu['name']}, sm_{gpu['capability'].replace('.', '')}" for gpu in here["gpus"]),
        *(f"{name} = {value}" for name, value in here["settings"].items()),
        "",
        *_build_lines(found),
        "",
        *(f"backend {name:<12} {state}" for name, state in found["backends"].items()),
        "",
        *_operator_table(found["operators"]),
    ]
    return "\n".join(lines)


def _build_lines(found: dict[str, Any]) -> list[str]:
    build = found["build"]
    if "missing" in build:
        lines = [f"build        {build['missing']}"]
    else:
        lines = [
            f"build        torch {build.get('torch') or 'none'}, Python {build.get('python')}, "
            f"{build.get('compiler_version') or 'no compiler'}, FUSEDTRAIN_BUILD={build.get('mode')}"
        ]
    for name, library in found["libraries"].items():
        state = "loaded" if library["loads"] else library["reason"]
        if library.get("isa"):
            state += f", with kernels for {', '.join(library['isa'])}"
        if "isa_used" in library:
            state += f"; uses {library['isa_used']}"
        lines.append(f"{name:<12} {state}")
    return lines


def _operator_table(table: dict[str, dict[str, str]]) -> list[str]:
    reasons: list[str] = []

    def cell(state: str) -> str:
        if state == "available":
            return "yes"
        if state not in reasons:
            reasons.append(state)
        return ("yes" if state.startswith("available") else "no") + f" [{reasons.index(state) + 1}]"

    rows = [["operator", *dispatch.ORDER]]
    rows += [[op, *(cell(state) for state in states.values())] for op, states in table.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, *(f"[{number}] {reason}" for number, reason in enumerate(reasons, 1))]
