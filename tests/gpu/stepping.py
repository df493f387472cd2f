"""What the GPU tests share about steps: runs of the cases that can be compared."""

from __future__ import annotations

from typing import Any

import torch
from optim_cases import CASES, LAYERWISE
from torch import Tensor

import fusedtrain as ft
from fusedtrain.testing import assert_as_accurate

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def optimizer(case: str, params: Any, **settings: Any) -> Any:
    name, arguments, _ = {**CASES, **LAYERWISE}[case]
    return getattr(ft.optim, name)(params, **{**arguments, **settings})


def parameters(xs: list[Tensor], gs: list[Tensor] | None = None) -> list[torch.nn.Parameter]:
    """Parameters that are these tensors themselves, with these gradients."""
    params = [torch.nn.Parameter(x) for x in xs]
    for p, g in zip(params, gs or (), strict=bool(gs)):
        p.grad = g
    return params


def random(shapes: list[tuple[int, ...]], device: torch.device, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """The same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes]


def everything(opt: torch.optim.Optimizer) -> list[Tensor]:
    """What a step writes: parameters and states."""
    params = [p for group in opt.param_groups for p in group["params"]]
    states = [v for p in params for _, v in sorted(opt.state[p].items()) if isinstance(v, Tensor)]
    return [x.detach() for x in (*params, *states)]


def run(case: str, xs: list[Tensor], grads: list[list[Tensor]], **settings: Any) -> list[Tensor]:
    """Parameters and states after a step with each of these lists of gradients, on copies."""
    params = parameters([x.clone() for x in xs])
    opt = optimizer(case, params, **settings)
    for gs in grads:
        for p, g in zip(params, gs, strict=True):
            p.grad = g
        opt.step()
    return everything(opt)


def assert_like_reference(
    results: list[Tensor], case: str, xs: list[Tensor], grads: list[list[Tensor]], **settings: Any
) -> None:
    """As near to fp64 as the specification in plain PyTorch of the same dtypes is."""
    cpu = torch.device("cpu")
    truth = [x.to(cpu, torch.float64) for x in xs], [[g.to(cpu, torch.float64) for g in gs] for gs in grads]
    same = [x.to(cpu) for x in xs], [[g.to(cpu) for g in gs] for gs in grads]
    settings["backend"] = "reference"
    exact, plain = run(case, *truth, **settings), run(case, *same, **settings)
    assert len(results) == len(plain)
    for ours, theirs, right in zip(results, plain, exact, strict=True):
        assert ours.dtype == theirs.dtype
        if ours.numel():
            assert_as_accurate(ours.to(cpu), theirs, right, factor=4.0)


def assert_bitwise(a: list[Tensor], b: list[Tensor]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (x, y)))
