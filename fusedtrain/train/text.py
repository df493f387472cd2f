"""Task ``text``: a byte-level language model of a file, a folder, or the Python standard library's own sources."""

from __future__ import annotations

import hashlib
import math
import sysconfig
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedtrain.train import tasks
from fusedtrain.train.errors import TrainError
from fusedtrain.train.settings import Settings, seed_for

_SUFFIXES = (".py", ".txt", ".md", ".rst")
_INSTALLED = {"site-packages", "dist-packages"}
_BLOCK = 1 << 15
_EVAL_WINDOWS = 64
_VAL, _TEST = 18, 19
"""Of every 20 blocks of text, the 19th is for validation and the 20th for testing: sorted files differ, a tail of them
would not be like the rest."""


def standard_library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def corpus_path(text: str | None) -> Path:
    """Where the corpus lies: as given, else the standard library of the running interpreter."""
    return (Path(text) if text else standard_library()).resolve()


def read_corpus(path: Path) -> bytes:
    """All bytes of a file; of a folder, those of its ``.py .txt .md .rst`` files in sorted order, without the packages
    that are installed into it.

    Raises:
        TrainError: missing or unreadable.
    """
    try:
        if not path.is_dir():
            return path.read_bytes()
        files = sorted(
            f
            for f in path.rglob("*")
            if f.suffix in _SUFFIXES and not _INSTALLED & set(f.relative_to(path).parts) and f.is_file()
        )
        if not files:
            raise TrainError("--text", path, f"the folder has no {' '.join(_SUFFIXES)} file", "Name another, or a file")
        return b"\n".join(f.read_bytes() for f in files)
    except OSError as error:
        where = f": {error.filename}" if error.filename and error.filename != str(path) else ""
        reason = f"it cannot be read: {error.strerror}{where}"
        raise TrainError("--text", path, reason, "Name a readable file or folder") from None


class Text:
    """Random windows of ``context + 1`` bytes of the training blocks; fixed windows of the others to evaluate on."""

    name = "text"
    metric = "bits per byte"

    def __init__(self, settings: Settings, rank: int = 0, world_size: int = 1) -> None:
        self.settings, self.rank, self.world_size = settings, rank, world_size
        self.device = torch.device(settings.device)
        self.context = cast(int, settings.context)
        path = corpus_path(settings.text)
        raw = read_corpus(path)
        self._digest = hashlib.blake2b(raw, digest_size=8).hexdigest()
        self.size = len(raw)
        block = min(_BLOCK, len(raw) // 20)
        if block < self.context + 1:
            raise TrainError(
                "--text",
                path,
                f"its {len(raw)} bytes are too few for --context {self.context}",
                f"Give at least {20 * (self.context + 1)} bytes, or a smaller --context",
            )
        blocks = torch.frombuffer(bytearray(raw), dtype=torch.uint8)[: len(raw) // block * block].view(-1, block)
        role = torch.arange(len(blocks)) % 20
        self.parts = {
            "train": blocks[role < _VAL].reshape(-1),
            "val": blocks[role == _VAL].reshape(-1),
            "test": blocks[role == _TEST].reshape(-1),
        }

    def _windows(self, data: Tensor, starts: Tensor) -> tasks.Batch:
        rows = data[starts[:, None] + torch.arange(self.context + 1)].to(self.device, torch.int64)
        return rows[:, :-1], rows[:, 1:]

    def batch(self, step: int) -> tasks.Batch:
        data = self.parts["train"]
        generator = torch.Generator().manual_seed(seed_for(self.settings.seed, "windows", step))
        starts = torch.randint(len(data) - self.context, (self.settings.batch,), generator=generator)
        return self._windows(data, starts[self.rank :: self.world_size])

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, -2), target.flatten())

    def evaluate(self, model: nn.Module, split: str) -> Tensor:
        data = self.parts[split]
        n = min(_EVAL_WINDOWS, len(data) // (self.context + 1))
        starts = torch.linspace(0, len(data) - self.context - 1, n, dtype=torch.float64).long()
        mine = starts[self.rank :: self.world_size]
        size = max(1, math.ceil(self.settings.batch / self.world_size))
        batches = [self._windows(data, part) for part in mine.split(size)] if len(mine) else []
        return tasks.summed(self, model, batches, correct=False)

    def fingerprint(self) -> str:
        return self._digest
