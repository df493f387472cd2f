"""The libraries ask the system for nothing but what every supported torch and Linux gives them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fusedtrain

PACKAGE = Path(fusedtrain.__file__).parent
DATA = Path(__file__).parent / "data"
# Versioned symbols of libc, libm, libstdc++ and libgcc, and what the linker itself adds.
SYSTEM = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$")
LINKER = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
# libstdc++ again, where torch's own libraries define it too and the version is lost; but nothing made of torch's types.
STANDARD = re.compile(r"^_Z(T[VIST])?N?K?S[tabdios]")
OF_TORCH = re.compile(r"3c10|5torch|2at")
# The C API of CPython, which _plan is bound to.
PYTHON = re.compile(r"^_?Py[A-Z_]")


def undefined(library: Path) -> set[str]:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed (binutils): the undefined symbols cannot be listed")
    listed = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in listed.stdout.splitlines()}


def strangers(symbols: set[str], allowed: set[str]) -> set[str]:
    """The symbols that neither the system nor the linker gives and that are not `allowed` either."""

    def system(name: str) -> bool:
        return bool(SYSTEM.search(name) or (STANDARD.match(name) and not OF_TORCH.search(name)))

    return {name for name in symbols if not system(name)} - LINKER - allowed


def find(pattern: str) -> Path:
    found = sorted(PACKAGE.glob(pattern))
    if not found:
        pytest.skip(f"{pattern} is not built here: python -m fusedtrain env tells why")
    return found[0]


def shims(name: str = "torch_2_11_shims.txt") -> set[str]:
    return {line for line in (DATA / name).read_text().splitlines() if not line.startswith("#")}


def test_the_operators_need_only_the_stable_abi_of_torch_2_11() -> None:
    symbols = undefined(find("_C.so"))
    assert "aoti_torch_library_init_impl" in symbols or "torch_library_impl" in symbols
    assert not strangers(symbols, shims())


def test_the_operators_for_cuda_need_only_the_stable_abi_of_torch_2_11() -> None:
    symbols = undefined(find("_C_cuda.so"))
    assert "aoti_torch_get_current_cuda_stream" in symbols
    runtime = {name for name in symbols if "@libcudart.so." in name}  # none where it is linked statically
    assert not strangers(symbols, shims() | shims("torch_2_11_cuda_shims.txt") | runtime)


def test_the_planner_needs_no_torch() -> None:
    symbols = undefined(find("_plan*.so"))
    python = {name for name in symbols if PYTHON.match(name)}
    assert python
    assert not strangers(symbols, python)


def test_a_symbol_of_a_newer_torch_or_of_its_cpp_is_noticed() -> None:
    newer = {
        "torch_library_def_with_tags",  # a shim of 2.12
        "_ZN3c106detail14torchCheckFailEPKcS2_jRKSs",  # C++ of c10
        "_ZNSt6vectorIN3c106SymIntESaIS1_EED1Ev",  # a standard container of a type of c10
        "PyErr_SetString",
    }
    system = {"memcpy@GLIBC_2.14", "_ZSt9terminatev@GLIBCXX_3.4", "_ZSt28__throw_bad_array_new_lengthv"}
    ours = {"__gmon_start__", "torch_get_num_threads"}
    assert strangers(newer | system | ours, shims()) == newer
