"""The checks of the arguments of the norm and the step in Triton, all made before the first write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from fusedtrain import layout, rules

FLOATS = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
COUNTERS = frozenset({torch.float32, torch.float64, torch.int64})


def refuse(op: str, why: str) -> NoReturn:
    raise RuntimeError(f"fusedtrain.{op}: {why}")


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _is_freed(x: Tensor) -> bool:
    """Whether there is no memory where its elements should be: an offset into nothing is no null pointer."""
    return x.data_ptr() == x.storage_offset() * x.itemsize and x.numel() > 0


def _check_memory(op: str, name: str, x: Tensor) -> None:
    if _is_freed(x):
        refuse(op, f"{name} has no memory: its storage was freed, as by resize_(0); allocate it again")


def check_tensor(op: str, name: str, x: Tensor, device: torch.device) -> None:
    """Raises unless ``x`` is a dense floating tensor, with gaps at most, on the device."""
    if x.device != device:
        refuse(op, f"{name} is on {x.device}, not on {device}; move it to the device of the other arguments")
    if x.layout != torch.strided:
        refuse(op, f"{name} is sparse ({x.layout}); make it dense first, as with .to_dense()")
    if x.dtype not in FLOATS:
        refuse(op, f"{name} has dtype {_dtype(x)}; it must be float32, float64, float16 or bfloat16")
    _check_memory(op, name, x)


def _check_list(op: str, name: str, xs: Sequence[Tensor], device: torch.device) -> None:
    for i, x in enumerate(xs):
        if x.device != device or x.layout != torch.strided or x.dtype not in FLOATS or _is_freed(x):
            check_tensor(op, f"{name}[{i}]", x, device)


def check_scalar(op: str, name: str, x: Tensor | None, device: torch.device) -> None:
    if x is None:
        return
    check_tensor(op, name, x, device)
    if x.numel() != 1:
        refuse(op, f"{name} has shape {_shape(x)}; it must have one element")


def check_measured(op: str, tensors: Sequence[Tensor], norm_type: float) -> None:
    """The arguments of `global_norm` and `tensor_norms`."""
    if not norm_type > 0:
        refuse(op, f"norm_type is {norm_type}; it must be > 0, or inf")
    if tensors:
        _check_list(op, "tensors", tensors, tensors[0].device)


class Written:
    """Memory that a call writes."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, int, str, int]] = []

    def add(self, name: str, i: int, x: Tensor) -> None:
        begin = x.data_ptr()
        if bytes_ := x.numel() * x.itemsize:
            self._pieces.append((begin, begin + bytes_, name, i))

    def check(self, op: str) -> None:
        """Raises if any two pieces share memory."""
        end, name, i = 0, "", 0
        for begin, piece_end, piece_name, piece_i in sorted(self._pieces):
            if begin < end:
                refuse(
                    op,
                    f"{name}[{i}] and {piece_name}[{piece_i}] share memory, and both would be written; pass each "
                    "tensor once, and no views of one another",
                )
            end, name, i = piece_end, piece_name, piece_i


def check_scaled(op: str, grads: Sequence[Tensor], norm: Tensor, max_norm: float) -> None:
    """The arguments of `clip_scale_`."""
    if not max_norm >= 0:
        refuse(op, f"max_norm is {max_norm}; it must be >= 0")
    check_scalar(op, "norm", norm, grads[0].device if grads else norm.device)
    if not grads:
        return
    _check_list(op, "grads", grads, grads[0].device)
    written = Written()
    for i, g in enumerate(grads):
        lies = layout.of(g)
        if lies == "overlap":
            refuse(op, f"grads[{i}] has elements that share memory, as after expand(); pass a clone")
        if lies == "dense":
            written.add("grads", i, g)
    written.check(op)


def _check_hyper(op: str, rule: str, hyper: Tensor, device: torch.device) -> None:
    columns = len(rules.LAUNCH_HYPER) + len(rules.UPDATES[rule].hyper)
    here = hyper.device.type == "cpu" or hyper.device == device
    plain = hyper.dtype == torch.float64 and hyper.dim() == 2 and hyper.is_contiguous()
    if not (here and plain and hyper.shape[1] == columns):
        refuse(
            op,
            f"hyper has shape {_shape(hyper)} and dtype {_dtype(hyper)}; for {rule} it must be a contiguous float64 "
            f"(groups, {columns}) on the CPU or on {device}",
        )
    _check_memory(op, "hyper", hyper)


