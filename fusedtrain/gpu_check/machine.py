"""What the machine is, asked in processes of their own: this one neither loads the library that is built meanwhile nor
holds memory of the GPU."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from fusedtrain.gpu_check.runner import ROOT

SOURCES = {".py", ".h", ".cuh", ".cpp", ".cu", ".json", ".txt"}
FOR_TESTS = (
    "pytest", "xdist", "hypothesis", "expecttest", "psutil", "rich", "typer", "scipy", "sklearn", "safetensors",
    "matplotlib",
)  # fmt: skip
"""Modules of the extras ``test`` and ``bench``: a file that skips itself for want of one would be overlooked."""
_ASK_TORCH = """
import json, torch
gpus = []
if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        gpus.append({"name": gpu.name, "capability": f"{gpu.major}.{gpu.minor}", "memory_bytes": gpu.total_memory})
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}))
"""
_ASK_NVCC = """
import json, setup_cuda
try:
    print(json.dumps({"path": setup_cuda.find_nvcc()}))
except setup_cuda.CannotBuild:
    print(json.dumps({"path": None}))
"""
_ASK_SETTING = """
import json, sys
from fusedtrain.bench.setting import setting
print(json.dumps(setting(sys.argv[1])))
"""


@dataclass(frozen=True)
class Machine:
    gpus: tuple[dict[str, Any], ...] = ()
    driver: str | None = None
    cpus: int = 1
    tools: dict[str, str | None] = field(default_factory=dict)
    """The path of each tool, None if it is not found."""
    missing: tuple[str, ...] = ()
    """Modules of `FOR_TESTS` that are not installed."""
    cannot: str | None = None
    """Why nothing can be proven here."""

    @property
    def arch(self) -> str:
        """Of the first GPU, as "90"."""
        return str(self.gpus[0]["capability"]).replace(".", "") if self.gpus else ""


def _ask(code: str, *arguments: str) -> tuple[dict[str, Any] | None, str]:
    """The JSON that a piece of Python prints last, or None and what it said instead."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        return json.loads(last), ""
    except ValueError:
        return None, ((done.stderr or done.stdout).strip().splitlines() or ["no output"])[-1]


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def _nvcc() -> str | None:
    """That which the build takes."""
    found, _ = _ask(_ASK_NVCC)
    return found["path"] if found else None


def _tool(name: str) -> str | None:
    """The path of a tool of the CUDA toolkit: of the one that is named, of the PATH, or where toolkits usually lie."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [os.path.join(home, "bin", name)] if home else []
    return next(filter(None, map(shutil.which, [*places, name, f"/usr/local/cuda/bin/{name}"])), None)


def look() -> Machine:
    """Looks for GPUs, as torch sees them, for tools, and for what tests need."""
    found, said = _ask(_ASK_TORCH)
    driver = _driver()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    tools = {"nvcc": _nvcc(), "compute-sanitizer": _tool("compute-sanitizer")}
    missing = tuple(name for name in FOR_TESTS if importlib.util.find_spec(name) is None)
    if found is None:
        return Machine((), driver, cpus, tools, missing, f"torch does not say which GPUs there are: {said}")
    cannot = None
    if found["cuda"] is None:
        cannot = f"torch {found['torch']} is built without CUDA: install a CUDA build of torch"
    elif not found["gpus"]:
        seen = f"the driver is {driver}" if driver else "nvidia-smi finds no driver"
        cannot = f"torch {found['torch']} for CUDA {found['cuda']} sees no GPU ({seen})"
    elif not (ROOT / "tests/gpu").is_dir():
        cannot = f"there are no tests beside the package, in {ROOT}: run it in a clone of the sources"
    return Machine(tuple(found["gpus"]), driver, cpus, tools, missing, cannot)


def setting(command: str) -> dict[str, Any]:
    """Date, commit, versions, machine, build and backends, as every measurement records them."""
    found, said = _ask(_ASK_SETTING, command)
    return found if found is not None else {"command": command, "missing": said}


def fingerprint() -> str:
    """Of all sources that a step depends on: what passed with them need not be repeated. A copy of the tree may have no
    repository to ask for its commit."""
    digest = hashlib.sha256()
    folders = [ROOT / name for name in ("csrc", "fusedtrain", "tests", "scripts")]
    paths = [*ROOT.glob("setup*.py"), *(path for folder in folders for path in folder.rglob("*"))]
    for path in sorted(paths):
        if path.suffix in SOURCES and path.name != "_build_info.json" and path.is_file():
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
