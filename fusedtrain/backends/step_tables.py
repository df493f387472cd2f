"""Tables of steps that are repeated: they hold an optimizer's tensors from one step to the next. What every launcher
of such steps builds on."""

from __future__ import annotations

import ctypes
import functools
import importlib
from concurrent.futures import ThreadPoolExecutor
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
    tensor_offset: int | None
    """Of what it looks at within a Python tensor, in bytes; None where that is not known, and tensors are read through
    DLPack."""


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
    whole = hasattr(plan, "tensor_offset") and same_sources(plan, holder, "cpu")
    return Parts(plan, holder, tensor_offset(plan, holder)) if whole and plan.reads_tensors(torch.Tensor) else None


@functools.cache
def tensor_offset(plan: ModuleType, holder: ctypes.CDLL) -> int | None:
    """See csrc/plan/tensor_offset.h; None where anything is not as it is known to be."""
    # In a thread of its own: tracing and modes, which are a thread's, would note these tensors, or hold on to them.
    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(_search, plan, holder).result()
        except (AttributeError, RuntimeError, TypeError):  # all of it is private to torch, and DLPack is not
            return None


def _search(plan: ModuleType, holder: ctypes.CDLL) -> int | None:
    examples = [torch.empty(2, 3), torch.nn.Parameter(torch.empty(4))]
    offset: int | None = plan.tensor_offset(examples)
    torch.utils.swap_tensors(*examples)  # by which the tensors within change places
    held = ctypes.c_void_p(torch.ops.fusedtrain.hold_tensors.default(examples))
    holder.ft_first_word.restype = ctypes.c_size_t
    handed_over = holder.ft_first_word(held)
    holder.ft_release_tensors(held)
    as_known = plan.tensor_offset(examples) == offset and handed_over == examples[0]._cdata
    return offset if as_known else None


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

        self.library = parts.plan.StepLibrary(
            address(parts.holder, "ft_held_unchanged"),
            address(parts.holder, "ft_release_tensors"),
            address(parts.holder, "ft_look"),
            *(address(library, f"ft_{name}_{function}") for function in self.FUNCTIONS),
            tensor_offset=parts.tensor_offset,
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
            *types, groups, rows, state, keys, entries, steps, hold, self.library, self._on_host
        )
