"""Hyperparameters: checked at construction and again whenever a step finds them changed (schedulers write them)."""

from __future__ import annotations

import array
import functools
import importlib
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedtrain.clip import check_bound, check_norm_type

NONFINITE = ("propagate", "skip", "raise")

Group = dict[str, Any]
Check = Callable[[str, Any], None]
"""``check(call, value)`` raises ValueError or TypeError."""


try:
    _Snapshot = importlib.import_module("fusedtrain._plan").Snapshot
except (ImportError, AttributeError):  # not built, or not from these sources
    _Snapshot = None


def snapshot(groups: list[Group]) -> Any:
    """What all groups hold, by identity; ``.same(groups)`` is several times faster than reading them. None without
    `_plan`."""
    return _Snapshot(groups) if _Snapshot is not None else None


def _scalar(call: str, what: str, value: Any, text: str) -> float | None:
    """The value as a float. None for a tensor on an accelerator: its value is not waited for."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{call}: Tensor {what} must be 1-element, not {tuple(value.shape)}")
        if value.dtype == torch.bool or value.is_complex():
            raise TypeError(f"{call}: {text}: {value!r} (must be a real number)")
        return float(value) if value.device.type == "cpu" else None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{call}: {text}: {value!r} (must be a real number)")
    return float(value)


def number(name: str, text: str, low: float = 0.0, below: float = math.inf) -> Check:
    """A check for a finite number, or 1-element tensor, in ``[low, below)``; ``text`` opens its error as in torch."""

    def check(call: str, value: Any) -> None:
        if type(value) is float and low <= value < below and value != -math.inf:
            return
        x = _scalar(call, name, value, text)
        if x is not None and not (low <= x < below and math.isfinite(x)):
            bound = "finite" if low == -math.inf else f"finite and >= {low:g}"
            bound += f" and < {below:g}" if below != math.inf else ""
            raise ValueError(f"{call}: {text}: {value if not isinstance(value, Tensor) else x} (must be {bound})")

    return check


def check_betas(call: str, betas: Any) -> None:
    """Two numbers, or 1-element tensors, in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"{call}: betas must be a pair of numbers, not {betas!r}")
    for i, beta in enumerate(betas):
        number(f"betas[{i}]", f"Invalid beta parameter at index {i}", below=1.0)(call, beta)


def check_max_norm(call: str, value: Any) -> None:
    """None, or a number >= 0."""
    if value is not None:
        check_bound(call, "max_norm", value)


def check_clip_value(call: str, value: Any) -> None:
    """None, or a number >= 0. One on an accelerator is not waited for, like the other hyperparameters of a row."""
    if isinstance(value, Tensor) and value.device.type != "cpu":
        _scalar(call, "clip_value", value, "Invalid clip_value")
    elif value is not None:
        check_bound(call, "clip_value", value)


def check_nonfinite(call: str, value: Any) -> None:
    """One of `NONFINITE`."""
    if value not in NONFINITE:
        raise ValueError(f"{call}: nonfinite must be one of {', '.join(NONFINITE)}, not {value!r}")


def check_norm_order(call: str, value: Any) -> None:
    """A number > 0, or inf."""
    check_norm_type(call, value)


def check_differentiable(call: str, value: Any) -> None:
    """Must be off."""
    if value:
        raise ValueError(
            f"{call}: differentiable=True is not supported: the fused step is not recorded by autograd. "
            "Use the class of torch.optim to differentiate through a step"
        )


def check_trust_coefficient(call: str, value: Any) -> None:
    """None, or a finite number >= 0."""
    if value is not None:
        number("trust_coefficient", "Invalid trust_coefficient value")(call, value)


CHECKS: dict[str, Check] = {
    "lr": number("lr", "Invalid learning rate"),
    "betas": check_betas,
    "eps": number("eps", "Invalid epsilon value"),
    "weight_decay": number("weight_decay", "Invalid weight_decay value"),
    "momentum": number("momentum", "Invalid momentum value"),
    "dampening": number("dampening", "Invalid dampening value", low=-math.inf),
    "alpha": number("alpha", "Invalid alpha value"),
    "lr_decay": number("lr_decay", "Invalid lr_decay value"),
    "initial_accumulator_value": number("initial_accumulator_value", "Invalid initial_accumulator_value value"),
    "l1": number("l1", "Invalid l1 value"),
    "clip_value": check_clip_value,
    "max_norm": check_max_norm,
    "norm_type": check_norm_order,
    "nonfinite": check_nonfinite,
    "differentiable": check_differentiable,
    "trust_coefficient": check_trust_coefficient,
}
"""By the key of the parameter group. A key that is not here is a flag, used by its truth."""

SHARED = ("max_norm", "norm_type", "nonfinite")
"""The norm is one of all groups, and so are these: groups may not differ in them."""


