"""The compiled backends: ``torch.ops.fusedtrain.*``, whose CPU and CUDA kernels torch picks by device.

The libraries are loaded by absolute path from the package, never compiled or searched for.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fusedtrain import rules, schemas
from fusedtrain.backends import Backend

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
    library = ctypes.CDLL(str(_FOLDER / _LIBRARIES["cpu"]))
    answers = []
    for name in ("ft_cpu_isa", "ft_cpu_isa_error"):
        if not hasattr(library, name):
            return "unknown", f"{_LIBRARIES['cpu']} is of another version of fusedtrain"
        ask = getattr(library, name)
        ask.restype = ctypes.c_char_p
        answers.append(ask().decode())
    return answers[0], answers[1] or None


class StepLauncher:
    """Steps over tables of `fusedtrain._plan`, which hold an optimizer's tensors from one step to the next, with one
    call into the library that takes no list of tensors.

    ``table = launcher.table(...)`` once; then for every step ``table.refresh(param_groups, state)``, which looks at all
    tensors anew and says whether the table still holds, and if so ``launcher.step(table, ...)``.
    """

    def __init__(
        self, plan: ModuleType, name: str, library: ctypes.CDLL, holder: ctypes.CDLL, device_type: str
    ) -> None:
        """
        Args:
            plan: `fusedtrain._plan`.
            name: what the functions of ``library`` that step have in their names: see csrc/plan/library.h.
            holder: the library of ``"cpu"``, which holds tensors of any device.
            device_type: that of the tensors that ``library`` steps, ``"cpu"`` or ``"cuda"``.
        """
        self._plan = plan
        self._on_host = device_type == "cpu"

        def address(of: ctypes.CDLL, function: str) -> int:
            """0 if there is none of this name."""
            return ctypes.cast(getattr(of, function), ctypes.c_void_p).value or 0 if hasattr(of, function) else 0

        functions = ("planned_step", "new_plan", "delete_plan", "stands_aside")
        self._library = plan.StepLibrary(
            address(holder, "ft_held_unchanged"),
            address(holder, "ft_release_tensors"),
            *(address(library, f"ft_{name}_{function}") for function in functions),
        )
        position = getattr(library, f"ft_{name}_update_rule")
        self._rules = {rule: position(rule.encode()) for rule in rules.UPDATES}

    def table(
        self,
        groups: list[dict[str, Any]],
        rows: list[int],
        state: dict[Tensor, Any],
        keys: tuple[str, ...],
        entries: list[dict[str, Any] | None],
        steps: list[Tensor],
    ) -> Any:
        """A ``StepTable``.

        Args:
            groups: the optimizer's param_groups. Those parameters that have a gradient now are stepped.
            rows: the row of hyperparameters of each group.
            state: the optimizer's state.
            keys: the names of the rule's states.
            entries: for each parameter with a gradient, its entry in ``state``, with its states.
            steps: and its count of steps, 0-dim.

        Raises:
            ValueError: a tensor that is not plain dense memory on the device of the first one, of a floating type and
                in the layout of its parameter, or memory that would be written twice.
        """
        types = (torch.Tensor, torch.nn.Parameter)
        hold = torch.ops.fusedtrain.hold_tensors.default
        return self._plan.StepTable(
            *types, groups, rows, state, keys, entries, steps, hold, self._library, self._on_host
        )

    def step(
        self,
        table: Any,
        rule: str,
        hyper: Tensor,
        norm_type: float,
        inv_scale: Tensor | None,
        found_inf: Tensor | None,
        max_norm: float,
        skip_nonfinite: bool,
        outputs: Tensor | None,
        skipped_steps: Tensor | None,
    ) -> bool:
        """The norm of the gradients, unless ``norm_type`` is 0, and the step. ``outputs`` (3,) receives grad_norm,
        clip_coef and nonfinite; the other arguments are those of the schema of ``optim_step_``. False, and nothing was
        done, if the stream is being captured."""
        return table.step(  # type: ignore[no-any-return]
            self._rules[rule],
            hyper,
            norm_type,
            inv_scale,
            found_inf,
            max_norm,
            skip_nonfinite,
            outputs,
            skipped_steps,
        )


def step_launcher(name: str, library: ctypes.CDLL, device_type: str) -> StepLauncher | None:
    """That of a library, for tensors of a device type; see `StepLauncher`. None if `_plan` or the library of ``"cpu"``,
    which holds its tensors, is not built, or not from the same sources, or this torch gives it no access to its
    tensors. Steps go by lists then."""
    try:
        plan = importlib.import_module("fusedtrain._plan")
    except ImportError:
        return None
    if load_library("cpu") is not None:
        return None
    holder = ctypes.CDLL(str(_FOLDER / _LIBRARIES["cpu"]))
    for of, function in ((library, f"ft_{name}_step_abi"), (holder, "ft_cpu_step_abi")):
        if not hasattr(of, function):
            return None
        ask = getattr(of, function)
        ask.restype = ctypes.c_int64
        if ask() != plan.STEP_ABI:
            return None
    return StepLauncher(plan, name, library, holder, device_type) if plan.reads_tensors(torch.Tensor) else None


def load(name: str) -> Backend:
    why_not = load_library(name)
    note = ""
    if why_not is None and name == "cpu":
        note, why_not = cpu_isa()
    if why_not:
        return Backend(name=name, why_not=why_not)
    launcher = step_launcher(name, ctypes.CDLL(str(_FOLDER / _LIBRARIES[name])), name)
    ops = {op: getattr(torch.ops.fusedtrain, op).default for op in schemas.SCHEMAS}
    return Backend(
        name=name,
        why_not=None,
        note=note,
        device_types=frozenset({name}),
        dtypes=frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16}),
        rules=frozenset(rules.ACTIVATIONS) | frozenset(rules.UPDATES),
        step_launcher=launcher,
        **ops,
    )
