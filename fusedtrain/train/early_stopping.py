"""Early stopping (Prechelt 1998): stop when the validation loss has not improved for a while, keep the best weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class EarlyStopping:
    """Watches the validation loss of one side.

    Args:
        patience: evaluations without improvement before `stopped`.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best = math.inf
        self.best_step = 0
        self.bad = 0
        self.stopped_at: int | None = None
        self.weights: dict[str, Tensor] = {}

    @property
    def stopped(self) -> bool:
        return self.stopped_at is not None

    def update(self, step: int, loss: float, model: nn.Module) -> None:
        """Takes the validation loss after ``step`` steps. A NaN is never an improvement."""
        if loss < self.best:
            self.best, self.best_step, self.bad = loss, step, 0
            self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
            return
        self.bad += 1
        if self.bad >= self.patience:
            self.stopped_at = step

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Puts the best weights back; the last ones stay if none was ever evaluated."""
        for name, p in model.named_parameters():
            if name in self.weights:
                p.copy_(self.weights[name])

    def to_json(self) -> dict[str, Any]:
        best = self.best if math.isfinite(self.best) else None
        return {"best": best, "best_step": self.best_step, "bad": self.bad, "stopped_at": self.stopped_at}

    def load(self, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
        self.best = math.inf if state["best"] is None else state["best"]
        self.best_step, self.bad, self.stopped_at = state["best_step"], state["bad"], state["stopped_at"]
        self.weights = weights
