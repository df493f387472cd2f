"""Small models with the parts that matter, for whole training steps: factories, as a user's own for ``--model``."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def encoder(layers: int = 2, width: int = 256, tokens: int = 32, batch: int = 8) -> tuple[nn.Module, Tensor]:
    """A transformer encoder of torch's own layers."""
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    return model, torch.randn(batch, tokens, width)


def gpt2_blocks() -> tuple[nn.Module, Tensor]:
    """Two blocks as wide as GPT-2 small's, 14 M parameters, on 1024 tokens."""
    return encoder(layers=2, width=768, tokens=256, batch=4)


def mlp(depth: int = 6, width: int = 1024, batch: int = 256) -> tuple[nn.Module, Tensor]:
    """Linear -> GELU -> Dropout, again and again."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(width, 10)), torch.randn(batch, width)


def many_small(tensors: int = 400, width: int = 16) -> tuple[nn.Module, Tensor]:
    """A deep and thin net: its step is all host."""
    layers: list[nn.Module] = []
    for _ in range(tensors // 2):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers), torch.randn(32, width)
