"""All operators of the package: schemas, tags and fakes, once. Backends only add implementations.

torch picks the kernels of a namespace by device. CPU and CUDA C++ share one, "fusedtrain"; Triton, which runs on the
same devices, has a second with the same operators.

Mutating operators return nothing; the others return fresh tensors. Every one is safe to call directly: implementations
check shapes, dtypes, layouts and list lengths before their first write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DRAW_RNG_STATE = "draw_rng_state(*, Device device, int site=0) -> Tensor"
"""An RNG state, int64 (2,) = (seed, offset), from the default generator of the device. The site is any number that
tells the draws of a graph apart: AOTAutograd merges equal calls, even of operators that are tagged as random. The
device is passed by keyword, where checkpointing in a compiled region looks for the generator to rewind."""

SCHEMAS: dict[str, str] = {
    # dropout(act(x + bias)) + residual; x (*, D), bias (D,), residual like x. No rng_state needed if threshold is 0.
    "act_dropout": "(Tensor x, Tensor? bias, Tensor? residual, Tensor? rng_state, int threshold, str activation)"
    " -> Tensor",
    "act_dropout_": "(Tensor(a!) x, Tensor? bias, Tensor? residual, Tensor? rng_state, int threshold, str activation)"
    " -> ()",
    # (dx, dbias): saved is x, or y if from_output, or absent if the rule needs neither; dbias (D,) is fp32 (fp64 for
    # fp64 inputs), or empty (0,) unless asked for.
    "act_dropout_grad": "(Tensor dy, Tensor? saved, Tensor? bias, Tensor? rng_state, int threshold, str activation,"
    " bool from_output, bool needs_bias_grad) -> (Tensor, Tensor)",
    # dropout(act(gate) * up), [gate, up] = x + bias; x (*, 2 D), bias (2 D,) -> (*, D)
    "gated_act_dropout": "(Tensor x, Tensor? bias, Tensor? rng_state, int threshold, str activation) -> Tensor",
    "gated_act_dropout_grad": "(Tensor dy, Tensor x, Tensor? bias, Tensor? rng_state, int threshold, str activation,"
    " bool needs_bias_grad) -> (Tensor, Tensor)",
    # (norm, nonfinite): 0-dim, fp32 (fp64 if any tensor is); nonfinite is fp32, 1 if any element is inf or NaN else 0.
    "global_norm": "(Tensor[] tensors, float norm_type) -> (Tensor, Tensor)",
    # The norm of each tensor: (N,), fp32 (fp64 if any tensor is).
    "tensor_norms": "(Tensor[] tensors, float norm_type) -> Tensor",
    # grads *= clip_coefficient(norm, max_norm), where it is below 1.
    "clip_scale_": "(Tensor(a!)[] grads, Tensor norm, float max_norm) -> ()",
    # One step of a rule over a list of tensors.
    #   states: slot-major, states[slot * len(params) + i]; steps: one 0-dim tensor per parameter, incremented here
    #   hyper: fp64 (G, 4 + H), on the CPU or with params: a row per group, rules.LAUNCH_HYPER, then the rule's own
    #   group: the row of each parameter
    #   norm: of the gradients before unscaling, with max_norm (< 0: no clipping); inv_scale, found_inf: 0-dim or (1,)
    #   the step is skipped, everything bitwise unchanged, if found_inf != 0 or (skip_nonfinite and nonfinite != 0)
    #   grad_norm, clip_coef: 0-dim outputs (norm after unscaling; factor applied); skipped_steps: int64 (), += 1
    "optim_step_": "(str rule, Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] states, Tensor(c!)[] steps,"
    " Tensor hyper, int[] group, Tensor? norm, Tensor? nonfinite, Tensor? inv_scale, Tensor? found_inf,"
    " float max_norm, bool skip_nonfinite, Tensor(d!)? grad_norm, Tensor(e!)? clip_coef, Tensor(f!)? skipped_steps)"
    " -> ()",
}


def _check_one_device(op: str, *tensors: Tensor | None) -> None:
    """The dispatcher runs a fake if any tensor is a meta tensor, also for a call that has real ones."""
    devices = {str(x.device) for x in tensors if x is not None}
    if len(devices) > 1:
        raise RuntimeError(f"fusedtrain::{op}: tensors on {', '.join(sorted(devices))}; move them to one device")


def _bias_grad_like(dy: Tensor, width: int, needed: bool) -> Tensor:
    dtype = torch.float64 if dy.dtype == torch.float64 else torch.float32
    return dy.new_empty((width if needed else 0,), dtype=dtype)


def _fake_act_dropout(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, rng_state: Tensor | None, threshold: int, activation: str
) -> Tensor:
    _check_one_device("act_dropout", x, bias, residual, rng_state)
    return torch.empty_like(x)


def _fake_act_dropout_(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, rng_state: Tensor | None, threshold: int, activation: str
) -> None:
    _check_one_device("act_dropout_", x, bias, residual, rng_state)


def _fake_act_dropout_grad(
    dy: Tensor,
    saved: Tensor | None,
    bias: Tensor | None,
    rng_state: Tensor | None,
    threshold: int,
    activation: str,
    from_output: bool,
    needs_bias_grad: bool,
) -> tuple[Tensor, Tensor]:
    _check_one_device("act_dropout_grad", dy, saved, bias, rng_state)
    like = dy if saved is None else saved
    return torch.empty_like(like), _bias_grad_like(dy, dy.shape[-1] if dy.dim() else 1, needs_bias_grad)


def _fake_gated_act_dropout(
    x: Tensor, bias: Tensor | None, rng_state: Tensor | None, threshold: int, activation: str
) -> Tensor:
    _check_one_device("gated_act_dropout", x, bias, rng_state)
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def _fake_gated_act_dropout_grad(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    rng_state: Tensor | None,
    threshold: int,
    activation: str,
    needs_bias_grad: bool,
) -> tuple[Tensor, Tensor]:
    _check_one_device("gated_act_dropout_grad", dy, x, bias, rng_state)
    return torch.empty_like(x), _bias_grad_like(dy, x.shape[-1], needs_bias_grad)


def _empty_norms(tensors: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    return torch.empty(shape, dtype=dtype, device=tensors[0].device if tensors else torch.device("cpu"))


def _fake_global_norm(tensors: list[Tensor], norm_type: float) -> tuple[Tensor, Tensor]:
    _check_one_device("global_norm", *tensors)
    norm = _empty_norms(tensors, ())
    return norm, torch.empty_like(norm, dtype=torch.float32)


def _fake_tensor_norms(tensors: list[Tensor], norm_type: float) -> Tensor:
    _check_one_device("tensor_norms", *tensors)
    return _empty_norms(tensors, (len(tensors),))


def _fake_clip_scale_(grads: list[Tensor], norm: Tensor, max_norm: float) -> None:
    _check_one_device("clip_scale_", *grads, norm)


def _fake_optim_step_(
    rule: str, params: list[Tensor], grads: list[Tensor], states: list[Tensor], steps: list[Tensor], *rest: object
) -> None:
    _check_one_device("optim_step_", *params, *grads, *states)


_FAKES: dict[str, Callable[..., Any]] = {
    "act_dropout": _fake_act_dropout,
    "act_dropout_": _fake_act_dropout_,
    "act_dropout_grad": _fake_act_dropout_grad,
    "gated_act_dropout": _fake_gated_act_dropout,
    "gated_act_dropout_grad": _fake_gated_act_dropout_grad,
    "global_norm": _fake_global_norm,
    "tensor_norms": _fake_tensor_norms,
    "clip_scale_": _fake_clip_scale_,
    "optim_step_": _fake_optim_step_,
}

LIBRARIES: dict[str, torch.library.Library] = {}
"""By namespace: what keeps its operators alive."""


def define(namespace: str) -> torch.library.Library:
    """Defines all operators in a namespace, once; implementations are for a backend to add."""
    library = LIBRARIES.get(namespace)
    if library is None:
        library = LIBRARIES[namespace] = torch.library.Library(namespace, "FRAGMENT")
        for name, schema in SCHEMAS.items():
            library.define(name + schema)
            torch.library.register_fake(f"{namespace}::{name}", _FAKES[name], lib=library)
    return library


NAMESPACES = ("fusedtrain", "fusedtrain_triton")
for _namespace in NAMESPACES:
    define(_namespace)

LIBRARIES["fusedtrain"].define(DRAW_RNG_STATE, tags=(torch.Tag.nondeterministic_seeded,))


@torch.library.impl(LIBRARIES["fusedtrain"], "draw_rng_state", "CompositeExplicitAutograd")
def _draw_rng_state(*, device: torch.device, site: int = 0) -> Tensor:
    return torch.randint(torch.iinfo(torch.int64).max, (2,), device=device)


@torch.library.register_fake("fusedtrain::draw_rng_state", lib=LIBRARIES["fusedtrain"])
def _(*, device: torch.device, site: int = 0) -> Tensor:
    return torch.empty((2,), dtype=torch.int64, device=device)
