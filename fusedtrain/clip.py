"""Clipping by global norm and by value, and the norm itself.

The norm is exact: no finite gradient overflows or underflows it, whatever its dtype (torch squares in the gradient's
own range). It is fp32, or fp64 if any gradient is, 0-dim, on the device of the first gradient, and never waited for.
"""

from __future__ import annotations

import math
import numbers
import types
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fusedtrain import dispatch, distributed
from fusedtrain.distributed import Shards

Split = dict[Shards | None, list[Tensor]]
"""Local tensors by how the tensors they belong to are sharded."""
_CPU = torch.device("cpu")


def check_norm_type(call: str, norm_type: object) -> float:
    """The order of a norm as a float: a number > 0, or inf.

    Raises:
        TypeError: not a number. ValueError: not > 0.
    """
    if norm_type == "inf":
        return math.inf
    if isinstance(norm_type, bool) or not isinstance(norm_type, numbers.Real):
        raise TypeError(f"{call}: norm_type must be a number > 0 or inf, not {norm_type!r}")
    order = float(norm_type)
    if not order > 0:
        raise ValueError(f"{call}: norm_type must be > 0 or inf, not {norm_type!r}")
    return order


def check_bound(call: str, name: str, value: object) -> float:
    """A bound of clipping as a float: a number >= 0; inf is no bound, 0 leaves zeros.

    Raises:
        TypeError: not a number. ValueError: negative or NaN.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and value.dtype != torch.bool and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{call}: {name} must be a number >= 0, not {value!r}")
    bound = float(value)
    if not bound >= 0:
        raise ValueError(f"{call}: {name} must be >= 0, not {value!r}: a negative one would turn every gradient around")
    return bound


def check_tensor(call: str, what: str, x: Tensor) -> None:
    """Raises TypeError unless ``x`` is a dense real floating tensor."""
    if x.layout != torch.strided:
        raise TypeError(f"{call}: {what} is sparse ({x.layout}); make it dense first, as with .to_dense()")
    if not x.is_floating_point():
        raise TypeError(f"{call}: {what} is {x.dtype}; only real floating tensors have a norm here")


def total_norm(
    call: str, split: Split, norm_type: float, want: str | None = None, home: torch.device = _CPU
) -> tuple[Tensor, Tensor]:
    """``(norm, nonfinite)`` of all tensors of all ranks that hold shards of them: 0-dim, on the device of the first
    tensor, on ``home`` if there is none; ``nonfinite`` is fp32, 1 if any element is inf or NaN, else 0.

    Every rank of a mesh must pass the same keys in the same order, if need be with an empty list.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    double = False
    for shards, tensors in split.items():
        here = []
        by_device = _by_device(tensors)
        for device, xs in by_device.items():
            dtypes = frozenset({x.dtype for x in xs})
            double |= torch.float64 in dtypes
            backend = dispatch.resolve(call, device, dtypes, want=want)
            here.append(backend.global_norm(xs, norm_type))  # type: ignore[misc]
        if shards is not None:
            meeting = next(iter(by_device), torch.device(shards.mesh.device_type))
            norm, nonfinite = _combine(call, here, norm_type, meeting, want)
            rows = distributed.gather(torch.stack([norm, nonfinite.double()]), shards)  # (ranks, 2)
            here = [(rows[:, 0], rows[:, 1])]
        parts += here
    if not parts:
        return _zero(home), _zero(home)
    if len(parts) == 1 and parts[0][0].dim() == 0:
        return parts[0]
    norm, nonfinite = _combine(call, parts, norm_type, parts[0][0].device, want)
    return norm.to(torch.float64 if double else torch.float32), nonfinite


def _zero(device: torch.device) -> Tensor:
    """fp32, whatever torch's default dtype and device are."""
    return torch.zeros((), dtype=torch.float32, device=device)


