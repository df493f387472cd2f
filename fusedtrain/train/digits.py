"""Task ``digits``: the 1,797 handwritten 8x8 digits that ship inside scikit-learn (UCI, Alpaydin & Kaynak 1998)."""

from __future__ import annotations

import hashlib
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedtrain.train import tasks
from fusedtrain.train.errors import TrainError
from fusedtrain.train.settings import Settings, seed_for

_HELD_OUT = {"val": 0.15, "test": 0.2}


class Digits:
    """Stratified train, validation and test parts (65, 15 and 20 %), standardised by the training part's mean and
    deviation; each epoch is a fresh permutation, each batch shifted and rotated at random."""

    name = "digits"
    metric = "accuracy"

    def __init__(self, settings: Settings, rank: int = 0, world_size: int = 1) -> None:
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise TrainError(
                "--task", "digits", f"scikit-learn is missing ({error})", "Run pip install 'fusedtrain[train]'"
            ) from None
        self.settings, self.rank, self.world_size = settings, rank, world_size
        self.device = torch.device(settings.device)
        images, labels = cast(tuple[Any, Any], load_digits(return_X_y=True))
        self._digest = hashlib.blake2b(images.tobytes() + labels.tobytes(), digest_size=8).hexdigest()
        state = seed_for(settings.seed, "split") % 2**32
        rest_x, test_x, rest_y, test_y = train_test_split(
            images, labels, test_size=_HELD_OUT["test"], stratify=labels, random_state=state
        )
        train_x, val_x, train_y, val_y = train_test_split(
            rest_x, rest_y, test_size=_HELD_OUT["val"] / (1 - _HELD_OUT["test"]), stratify=rest_y, random_state=state
        )
        mean, deviation = train_x.mean(), train_x.std()

        def on_device(x: Any, y: Any) -> tasks.Batch:
            pixels = torch.as_tensor((x - mean) / deviation).reshape(-1, 1, 8, 8)
            return pixels.to(self.device, settings.torch_dtype), torch.as_tensor(y).to(self.device)

        self.parts = {
            "train": on_device(train_x, train_y),
            "val": on_device(val_x, val_y),
            "test": on_device(test_x, test_y),
        }
        self.background = -mean / deviation
        if settings.batch > len(train_y):
            raise TrainError(
                "--batch", settings.batch, f"there are {len(train_y)} training images", "Use a smaller batch"
            )

    def batch(self, step: int) -> tasks.Batch:
        s, (images, labels) = self.settings, self.parts["train"]
        epoch, i = divmod(step, len(images) // s.batch)
        order = torch.randperm(len(images), generator=_generator(s.seed, "order", epoch))
        rows = order[i * s.batch : (i + 1) * s.batch]
        moves = affine(len(rows), s.shift or 0.0, s.rotate or 0.0, _generator(s.seed, "augment", step))
        mine = slice(self.rank, None, self.world_size)
        rows, moves = rows[mine].to(self.device), moves[mine].to(self.device, images.dtype)
        return self._moved(images[rows], moves), labels[rows]

    def _moved(self, images: Tensor, moves: Tensor) -> Tensor:
        if not (self.settings.shift or self.settings.rotate):
            return images
        grid = F.affine_grid(moves, list(images.shape), align_corners=False)
        # What moves in from outside is background, not the mean.
        moved = F.grid_sample(images - self.background, grid, padding_mode="zeros", align_corners=False)
        return moved + self.background

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)

    def evaluate(self, model: nn.Module, split: str) -> Tensor:
        images, labels = self.parts[split]
        mine = slice(self.rank, None, self.world_size)
        return tasks.summed(self, model, [(images[mine], labels[mine])], correct=True)

    def fingerprint(self) -> str:
        return self._digest


def _generator(seed: int, *stream: object) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, *stream))


def affine(n: int, shift: float, rotate: float, generator: torch.Generator) -> Tensor:
    """Random rigid moves of 8x8 images for `torch.nn.functional.affine_grid`: fp64 (n, 2, 3), rotated by up to
    ``rotate`` degrees and shifted by up to ``shift`` pixels in x and in y, uniformly."""
    r = torch.rand(n, 3, generator=generator, dtype=torch.float64) * 2 - 1
    angle = r[:, 0] * math.radians(rotate)
    dx, dy = r[:, 1] * shift / 4, r[:, 2] * shift / 4  # the grid spans [-1, 1] over 8 pixels
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin, dx], -1), torch.stack([sin, cos, dy], -1)], 1)
