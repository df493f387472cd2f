"""What the tests of tables share: optimizers of every rule, and pairs of them, of which one never has a table."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fusedtrain as ft
from fusedtrain import rules
from fusedtrain.optim import planned

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": lambda p, **kw: ft.optim.SGD(p, lr=0.1, **kw),
    "momentum": lambda p, **kw: ft.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, **kw),
    "Adam": lambda p, **kw: ft.optim.Adam(p, lr=0.01, weight_decay=0.1, **kw),
    "Adam amsgrad": lambda p, **kw: ft.optim.Adam(p, lr=0.01, amsgrad=True, **kw),
    "plain AdamW": lambda p, **kw: ft.optim.AdamW(p, lr=0.01, **kw),
    "AdamW": lambda p, **kw: ft.optim.AdamW(p, lr=0.01, amsgrad=True, **kw),
    "Lion": lambda p, **kw: ft.optim.Lion(p, lr=0.01, **kw),
    "Adagrad": lambda p, **kw: ft.optim.Adagrad(p, lr=0.1, lr_decay=0.1, **kw),
    "RMSprop": lambda p, **kw: ft.optim.RMSprop(p, lr=0.01, weight_decay=0.1, **kw),
    "RMSprop momentum": lambda p, **kw: ft.optim.RMSprop(p, lr=0.01, momentum=0.9, **kw),
    "RMSprop centered": lambda p, **kw: ft.optim.RMSprop(p, lr=0.01, centered=True, **kw),
    "RMSprop both": lambda p, **kw: ft.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.9, **kw),
}
COUNT = 5
"""Of the tensors that `parameters` gives."""


def place() -> torch.device:
    """Where the tensors of the backend that is tested are: see the fixture `backend`."""
    on_gpu = os.environ.get("FUSEDTRAIN_BACKEND") in ("cuda", "triton") and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def interpreted() -> bool:
    """Whether a step takes long."""
    return os.environ.get("FUSEDTRAIN_BACKEND") == "triton" and not torch.cuda.is_available()


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    """Tensors of every kind, of which the fourth has several chunks, but where kernels are interpreted."""
    large = {"cuda": (150, 60), "triton": (40, 30)}.get(os.environ.get("FUSEDTRAIN_BACKEND", ""), (700, 60))
    shapes: list[tuple[int, ...]] = [(3, 5), (0,), (), large, (1, 4, 1)]
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(place(), dtype)) for s in shapes]


def give_gradients(params: list[torch.nn.Parameter], seed: int, without: tuple[int, ...] = ()) -> None:
    generator = torch.Generator().manual_seed(seed)
    for i, p in enumerate(params):
        g = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
        p.grad = None if i in without else g


def rule_of(make: Callable[..., Any]) -> str:
    opt = make(parameters())
    return str(opt._rule(opt.param_groups[0]))


assert {rule_of(make) for make in OPTIMIZERS.values()} == set(rules.UPDATES), "a rule without an optimizer"


def has_table(opt: Any) -> bool:
    return opt._planner is not None and opt._planner.table is not None


def keep_to_lists(opt: Any) -> None:
    """For one step: afterwards no table is built."""
    opt._planner = planned.Planner()
    opt._planner.wait = 1


def everything(opt: Any) -> list[Tensor]:
    values = [p.detach() for g in opt.param_groups for p in g["params"]]
    values += [s[k] for s in opt.state.values() for k in sorted(s) if isinstance(s[k], Tensor)]
    return [*values, *(x for x in (opt.grad_norm, opt.clip_coef, opt.skipped_steps) if x is not None)]


def assert_same(a: Any, b: Any) -> None:
    ours, theirs = everything(a), everything(b)
    assert len(ours) == len(theirs)
    for x, y in zip(ours, theirs, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x.nan_to_num(nan=7.25), y.nan_to_num(nan=7.25))


class Pair:
    """Two equal optimizers, one of which never has a table."""

    def __init__(self, make: Callable[..., Any], dtype: torch.dtype = torch.float32, **settings: Any) -> None:
        self.params, self.others = parameters(dtype), parameters(dtype)
        self.opt, self.plain = make(self.params, **settings), make(self.others, **settings)
        self.tables_used = 0

    def step(self, seed: int, without: tuple[int, ...] = ()) -> None:
        give_gradients(self.params, seed, without)
        give_gradients(self.others, seed, without)
        self.step_as_is()

    def step_as_is(self) -> None:
        before = self.opt._planner and self.opt._planner.table
        self.opt.step()
        self.tables_used += before is not None and self.opt._planner.table is before
        keep_to_lists(self.plain)
        self.plain.step()
        assert not has_table(self.plain)
        assert_same(self.opt, self.plain)
