"""The Triton backend: ``torch.ops.fusedtrain_triton.*``, written in Python, so that a GPU needs no compiled library.

Triton is imported when the backend is loaded, not before: kernels are in the modules ``triton_*`` beside this one. With
``TRITON_INTERPRET=1`` they are interpreted, on CPU tensors: right, slow, and for tests.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from typing import Any

import torch

from fusedtrain import rules, schemas
from fusedtrain.backends import Backend

NAMESPACE = "fusedtrain_triton"
OLDEST, NEWEST = (3, 6), (3, 9)
"""The versions of Triton that the kernels are tested with."""

_MODULES = {
    "act_dropout": "triton_act",
    "act_dropout_": "triton_act",
    "act_dropout_grad": "triton_act",
    "gated_act_dropout": "triton_gated",
    "gated_act_dropout_grad": "triton_gated",
    "global_norm": "triton_norm",
    "tensor_norms": "triton_tensor_norms",
    "clip_scale_": "triton_scale",
    "optim_step_": "triton_step",
}


def version_refusal(version: str) -> str | None:
    """Why kernels are not run by this version of Triton, or None if they are."""
    found = re.match(r"(\d+)\.(\d+)", version)
    known = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]} are known to work"
    if found is None:
        return f"triton {version} is of an unknown version; {known}"
    if not OLDEST <= (int(found[1]), int(found[2])) <= NEWEST:
        return f"triton {version} is not supported; {known}"
    return None


def _why_not(triton: Any) -> str | None:
    refusal = version_refusal(getattr(triton, "__version__", "without a number"))
    if refusal or triton.knobs.runtime.interpret:
        return refusal
    if not torch.cuda.device_count():  # asks NVML where it can: a process that may yet fork must not start CUDA
        return "no GPU (TRITON_INTERPRET=1 runs it on the CPU, for tests)"
    return None


def _operators() -> dict[str, Callable[..., Any]]:
    found = {}
    for op, module in _MODULES.items():
        found[op] = getattr(importlib.import_module(f"fusedtrain.backends.{module}"), op)
    return found


@functools.cache
def _register(device_type: str) -> dict[str, Any]:
    """Gives the operators their implementations on one type of device; returns them, by name."""
    for op, function in _operators().items():
        schemas.LIBRARIES[NAMESPACE].impl(op, function, device_type.upper())
    return {op: getattr(getattr(torch.ops, NAMESPACE), op).default for op in _MODULES}


def load(name: str) -> Backend:
    """The backend, or one that says `why_not`; it never raises."""
    try:
        triton: Any = importlib.import_module("triton")
        if getattr(triton, "__file__", None) is None:  # a folder of that name
            return Backend(name=name, why_not="triton is not installed")
        why_not = _why_not(triton)
        if why_not:
            return Backend(name=name, why_not=why_not)
        interpreted = bool(triton.knobs.runtime.interpret)
        device_type = "cpu" if interpreted else "cuda"
        ops = _register(device_type)
        launcher = importlib.import_module("fusedtrain.backends.triton_planned").step_launcher(device_type)
    except ModuleNotFoundError as error:
        missing = "triton is not installed" if error.name == "triton" else f"triton does not work here: {error}"
        return Backend(name=name, why_not=missing)
    except Exception as error:  # a damaged or foreign installation fails in many ways; the package still works
        return Backend(name=name, why_not=f"triton does not work here: {error}")
    return Backend(
        name=name,
        why_not=None,
        note=f"triton {triton.__version__}" + (", interpreted on the CPU" if interpreted else ""),
        device_types=frozenset({device_type}),
        dtypes=frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16}),
        rules=frozenset(rules.ACTIVATIONS) | frozenset(rules.UPDATES),
        by_name_only=interpreted,
        step_launcher=launcher,
        **ops,
    )
