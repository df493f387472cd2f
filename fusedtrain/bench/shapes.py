"""Lists of parameter shapes of real models, and of those that hurt: what a multi-tensor step is measured on."""

from __future__ import annotations

import math

Shapes = list[tuple[int, ...]]


def gpt2(layers: int = 12, width: int = 768) -> Shapes:
    """GPT-2 (Radford et al. 2019): small has 148 tensors and 124 M parameters; 48 layers of 1600 are XL, 1.56 G."""
    block: Shapes = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(50257, width), (1024, width), *block * layers, (width,), (width,)]


def resnet50() -> Shapes:
    """ResNet-50 (He et al. 2015) as torchvision has it: 161 tensors, 25.6 M parameters, most of them tiny."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(blocks):
            for out, inp, k in ((width, channels, 1), (width, width, 3), (4 * width, width, 1)):
                shapes += [(out, inp, k, k), (out,), (out,)]
            if i == 0:
                shapes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return [*shapes, (1000, channels), (1000,)]


def bert_base() -> Shapes:
    """BERT base (Devlin et al. 2018): 199 tensors, 109 M parameters."""
    d = 768
    norm: Shapes = [(d,), (d,)]
    block: Shapes = [(d, d), (d,)] * 4 + norm + [(4 * d, d), (4 * d,), (d, 4 * d), (d,)] + norm
    return [(30522, d), (512, d), (2, d), *norm, *block * 12, (d, d), (d,)]


def vit_large() -> Shapes:
    """ViT-L/16 (Dosovitskiy et al. 2020): 296 tensors, 304 M parameters."""
    d = 1024
    block: Shapes = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,)]
    block += [(4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [(1, 1, d), (1, 197, d), (d, 3, 16, 16), (d,), *block * 24, (d,), (d,), (1000, d), (1000,)]


def llama3_8b(ranks: int = 8) -> Shapes:
    """The share of one rank of Llama 3 8B (Dubey et al. 2024), sharded by rows: 291 tensors, 8.03 G / ``ranks``."""
    d, hidden, kv, vocabulary = 4096, 14336, 1024, 128256
    block: Shapes = [(d, d), (kv, d), (kv, d), (d, d), (hidden, d), (hidden, d), (d, hidden), (d,), (d,)]
    whole: Shapes = [(vocabulary, d), *block * 32, (d,), (vocabulary, d)]
    return [(rows // ranks, *rest) for rows, *rest in whole]


def lora(pairs: int = 10_000, rank: int = 8, width: int = 1024) -> Shapes:
    """Low-rank adapters (Hu et al. 2021) of the experts of a mixture: 20,000 tensors, 164 M parameters."""
    return [shape for _ in range(pairs) for shape in ((rank, width), (width, rank))]


def many(count: int, numel: int) -> Shapes:
    return [(numel,)] * count


def count(shapes: Shapes) -> int:
    """The number of parameters."""
    return sum(math.prod(shape) for shape in shapes)
