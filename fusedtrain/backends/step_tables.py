"""Tables of steps that are repeated: they hold an optimizer's tensors from one step to the next. What every launcher
of such steps builds on."""

from __future__ import annotations

import ctypes
import importlib
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedtrain.backends import libraries


class Parts(NamedTuple):
    """What tables are made with."""

    plan: ModuleType
    """`fusedtrain._plan`."""
    holder: ctypes.CDLL
    """The library of ``"cpu"``, which holds tensors of any device, and looks at them."""
    payload: int | None
    """Where tensors of Python keep what it looks at, in bytes; None where that is not known, and tables look by
    themselves."""


def same_sources(plan: ModuleType, library: ctypes.CDLL, name: str) -> bool:
    """Whether a library was built from the sources of `_plan`; ``name``: what its functions have in their names."""
    ask = getattr(library, f"ft_{name}_step_abi", None)
    if ask is None:
        return False
    ask.restype = ctypes.c_int64
    return bool(ask() == plan.STEP_ABI)


def parts() -> Parts | None:
    """None if `_plan` or the library of ``"cpu"`` is not built, or not from the same sources, or this torch gives them
    no access to its tensors. Steps go by lists then."""
    try:
        plan = importlib.import_module("fusedtrain._plan")
    except ImportError:
        return None
    if libraries.load_library("cpu") is not None:
        return None
    holder = libraries.functions("cpu")
    whole = hasattr(plan, "payload") and same_sources(plan, holder, "cpu")
    return Parts(plan, holder, payload(plan)) if whole and plan.reads_tensors(torch.Tensor) else None


def payload(plan: ModuleType) -> int | None:
    """See csrc/plan/payload.h. A place counts only if another tensor is there after the two were exchanged."""
    examples = [torch.empty(2, 3, device="cpu"), torch.nn.Parameter(torch.empty(4, device="cpu"))]
    place = plan.payload(examples)
    swapped = [torch.empty(n, device="cpu") for n in (1, 2)]
    torch.utils.swap_tensors(*swapped)
    return place if plan.payload(swapped) == place else None


class TableMaker:
    """Makes the tables of a launcher.

    ``table = launcher.table(...)`` once; then for every step ``table.refresh(param_groups, state)``, which looks at all
    tensors anew and says whether the table still holds, and if so ``launcher.step(table, ...)``.
    """

    FUNCTIONS = ("planned_step", "new_plan", "delete_plan", "stands_aside")

    def __init__(self, parts: Parts, device_type: str, library: ctypes.CDLL | None = None, name: str = "") -> None:
        """
        Args:
            device_type: that of the tensors that are stepped, ``"cpu"`` or ``"cuda"``.
            library, name: of a compiled launcher, the library that steps, and what its functions have in their names:
                see csrc/plan/library.h.
        """
        self._plan = parts.plan
        self._on_host = device_type == "cpu"

        def address(of: ctypes.CDLL | None, function: str) -> int:
            """0 if there is none of this name."""
            return ctypes.cast(getattr(of, function), ctypes.c_void_p).value or 0 if hasattr(of, function) else 0

        self._library = parts.plan.StepLibrary(
            address(parts.holder, "ft_held_unchanged"),
            address(parts.holder, "ft_release_tensors"),
            address(parts.holder, "ft_look"),
            *(address(library, f"ft_{name}_{function}") for function in self.FUNCTIONS),
            payload=parts.payload,
        )

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
