"""Compiles the Triton kernels ahead of time, on any machine, and looks at what came out.

    python scripts/check_triton_aot.py [ARCHITECTURE ...] [--only REGEX]      by default 80 90 100 120

The cases are those that the kernels' modules list (`aot_cases`), all of them for the architecture that is tuned for,
and for the others one of each kernel and choice of types, with the first rule. Every kernel of the package must be
among the cases; none may spill registers or use local memory. For each case: registers, bytes of shared memory, and
how many of its accesses to global memory are vectors of 128 bits. For the architecture that is tuned for also what an
element costs in the kernels that training steps live on, which has a budget: of loops beside each other the quickest
counts, as in these kernels the others take what it leaves over.

AMD's gfx9 ones, as gfx942, are compiled for as a torch that is built for AMD would have it, and not beside others.
What they need of registers and memory AMD's compiler says.

Exits 0 if all is well, 1 if not, and 2 if there is no Triton to ask. No GPU and no driver is needed. Registers and
local memory are read off the machine code by the cuobjdump that comes with Triton, accesses off the PTX: to disassemble
takes half as long as to compile. Triton keeps what it compiled in its own cache.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Hashable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import sass  # noqa: E402
from hot_kernels import HOT_TRITON_KERNELS  # noqa: E402

ARCHITECTURES = ("80", "90", "100", "120")
TUNED = "90"
WARP = 32
AMD = "gfx9"
AMD_WARP = 64
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
ACCESS = re.compile(r"\b(?:ld|st)\.global(?:\.\w+)*?(?:\.v(\d))?\.b(\d+)\b")
AMD_RESOURCES = re.compile(
    r"\.group_segment_fixed_size: *(\d+)\n.*?\.private_segment_fixed_size: *(\d+)\n.*?\.vgpr_count: *(\d+)\n", re.DOTALL
)
AMD_ACCESS = re.compile(r"\b(?:global|flat|buffer)_(?:load|store)_(?:\w+?_)?(dword(?:x(\d))?|\w+)\b")
VECTOR_BITS = 128


@dataclass(frozen=True)
class Compiled:
    """What came of a case, or why nothing did."""

    name: str
    architecture: str
    wrong: str = ""
    registers: int = 0
    shared: int = 0
    vectors: int = 0
    accesses: int = 0
    instructions: float = 0  # for an element, in a hot kernel

    def figures(self) -> str:
        found = f"{self.registers:4} registers {self.shared:6} B shared {self.vectors:3}/{self.accesses:<3} vectors"
        return found + f" {self.instructions:6.2f} instructions an element" * (self.instructions > 0)


def modules() -> list[Any]:
    """Those that list cases; imported so that kernels are compiled, not interpreted."""
    names = sorted(path.stem for path in (ROOT / "fusedtrain" / "backends").glob("triton_*.py"))
    found = [importlib.import_module(f"fusedtrain.backends.{name}") for name in names]
    return [module for module in found if hasattr(module, "aot_cases")]


def all_cases() -> list[Any]:
    return [case for module in modules() for case in module.aot_cases()]


def kernels() -> Iterator[str]:
    """The names of all kernels: functions of Triton called ``*_kernel``, as other ones are inlined into them."""
    for path in sorted((ROOT / "fusedtrain" / "backends").glob("triton_*.py")):
        yield from re.findall(r"^def (\w+_kernel)\(", path.read_text("utf-8"), re.MULTILINE)


def kind(case: Any) -> Hashable:
    """What a case has besides its rule: kernel, types of its arguments, other constants."""
    plain = {key: str(value) for key, value in case.constants.items() if not hasattr(value, "arg_names")}
    return case.kernel.fn.__name__, tuple(sorted(case.signature.items())), tuple(sorted(plain.items()))


def chosen(cases: list[Any], architecture: str) -> list[int]:
    """Positions in the list of cases."""
    if architecture == TUNED:
        return list(range(len(cases)))
    firsts: dict[Hashable, int] = {}
    for i, case in enumerate(cases):
        firsts.setdefault(kind(case), i)
    return list(firsts.values())


def disassembled(cubin: bytes, option: str) -> str:
    found = importlib.util.find_spec("triton")
    folders = (found.submodule_search_locations if found else None) or []
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(Path(folders[0]) / "backends/nvidia/bin/cuobjdump"), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def found_by_nvidia(name: str, architecture: str, made: Any) -> Compiled:
    cubin = made.asm["cubin"]
    found = RESOURCES.search(disassembled(cubin, "--dump-resource-usage"))
    if found is None:
        return Compiled(name, architecture, "cuobjdump says something that this script does not understand")
    registers, stack, local = map(int, found.groups())
    wrong = f"registers spill: {stack + local} bytes of local memory for each thread" if stack or local else ""
    widths = [int(count or 1) * int(bits) for count, bits in ACCESS.findall(made.asm["ptx"])]
    vectors, instructions = sum(width >= VECTOR_BITS for width in widths), 0.0
    hot = HOT_TRITON_KERNELS.get(name) if architecture == TUNED else None
    if hot:
        (code,) = sass.functions(disassembled(cubin, "-sass")).values()
        loops = sass.main_loops(code, hot.loads, hot.stores)
        instructions = min((loop.cost.total / loop.elements for loop in loops), default=float("inf"))
        if instructions > hot.instructions:
            wrong = wrong or f"{instructions:.2f} instructions an element, of a budget of {hot.instructions}"
    return Compiled(name, architecture, wrong, registers, made.metadata.shared, vectors, len(widths), instructions)


def found_by_amd(name: str, architecture: str, made: Any) -> Compiled:
    code = made.asm["amdgcn"]
    found = AMD_RESOURCES.search(code)
    if found is None:
        return Compiled(name, architecture, "AMD's compiler says something that this script does not understand")
    shared, scratch, registers = map(int, found.groups())
    wrong = f"registers spill: {scratch} bytes of private memory for each thread" if scratch else ""
    widths = [32 * int(count or 1) if kind.startswith("dword") else 16 for kind, count in AMD_ACCESS.findall(code)]
    vectors = sum(width >= VECTOR_BITS for width in widths)
    return Compiled(name, architecture, wrong, registers, shared, vectors, len(widths))


def compile_case(case: Any, architecture: str) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    amd = architecture.startswith(AMD)
    target = GPUTarget("hip", architecture, AMD_WARP) if amd else GPUTarget("cuda", int(architecture), WARP)
    signature = {name: case.signature.get(name, "constexpr") for name in case.kernel.arg_names}
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=case.constants)
    try:
        made = triton.compile(source, target=target, options=case.options)
    except Exception as error:  # of many kinds, by what is wrong with the kernel
        return Compiled(case.name, architecture, f"does not compile: {type(error).__name__}: {error}")
    return (found_by_amd if amd else found_by_nvidia)(case.name, architecture, made)


_cases: list[Any] = []


def compile_position(task: tuple[int, str]) -> Compiled:
    position, architecture = task
    return compile_case(_cases[position], architecture)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("architectures", nargs="*", metavar="ARCHITECTURE", help="as 90 of sm_90")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases with such a name")
    arguments = parser.parse_args()
    architectures = arguments.architectures or list(ARCHITECTURES)
    amd = all(a.startswith(AMD) for a in architectures)
    if unknown := [a for a in architectures if not (amd or a.isdigit())]:
        print(f"unknown architecture {unknown[0]!r}; name it by its number, as 90 for sm_90, or name gfx9 ones alone")
        return 1
    if importlib.util.find_spec("triton") is None:
        print("NOT CHECKED that the Triton kernels compile: triton is not installed")
        return 2
    os.environ.pop("TRITON_INTERPRET", None)
    import torch
    import triton

    if amd:
        torch.version.hip = torch.version.hip or "compiled for, not built for"
    started = time.monotonic()
    cases = all_cases()
    missing = sorted(set(kernels()) - {case.kernel.fn.__name__ for case in cases})
    for name in missing:
        print(f"{name} is not among the cases: add it to aot_cases() of its module")
    _cases[:] = cases  # before the processes are forked: kernels cannot be sent to them
    tasks = [
        (i, a) for a in architectures for i in chosen(cases, a) if re.search(arguments.only, cases[i].name) is not None
    ]
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gone = HOT_TRITON_KERNELS.keys() - {case.name for case in cases}
    for name in sorted(gone):
        print(f"{name} is no case: its budget, in hot_kernels.py, is of nothing")
    failed = bool(missing or gone)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        for one in pool.map(compile_position, tasks):
            architecture = one.architecture if amd else f"sm_{one.architecture}"
            print(f"{architecture:<7}{one.name:<72}{one.wrong or one.figures()}", flush=True)
            failed |= bool(one.wrong)
    print(f"triton {triton.__version__}: {len(tasks)} compiled in {time.monotonic() - started:.0f} s")
    if not tasks:
        print(f"no case has a name like {arguments.only!r}")
    return int(failed or not tasks)


if __name__ == "__main__":
    sys.exit(main())
