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
    return _resnet((3, 4, 6, 3), bottleneck=True)


def resnet18() -> Shapes:
    """ResNet-18: 62 tensors, 11.7 M parameters."""
    return _resnet((2, 2, 2, 2), bottleneck=False)


def _resnet(depths: tuple[int, ...], bottleneck: bool) -> Shapes:
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    channels, wider = 64, 4 if bottleneck else 1
    for stage, blocks in enumerate(depths):
        width = 64 * 2**stage
        for i in range(blocks):
            convolutions: list[tuple[int, int, int]]
            if bottleneck:
                convolutions = [(width, channels, 1), (width, width, 3), (4 * width, width, 1)]
            else:
                convolutions = [(width, channels, 3), (width, width, 3)]
            for out, inp, k in convolutions:
                shapes += [(out, inp, k, k), (out,), (out,)]
            if i == 0 and channels != wider * width:
                shapes += [(wider * width, channels, 1, 1), (wider * width,), (wider * width,)]
            channels = wider * width
    return [*shapes, (1000, channels), (1000,)]


def mobilenet_v2() -> Shapes:
    """MobileNetV2 (Sandler et al. 2018) as torchvision has it: 158 tensors, 3.5 M parameters."""
    shapes: Shapes = [(32, 3, 3, 3), (32,), (32,)]
    channels = 32
    for expand, out, blocks in ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)):
        for _ in range(blocks):
            hidden = expand * channels
            if expand != 1:
                shapes += [(hidden, channels, 1, 1), (hidden,), (hidden,)]
            shapes += [(hidden, 1, 3, 3), (hidden,), (hidden,), (out, hidden, 1, 1), (out,), (out,)]
            channels = out
    return [*shapes, (1280, channels, 1, 1), (1280,), (1280,), (1000, 1280), (1000,)]


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