def _check_like(op: str, name: str, xs: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    """Of a list as long as that of the parameters, or a multiple of it: same shapes and strides."""
    n = len(params)
    for i, x in enumerate(xs):
        p = params[i % n]
        if x.shape != p.shape:
            refuse(op, f"{name}[{i}] has shape {_shape(x)}; it must have that of params[{i % n}], {_shape(p)}")
        if not layout.same(x, p):
            refuse(
                op,
                f"{name}[{i}] has other strides than params[{i % n}], both of shape {_shape(p)}; copy it with "
                "torch.empty_like(param).copy_(...)",
            )


def _check_steps(op: str, steps: Sequence[Tensor], device: torch.device) -> None:
    for i, x in enumerate(steps):
        if x.device != device:
            refuse(op, f"steps[{i}] is on {x.device}, not on {device}; move it to the device of the parameters")
        if x.dtype not in COUNTERS or x.numel() != 1:
            refuse(
                op,
                f"steps[{i}] has shape {_shape(x)} and dtype {_dtype(x)}; it must be one element of float32, float64 "
                "or int64",
            )
        _check_memory(op, f"steps[{i}]", x)


def check_max_norm(op: str, max_norm: float) -> None:
    if math.isnan(max_norm):
        refuse(op, "max_norm is NaN; it must be >= 0, or negative for no clipping")


def check_launch(
    op: str,
    rule: str,
    hyper: Tensor,
    device: torch.device,
    scalars: Mapping[str, Tensor | None],
    skipped_steps: Tensor | None,
) -> None:
    """The arguments of a step that are no lists."""
    _check_hyper(op, rule, hyper, device)
    for name, scalar in scalars.items():
        check_scalar(op, name, scalar, device)
    if skipped_steps is not None and (
        skipped_steps.device != device or skipped_steps.dtype != torch.int64 or skipped_steps.numel() != 1
    ):
        refuse(
            op,
            f"skipped_steps has shape {_shape(skipped_steps)} and dtype {_dtype(skipped_steps)}; it must be one int64 "
            f"on {device}",
        )
    if skipped_steps is not None:
        _check_memory(op, "skipped_steps", skipped_steps)


def check_step(
    op: str,
    rule: str,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Tensor],
    steps: Sequence[Tensor],
    hyper: Tensor,
    group: Sequence[int],
    norm: Tensor | None,
    nonfinite: Tensor | None,
    inv_scale: Tensor | None,
    found_inf: Tensor | None,
    max_norm: float,
    skip_nonfinite: bool,
    grad_norm: Tensor | None,
    clip_coef: Tensor | None,
    skipped_steps: Tensor | None,
) -> None:
    """The arguments of `optim_step_`."""
    if rule not in rules.UPDATES:
        refuse(op, f"unknown rule {rule!r}; choose one of {', '.join(rules.UPDATES)}")
    n = len(params)
    lengths: list[tuple[str, int, int]] = [
        ("grads", len(grads), n),
        ("states", len(states), n * len(rules.UPDATES[rule].slots)),
        ("steps", len(steps), n),
        ("group", len(group), n),
    ]
    for name, length, expected in lengths:
        if length != expected:
            refuse(op, f"{name} has {length} entries; it must have {expected}")
    check_max_norm(op, max_norm)
    if not n:
        return
    device = params[0].device
    scalars = {
        "norm": norm,
        "nonfinite": nonfinite,
        "inv_scale": inv_scale,
        "found_inf": found_inf,
        "grad_norm": grad_norm,
        "clip_coef": clip_coef,
    }
    check_launch(op, rule, hyper, device, scalars, skipped_steps)
    if max_norm >= 0 and norm is None:
        refuse(op, f"max_norm is {max_norm:g} but norm is None; pass that of global_norm")
    if skip_nonfinite and nonfinite is None:
        refuse(op, "skip_nonfinite is True but nonfinite is None")
    for name, xs in (("params", params), ("grads", grads), ("states", states)):
        _check_list(op, name, xs, device)
    for i, p in enumerate(params):
        if layout.of(p) != "dense":
            refuse(
                op,
                f"params[{i}] of shape {_shape(p)} is not dense in memory: it has gaps between its elements, or "
                "elements that share memory; pass a contiguous copy and copy the result back",
            )
    _check_like(op, "grads", grads, params)
    _check_like(op, "states", states, params)
    _check_steps(op, steps, device)
    for i, row in enumerate(group):
        if not 0 <= row < hyper.shape[0]:
            refuse(op, f"group[{i}] is {row}, but hyper has {hyper.shape[0]} rows")
    written = Written()
    for name, xs in (("params", params), ("states", states), ("steps", steps)):
        for i, x in enumerate(xs):
            written.add(name, i, x)
    written.check(op)
