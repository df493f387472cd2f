"""What is measured: each workload as our callable, PyTorch's, and a check that ours is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import fusedtrain as ft
from fusedtrain import rng, rules
from fusedtrain.testing import assert_as_accurate

BETAS, EPS, LR, WEIGHT_DECAY, MAX_NORM = (0.9, 0.95), 1e-8, 3e-4, 0.1, 1.0
Call = Callable[[], object]


@dataclass(frozen=True)
class Pair:
    """One workload, made: the two sides of a ratio."""

    ours: Call
    theirs: Call
    check: Call
    """Raises AssertionError if ours is wrong."""


@dataclass(frozen=True)
class Workload:
    name: str
    baseline: str
    make: Callable[[], Pair]
    target: float | None = None
    """The ratio it is built for."""
    budget: float | None = None
    """Microseconds that our side may take."""


def gpt2_shapes(layers: int = 12, width: int = 768) -> list[tuple[int, ...]]:
    """GPT-2 small: 148 tensors, 124 M parameters (Radford et al. 2019)."""
    block = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(50257, width), (1024, width), *block * layers, (width,), (width,)]


def clip_and_step(shapes: list[tuple[int, ...]], group_per_tensor: bool = False) -> Pair:
    """``AdamW(max_norm=)`` against ``clip_grad_norm_`` + ``torch.optim.AdamW(fused=True)``."""
    generator = torch.Generator().manual_seed(0)
    sides: list[list[torch.nn.Parameter]] = [[], []]
    for shape in shapes:
        x, g = (torch.randn(shape, generator=generator) for _ in range(2))
        for side in sides:
            p = torch.nn.Parameter(x.clone())
            p.grad = g.clone()
            side.append(p)
    mine, stock = sides

    def groups(params: list[torch.nn.Parameter]) -> list[object]:
        return [{"params": [p]} for p in params] if group_per_tensor else list(params)

    opt = ft.optim.AdamW(groups(mine), LR, BETAS, EPS, WEIGHT_DECAY, max_norm=MAX_NORM)
    torch_opt = torch.optim.AdamW(groups(stock), LR, BETAS, EPS, WEIGHT_DECAY, fused=True)

    def theirs() -> None:
        torch.nn.utils.clip_grad_norm_(stock, MAX_NORM)
        torch_opt.step()

    def check() -> None:
        """Two steps: every parameter as near to fp64 as torch's is."""
        start = [p.detach().clone() for p in mine]
        grads = [p.grad.clone() for p in mine if p.grad is not None]
        coef = rules.clip_coefficient(rules.vector_norm(grads, 2.0), MAX_NORM)
        for p, g in zip(stock, grads, strict=True):
            p.grad = g.clone()  # torch's clipping has its own copy to write
        for _ in range(2):
            opt.step()
            for p, g in zip(stock, grads, strict=True):
                p.grad.copy_(g)  # type: ignore[union-attr]
            theirs()
        for p, q, x, g in zip(mine, stock, start, grads, strict=True):
            exact, g = x.double(), g.double() * coef
            states: rules.States = (torch.zeros_like(exact), torch.zeros_like(exact))
            for t in (1, 2):
                count = torch.tensor(float(t), dtype=torch.float64)
                u, states = rules.adamw(exact, g, states, count, *BETAS, EPS, WEIGHT_DECAY)
                exact = exact - LR * u
            assert_as_accurate(p.detach(), q.detach(), exact)

    return Pair(opt.step, theirs, check)


def activation_and_dropout(dtype: torch.dtype, shape: tuple[int, int] = (2048, 4096), p: float = 0.1) -> Pair:
    """``act_dropout(x, "gelu", p)`` forward and backward against ``F.dropout(F.gelu(x), p)``."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    x.requires_grad_()

    def both_ways(f: Callable[[Tensor], Tensor]) -> None:
        x.grad = None
        f(x).backward(dy)

    def check() -> None:
        """The mask to the bit; values and gradients as near to fp64 as torch's gelu, masked, is."""
        state = torch.tensor([5, 8])
        y = ft.functional.act_dropout(x, "gelu", p, rng_state=state)
        (dx,) = torch.autograd.grad(y, x, dy)
        threshold = rng.drop_threshold(p)
        keep, scale = rng.keep_mask(state, threshold, shape), rng.keep_scale(threshold)
        z = x.detach().double()
        plain = F.gelu(x)
        (plain_dx,) = torch.autograd.grad(plain, x, dy)
        zero = torch.zeros((), dtype=torch.float64)
        for ours, theirs, exact in (
            (y, plain, rules.gelu(z)),
            (dx, plain_dx, rules.gelu_grad(z) * dy.double()),
        ):
            truth = torch.where(keep, exact * scale, zero)
            assert_as_accurate(ours, torch.where(keep, theirs.double() * scale, zero).to(dtype), truth)
            if not torch.equal(ours[~keep], torch.zeros_like(ours[~keep])):
                raise AssertionError("a dropped element is not zero")

    return Pair(
        lambda: both_ways(lambda t: ft.functional.act_dropout(t, "gelu", p)),
        lambda: both_ways(lambda t: F.dropout(F.gelu(t), p)),
        check,
    )


STOCK_STEP = "clip_grad_norm_ + AdamW(fused=True)"
EAGER = "F.dropout(F.gelu(x), 0.1)"
SMALL_GROUPS = [(100,)] * 465
WORKLOADS = [
    Workload("clip + AdamW, GPT-2 small: 148 tensors, 124 M", STOCK_STEP, lambda: clip_and_step(gpt2_shapes()), 1.4),
    Workload("clip + AdamW, 1000 tensors of 100", STOCK_STEP, lambda: clip_and_step([(100,)] * 1000), 25.0),
    Workload(
        "clip + AdamW, 465 groups of one tensor of 100", STOCK_STEP, lambda: clip_and_step(SMALL_GROUPS, True), 50.0
    ),
    Workload("gelu + dropout 0.1, 2048 x 4096 fp32", EAGER, lambda: activation_and_dropout(torch.float32), 4.0),
    Workload("gelu + dropout 0.1, 2048 x 4096 bf16", EAGER, lambda: activation_and_dropout(torch.bfloat16), 4.0),
    # Next to no arithmetic: what remains is the host's work for a step, 30 us + 0.15 us per tensor in the budget.
    Workload("host time, 148 tensors of 1", STOCK_STEP, lambda: clip_and_step([(1,)] * 148), budget=30 + 0.15 * 148),
    Workload("host time, 1000 tensors of 1", STOCK_STEP, lambda: clip_and_step([(1,)] * 1000), budget=30 + 0.15 * 1000),
]
QUICK = {WORKLOADS[0].name: lambda: clip_and_step(gpt2_shapes(layers=2, width=256))}
"""Smaller stand-ins, for a look that proves nothing."""
