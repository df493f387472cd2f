"""Compiles every rule of csrc/rules for the GPU: each in a kernel of its own, for float and double.

    python scripts/check_cuda_rules.py [ARCHITECTURE ...]      by default 80 90 100 120

Warnings are errors, register spills too. Prints a line for each architecture and exits 0 if all is well, 1 if not, and
2 if there is no nvcc to ask. No GPU and no torch is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "scripts" / "cuda_rules.cu"
ARCHITECTURES = ("80", "90", "100", "120")
FLAGS = ["-std=c++17", "-O3", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra", "-Xptxas", "-v"]


def compile_for(nvcc: str, architecture: str) -> tuple[bool, str]:
    """Compiles for one architecture; returns whether all is well, and what to say about it."""
    with tempfile.TemporaryDirectory() as folder:
        target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        command = [nvcc, *FLAGS, "-I", str(ROOT / "csrc"), target, "-c", str(KERNELS), "-o", os.path.join(folder, "o")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if done.returncode:
        return False, f"sm_{architecture}: does not compile\n{output}"
    kernels = re.findall(r"Compiling entry function '(\w+)'", output)
    spills = re.findall(r"Function properties for (\w+)\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads", output)
    spilling = [name for name, stores, loads in spills if int(stores) or int(loads)]
    if spilling or not kernels:
        return False, f"sm_{architecture}: registers spill in {', '.join(spilling) or 'no kernel at all'}"
    return True, f"sm_{architecture}: {len(kernels)} kernels, no warning, no spill"


def main() -> int:
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc")
    if nvcc is None:
        print("NOT CHECKED: there is no nvcc on PATH, so nothing shows that the rules compile for the GPU")
        return 2
    architectures = sys.argv[1:] or ARCHITECTURES
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = list(pool.map(lambda architecture: compile_for(nvcc, architecture), architectures))
    for _, text in found:
        print(text)
    return 0 if all(well for well, _ in found) else 1


if __name__ == "__main__":
    sys.exit(main())
