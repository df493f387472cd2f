"""Compiles every CUDA kernel, as the build does, and holds what came out against what is expected.

    python scripts/check_cuda.py [ARCHITECTURE ...] [--write]      by default 80 90 100 120

For each file of csrc/cuda and each architecture: no warning, no register spill, no local memory; each kernel's
registers and shared memory, and for the kernels that a training step lives on the instructions of their main loops, are
those of tests/expected/cuda_kernels.json, and these loops are within the budget and begin with their loads. --write
makes that file anew, for review.

Exits 0 if all is well, 1 if not, and 2 if there is no nvcc to ask. No GPU and no torch is needed. Machine code is read
by the cuobjdump that comes with the toolkit, or with triton. What was compiled is kept in build/cuda_check, by content.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import sass  # noqa: E402
from hot_kernels import BUDGETS, HOT_KERNELS, LATEST_LOAD, HotKernel  # noqa: E402

import setup_cuda  # noqa: E402

EXPECTED = ROOT / "tests" / "expected" / "cuda_kernels.json"
KEPT = ROOT / "build" / "cuda_check"
CHECK_FLAGS = ["-Werror", "all-warnings", "-Xptxas", "-v", "-I", str(ROOT / "csrc")]
KERNEL = re.compile(
    r"Compiling entry function '(\w+)' for '\w+'\n.*\n"
    r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
    r".*Used (\d+) registers(?:.*?(\d+) bytes smem)?"
)


@dataclass
class Compiled:
    """One file for one architecture."""

    source: str
    architecture: str
    wrong: list[str] = field(default_factory=list)
    kernels: dict[str, list[int]] = field(default_factory=dict)  # registers, bytes of shared memory
    loops: dict[str, dict[str, float]] = field(default_factory=dict)


def find_disassembler() -> str | None:
    beside = importlib.util.find_spec("triton")
    folders = [Path(folder) / "backends/nvidia/bin" for folder in (beside and beside.submodule_search_locations) or []]
    return shutil.which("cuobjdump", path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)]))


def readable(names: list[str]) -> list[str]:
    """Names of kernels as the sources have them, short: no namespaces, no parameters."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    short = []
    for name in done.stdout.splitlines():
        name = re.sub(r"\b_GLOBAL__N__\w+::|\(anonymous namespace\)::|\bft::|^void ", "", name)
        name = name[: closing(name)]
        short.append(re.sub(r"__nv_bfloat16\b", "bf16", re.sub(r"__half\b", "half", name)).replace("> >", ">>"))
    return short


def closing(name: str) -> int:
    """Where the parameters begin: at the first parenthesis outside all angle brackets."""
    depth = 0
    for at, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return at
    return len(name)


def content_key(source: Path, architecture: str, release: str, disassembler: str | None, with_host: bool) -> str:
    """Names what compiling gives: it depends on nothing else."""
    used = [source, ROOT / "setup_cuda.py", *(ROOT / "scripts").glob("*.py")]
    used += sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cuh"))
    digest = hashlib.sha256(repr((architecture, release, disassembler is not None, with_host)).encode())
    for path in used:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]


