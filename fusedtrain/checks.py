"""The checks of `fusedtrain.functional` and `fusedtrain.nn`: every error of theirs is composed here, before anything is
drawn or written. Each names the call, the value, the reason and the remedy."""

from __future__ import annotations

import difflib
import numbers
from typing import NoReturn

import torch
from torch import Tensor

from fusedtrain import rules


def refuse(kind: type[Exception], call: str, what: str, why: str, remedy: str) -> NoReturn:
    raise kind(f"{call}: {what}: {why}. {remedy}.")


def check_activation(call: str, activation: str) -> None:
    """Raises ValueError unless ``activation`` names a row of `rules.ACTIVATIONS`."""
    if isinstance(activation, str) and activation in rules.ACTIVATIONS:
        return
    nearest = difflib.get_close_matches(str(activation).lower(), rules.ACTIVATIONS, n=1, cutoff=0.5)
    hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
    names = ", ".join(rules.ACTIVATIONS)
    refuse(ValueError, call, f"activation={activation!r}", "no such activation", f"{hint}Choose one of {names}")


def check_probability(call: str, p: float) -> None:
    """Raises TypeError unless ``p`` is a real number and ValueError unless it is in [0, 1]."""
    remedy = "Pass the share of elements to drop, as p=0.1"
    if isinstance(p, bool) or not isinstance(p, numbers.Real):
        refuse(TypeError, call, f"p={p!r}", f"a probability is a real number, not {type(p).__name__}", remedy)
    if not 0 <= p <= 1:  # also true of NaN
        refuse(ValueError, call, f"p={p!r}", "a probability lies in [0, 1]", remedy)


def check_input(call: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        refuse(TypeError, call, f"x={x!r}", "not a tensor", "Pass a floating-point tensor")
    if not x.is_floating_point():
        refuse(TypeError, call, f"x of {x.dtype}", "only floating-point tensors are supported", "Cast x, as x.float()")
    if x.layout != torch.strided or x.is_nested:
        kind = "a nested tensor" if x.is_nested else f"x of layout {x.layout}"
        refuse(TypeError, call, kind, "only dense strided tensors are supported", "Pass a dense tensor")


def check_like(call: str, name: str, t: Tensor, x: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(t, Tensor):
        refuse(TypeError, call, f"{name}={t!r}", "not a tensor", f"Pass a tensor of shape {tuple(shape)} or None")
    if not t.is_floating_point():
        refuse(TypeError, call, f"{name} of {t.dtype}", "only floating-point tensors are supported", f"Cast {name}")
    if t.shape != shape:
        what = f"{name} of shape {tuple(t.shape)}"
        why = f"it must be {tuple(shape)} for x of shape {tuple(x.shape)}"
        refuse(ValueError, call, what, why, f"Reshape or expand {name}")
    if t.device != x.device:
        refuse(ValueError, call, f"{name} on {t.device}", f"x is on {x.device}", f"Move it: {name}.to(x.device)")


def check_bias(call: str, bias: Tensor | None, x: Tensor) -> None:
    if bias is None:
        return
    if x.dim() == 0:
        refuse(ValueError, call, "x of shape ()", "it has no last dimension for a bias", "Pass bias=None")
    check_like(call, "bias", bias, x, x.shape[-1:])


def check_random(call: str, x: Tensor, generator: torch.Generator | None, rng_state: Tensor | None) -> None:
    if rng_state is not None:
        if not isinstance(rng_state, Tensor) or rng_state.dtype != torch.int64 or rng_state.shape != (2,):
            shown = f"{rng_state.dtype} {tuple(rng_state.shape)}" if isinstance(rng_state, Tensor) else repr(rng_state)
            remedy = "Pass torch.tensor([seed, offset], device=x.device)"
            refuse(ValueError, call, f"rng_state={shown}", "it must be an int64 tensor of shape (2,)", remedy)
        if rng_state.device != x.device:
            what, why = f"rng_state on {rng_state.device}", f"x is on {x.device}"
            refuse(ValueError, call, what, why, "Move it: rng_state.to(x.device)")
        if generator is not None:
            refuse(ValueError, call, "generator= and rng_state=", "a state is drawn or given, not both", "Pass one")
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            refuse(TypeError, call, f"generator={generator!r}", "not a torch.Generator", "Pass one, or None")
        if generator.device.type != x.device.type:
            what, why = f"generator of {generator.device}", f"x is on {x.device}"
            refuse(ValueError, call, what, why, "Make one by torch.Generator(x.device)")


def shares_places(x: Tensor) -> bool:
    """Whether several elements of ``x`` are one place in memory, as in an expanded tensor. Under a compiler only what
    strides of 0 tell."""
    dims = [(stride, size) for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]
    if any(stride == 0 for stride, _ in dims):
        return True
    if torch.compiler.is_compiling() or x.is_contiguous() or x.numel() == 0:
        return False
    extent = 0
    for stride, size in sorted(dims):
        if stride <= extent:
            break
        extent += stride * (size - 1)
    else:
        return False
    # Dimensions that interleave: a stride within the reach of smaller ones may still meet none of their elements.
    places = torch.zeros(1, dtype=torch.int64, device="cpu")
    for stride, size in dims:
        places = (places[:, None] + torch.arange(size, dtype=torch.int64, device="cpu") * stride).flatten()
    return places.unique().numel() < places.numel()


def check_inplace(call: str, x: Tensor) -> None:
    """Raises RuntimeError where autograd would refuse the write only after it."""
    if not torch.compiler.is_compiling() and x.is_inference() and not torch.is_inference_mode_enabled():
        why = "x is an inference tensor, which autograd does not let change outside of inference mode"
        refuse(RuntimeError, call, "inplace=True", why, "Pass x.clone() or inplace=False")
    if shares_places(x):
        what = f"inplace=True, x of shape {tuple(x.shape)} and strides {tuple(x.stride())}"
        why = "several elements share one place in memory, as in an expanded tensor"
        refuse(RuntimeError, call, what, why, "Pass x.clone() or inplace=False")
    # Under a compiler the write is torch's own `copy_`, which refuses leaves itself.
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        base = x._base if x._is_view() else x
        if base is not None and base.is_leaf and base.requires_grad:
            why = "x is a leaf that requires grad, or a view of one"
            refuse(RuntimeError, call, "inplace=True", why, "Pass inplace=False, or call it under torch.no_grad()")
