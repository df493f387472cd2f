"""Any sequence of what a training loop does to an optimizer, against torch's for-loop optimizer in fp64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch.nn import Parameter

import fusedtrain as ft

SHAPES = [(3,), (2, 2), (), (0,), (17,)]
OPTIONS: list[tuple[type, dict[str, Any]]] = [
    (ft.optim.AdamW, {"weight_decay": 0.1}),
    (ft.optim.Adam, {"amsgrad": True, "weight_decay": 0.1}),
    (ft.optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
    (ft.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (ft.optim.SGD, {}),
]


class Machine(RuleBasedStateMachine):
    """``ours`` clips and skips inside its step; ``theirs`` has it done by hand around torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)
        self.ours: list[Parameter] = []
        self.theirs: list[Parameter] = []
        self.skipped = 0

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def new_pair(self, shape: tuple[int, ...]) -> tuple[Parameter, Parameter]:
        value = self.random(*shape)
        pair = Parameter(value.clone()), Parameter(value.clone())
        self.ours.append(pair[0])
        self.theirs.append(pair[1])
        return pair

    @initialize(
        option=st.sampled_from(OPTIONS), max_norm=st.sampled_from([0.1, 3.0, float("inf")]), n=st.integers(1, 4)
    )
    def build(self, option: tuple[type, dict[str, Any]], max_norm: float, n: int) -> None:
        self.cls, self.kwargs = option
        self.max_norm = max_norm
        pairs = [self.new_pair(SHAPES[i]) for i in range(n)]
        self.opt = self.make([p for p, _ in pairs])
        reference = getattr(torch.optim, self.cls.__name__)
        self.reference = reference([q for _, q in pairs], lr=0.1, foreach=False, fused=False, **self.kwargs)

    def make(self, params: Any) -> Any:
        return self.cls(params, lr=0.1, max_norm=self.max_norm, nonfinite="skip", **self.kwargs)

    @rule(times=st.integers(1, 3))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.opt.step()
            grads = [q.grad for q in self.theirs if q.grad is not None]
            kept = [g.clone() for g in grads]
            norm = torch.nn.utils.clip_grad_norm_(self.theirs, self.max_norm)
            if all(bool(g.isfinite().all()) for g in kept):
                self.reference.step()
            else:
                self.skipped += 1
            for g, value in zip(grads, kept, strict=True):
                g.copy_(value)
            torch.testing.assert_close(self.opt.grad_norm.double(), norm.double(), equal_nan=True)

    @rule(layout=st.sampled_from(["like", "transposed"]))
    def backward(self, layout: str) -> None:
        """New gradients for all, in new memory."""
        for p, q in zip(self.ours, self.theirs, strict=True):
            g = self.random(*p.shape)
            p.grad = g.t().contiguous().t() if layout == "transposed" and g.dim() == 2 else g.clone()
            q.grad = g.clone()

    @rule(data=st.data())
    def drop_or_spoil_a_gradient(self, data: st.DataObject) -> None:
        i = data.draw(st.integers(0, len(self.ours) - 1))
        p, q = self.ours[i], self.theirs[i]
        if data.draw(st.booleans()) or p.grad is None or p.numel() == 0:
            p.grad = q.grad = None
        else:
            bad = data.draw(st.sampled_from([float("inf"), float("nan")]))
            with torch.no_grad():
                p.grad[(0,) * p.grad.dim()] = bad
                q.grad.copy_(p.grad)

    @rule(accumulate=st.booleans())
    def write_gradients_in_place(self, accumulate: bool) -> None:
        for p, q in zip(self.ours, self.theirs, strict=True):
            if p.grad is not None:
                p.grad.mul_(2.0 if accumulate else 0.0)
                q.grad.mul_(2.0 if accumulate else 0.0)

    @rule(lr=st.floats(0, 0.5), decay=st.floats(0, 0.5))
    def schedule(self, lr: float, decay: float) -> None:
        for opt in (self.opt, self.reference):
            opt.param_groups[-1].update(lr=lr, weight_decay=decay)

    @rule(shape=st.sampled_from(SHAPES))
    def add_group(self, shape: tuple[int, ...]) -> None:
        if len(self.ours) < 7:
            p, q = self.new_pair(shape)
            self.opt.add_param_group({"params": [p], "lr": 0.02})
            self.reference.add_param_group({"params": [q], "lr": 0.02})

    @rule(foreign=st.booleans())
    def save_and_load(self, foreign: bool) -> None:
        """Into a new object; from our own checkpoint or from torch's."""
        saved = copy.deepcopy((self.reference if foreign else self.opt).state_dict())
        groups = [{"params": g["params"]} for g in self.opt.param_groups]
        before = self.opt.skipped_steps.item()
        self.opt = self.make(groups)
        self.opt.load_state_dict(saved)
        self.skipped -= before

    @rule()
    def exchange_memory(self) -> None:
        for p in self.ours:
            p.data = p.data.clone()

    @invariant()
    def same(self) -> None:
        if not self.ours:
            return
        torch.testing.assert_close([p.detach() for p in self.ours], [q.detach() for q in self.theirs], equal_nan=True)
        assert self.opt.skipped_steps.item() == self.skipped
        for p, q in zip(self.ours, self.theirs, strict=True):
            if "step" in self.reference.state.get(q, {}):
                assert self.opt.state[p]["step"].item() == self.reference.state[q]["step"].item()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_any_sequence(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if ft.dispatch.load(backend).why_not:
        pytest.skip(f"backend {backend}: {ft.dispatch.load(backend).why_not}")
    monkeypatch.setenv("FUSEDTRAIN_BACKEND", backend)
    Machine.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
    Machine.TestCase("runTest").runTest()
