"""The compiled backends: ``torch.ops.fusedtrain.*``, whose CPU and CUDA kernels torch picks by device."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from fusedtrain import rules, schemas
from fusedtrain.backends import Backend, libraries
from fusedtrain.backends.step_tables import Parts, TableMaker, parts, same_sources


def _raise_typed(error: RuntimeError) -> NoReturn:
    """A library says by the text alone that memory has run out: exceptions of torch's classes are none of the stable
    ABI."""
    if "CUDA out of memory" in str(error) and not isinstance(error, torch.OutOfMemoryError):
        raise torch.OutOfMemoryError(str(error)) from None
    raise error


def telling(op: Callable[..., Any]) -> Callable[..., Any]:
    """The operator, with torch.OutOfMemoryError for memory that has run out. What a compiled graph calls is the
    operator itself, which raises RuntimeError with the same text."""

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*args)
        try:
            return op(*args)
        except RuntimeError as error:
            _raise_typed(error)

    return call


def on_gpu(device: torch.device) -> str | None:
    """Why the library of ``"cuda"`` does not run on this GPU, or None. Asked only for tensors that are there, or would
    be: it starts CUDA."""
    if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():  # of a fake tensor, say
        return None
    return libraries.lacks_code(libraries.architectures(), torch.cuda.get_device_capability(device))


class StepLauncher(TableMaker):
    """Steps over a table with one call into the library, which takes no list of tensors."""

    def __init__(self, parts: Parts, name: str, library: ctypes.CDLL, device_type: str) -> None:
        """See `TableMaker`."""
        super().__init__(parts, device_type, library, name)
        position = getattr(library, f"ft_{name}_update_rule")
        self._rules = {rule: position(rule.encode()) for rule in rules.UPDATES}

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
        scalars = (hyper, norm_type, inv_scale, found_inf, max_norm, skip_nonfinite, outputs, skipped_steps)
        try:
            return table.step(self._rules[rule], *scalars)  # type: ignore[no-any-return]
        except RuntimeError as error:
            _raise_typed(error)


def step_launcher(name: str, library: ctypes.CDLL, device_type: str) -> StepLauncher | None:
    """That of a library, for tensors of a device type. None if there are no tables here (`step_tables.parts`), or the
    library is not of the same sources."""
    found = parts()
    if found is None or not same_sources(found.plan, library, name):
        return None
    return StepLauncher(found, name, library, device_type)


def load(name: str) -> Backend:
    why_not = libraries.load_library(name)
    note = ""
    if why_not is None and name == "cpu":
        note, why_not = libraries.cpu_isa()
    if why_not:
        return Backend(name=name, why_not=why_not)
    ops = {op: getattr(torch.ops.fusedtrain, op).default for op in schemas.SCHEMAS}
    if name == "cuda":
        ops = {op: telling(call) for op, call in ops.items()}
    return Backend(
        name=name,
        why_not=None,
        note=note,
        device_types=frozenset({name}),
        dtypes=frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16}),
        rules=frozenset(rules.ACTIVATIONS) | frozenset(rules.UPDATES),
        on_device=on_gpu if name == "cuda" else None,
        step_launcher=step_launcher(name, libraries.functions(name), name),
        **ops,
    )