def _combine(
    call: str, parts: list[tuple[Tensor, Tensor]], norm_type: float, device: torch.device, want: str | None
) -> tuple[Tensor, Tensor]:
    """The norm of norms, in fp64, and whether any part had a non-finite element."""
    if not parts:
        return _zero(device).double(), _zero(device)
    norms = torch.cat([norm.reshape(-1).to(device, torch.float64) for norm, _ in parts])
    flags = torch.cat([flag.reshape(-1).to(device, torch.float32) for _, flag in parts])
    backend = dispatch.resolve(call, device, frozenset({torch.float64}), want=want)
    return backend.global_norm([norms], norm_type)[0], flags.max()  # type: ignore[misc]


def _by_device(tensors: list[Tensor]) -> dict[torch.device, list[Tensor]]:
    devices = {x.device for x in tensors}
    if len(devices) == 1:
        return {devices.pop(): tensors}
    by_device: dict[torch.device, list[Tensor]] = {}
    for x in tensors:
        by_device.setdefault(x.device, []).append(x)
    return by_device


def _check_types(call: str, tensors: list[Tensor], name: Callable[[int], str]) -> None:
    """Raises TypeError unless they are tensors, or pass for them as proxies do; ``name(i)`` is for errors."""
    if all(issubclass(kind, Tensor) for kind in {type(x) for x in tensors}):
        return
    for i, x in enumerate(tensors):
        if not isinstance(x, Tensor):
            raise TypeError(f"{call}: {name(i)} is no tensor but {type(x).__name__}")


def check_tensors(call: str, tensors: list[Tensor], name: Callable[[int], str]) -> None:
    """Raises TypeError unless they are dense real floating tensors; ``name(i)`` is for errors."""
    _check_types(call, tensors, name)
    kinds = {(x.layout, x.dtype) for x in tensors}
    if not all(layout == torch.strided and dtype.is_floating_point for layout, dtype in kinds):
        for i, x in enumerate(tensors):
            check_tensor(call, name(i), x)


def _unique(call: str, tensors: list[Tensor], name: Callable[[int], str]) -> list[Tensor]:
    """The tensors, each once, checked."""
    check_tensors(call, tensors, name)
    return list({id(x): x for x in tensors}.values())


def _locals(tensors: list[Tensor]) -> list[Tensor]:
    return tensors if are_plain(tensors) else list(map(distributed.local, tensors))


def are_plain(tensors: list[Tensor]) -> bool:
    """Whether there is no DTensor among them, as far as their types tell."""
    return {type(x) for x in tensors} <= {Tensor, torch.nn.Parameter}


def _split(tensors: list[Tensor]) -> Split:
    """Their local parts."""
    if are_plain(tensors):
        return {distributed.WHOLE: tensors} if tensors else {}
    split: Split = {}
    for x in tensors:
        x = distributed.without_pending_sum(x.detach())
        split.setdefault(distributed.shards(x), []).append(distributed.local(x))
    return split


@torch.no_grad()
def global_norm(tensors: Tensor | Iterable[Tensor], norm_type: float = 2.0) -> Tensor:
    """The norm of all elements of all tensors as one vector, ``(sum |x|^p)^(1/p)``.

    Args:
        tensors: a tensor or any iterable of them; dense, real, floating; dtypes and devices may be mixed. One that is
            listed twice counts once. The shards of DTensors count once each, over all ranks.
        norm_type: p > 0, or inf.

    Returns:
        0-dim fp32 tensor (fp64 if any input is), on the device of the first tensor; for no tensors 0, on the CPU.
        Plain, also for DTensors.

    Raises:
        TypeError: a sparse, complex or integer tensor. ValueError: ``norm_type`` not > 0.
    """
    call = "fusedtrain.global_norm"
    norm_type = check_norm_type(call, norm_type)
    listed = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    return total_norm(call, _split(_unique(call, listed, "tensor {}".format)), norm_type)[0]


