"""The checks of the arguments of activation and dropout in Triton, all made before the first launch."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedtrain import rng, rules
from fusedtrain.backends.triton_checks import check_tensor, refuse


def width_of(x: Tensor) -> int:
    """The number of columns: the last dimension, 1 of a 0-dim tensor."""
    return x.shape[-1] if x.dim() else 1


def contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if x is None else x.contiguous() for x in tensors)


def empty_sums(like: Tensor, width: int) -> Tensor:
    """A bias gradient of this width: of fp64 for fp64, else of fp32."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty((width,), dtype=dtype, device=like.device)


def may_overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the memory of two tensors may overlap: conservatively, by their ranges."""

    def end(x: Tensor) -> int:
        last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        return x.data_ptr() + (last + 1) * x.itemsize

    return bool(a.numel() and b.numel()) and a.data_ptr() < end(b) and b.data_ptr() < end(a)


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _check_like(op: str, name: str, x: Tensor, like_name: str, like: Tensor, same_dtype: bool = False) -> None:
    check_tensor(op, name, x, like.device)
    if x.shape != like.shape:
        refuse(op, f"{name} has shape {tuple(x.shape)}; it must have that of {like_name}, {tuple(like.shape)}")
    if same_dtype and x.dtype != like.dtype:
        refuse(op, f"{name} has dtype {_dtype(x)}; it must have that of {like_name}, {_dtype(like)}")


def _check_bias(op: str, bias: Tensor | None, x: Tensor) -> None:
    if bias is None:
        return
    check_tensor(op, "bias", bias, x.device)
    if bias.shape != (width_of(x),):
        refuse(op, f"bias has shape {tuple(bias.shape)}; it must be ({width_of(x)},), the last dimension of x")


def _check_drop(
    op: str, device: torch.device, rng_state: Tensor | None, threshold: int, activation: str, needs_lanes: bool
) -> None:
    if activation not in rules.ACTIVATIONS:
        refuse(op, f"unknown activation {activation!r}; choose one of {', '.join(rules.ACTIVATIONS)}")
    if not 0 <= threshold <= rng.LEVELS:
        refuse(op, f"threshold is {threshold}; it must be round({rng.LEVELS} p), in [0, {rng.LEVELS}]")
    if rng_state is None:
        if needs_lanes and threshold:
            refuse(
                op,
                f"rng_state is None but threshold is {threshold}; pass an int64 (2,) tensor (seed, offset), or "
                "threshold 0",
            )
        return
    if rng_state.device != device:
        refuse(op, f"rng_state is on {rng_state.device}, not on {device}; draw it on the device of x")
    if rng_state.dtype != torch.int64 or rng_state.shape != (2,):
        refuse(
            op,
            f"rng_state has shape {tuple(rng_state.shape)} and dtype {_dtype(rng_state)}; it must be int64 (2,) = "
            "(seed, offset)",
        )


def check_forward(
    op: str,
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    rng_state: Tensor | None,
    threshold: int,
    activation: str,
    inplace: bool = False,
) -> None:
    """x (*, D), bias (D,), residual like x. With ``inplace`` x is written and its elements must be apart."""
    check_tensor(op, "x", x, x.device)
    _check_bias(op, bias, x)
    if residual is not None:
        _check_like(op, "residual", residual, "x", x)
    for d, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if inplace and stride == 0 and size > 1:
            refuse(
                op,
                f"x has elements that share memory (dimension {d} of shape {tuple(x.shape)} was expanded); clone it "
                "first",
            )
    _check_drop(op, x.device, rng_state, threshold, activation, True)


def check_backward(
    op: str,
    dy: Tensor,
    saved: Tensor | None,
    bias: Tensor | None,
    rng_state: Tensor | None,
    threshold: int,
    activation: str,
    from_output: bool,
) -> None:
    """dy (*, D); ``saved``, like dy, is the input, or the output if ``from_output``, or absent if the rule needs
    neither. If ``from_output`` the mask is taken from the output and the RNG state may be absent."""
    check_tensor(op, "dy", dy, dy.device)
    _check_drop(op, dy.device, rng_state, threshold, activation, not from_output)
    saves = rules.ACTIVATIONS[activation].saves
    if saved is not None:
        _check_like(op, "saved", saved, "dy", dy, same_dtype=True)
    elif saves != "nothing" or from_output:
        refuse(op, f"saved is None; {activation} needs its {'output' if from_output else 'input'}")
    if from_output and saves == "input":
        refuse(op, f"from_output is True, but {activation} has no gradient from its output; save its input")
    _check_bias(op, bias, dy)


def _check_gated(op: str, x: Tensor, bias: Tensor | None) -> None:
    check_tensor(op, "x", x, x.device)
    if x.dim() == 0 or width_of(x) % 2:
        refuse(op, f"x has shape {tuple(x.shape)}; its last dimension must be even: it holds gate and up")
    _check_bias(op, bias, x)


def check_gated_forward(
    op: str, x: Tensor, bias: Tensor | None, rng_state: Tensor | None, threshold: int, activation: str
) -> None:
    """x (*, 2 D), bias (2 D,)."""
    _check_gated(op, x, bias)
    _check_drop(op, x.device, rng_state, threshold, activation, True)


def check_gated_backward(
    op: str, dy: Tensor, x: Tensor, bias: Tensor | None, rng_state: Tensor | None, threshold: int, activation: str
) -> None:
    """dy (*, D), x (*, 2 D)."""
    _check_gated(op, x, bias)
    check_tensor(op, "dy", dy, x.device)
    if dy.shape != (*x.shape[:-1], width_of(x) // 2):
        refuse(
            op,
            f"dy has shape {tuple(dy.shape)}; it must be that of x, {tuple(x.shape)}, with half the columns",
        )
    if dy.dtype != x.dtype:
        refuse(op, f"dy has dtype {_dtype(dy)}; it must have that of x, {_dtype(x)}")
    _check_drop(op, x.device, rng_state, threshold, activation, True)
