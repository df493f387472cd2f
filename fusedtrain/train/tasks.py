"""What a task gives the training loop: batches that are a function of the step, a loss, and an evaluation."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from fusedtrain.train.settings import Settings

Batch = tuple[Tensor, Tensor]


class Task(Protocol):
    name: str
    metric: str
    """The name of the validation metric that `evaluate` returns beside ``loss``."""

    def batch(self, step: int) -> Batch:
        """This process's share of the training batch of step 0, 1, ..., on the device. A pure function of the step."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean loss, 0-dim."""
        ...

    def evaluate(self, model: nn.Module, split: str) -> Tensor:
        """Sums over this process's share of ``"val"`` or ``"test"``: fp64 (3,) = loss, metric, count."""
        ...

    def fingerprint(self) -> str:
        """A digest of the data: a run continues only on the data it began with."""
        ...


def load(settings: Settings, rank: int = 0, world_size: int = 1) -> Task:
    """The task of the settings with its data read and split.

    Raises:
        TrainError: the data are missing, unreadable or too small.
    """
    if settings.task == "digits":
        from fusedtrain.train.digits import Digits

        return Digits(settings, rank, world_size)
    from fusedtrain.train.text import Text

    return Text(settings, rank, world_size)


@torch.no_grad()
def summed(task: Task, model: nn.Module, batches: list[Batch], correct: bool) -> Tensor:
    """fp64 (3,) = sums of loss and metric over the rows of the batches, and their count. The metric is the number of
    right answers if ``correct``, else the loss in bits."""
    device = next(model.parameters()).device
    total = torch.zeros(3, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    try:
        for x, target in batches:
            output = model(x)
            n = target.numel()
            loss = task.loss(output, target).double() * n
            metric = (output.argmax(-1) == target).sum().double() if correct else loss / torch.log(loss.new_tensor(2.0))
            total += torch.stack([loss, metric, loss.new_tensor(float(n))])
    finally:
        model.train(was_training)
    return total
