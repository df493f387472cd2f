"""All workloads, by name."""

from __future__ import annotations

import torch

from fusedtrain.bench import shapes
from fusedtrain.bench.act_dropout import ActDropout
from fusedtrain.bench.optim_step import OptimStep
from fusedtrain.bench.workload import Workload

# A compiler takes minutes over a thousand tensors, and loops over twenty thousand take seconds each.
_LONG = ("torch-compiled", "fusedtrain-reference")
_LONGER = (*_LONG, "torch-loop")

_STEPS: list[Workload] = [
    OptimStep("clip + AdamW, GPT-2 small", shapes.gpt2, host_bound=True),
    OptimStep("clip + AdamW, GPT-2 XL", lambda: shapes.gpt2(48, 1600), skip=_LONGER),
    OptimStep("clip + AdamW, GPT-2 small bf16", shapes.gpt2, host_bound=True, dtype=torch.bfloat16, skip=_LONG),
    OptimStep("clip + AdamW, ResNet-50", shapes.resnet50, host_bound=True),
    OptimStep("clip + AdamW, BERT base", shapes.bert_base, host_bound=True, skip=_LONG),
    OptimStep("clip + AdamW, ViT-L", shapes.vit_large, host_bound=True, skip=_LONG),
    OptimStep("clip + AdamW, Llama 3 8B, 1 of 8 shards", shapes.llama3_8b, skip=_LONGER),
    OptimStep("clip + AdamW, LoRA, 20000 tensors", shapes.lora, host_bound=True, skip=_LONGER),
    OptimStep("clip + AdamW, 1000 tensors of 100", lambda: shapes.many(1000, 100), host_bound=True, skip=_LONG),
    OptimStep("clip + AdamW, 1000 tensors of 1000", lambda: shapes.many(1000, 1000), host_bound=True, skip=_LONG),
    OptimStep("clip + AdamW, 465 groups of one tensor", lambda: shapes.many(465, 100), True, True, skip=_LONG),
    OptimStep("clip + AdamW, one tensor of 2^28", lambda: [(2**28,)], skip=("fusedtrain-reference",)),
    # Next to no arithmetic: what remains is the host's work for a step.
    OptimStep("clip + AdamW, 148 tensors of 1", lambda: shapes.many(148, 1), host_bound=True, skip=_LONG),
    OptimStep("clip + AdamW, 1000 tensors of 1", lambda: shapes.many(1000, 1), host_bound=True, skip=_LONG),
]


def _act(activation: str, side: tuple[int, int], dtype: torch.dtype, mode: str, gated: bool = False) -> ActDropout:
    kind = f"{activation} gated" if gated else activation
    size, short = f"{side[0]} x {side[1]}", {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float16: "fp16"}
    return ActDropout(f"{kind} + dropout, {size} {short[dtype]}, {mode}", activation, side, dtype, mode, gated=gated)


_BIG, _SMALL = (16384, 16384), (2048, 4096)
_ACTIVATIONS: list[Workload] = [
    *(_act("gelu", _BIG, torch.bfloat16, mode) for mode in ("forward", "backward", "both")),
    *(_act("relu", _BIG, torch.bfloat16, mode) for mode in ("forward", "backward", "both")),
    *(_act(activation, _BIG, torch.bfloat16, "both") for activation in ("gelu_tanh", "silu")),
    _act("gelu", _BIG, torch.float32, "both"),
    _act("silu", (16384, 8192), torch.bfloat16, "both", gated=True),
    *(_act("gelu", _SMALL, dtype, "both") for dtype in (torch.float32, torch.bfloat16)),
]

WORKLOADS: dict[str, Workload] = {w.name: w for w in (*_STEPS, *_ACTIVATIONS)}