def compile_for(
    toolkit: setup_cuda.Toolkit, disassembler: str | None, source: Path, architecture: str, with_host: bool
) -> Compiled:
    kept = KEPT / f"{content_key(source, architecture, toolkit.version, disassembler, with_host)}.json"
    if kept.exists():
        return Compiled(**json.loads(kept.read_text(encoding="utf-8")))
    found = Compiled(source.name, architecture)
    with tempfile.TemporaryDirectory() as folder:
        compiled = os.path.join(folder, "kernels.o")
        command = [toolkit.nvcc, *setup_cuda.TORCH_NVCC_FLAGS, *setup_cuda.NVCC_FLAGS, *CHECK_FLAGS]
        target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        done = subprocess.run(
            [*command, target, "-c" if with_host else "-cubin", str(source), "-o", compiled],
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        if done.returncode:
            found.wrong.append(f"does not compile\n{output}")
            return found
        listed = KERNEL.findall(output)
        names = dict(zip([row[0] for row in listed], readable([row[0] for row in listed]), strict=True))
        for mangled, stack, stores, loads, registers, shared in listed:
            if int(stores) or int(loads):
                found.wrong.append(f"{names[mangled]}: registers spill, {stores} bytes stored and {loads} loaded")
            elif int(stack):
                found.wrong.append(f"{names[mangled]}: {stack} bytes of local memory")
            found.kernels[names[mangled]] = [int(registers), int(shared or 0)]
        if len(found.kernels) != len(listed) or len(listed) != output.count("Compiling entry function"):
            found.wrong.append("ptxas says something that this script does not understand, or two kernels share a name")
        if disassembler:
            mangled = {name: key for key, name in names.items()}
            for hot in HOT_KERNELS:
                if hot.source == source.name:
                    measure(hot, found, disassembler, compiled, mangled.get(hot.kernel))
    KEPT.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(vars(found)), encoding="utf-8")
    return found


def measure(hot: HotKernel, found: Compiled, disassembler: str, compiled: str, mangled: str | None) -> None:
    """Counts the instructions of a hot kernel, and says what is wrong with it."""
    if mangled is None:
        found.wrong.append(f"{hot.title}: there is no kernel {hot.kernel}")
        return
    command = [disassembler, "-sass", "-fun", mangled, compiled]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = sass.functions(listing)[mangled]
    local = sum(instruction.is_local for instruction in code)
    loop = sass.main_loop(code, hot.loads, hot.stores, hot.doubles)
    if local:
        found.wrong.append(f"{hot.title}: {local} accesses to local memory")
    if loop is None:
        found.wrong.append(f"{hot.title}: no loop moves {hot.loads} + {hot.stores} bytes per element by vectors alone")
        return
    if not loop.cost.wide_loads or (hot.stores and not loop.cost.wide_stores):
        found.wrong.append(f"{hot.title}: no loads or no stores of 128 bits")
    total = loop.cost.total / loop.elements
    most = BUDGETS.get(found.architecture, float("inf")) * (hot.loads + hot.stores) + hot.allowance
    if total > most:
        found.wrong.append(f"{hot.title}: {total:.2f} instructions per element, of a budget of {most:.2f}")
    if loop.cost.until_loaded > LATEST_LOAD * loop.cost.total:
        late = f"{loop.cost.until_loaded} of {loop.cost.total} instructions"
        found.wrong.append(f"{hot.title}: the last load comes after {late}: nothing is loaded ahead")
    found.loops[hot.title] = {
        "elements": loop.elements,
        "128-bit loads": loop.cost.wide_loads,
        "until all is loaded": loop.cost.until_loaded,
        "128-bit stores": loop.cost.wide_stores,
        "instructions": round(total, 3),
        "integer": round(loop.cost.integer / loop.elements, 3),
    }


def compile_all(toolkit: setup_cuda.Toolkit, disassembler: str | None, architectures: list[str]) -> list[Compiled]:
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        jobs = [
            # What is for the host is the same for all architectures, and half of the work.
            pool.submit(compile_for, toolkit, disassembler, source, architecture, architecture == architectures[0])
            for architecture in architectures
            for source in sources
        ]
        return [job.result() for job in jobs]


def table(release: str, every: list[Compiled]) -> dict[str, Any]:
    """Everything that was found, in an order that does not depend on that of compiling."""
    kernels: dict[str, dict[str, list[int]]] = {}
    loops: dict[str, dict[str, float]] = {}
    for one in sorted(every, key=lambda one: (one.source, int(one.architecture))):
        for name, use in one.kernels.items():
            kernels.setdefault(f"{one.source}: {name}", {})[f"sm_{one.architecture}"] = use
        for title, counts in one.loops.items():
            loops[f"{title}, sm_{one.architecture}"] = counts
    return {"nvcc": release, "registers, shared memory": dict(sorted(kernels.items())), "main loops": loops}


