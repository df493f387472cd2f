"""All workloads of the suites, by name, and which of them a run takes by itself."""

from __future__ import annotations

import torch

from fusedtrain.bench import shapes
from fusedtrain.bench.act_dropout import ActDropout, named
from fusedtrain.bench.clip_norm import ClipNorm
from fusedtrain.bench.optim_step import OptimStep
from fusedtrain.bench.train_step import MODELS, TrainStep
from fusedtrain.bench.workload import Workload

# A compiler takes minutes over a thousand tensors, and loops over twenty thousand take seconds each.
_LONG = ("torch-compiled", "fusedtrain-reference")
_LONGER = (*_LONG, "torch-loop")

_STEPS: list[Workload] = [
    OptimStep("clip + AdamW, GPT-2 small", shapes.gpt2, host_bound=True),
    OptimStep("clip + AdamW, GPT-2 XL", lambda: shapes.gpt2(48, 1600), skip=_LONGER),
    OptimStep("clip + AdamW, GPT-2 small bf16", shapes.gpt2, host_bound=True, dtype=torch.bfloat16, skip=_LONG),
    OptimStep("clip + AdamW, ResNet-50", shapes.resnet50, host_bound=True),
    OptimStep("clip + AdamW, ResNet-18", shapes.resnet18, host_bound=True),
    OptimStep("clip + AdamW, MobileNetV2", shapes.mobilenet_v2, host_bound=True),
    OptimStep("clip + AdamW, BERT base", shapes.bert_base, host_bound=True, skip=_LONG),
    OptimStep("clip + AdamW, ViT-L", shapes.vit_large, host_bound=True, skip=_LONG),
    OptimStep("clip + AdamW, Llama 3 8B, 1 of 8 shards", shapes.llama3_8b, skip=_LONGER),
    OptimStep("clip + AdamW, LoRA, 20000 tensors", shapes.lora, host_bound=True, skip=_LONGER),
    OptimStep("clip + AdamW, 1000 tensors of 100", lambda: shapes.many(1000, 100), host_bound=True, skip=_LONG),
    OptimStep("clip + AdamW, 1000 tensors of 1000", lambda: shapes.many(1000, 1000), host_bound=True, skip=_LONG),
    OptimStep("clip + AdamW, 465 groups of one tensor", lambda: shapes.many(465, 100), True, True, skip=_LONG),
    OptimStep("clip + AdamW, one tensor of 2^28", lambda: [(2**28,)], skip=("fusedtrain-reference",)),
    # Next to no arithmetic: what remains is the host's work for a step.
    OptimStep("clip + AdamW, 148 tensors of 1", lambda: shapes.many(148, 1), host_bound=True, skip=_LONG[:1]),
    OptimStep("clip + AdamW, 1000 tensors of 1", lambda: shapes.many(1000, 1), host_bound=True, skip=_LONG),
]

_SLOW = ("fusedtrain-reference", "torch-loop")
_CLIPS: list[Workload] = [
    ClipNorm("clip, GPT-2 small", shapes.gpt2, host_bound=True),
    ClipNorm("clip, GPT-2 small, nothing to clip", shapes.gpt2, clips=False, host_bound=True),
    ClipNorm("clip, ResNet-50", shapes.resnet50, host_bound=True),
    ClipNorm("clip, ResNet-18", shapes.resnet18, host_bound=True),
    ClipNorm("clip, MobileNetV2", shapes.mobilenet_v2, host_bound=True),
    ClipNorm("clip, ViT-L", shapes.vit_large, host_bound=True, skip=_SLOW),
    ClipNorm("clip, Llama 3 8B, 1 of 8 shards", shapes.llama3_8b, skip=_SLOW),
    ClipNorm("clip, LoRA, 20000 tensors", shapes.lora, host_bound=True, skip=_SLOW),
    ClipNorm("clip, 1000 tensors of 100", lambda: shapes.many(1000, 100), host_bound=True),
]


def _act(
    activation: str,
    side: tuple[int, int],
    dtype: torch.dtype,
    mode: str = "both",
    gated: bool = False,
    p: float = 0.1,
    model: str = "",
) -> ActDropout:
    return named(ActDropout("", activation, side, dtype, mode, p, gated, model=model))


_BIG, _SMALL, _QUICK = (16384, 16384), (2048, 4096), (1024, 2048)
_FORMS: list[ActDropout] = [
    *(_act("gelu", _BIG, torch.bfloat16, mode) for mode in ("forward", "backward", "both")),
    *(_act("relu", _BIG, torch.bfloat16, mode) for mode in ("forward", "backward", "both")),
    *(_act(activation, _BIG, torch.bfloat16) for activation in ("gelu_tanh", "silu")),
    _act("gelu", _BIG, torch.float32),
    _act("silu", (16384, 8192), torch.bfloat16, gated=True),
    *(_act("gelu", _SMALL, dtype) for dtype in (torch.float32, torch.bfloat16)),
    *(_act("gelu", _QUICK, dtype) for dtype in (torch.float32, torch.bfloat16)),
    _act("relu", _QUICK, torch.float32),
    _act("silu", _QUICK, torch.float32, gated=True),
]
# Tokens x width of the hidden layer, of a batch that fits one device.
_OF_MODELS: list[ActDropout] = [
    _act("gelu_tanh", (8 * 1024, 4 * 768), torch.float32, model="GPT-2 small"),
    _act("gelu_tanh", (4 * 1024, 4 * 1600), torch.bfloat16, model="GPT-2 XL"),
    _act("gelu", (16 * 512, 4 * 768), torch.float32, model="BERT base"),
    _act("gelu", (32 * 197, 4 * 1024), torch.float32, model="ViT-L"),
    _act("relu", (256, 2048), torch.float32, p=0.5, model="ResNet-50"),  # before its classifier
    _act("silu", (2048, 14336), torch.bfloat16, gated=True, p=0.0, model="Llama 3 8B"),
]
_WHOLE: list[Workload] = [TrainStep(f"train, {name}", path) for name, path in MODELS.items()]

WORKLOADS: dict[str, Workload] = {w.name: w for w in (*_STEPS, *_CLIPS, *_FORMS, *_OF_MODELS, *_WHOLE)}

FOR_GPU = {w.name for w in _FORMS if w.shape[0] == _BIG[0]}
"""Too large for a CPU to be sat through; there they run only when asked for by name."""

QUICK = (
    "clip + AdamW, MobileNetV2",
    "clip + AdamW, 1000 tensors of 100",
    "clip + AdamW, 465 groups of one tensor",
    "clip + AdamW, 148 tensors of 1",
    "clip, MobileNetV2",
    "clip, 1000 tensors of 100",
    "gelu + dropout, 1024 x 2048 fp32, both",
    "gelu + dropout, 1024 x 2048 bf16, both",
    "relu + dropout, 1024 x 2048 fp32, both",
    "silu gated + dropout, 1024 x 2048 fp32, both",
    "train, transformer encoder",
)
"""Small ones of every suite: what `--quick` takes."""
COMPILE = ("torch-compiled", "torchao", "heavyball", "deepspeed-fused", "deepspeed-cpu")
"""Providers that compile something when they are first called, which takes longer than a quick run."""
LEFT_OUT = (*COMPILE, "fusedtrain-reference", "torch-loop", "torch-foreach")
"""Providers that a quick run leaves out unless they are named, or the baseline: the others are no contenders."""
