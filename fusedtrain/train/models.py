"""The models, each built from one of two sets of parts: stock ``torch.nn`` modules, or fusedtrain's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusedtrain as ft
from fusedtrain import rules
from fusedtrain.train.settings import Settings


class Parts(Protocol):
    """What the two sides of the comparison build differently. Parameter names and shapes are the same."""

    name: str

    def act_dropout(self, activation: str, p: float) -> nn.Module: ...

    def linear_act_dropout(self, in_features: int, out_features: int, activation: str, p: float) -> nn.Module: ...

    def add_dropout(self, p: float) -> nn.Module:
        """A module of ``(x, residual) -> residual + dropout(x)``."""
        ...


class _Function(nn.Module):
    """An activation for which ``torch.nn`` has no module, written as its user would."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.fwd = name, rules.ACTIVATIONS[name].fwd

    def forward(self, x: Tensor) -> Tensor:
        return self.fwd(x)


_STOCK: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}


class _StockLinearActDropout(nn.Linear):
    def __init__(self, in_features: int, out_features: int, act_dropout: nn.Module) -> None:
        super().__init__(in_features, out_features)
        self.act_dropout = act_dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.act_dropout(super().forward(x))


class _StockAddDropout(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(p)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + self.dropout(x)


class StockParts:
    name = "stock"

    def act_dropout(self, activation: str, p: float) -> nn.Module:
        act = _STOCK[activation]() if activation in _STOCK else _Function(activation)
        return nn.Sequential(act, nn.Dropout(p))

    def linear_act_dropout(self, in_features: int, out_features: int, activation: str, p: float) -> nn.Module:
        return _StockLinearActDropout(in_features, out_features, self.act_dropout(activation, p))

    def add_dropout(self, p: float) -> nn.Module:
        return _StockAddDropout(p)


class _FusedAddDropout(nn.Module):
    def __init__(self, p: float, backend: str | None) -> None:
        super().__init__()
        self.p, self.backend = p, backend

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return ft.functional.act_dropout(x, "identity", self.p, self.training, residual=residual, backend=self.backend)


class FusedParts:
    name = "fused"

    def __init__(self, backend: str | None = None) -> None:
        self.backend = backend

    def act_dropout(self, activation: str, p: float) -> nn.Module:
        return ft.nn.ActDropout(activation, p, backend=self.backend)

    def linear_act_dropout(self, in_features: int, out_features: int, activation: str, p: float) -> nn.Module:
        return ft.nn.LinearActDropout(in_features, out_features, activation, p, backend=self.backend)

    def add_dropout(self, p: float) -> nn.Module:
        return _FusedAddDropout(p, self.backend)


class MLP(nn.Module):
    """Images (B, 1, 8, 8) -> logits (B, 10)."""

    def __init__(self, parts: Parts, s: Settings) -> None:
        super().__init__()
        sizes = [64] + [s.width] * s.depth
        self.hidden = nn.Sequential(
            *(parts.linear_act_dropout(i, o, s.activation, s.dropout) for i, o in itertools.pairwise(sizes))
        )
        self.out = nn.Linear(s.width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x.flatten(1)))


class ConvNet(nn.Module):
    """Images (B, 1, 8, 8) -> logits (B, 10): ``depth`` 3x3 convolutions, the channels doubling, pooled after the first
    two, then one hidden layer."""

    def __init__(self, parts: Parts, s: Settings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, side = 1, 8
        for i in range(s.depth):
            out = s.width // 8 * 2**i or 2**i
            layers += [nn.Conv2d(channels, out, 3, padding=1), parts.act_dropout(s.activation, s.dropout / 2)]
            channels = out
            if i < 2:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        self.features = nn.Sequential(*layers)
        self.hidden = parts.linear_act_dropout(channels * side * side, s.width, s.activation, s.dropout)
        self.out = nn.Linear(s.width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.features(x).flatten(1)))


class Block(nn.Module):
    """A pre-norm transformer block (Xiong et al. 2020): x (B, T, D) -> (B, T, D)."""

    def __init__(self, parts: Parts, width: int, heads: int, activation: str, p: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.add_attention = parts.add_dropout(p)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn_in = parts.linear_act_dropout(width, 4 * width, activation, p)
        self.ffn_out = nn.Linear(4 * width, width)
        self.add_ffn = parts.add_dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = (
            self.qkv(self.attention_norm(x)).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).unbind()
        )
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D / H)
        x = self.add_attention(self.proj(a.transpose(1, 2).reshape(B, T, D)), x)
        return self.add_ffn(self.ffn_out(self.ffn_in(self.ffn_norm(x))), x)


class ByteTransformer(nn.Module):
    """Bytes (B, T), int64 -> logits of the next byte (B, T, 256)."""

    def __init__(self, parts: Parts, s: Settings) -> None:
        super().__init__()
        context, heads = cast(int, s.context), cast(int, s.heads)  # this task has them
        self.token = nn.Embedding(256, s.width)
        self.position = nn.Embedding(context, s.width)
        self.blocks = nn.Sequential(*(Block(parts, s.width, heads, s.activation, s.dropout) for _ in range(s.depth)))
        self.norm = nn.LayerNorm(s.width)
        self.out = nn.Linear(s.width, 256)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        return self.out(self.norm(self.blocks(self.token(x) + self.position(positions))))


_MODELS = {"mlp": MLP, "conv": ConvNet, "transformer": ByteTransformer}

_HE = frozenset({"relu", "leaky_relu", "squared_relu"})


def build(parts: Parts, settings: Settings) -> nn.Module:
    """The model of the settings from these parts, on its device, with the weights of `initialise`."""
    model = _MODELS[settings.model](parts, settings)
    return model.to(settings.device, settings.torch_dtype)


@torch.no_grad()
def initialise(model: nn.Module, settings: Settings, generator: torch.Generator) -> None:
    """He's initialisation (2015) for rectifiers, Glorot & Bengio's (2010) for the rest, as ``--init`` or, if auto, as
    the activation asks; biases zero. What feeds no activation (attention, outputs, projections) is Glorot's, embeddings
    normal with deviation 0.02. Drawn on the CPU in fp32 from ``generator``: the same on every device and dtype."""
    he = settings.init == "he" or (settings.init == "auto" and settings.activation in _HE)
    tanh_gain = settings.init == "auto" and settings.activation in ("tanh", "sigmoid")
    activated = ("hidden", "features", "ffn_in")
    for name, p in model.named_parameters():
        module, _, kind = name.rpartition(".")
        if p.dim() < 2:
            if kind == "bias":
                p.zero_()
            continue
        w = torch.empty(p.shape)
        if module in ("token", "position"):
            nn.init.normal_(w, std=0.02, generator=generator)
        elif he and any(part in activated for part in module.split(".")):
            nn.init.kaiming_normal_(w, nonlinearity="relu", generator=generator)
        else:
            gain = nn.init.calculate_gain(cast(Any, settings.activation)) if tanh_gain and "out" not in module else 1.0
            nn.init.xavier_uniform_(w, gain, generator=generator)
        p.copy_(w)
