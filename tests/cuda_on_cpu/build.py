"""Builds the CUDA library for the CPU: the same kernels, launchers and bindings, compiled by g++ against an emulator.

    python tests/cuda_on_cpu/build.py [act|norm|step|plan [none|address|thread]]       prints the path of what it built

By default that is the library of operators, for pytest; else a program without torch that runs the kernels of a part,
for sanitizers.
Objects stay in build/cuda_on_cpu under names made of what they were compiled from, so that a change builds no more than
it touches.
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

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
OUT = ROOT / "build" / "cuda_on_cpu"

FLAGS = ["-std=c++20", "-fPIC", "-pthread", "-O1", "-g1", "-fno-math-errno", "-ffp-contract=fast"]
FLAGS += ["-Wno-unknown-pragmas", "-Wno-psabi"]


def _has_fma() -> bool:
    try:
        return " fma " in Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False


# As a GPU: else sums of products are rounded once more. The second is what the first takes to have any effect at -O1.
FLAGS += ["-mfma", "-fexpensive-optimizations"] if _has_fma() else []
STABLE = ["-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
SANITIZERS = {
    "none": [],
    "address": ["-Og", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-DEMU_ADDRESS_SANITIZER"],
    "thread": ["-fsanitize=thread", "-DEMU_THREAD_SANITIZER"],
}


class CannotBuild(Exception):
    """Why it cannot be built here."""


def compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX") or "g++")
    if shutil.which(command[0]) is None:
        raise CannotBuild(f"no C++ compiler: {command[0]} is not on PATH")
    return command


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotBuild(f"{shlex.join(command)}\n{done.stderr[-4000:]}")
    return done.stdout


def compiled(source: Path, flags: list[str]) -> Path:
    """The object of a source, compiled unless there is one of the same preprocessed text and flags."""
    command = [*compiler(), *flags, *(["-x", "c++"] if source.suffix == ".cu" else [])]
    text = run([*command, "-E", "-P", str(source)])
    # Where headers lie is in the text: another tree that differs in one of them shares the objects without it.
    told = [flag for flag in flags if not flag.startswith("-I")]
    digest = hashlib.sha256(repr(told).encode() + text.encode()).hexdigest()[:20]
    target = OUT / f"{source.stem}_{digest}.o"
    if not target.exists():
        aside = target.with_suffix(f".{os.getpid()}.part")
        run([*command, "-c", str(source), "-o", str(aside)])
        aside.replace(target)
    return target


def torch_libraries() -> list[str]:
    from torch.utils.cpp_extension import library_paths

    return [*(f"-L{folder}" for folder in library_paths()), "-Wl,--no-as-needed", "-ltorch_cpu"]


def linked(kind: str, sources: list[Path], sanitizer: str, csrc: Path, extra: list[str]) -> Path:
    """Compiles the sources and links them into a ``"library"`` or else a program."""
    flags = [*FLAGS, f"-I{HERE / 'include'}", f"-I{HERE}", f"-I{csrc}", *extra]
    sanitized = [*flags, *SANITIZERS[sanitizer]]
    # The scheduler of the emulator is not for the thread sanitizer to see: it is told what orders what.
    scheduler = [f for f in sanitized if f != "-fsanitize=thread"]
    OUT.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(OUT / "lock"):
        jobs = [(source, scheduler if source.name == "emulator.cpp" else sanitized) for source in sources]
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda job: compiled(*job), jobs))
        digest = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:20]
        path = OUT / f"{kind}_{sanitizer}_{digest}{'.so' if kind == 'library' else ''}"
        if not path.exists():
            aside = path.with_name(path.name + ".part")
            shared, libraries = (["-shared"], torch_libraries()) if kind == "library" else ([], [])
            command = [*compiler(), *SANITIZERS[sanitizer], *shared, *map(str, objects), *libraries]
            run([*command, "-o", str(aside), "-pthread"])
            aside.replace(path)
    return path


def kernels(csrc: Path) -> list[Path]:
    return sorted((csrc / "cuda").glob("*.cu"))


def emulator() -> list[Path]:
    return [HERE / "emulator.cpp", HERE / "runtime.cpp"]


def library(sanitizer: str = "none") -> Path:
    """The operators on CPU tensors.

    Raises:
        CannotBuild: no compiler, or it does not compile.
    """
    from torch.utils.cpp_extension import include_paths

    # All that the CUDA library is bound with but what is about the device itself, which library.cpp stands in for.
    bindings = [p for p in sorted((CSRC / "bind").glob("cuda_*.cpp")) if p.name != "cuda_device.cpp"]
    sources = [*sorted((CSRC / "args").glob("*.cpp")), *bindings, HERE / "library.cpp"]
    extra = [*STABLE, *(f"-isystem{include}" for include in include_paths())]
    return linked("library", [*kernels(CSRC), *emulator(), *sources], sanitizer, CSRC, extra)


PARTS = {
    "act": (
        "act_dropout.cu",
        "act_dropout_grad.cu",
        "act_workspace.cu",
        "gated_act_dropout.cu",
        "gated_act_dropout_grad.cu",
    ),
    "norm": ("global_norm.cu", "clip_scale.cu", "upload.cu"),
    "step": ("optim_step.cu", "upload.cu"),
    "plan": ("device_plan.cu", "global_norm.cu", "optim_step.cu", "upload.cu"),
}
"""The kernels of each driver."""


def driver(part: str, sanitizer: str = "none", csrc: Path = CSRC) -> Path:
    """A program that runs the kernels of one part of ``csrc``.

    Raises:
        CannotBuild: no compiler, or it does not compile.
    """
    sources = [*(csrc / "cuda" / name for name in PARTS[part]), *emulator()]
    sources += [HERE / "driver" / "main.cpp", HERE / "driver" / f"{part}_cases.cpp"]
    return linked(f"driver_{part}", sources, sanitizer, csrc, [])


if __name__ == "__main__":
    print(driver(*sys.argv[1:]) if len(sys.argv) > 1 else library())
