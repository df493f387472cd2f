"""The compiled libraries of the package: loaded by absolute path, never compiled or searched for."""

from __future__ import annotations

import ctypes
import functools
import json
import re
from pathlib import Path
from typing import Any

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


def _recorded(*keys: str) -> Any:
    """What the build has recorded under these keys, one within the other; None if it has nothing there."""
    try:
        found = json.loads((_FOLDER / "_build_info.json").read_text(encoding="utf-8"))
        for key in keys:
            found = found[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


@functools.cache
def architectures() -> tuple[int, ...]:
    """Those that the library of ``"cuda"`` has machine code for, as 90 of sm_90; it has PTX of the newest. Empty if
    that is not known."""
    recorded = _recorded("parts", "_C_cuda", "isa") or ()
    return tuple(sorted(int(found[1]) for name in recorded if (found := re.fullmatch(r"sm_(\d+)", str(name)))))


def lacks_code(built: tuple[int, ...], capability: tuple[int, int]) -> str | None:
    """Why a library with machine code for these architectures and PTX of the newest does not run on a GPU of this
    compute capability, or None if it does. Machine code runs on a GPU of its major version with no smaller minor one,
    PTX on all that are not older."""
    here = 10 * capability[0] + capability[1]
    runs = any(here // 10 == there // 10 and here >= there for there in built)
    if not built or runs or here > max(built):
        return None
    has = ", ".join(f"sm_{there}" for there in built)
    wanted = ";".join(map(str, sorted({*built, here})))
    return (
        f"{_LIBRARIES['cuda']} has no code for this GPU, sm_{here}: it was built for {has} and newer GPUs; build it "
        f"anew on this machine, or with FUSEDTRAIN_CUDA_ARCHS='{wanted}'"
    )


def _other_torch() -> str:
    """Names both versions where the library was built with another torch than this; else nothing."""
    built = _recorded("torch")
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