def as_text(found: dict[str, Any]) -> str:
    """JSON with a line for each entry, so that a change of one shows as one line."""
    sections = []
    for name, value in found.items():
        if isinstance(value, dict):
            entries = ",\n".join(f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in value.items())
            sections.append(f" {json.dumps(name)}: {{\n{entries}\n }}")
        else:
            sections.append(f" {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def differences(found: dict[str, Any], expected: dict[str, Any], architectures: list[str], loops: bool) -> list[str]:
    """What is not as expected, of these architectures."""
    wanted = {f"sm_{a}" for a in architectures}

    def rows(whole: dict[str, Any]) -> dict[str, Any]:
        by_architecture = {
            f"{name}, {a}": use
            for name, uses in whole["registers, shared memory"].items()
            for a, use in uses.items()
            if a in wanted
        }
        costs = {key: row for key, row in whole["main loops"].items() if key.rpartition(", ")[2] in wanted}
        return {**by_architecture, **costs} if loops else by_architecture

    now, before = rows(found), rows(expected)
    return [
        f"{key}: {now.get(key, 'gone')}, expected {before.get(key, 'nothing of that name')}"
        for key in sorted({*now, *before})
        if now.get(key) != before.get(key)
    ]


def report(every: list[Compiled], architectures: list[str]) -> None:
    for one in every:
        most = max((registers for registers, _ in one.kernels.values()), default=0)
        state = "; ".join(one.wrong) or f"{len(one.kernels)} kernels, no warning, no spill, at most {most} registers"
        print(f"sm_{one.architecture} {one.source}: {state}")
    titles = sorted({title for one in every for title in one.loops})
    if titles:
        heads = "".join(f"{'sm_' + a:>16}" for a in architectures)
        print(f"\n{'instructions (integer) per element':<44}{heads}")
    for title in titles:
        by_architecture = {one.architecture: one.loops[title] for one in every if title in one.loops}
        cells = [by_architecture.get(a) for a in architectures]
        text = "".join(f"{c['instructions']:>9.1f} ({c['integer']:.1f})".rjust(16) if c else " " * 16 for c in cells)
        print(f"{title:<44}{text}")


def main() -> int:
    write = "--write" in sys.argv[1:]
    architectures = [a for a in sys.argv[1:] if a != "--write"] or list(setup_cuda.ARCHITECTURES)
    if write and architectures != list(setup_cuda.ARCHITECTURES):
        print(f"--write goes with all architectures: {', '.join(setup_cuda.ARCHITECTURES)}")
        return 1
    try:
        toolkit = setup_cuda.find_toolkit()
    except setup_cuda.CannotBuild as error:
        print(f"NOT CHECKED that the kernels compile for GPUs: {error}")
        return 2
    disassembler = find_disassembler()
    if disassembler is None:
        print("NOT CHECKED what the main loops cost: there is no cuobjdump (pip install triton brings one)")
        if write:
            return 1
    every = compile_all(toolkit, disassembler, architectures)
    report(every, architectures)
    found = table(toolkit.version, every)
    failed = any(one.wrong for one in every)
    if write and not failed:
        EXPECTED.parent.mkdir(exist_ok=True)
        EXPECTED.write_text(as_text(found), encoding="utf-8")
        print(f"\nwrote {EXPECTED.relative_to(ROOT)}")
    elif not EXPECTED.exists():
        print(f"\n{EXPECTED.relative_to(ROOT)} is not there to compare with: make cuda-check CUDA_CHECK_ARGS=--write")
        failed = True
    elif not failed:
        expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
        if expected["nvcc"] != found["nvcc"]:
            print(
                f"\nNOT COMPARED: this is the nvcc of CUDA {found['nvcc']}; what is expected is of {expected['nvcc']}"
            )
            return 0
        changed = differences(found, expected, architectures, loops=disassembler is not None)
        for line in changed:
            print(f"\nCHANGED {line}")
        if changed:
            print(
                f"\nIf that is meant, make cuda-check CUDA_CHECK_ARGS=--write and commit {EXPECTED.relative_to(ROOT)}"
            )
        failed = bool(changed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
