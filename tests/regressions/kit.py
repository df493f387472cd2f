"""What the regression tests share: one case per update rule, an oracle for it, and tensors to put in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import optim_cases
import torch
from torch import Tensor

import fusedtrain as ft
from fusedtrain import dispatch, rules
from fusedtrain.testing import assert_as_accurate

SETTINGS = {**optim_cases.CASES, **optim_cases.LAYERWISE}
CASES = sorted(SETTINGS)
HAVE_TORCH = sorted(optim_cases.HAVE_TORCH)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Make = Callable[..., torch.optim.Optimizer]


def backends() -> list[str]:
    """Those of CPU tensors that run here."""
    return [name for name in ("cpu", "reference") if dispatch.load(name).why_not is None]


def make(case: str, params: Any, backend: str | None = None, **settings: Any) -> Any:
    name, arguments, _ = SETTINGS[case]
    return getattr(ft.optim, name)(params, **{**arguments, **settings}, backend=backend)


def make_torch(case: str, params: Any, **settings: Any) -> torch.optim.Optimizer:
    """torch's class of the same arguments; Lion has none."""
    name, arguments, _ = SETTINGS[case]
    made: torch.optim.Optimizer = getattr(torch.optim, name)(params, **{**arguments, **settings})
    return made


def parameter(x: Tensor, grad: Tensor | None = None) -> torch.nn.Parameter:
    """A parameter that is ``x`` itself, in its layout, with this gradient."""
    p = torch.nn.Parameter(x, requires_grad=True)
    p.grad = grad
    return p


class Oracle:
    """The specification stepping copies of the parameters, in fp64 for the truth or fp32 for a yardstick of error."""

    def __init__(self, case: str, params: Iterable[Tensor], dtype: torch.dtype = torch.float64) -> None:
        self.rule = rules.UPDATES[SETTINGS[case][2]]
        settings = {"weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0, **SETTINGS[case][1]}
        settings.setdefault("eps", 1e-10 if case == "adagrad" else 1e-8)
        settings["nesterov"] = float(settings.get("nesterov", False))
        settings["beta1"], settings["beta2"] = settings.get("betas", (0.0, 0.0))
        self.settings, self.dtype = settings, dtype
        self.params = [p.detach().to(dtype).clone(memory_format=torch.contiguous_format) for p in params]
        self.states = [tuple(torch.zeros_like(p) for _ in self.rule.slots) for p in self.params]
        self.steps = [0 for _ in self.params]

    def step(self, grads: Iterable[Tensor | None], max_norm: float = math.inf) -> None:
        wide = [None if g is None else g.detach().to(self.dtype) for g in grads]
        norm = rules.vector_norm([g for g in wide if g is not None], 2.0)
        coef = rules.clip_coefficient(norm, max_norm)
        for i, (p, g) in enumerate(zip(self.params, wide, strict=True)):
            if g is None:
                continue
            self.steps[i] += 1
            if not p.numel():
                continue
            hyper = [self.settings[key] for key in self.rule.hyper]
            count = torch.tensor(float(self.steps[i]), dtype=torch.float64)
            u, self.states[i] = self.rule.direction(p, g * coef.to(self.dtype), self.states[i], count, *hyper)
            if "trust_coefficient" in self.settings:
                norms = (rules.vector_norm([x], 2.0).to(self.dtype) for x in (p, u))
                u = u * (self.settings["trust_coefficient"] * rules.trust_ratio(*norms))
            p -= self.settings["lr"] * u


@dataclass
class Trial:
    """An optimizer of a case beside its truth and its yardstick."""

    optimizer: Any
    params: Sequence[Tensor]
    truth: Oracle
    yardstick: Oracle
    max_norm: float = math.inf

    def step(self) -> None:
        """One step of all three with the present gradients, a check of every parameter and state, and the oracles go on
        from where the optimizer is: what is compared is a step, not the drift of many."""
        grads = [p.grad for p in self.params]
        self.optimizer.step()
        self.truth.step(grads, self.max_norm)
        self.yardstick.step(grads, self.max_norm)
        self.check()
        self.follow()

    def check(self) -> None:
        for i, p in enumerate(self.params):
            if not p.numel():
                continue
            theirs = self.yardstick.params[i].to(p.dtype)
            assert_as_accurate(p.detach(), theirs, self.truth.params[i], factor=4.0)
            for slot, name in enumerate(self.truth.rule.slots):
                if self.truth.steps[i]:
                    state = self.optimizer.state[p][name]
                    theirs = self.yardstick.states[i][slot].to(state.dtype)
                    assert_as_accurate(state, theirs, self.truth.states[i][slot], factor=4.0)

    def follow(self) -> None:
        for oracle in (self.truth, self.yardstick):
            for i, p in enumerate(self.params):
                if not p.numel():
                    continue
                oracle.params[i].copy_(p.detach())
                for slot, name in enumerate(oracle.rule.slots):
                    if oracle.steps[i]:
                        oracle.states[i][slot].copy_(self.optimizer.state[p][name])


def trial(case: str, params: Sequence[Tensor], make: Make = make, **settings: Any) -> Trial:
    """The optimizer under test on ``params`` beside the specification. ``make`` is swapped to see a check fail."""
    compute = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
    oracles = Oracle(case, params), Oracle(case, params, compute)
    max_norm = settings.get("max_norm")
    return Trial(make(case, params, **settings), params, *oracles, math.inf if max_norm is None else max_norm)


def snapshot(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of all parameters and all state tensors."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [v for p in params for _, v in sorted(optimizer.state[p].items()) if isinstance(v, Tensor)]
    return [x.detach().clone() for x in [*params, *states]]


def assert_bitwise(now: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    assert len(now) == len(before)
    for a, b in zip(now, before, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(*(x.detach().reshape(-1).view(torch.uint8) for x in (a, b)))


def assert_conditioned(activation: str, x: Tensor, y: Tensor, dx: Tensor | None = None, roundings: float = 8) -> None:
    """Asserts that ``y = act(x)``, and ``dx = act'(x)``, within some roundings of the value at a point as near to x: as
    stable evaluation does, relative to the value also where it is tiny. A slope computed from the output is as accurate
    as the output, absolutely."""
    rule = rules.ACTIVATIONS[activation]
    z = x.detach().double().requires_grad_()
    f, df = rule.fwd(z), rule.grad(z)
    (ddf,) = torch.autograd.grad(df.sum(), z, allow_unused=True) if df.requires_grad else (None,)
    ddf = torch.zeros_like(z) if ddf is None else ddf
    info = torch.finfo(x.dtype)
    tiny = max(info.tiny * info.eps, torch.finfo(torch.float32).tiny if x.dtype != torch.float64 else info.tiny)
    checks = [(y, f, (z * df).abs())]
    if dx is not None:
        checks.append((dx, df, (z * ddf).abs() + (rule.saves == "output")))
    for got, exact, sensitivity in checks:
        got, exact, sensitivity = got.detach(), exact.detach(), sensitivity.detach()
        allowed = roundings * info.eps * (exact.abs() + sensitivity) + tiny * (1 + z.detach().abs())
        wrong = ~((got.double() - exact).abs() <= allowed)
        if wrong.any():
            i = int(((got.double() - exact).abs() / allowed).nan_to_num(math.inf).argmax())
            where = f"{activation}({float(x.flatten()[i])!r}) {got.dtype}"
            raise AssertionError(f"{where}: {float(got.flatten()[i])!r} instead of {float(exact.flatten()[i])!r}")


def act(activation: str, x: Tensor) -> Tensor:
    """The specification in fp64."""
    return rules.ACTIVATIONS[activation].fwd(x.double())
