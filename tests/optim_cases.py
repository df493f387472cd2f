"""A case for every update rule: the class that takes it, and settings of which each has an effect."""

from __future__ import annotations

import inspect
from typing import Any

import torch

import fusedtrain as ft
from fusedtrain import rules

_BETAS = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}
_RMS = {"lr": 0.01, "alpha": 0.9, "weight_decay": 0.1}
_BOTH = {**_RMS, "centered": True, "momentum": 0.9}

CASES: dict[str, tuple[str, dict[str, Any], str]] = {  # case: class, its arguments, rule
    "sgd": ("SGD", {"lr": 0.1, "weight_decay": 0.01}, "sgd"),
    "sgd_momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}, "sgd_momentum"),
    "sgd_nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, "sgd_momentum"),
    "adam": ("Adam", _BETAS, "adam"),
    "adam_amsgrad": ("Adam", {**_BETAS, "amsgrad": True}, "adam_amsgrad"),
    "adamw": ("AdamW", _BETAS, "adamw"),
    "adamw_amsgrad": ("AdamW", {**_BETAS, "amsgrad": True}, "adamw_amsgrad"),
    "lion": ("Lion", _BETAS, "lion"),
    "adagrad": ("Adagrad", {"lr": 0.1, "lr_decay": 0.05, "weight_decay": 0.1}, "adagrad"),
    "rmsprop": ("RMSprop", _RMS, "rmsprop"),
    "rmsprop_momentum": ("RMSprop", {**_RMS, "momentum": 0.9}, "rmsprop_momentum"),
    "rmsprop_centered": ("RMSprop", {**_RMS, "centered": True}, "rmsprop_centered"),
    "rmsprop_centered_momentum": ("RMSprop", _BOTH, "rmsprop_centered_momentum"),
}
LAYERWISE: dict[str, tuple[str, dict[str, Any], str]] = {  # of rules that others have too, with a trust ratio
    "lamb": ("LAMB", {**_BETAS, "trust_coefficient": 0.5, "eps": 1e-8}, "adamw"),
    "lars": ("LARS", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "trust_coefficient": 0.05}, "sgd_momentum"),
}
HAVE_TORCH = [case for case, (name, _, _) in CASES.items() if hasattr(torch.optim, name)]
"""Those of which torch has the class."""

assert {rule for _, _, rule in CASES.values()} == set(rules.UPDATES), "a rule without a case"


def takes(case: str, argument: str, where: Any = ft.optim) -> bool:
    """Whether the class of a case, ours or torch's, has an argument of this name."""
    return argument in inspect.signature(getattr(where, {**CASES, **LAYERWISE}[case][0])).parameters


HAVE_TORCH_FUSED = [case for case in HAVE_TORCH if takes(case, "fused", torch.optim)]
"""Those of which torch has a fused one."""
