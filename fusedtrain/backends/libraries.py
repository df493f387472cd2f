"""The compiled libraries of the package: loaded by absolute path, never compiled or searched for."""

from __future__ import annotations

import ctypes
import functools
import json
from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent.parent
_LIBRARIES = {"cpu": "_C.so", "cuda": "_C_cuda.so"}


@functools.cache
def load_library(name: str) -> str | None:
    """Loads the library of ``"cpu"`` or ``"cuda"``; returns None, or the reason why it could not."""
    path = _FOLDER / _LIBRARIES[name]
    if not path.exists():
        return f"{path.name} is not built (`python -m fusedtrain env` tells why)"
    try:
        torch.ops.load_library(path)
    except Exception as error:  # a library of another torch or machine fails in many ways; the package still works
        return f"{path.name} does not load: {error.__cause__ or error}{_other_torch()}"
    return None


def load_libraries() -> None:
    """Loads what was built, so that operators run that no call of this package led to: those of an exported program,
    or called as ``torch.ops.fusedtrain.*``. Why one does not load is told where a backend is asked for."""
    for name in _LIBRARIES:
        load_library(name)


def functions(name: str) -> ctypes.CDLL:
    """The C functions of a library that is loaded."""
    return ctypes.CDLL(str(_FOLDER / _LIBRARIES[name]))


def _other_torch() -> str:
    """Names both versions where the library was built with another torch than this; else nothing."""
    try:
        built = json.loads((_FOLDER / "_build_info.json").read_text(encoding="utf-8"))["torch"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if not built or built == torch.__version__:
        return ""
    return f" (it was built with torch {built}, and this is torch {torch.__version__}: build it anew)"


def cpu_isa() -> tuple[str, str | None]:
    """The instruction set that the CPU kernels use, and those they could, as ``"avx2 (this CPU has baseline, avx2)"``;
    and why they cannot run, or None. Needs the library of ``"cpu"`` loaded."""
    library = functions("cpu")
    answers = []
    for name in ("ft_cpu_isa", "ft_cpu_isa_error"):
        if not hasattr(library, name):
            return "unknown", f"{_LIBRARIES['cpu']} is of another version of fusedtrain"
        ask = getattr(library, name)
        ask.restype = ctypes.c_char_p
        answers.append(ask().decode())
    return answers[0], answers[1] or None
