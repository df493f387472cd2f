"""States: made, laid out, checked and loaded."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fusedtrain import distributed
from fusedtrain.optim import arena, hyper, work
from fusedtrain.optim.arena import Arena

OWN_DEFAULTS: dict[str, Any] = {
    "max_norm": None,
    "norm_type": 2.0,
    "clip_value": None,
    "l1": 0.0,
    "nonfinite": "propagate",
}
"""What our parameter groups have and torch's have not."""

KEPT = ("backend", "_own_defaults", "_outputs", "_held", "_skipped", "_pending", "_calls", "_counters")
"""Attributes that go along when an optimizer is copied or pickled."""

_STEP_DTYPES = (torch.float32, torch.float64, torch.int64)


def step_counter(value: float | Tensor, device: torch.device, memory: Arena | None = None) -> Tensor:
    """A counter of steps: 0-dim, on the parameter's device, in torch's dtype (fp32, fp64 where that is the default)
    whatever the parameter's; a bf16 counter would stop at 256."""
    kept = isinstance(value, Tensor) and value.dtype in _STEP_DTYPES
    if isinstance(value, Tensor) and kept:
        dtype = value.dtype
    else:
        dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    shared = memory.counter(device, dtype) if memory is not None else None
    counter = torch.zeros((), dtype=dtype, device=device) if shared is None else shared
    if isinstance(value, Tensor) and kept:
        return counter.copy_(value.detach().reshape(()))
    return counter.fill_(float(value))  # torch.tensor would wait for the device


def zeros_for(p: Tensor, dtype: torch.dtype | None = None, memory: Arena | None = None) -> Tensor:
    """A new state of ``p``: zero, fp32 (fp64 for fp64) if no dtype is given, in its layout, sharded as it is."""
    dtype = dtype or work.state_dtype(p)
    shared = memory.zeros_like(p, dtype) if memory is not None else None
    if shared is not None:
        return shared
    return torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False)


def state_for(p: Tensor, value: Tensor, memory: Arena | None = None) -> Tensor:
    """A copy of a state on the device and in the layout of ``p``, in the dtype of a new state unless its own is wider:
    what is added to a narrower one is lost to rounding."""
    return zeros_for(p, torch.promote_types(value.dtype, work.state_dtype(p)), memory).copy_(value)


def check(call: str, where: str, p: Tensor, key: str, value: Any) -> None:
    """Raises ValueError unless ``value`` can be the state ``key`` of ``p``. Waits for the device."""
    if key == "step":
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if not isinstance(value, numbers.Real) or not (0 <= float(value) < math.inf):
            raise ValueError(f"{call}: state 'step' of {where} is {value!r}, not a number of steps")
        return
    if not isinstance(value, Tensor):
        raise ValueError(f"{call}: state {key!r} of {where} is no tensor but {type(value).__name__}")
    if value.shape != p.shape:
        raise ValueError(f"{call}: state {key!r} of {where} is {tuple(value.shape)}, the parameter {tuple(p.shape)}")
    if value.layout != torch.strided or value.dtype not in work.FLOATS:
        raise ValueError(
            f"{call}: state {key!r} of {where} is {value.layout} of {value.dtype}, not a dense float tensor"
        )
    if distributed.is_dtensor(value) != distributed.is_dtensor(p):
        raise ValueError(
            f"{call}: state {key!r} of {where} is a {type(value).__name__}, the parameter a {type(p).__name__}; load "
            "sharded states with torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
        )
    if not bool(distributed.local(value).isfinite().all()):
        raise ValueError(f"{call}: state {key!r} of {where} has elements that are inf or NaN")


def load(opt: Any, state_dict: dict[str, Any], load_plain: Callable[[dict[str, Any]], None]) -> None:
    """`Optimizer.load_state_dict` that keeps dtypes. torch casts the states of a parameter to its dtype on the way, so
    they are held back from it, between the hooks of the user, and put in place after it."""
    call = f"{type(opt).__name__}.load_state_dict"
    loaded: dict[Any, Any] = {}

    def before(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        groups, saved = opt.param_groups, given["param_groups"]
        if len(groups) != len(saved) or any(
            len(g["params"]) != len(s["params"]) for g, s in zip(groups, saved, strict=True)
        ):
            return given  # torch raises
        # A checkpoint of torch lacks our keys, an old one later keys: what the group has now stays.
        filled = [
            {**{key: g[key] for key in opt.defaults if key in g}, **s} for g, s in zip(groups, saved, strict=True)
        ]
        for i, group in enumerate(filled):
            hyper.check_settings(f"{call}, group {i}", group)
        hyper.check_shared(call, filled)
        ids = list(chain.from_iterable(g["params"] for g in saved))
        params = dict(zip(ids, chain.from_iterable(g["params"] for g in groups), strict=True))
        names = {key: f"parameter {i} of group {j}" for j, g in enumerate(saved) for i, key in enumerate(g["params"])}
        for key, state in given["state"].items():
            if key not in params:  # the user's own
                loaded[key] = state
            elif isinstance(state, Mapping):
                loaded[params[key]] = _prepared(opt, call, names[key], params[key], state)
            else:
                raise ValueError(f"{call}: the state of {names[key]} is no dict but {type(state).__name__}")
        return {**given, "state": {}, "param_groups": filled}

    def after(_: Any) -> None:
        opt.state.update(loaded)
        opt._states_replaced()

    handles = (
        opt.register_load_state_dict_pre_hook(before),
        opt.register_load_state_dict_post_hook(after, prepend=True),
    )
    try:
        load_plain(state_dict)
    finally:
        for handle in handles:
            handle.remove()


def _prepared(opt: Any, call: str, where: str, p: Tensor, state: Mapping[Any, Any]) -> dict[Any, Any]:
    ready: dict[Any, Any] = {}
    for key, value in state.items():
        # Adagrad of torch has states of parameters too that are never stepped: frozen ones of integers, say.
        if p.dtype in work.FLOATS and (key == "step" or key in opt._state_keys):
            if value is None:
                continue
            check(call, where, p, key, value)
            shared = arena.of(opt)
            ready[key] = step_counter(value, p.device, shared) if key == "step" else state_for(p, value, shared)
        else:
            ready[key] = value.to(p.device) if isinstance(value, Tensor) else value
    return ready
