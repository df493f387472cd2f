"""What a backend is: the operators of `fusedtrain.schemas` under one name, and what it can run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Backend:
    """The operators of `fusedtrain.schemas` as this backend runs them, and its limits."""

    name: str
    why_not: str | None
    """Why it cannot be used in this process, or None if it can."""
    note: str = ""
    """What it is, for `fusedtrain.backends()`: the instruction set or the library used."""
    device_types: frozenset[str] | None = None
    """Device types it runs on; None for all."""
    dtypes: frozenset[torch.dtype] = frozenset()
    rules: frozenset[str] = frozenset()
    """Names of the activation and update rules that it has."""
    by_name_only: bool = False
    """True for a stand-in that is right but slow, as an interpreter: it serves who asks for it, and is no default."""
    differentiable: bool = False
    """True if torch's own autograd differentiates `act_dropout` here, so that no hand-written gradient is needed."""

    # The operators: callables of the schemas' signatures, None only where `rules` has nothing that needs them.
    act_dropout: Any = None
    act_dropout_: Any = None
    act_dropout_grad: Any = None
    gated_act_dropout: Any = None
    gated_act_dropout_grad: Any = None
    global_norm: Any = None
    tensor_norms: Any = None
    clip_scale_: Any = None
    optim_step_: Any = None

    on_device: Callable[[torch.device], str | None] | None = None
    """Tells why it cannot run on this one of its devices, or None; absent if it runs on all of them."""
    step_launcher: Any = None
    """Runs `optim_step_`, with the norm before it, over a table that is kept from step to step; None if it cannot."""

    def refusal(self, device: torch.device, dtypes: frozenset[torch.dtype], rule: str | None) -> str | None:
        """Why it cannot run this rule on tensors of this device and these dtypes, or None if it can."""
        if self.why_not:
            return self.why_not
        if self.device_types is not None and device.type not in self.device_types:
            return f"runs on {', '.join(sorted(self.device_types))} tensors only"
        if self.on_device is not None and (reason := self.on_device(device)):
            return reason
        for dtype in sorted(dtypes - self.dtypes, key=str):
            return f"does not support {dtype}"
        if rule is not None and rule not in self.rules:
            return f"has no rule {rule!r}"
        return None
