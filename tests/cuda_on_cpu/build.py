"""Builds the CUDA library for the CPU: the same kernels, launchers and bindings, compiled by g++ against an emulator.

    python tests/cuda_on_cpu/build.py [address]        prints the path of the library

What was built stays in build/cuda_on_cpu, under a name made of everything that went into it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import torch
from torch.utils.cpp_extension import include_paths

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
OUT = ROOT / "build" / "cuda_on_cpu"

FLAGS = [
    "-std=c++20",
    "-fPIC",
    "-pthread",
    "-fno-math-errno",
    "-ffp-contract=fast",
    "-Wno-unknown-pragmas",
    "-Wno-psabi",
]
STABLE = ["-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
INCLUDES = [f"-I{HERE / 'include'}", f"-I{HERE}", f"-I{CSRC}"]
OPTIMISED = ["-O1", "-g1"]
SANITIZERS = {
    "none": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-DEMU_ADDRESS_SANITIZER"],
    "thread": ["-fsanitize=thread", "-DEMU_THREAD_SANITIZER"],
}


class CannotBuild(Exception):
    """Why the emulated library cannot be built here."""


def compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX") or "g++")
    if shutil.which(command[0]) is None:
        raise CannotBuild(f"no C++ compiler: {command[0]} is not on PATH")
    return command


def kernels(csrc: Path = CSRC) -> list[Path]:
    return sorted((csrc / "cuda").glob("*.cu"))


def bindings() -> list[Path]:
    """All that the CUDA library is bound with but what is about the device itself, which library.cpp stands in for."""
    bound = [p for p in sorted((CSRC / "bind").glob("cuda_*.cpp")) if p.name != "cuda_device.cpp"]
    return [*sorted((CSRC / "args").glob("*.cpp")), *bound, HERE / "library.cpp"]


def emulator() -> list[Path]:
    return [HERE / "emulator.cpp", HERE / "runtime.cpp"]


def fingerprint(*extra: str) -> str:
    """Of every source and header that may go into a build, and of what builds it."""
    digest = hashlib.sha256(repr((FLAGS, STABLE, OPTIMISED, SANITIZERS, torch.__version__, extra)).encode())
    for folder in (CSRC, HERE):
        for path in sorted(p for p in folder.rglob("*") if p.suffix in {".h", ".cuh", ".cu", ".cpp"}):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compile_one(source: Path, target: Path, flags: list[str]) -> None:
    language = ["-x", "c++"] if source.suffix == ".cu" else []
    command = [*compiler(), *flags, "-c", *language, str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotBuild(f"{source.name} does not compile: {shlex.join(command)}\n{done.stderr[-4000:]}")


def compile_all(sources: list[Path], folder: Path, flags: list[str], jobs: int) -> list[Path]:
    targets = [folder / f"{source.parent.name}_{source.name}.o" for source in sources]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda pair: compile_one(*pair, flags), zip(sources, targets, strict=True)))
    return targets


def library(sanitizer: str = "none", jobs: int = 2) -> Path:
    """The path of the emulated library, built if it has not been.

    Raises:
        CannotBuild: no compiler, or it does not compile.
    """
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"_C_emulated_{sanitizer}_{fingerprint()}.so"
    with filelock.FileLock(OUT / "lock"):
        if path.exists():
            return path
        for old in OUT.glob(f"_C_emulated_{sanitizer}_*.so"):
            old.unlink()
        folder = OUT / f"objects_{sanitizer}"
        folder.mkdir(exist_ok=True)
        flags = [*FLAGS, *OPTIMISED, *SANITIZERS[sanitizer], *INCLUDES]
        torch_flags = [*STABLE, *(f"-isystem{include}" for include in include_paths())]
        objects = compile_all([*kernels(), *bindings(), *emulator()], folder, flags + torch_flags, jobs)
        aside = path.with_suffix(".part")
        command = [*compiler(), "-shared", *SANITIZERS[sanitizer], *map(str, objects), "-o", str(aside), "-pthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotBuild(f"the emulated library does not link: {done.stderr[-4000:]}")
        aside.replace(path)
    return path


if __name__ == "__main__":
    print(library(*sys.argv[1:]))