def check_settings(call: str, settings: Group) -> None:
    """Checks every hyperparameter among ``settings``; raises before anything is kept."""
    for key, value in settings.items():
        check = CHECKS.get(key)
        if check is not None:
            check(call, value)


def check_shared(call: str, groups: list[Group]) -> None:
    """Raises ValueError if groups differ in what all must share."""
    for key in SHARED:
        for i, group in enumerate(groups):
            if group[key] != groups[0][key]:
                raise ValueError(
                    f"{call}: {key} is {group[key]!r} in parameter group {i} but {groups[0][key]!r} in group 0. The "
                    "norm is taken over all groups at once: give all of them the same (opt.set_max_norm sets all)"
                )


def measures(group: Group) -> bool:
    """Whether a step of such a group needs the norm."""
    return group["max_norm"] is not None or group["nonfinite"] != "propagate"


def under_mode() -> bool:
    """Whether a mode of torch's dispatcher, as FakeTensorMode, has a hand in the tensors that are made now."""
    return torch._C._len_torch_dispatch_stack() > 0


class Settings(NamedTuple):
    """The hyperparameters of one step."""

    rules: list[str]
    """The update rule of each group."""
    rows: list[int]
    """Which row of its rule's table each group has."""
    tables: dict[str, Tensor]
    """By rule: fp64 (G, 4 + H), the rows of its groups; on the CPU, or where a hyperparameter is that is a tensor."""
    max_norm: float
    """-1 for no clipping."""
    norm_type: float
    nonfinite: str

    @property
    def measures(self) -> bool:
        """Whether the step needs the norm."""
        return self.max_norm >= 0 or self.nonfinite != "propagate"


def tabulate(opt: Any) -> Settings:
    """The settings of all groups of an optimizer, each with its rule and its row of that rule's table."""
    rules, rows = [], []
    tables: dict[str, list[list[Any]]] = {}
    for group in opt.param_groups:
        rule = opt._rule(group)
        sign, bound = -1.0 if group["maximize"] else 1.0, group["clip_value"]
        own = tables.setdefault(rule, [])
        rules.append(rule)
        rows.append(len(own))
        own.append([group["lr"], sign, torch.inf if bound is None else bound, group["l1"], *opt._row(group)])
    first = opt.param_groups[0]
    max_norm = -1.0 if first["max_norm"] is None else float(first["max_norm"])
    hypers = {rule: table(cells) for rule, cells in tables.items()}
    return Settings(rules, rows, hypers, max_norm, float(first["norm_type"]), first["nonfinite"])


def table(rows: list[list[Any]]) -> Tensor:
    """Rows of numbers and 1-element tensors as an fp64 tensor (G, K): on the CPU, or where a tensor among them is that
    is elsewhere. Its value is not waited for, so that a captured graph steps with what it holds at each replay. While
    compiling, tensors stay symbolic."""
    cells = [x for row in rows for x in row]
    device = next((x.device for x in cells if isinstance(x, Tensor) and x.device.type != "cpu"), None)
    if torch.compiler.is_compiling():
        flat = torch.stack(
            [
                x.reshape(()).to(device, torch.float64)
                if isinstance(x, Tensor)
                else torch.tensor(float(x), dtype=torch.float64, device=device)
                for x in cells
            ]
        )
    elif device is None and under_mode():  # fake tensors are made by an operator
        flat = torch.tensor([float(x) for x in cells], dtype=torch.float64, device="cpu")
    elif device is None:
        flat = torch.frombuffer(array.array("d", cells), dtype=torch.float64)
    else:
        flat = flat_on(device, cells)
    return flat.reshape(len(rows), -1)


def flat_on(device: torch.device, cells: list[Any]) -> Tensor:
    """Numbers and 1-element tensors as an fp64 tensor on a device, of which no value there is read by the host."""
    places = tuple(i for i, x in enumerate(cells) if isinstance(x, Tensor) and x.device.type != "cpu")
    known = set(places)
    numbers_only = tuple(0.0 if i in known else float(x) for i, x in enumerate(cells))
    base, index = _constants(device, numbers_only, places)
    values = torch.stack([cells[i].detach().reshape(()).to(device, torch.float64) for i in places])
    return base.index_copy(0, index, values)


def _constants(device: torch.device, cells: tuple[float, ...], places: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
        return _upload(device, cells, places)
    key = device, cells, places
    if key not in _captured:
        _captured[key] = _upload(device, cells, places)
    return _captured[key]


_captured: dict[tuple[torch.device, tuple[float, ...], tuple[int, ...]], tuple[Tensor, Tensor]] = {}
"""What captured graphs read at each replay. Nothing tells when a graph is gone: these few bytes are never let go."""


@functools.lru_cache(maxsize=16)
def _upload(device: torch.device, cells: tuple[float, ...], places: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    # Kept from step to step: a stream that is being captured copies nothing from memory of the host that is not pinned.
    return torch.tensor(cells, dtype=torch.float64, device=device), torch.tensor(places, device=device)