def _gradients(call: str, parameters: Tensor | Iterable[Tensor]) -> tuple[list[Tensor], torch.device]:
    """The unique gradients of the parameters, and the device of the first parameter, the CPU if there is none."""
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    else:
        generator = isinstance(parameters, types.GeneratorType)
        parameters = list(parameters)
        if generator and not parameters:
            warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=4)
    _check_types(call, parameters, "parameter {}".format)
    there = [(i, g) for i, g in enumerate([p.grad for p in parameters]) if g is not None]
    unique = _unique(call, [g for _, g in there], lambda k: f"the gradient of parameter {there[k][0]}")
    return unique, parameters[0].device if parameters else _CPU


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales the gradients of ``parameters`` in place so that their global norm is at most ``max_norm``:
    ``grad *= min(1, max_norm / (norm + 1e-6))``, as ``torch.nn.utils.clip_grad_norm_`` (Pascanu et al. 2013).

    Unlike torch's, the norm of finite gradients is finite and right whatever their dtype and size, a parameter listed
    twice counts and is scaled once, and gradients are not touched when nothing is to be clipped. A norm that is not
    finite (an inf or NaN among the gradients) does as in torch: an infinite one leaves zeros and NaN, a NaN makes all
    NaN. `fusedtrain.optim` can skip such steps instead: ``nonfinite="skip"``.

    Args:
        parameters: a tensor or any iterable of them. Those without ``.grad`` are passed over.
        max_norm: bound >= 0 of the norm; inf clips nothing, 0 leaves zeros. A tensor on a GPU is waited for.
        norm_type: order p > 0 of the norm, or inf.
        error_if_nonfinite: raise when the norm is not finite, before anything is scaled. Waits for the device.
        foreach: accepted as torch's; means nothing.

    Returns:
        The norm before clipping: 0-dim fp32 tensor (fp64 if any gradient is), on the device of the first gradient;
        for no gradients 0, on that of the first parameter. Plain, also for DTensors. It is not waited for.

    Raises:
        ValueError: ``max_norm`` negative or NaN, ``norm_type`` not > 0.
        TypeError: a bound that is no number; sparse, complex or integer gradients. Nothing has been scaled.
        RuntimeError: non-finite norm with ``error_if_nonfinite``.
    """
    call = "fusedtrain.clip_grad_norm_"
    max_norm = check_bound(call, "max_norm", max_norm)
    norm_type = check_norm_type(call, norm_type)
    grads, home = _gradients(call, parameters)
    norm, _ = total_norm(call, _split(grads), norm_type, home=home)
    if error_if_nonfinite and not math.isfinite(norm.item()):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
            "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
            "`error_if_nonfinite=False`"
        )
    if max_norm == math.inf:
        return norm
    for device, here_grads in _by_device(_locals(grads)).items():
        backend = dispatch.resolve(call, device, frozenset({g.dtype for g in here_grads}))
        backend.clip_scale_(here_grads, norm.to(device), max_norm)  # type: ignore[misc]
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(here_grads)
    return norm


@torch.no_grad()
def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None) -> None:
    """Clamps every element of the gradients of ``parameters`` to ``[-clip_value, clip_value]``, in place, as
    ``torch.nn.utils.clip_grad_value_``.

    Args:
        parameters: a tensor or any iterable of them. Those without ``.grad`` are passed over.
        clip_value: bound >= 0; inf clips nothing.
        foreach: accepted as torch's; means nothing.

    Raises:
        ValueError: ``clip_value`` negative or NaN.
        TypeError: a bound that is no number; sparse, complex or integer gradients; a DTensor whose sum over the ranks
            is pending (Partial), since clamped addends do not add up to the clamped sum. Nothing has been clamped.
    """
    call = "fusedtrain.clip_grad_value_"
    clip_value = check_bound(call, "clip_value", clip_value)
    grads, _ = _gradients(call, parameters)
    for i, g in enumerate(grads):
        if distributed.has_pending_sum(g):
            raise TypeError(
                f"{call}: gradient {i} has placements {g.placements}: what each rank holds is an addend, and clamped "  # type: ignore[attr-defined]
                "addends do not add up to the clamped sum. Carry out the sum first: "
                "p.grad = p.grad.redistribute(placements=p.placements)"
            )
    grads = [distributed.local(g) for g in grads]
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for g in grads:
        by_kind.setdefault((g.device, g.dtype), []).append(g)
    for alike in by_kind.values():
        torch._foreach_clamp_min_(alike, -clip_value)
        torch._foreach_clamp_max_(alike, clip_value)
