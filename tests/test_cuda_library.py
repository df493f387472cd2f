"""The library for CUDA, where it is built: it loads, has a kernel of every operator, and machine code of every
architecture that it was built for. Needs a torch for CUDA, but no GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import fusedtrain

LIBRARY = Path(fusedtrain.__file__).parent / "_C_cuda.so"

pytestmark = pytest.mark.skipif(
    not LIBRARY.exists(), reason="_C_cuda.so is not built here: python -m fusedtrain env tells why"
)


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_loads_with_every_symbol_left_for_its_first_use() -> None:
    assert (
        run(f"import os, torch, ctypes; ctypes.CDLL({str(LIBRARY)!r}, mode=os.RTLD_LAZY); print('loaded')")
        == "loaded\n"
    )


def test_it_loads_with_every_symbol_bound_at_once() -> None:
    assert (
        run(f"import os, torch, ctypes; ctypes.CDLL({str(LIBRARY)!r}, mode=os.RTLD_NOW); print('loaded')") == "loaded\n"
    )


def test_every_operator_has_a_kernel_for_cuda() -> None:
    """The import has loaded it."""
    program = """
import torch
from fusedtrain import schemas
known = torch._C._dispatch_has_kernel_for_dispatch_key
print(*(op for op in schemas.SCHEMAS if known("fusedtrain::" + op, "CUDA")))
print(*schemas.SCHEMAS)
"""
    on_cuda, all_of_them = (line.split() for line in run(program).splitlines())
    print("kernels for CUDA:", *on_cuda)
    assert on_cuda == all_of_them


def test_it_holds_machine_code_for_every_architecture_that_it_was_built_for() -> None:
    bundled = find_spec("triton")
    beside = [Path(folder) / "backends/nvidia/bin" for folder in (bundled and bundled.submodule_search_locations) or []]
    tool = shutil.which("cuobjdump", path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, beside)]))
    if tool is None:
        pytest.skip("no cuobjdump (pip install triton brings one): the machine code in the library cannot be listed")
    listed = subprocess.run([tool, "--list-elf", "--list-ptx", LIBRARY], capture_output=True, text=True, check=True)
    info = json.loads((LIBRARY.parent / "_build_info.json").read_text())["parts"]["_C_cuda"]
    assert set(re.findall(r"\.(sm_\d+)\.cubin", listed.stdout)) == set(info["isa"])
    newest = max(info["isa"], key=lambda name: int(name[3:]))
    assert set(re.findall(r"\.(sm_\d+)\.ptx", listed.stdout)) == {newest}


def test_the_runtime_of_cuda_stays_within_it() -> None:
    """Torch has loaded a runtime of its own, of another version perhaps: neither may call the other's functions."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed (binutils): the symbols cannot be listed")
    listed = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1] for line in listed.splitlines()}
    assert not {name for name in exported if name.startswith(("cuda", "__cuda"))}
