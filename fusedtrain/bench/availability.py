"""Why a provider cannot run here."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

import torch

from fusedtrain import dispatch


def check_provider(provider: str, known: Iterable[str], workload: str) -> None:
    """Raises ValueError unless the workload can be made for this provider."""
    if provider not in known:
        raise ValueError(f"{workload}: no provider {provider!r}; choose one of {', '.join(known)}")


def backend_refusal(backend: str, device: torch.device, dtype: torch.dtype, rule: str | None) -> str | None:
    """Why our backend cannot run the rule on such tensors."""
    return dispatch.load(backend).refusal(device, frozenset({dtype}), rule)


def import_refusal(module: str) -> str | None:
    """Why a peer cannot be imported. Peers fail to import in many ways, and none of them is our failure."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return f"import {module}: {type(error).__name__}: {error}"
    return None
