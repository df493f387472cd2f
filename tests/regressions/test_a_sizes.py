"""Section A of the catalogue, sizes: empty tensors, many tensors, tensors beyond 2**31 elements."""

from __future__ import annotations

import itertools
import math
import os

import kit
import pytest
import torch
from torch import Tensor

import fusedtrain as ft

BIG = 2**31 + 8
needs_memory = pytest.mark.skipif(
    not os.environ.get("FUSEDTRAIN_TEST_BIG"), reason="writes 13 GB of memory; set FUSEDTRAIN_TEST_BIG=1"
)


def far_apart(rows: int = 3, columns: int = 64, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A small view whose last row begins beyond element 2**31 of its storage; the pages between are never touched."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        storage = torch.empty(BIG + columns, dtype=dtype)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
    x = storage.as_strided((rows, columns), (BIG // (rows - 1), 1))
    return x.copy_(torch.randn(rows, columns))


@needs_memory
def test_A1_A2_every_element_of_a_huge_parameter_is_updated() -> None:
    """pytorch#101449, DeepSpeed#7640: 32-bit sizes crash, or silently update nothing."""
    p = torch.nn.Parameter(torch.zeros(BIG, dtype=torch.float16))
    p.grad = torch.ones(1, dtype=torch.float16).expand(BIG)
    ft.optim.SGD([p], lr=1.0).step()
    with torch.no_grad():
        assert p[[0, 1, 2**31 - 1, 2**31, BIG - 1]].tolist() == [-1.0] * 5
        assert int(p.count_nonzero()) == BIG


@needs_memory
def test_A3_norm_of_a_huge_tensor() -> None:
    """apex#1654, TE#2918: the same truncation in the norm and the scaling kernels."""
    g = torch.ones(BIG, dtype=torch.float16)
    assert float(ft.global_norm([g])) == pytest.approx(math.sqrt(BIG), rel=1e-6)
    p = kit.parameter(torch.zeros(1, dtype=torch.float16).expand(BIG), None)
    p.grad = g
    ft.clip_grad_norm_([p], math.sqrt(BIG) / 2)
    assert g[[0, 2**31, BIG - 1]].tolist() == [0.5] * 3


def test_A5_A6_activation_of_rows_beyond_2_to_31(backend: str) -> None:
    """mamba!988, pytorch!196431: a small view of a wide parent overflows 32-bit offsets though every size is small."""
    x = far_apart()
    state = torch.tensor([1, 2])
    packed = x.contiguous()
    for activation in ("gelu", "relu"):
        far, near = x.detach().requires_grad_(), packed.clone().requires_grad_()
        y, z = (ft.functional.act_dropout(t, activation, 0.25, rng_state=state) for t in (far, near))
        assert torch.equal(y, z)
        for t, out in ((far, y), (near, z)):
            (t.grad,) = torch.autograd.grad(out.sum(), t)
        assert torch.equal(far.grad, near.grad)


def test_A5_A6_norm_and_step_of_rows_beyond_2_to_31(backend: str) -> None:
    """mamba!988 for the norm and the optimizers, where the gradient or the parameter is such a view."""
    g = far_apart()
    torch.testing.assert_close(ft.global_norm([g]), ft.global_norm([g.contiguous()]))
    p = kit.parameter(torch.zeros(g.shape, dtype=g.dtype), g)
    q = kit.parameter(far_apart().zero_(), g.contiguous())
    for x in (p, q):
        ft.optim.SGD([x], lr=1.0).step()
        assert torch.equal(x.detach(), -g)


def test_A7_a_thousand_empty_tensors(backend: str, case: str) -> None:
    """pytorch#94865: only empty tensors overran the table of tensors."""
    params = [kit.parameter(torch.empty(0), torch.empty(0)) for _ in range(1000 if backend == "cpu" else 50)]
    kit.make(case, params).step()
    ft.clip_grad_norm_(params, 1.0)
    real = kit.parameter(torch.randn(5), torch.randn(5))
    trial = kit.trial(case, [*params, real], max_norm=0.5)
    trial.step()
    assert float(trial.optimizer.grad_norm) == pytest.approx(float(real.grad.norm()), rel=1e-6)


@pytest.mark.parametrize("sizes", sorted(set(itertools.permutations([1, 1, 0, 1, 0]))))
def test_A8_empty_tensors_in_every_order(backend: str, sizes: tuple[int, ...]) -> None:
    """pytorch#100701, !100811, !109402: the tensor before a trailing empty one was not updated."""
    params = [kit.parameter(torch.full((n,), 1.0), torch.ones(n)) for n in sizes]
    ft.optim.SGD(params, lr=0.25).step()
    assert [p.tolist() for p in params] == [[0.75] * n for n in sizes]
    assert float(ft.global_norm([p.grad for p in params])) == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize("n", [29, 30, 31, 36, 48, 63, 64, 65, 110, 111])
def test_A10_an_empty_tensor_in_any_slot(backend: str, n: int) -> None:
    """TE#3202, apex and DeepSpeed today: an empty tensor in the last slot of a table wrote beyond it."""
    slots = range(n) if backend == "cpu" else {0, 1, n // 2, n - 2, n - 1}
    for slot in slots:
        params = [kit.parameter(torch.ones(k), torch.ones(k)) for k in (0 if i == slot else 3 for i in range(n))]
        opt = ft.optim.SGD(params, lr=0.5, max_norm=1e9)
        opt.step()
        assert {v for p in params for v in p.tolist()} == {0.5}
        assert float(opt.grad_norm) == pytest.approx(math.sqrt(3 * (n - 1)))


def test_A23_states_and_counts_are_per_parameter(backend: str, case: str) -> None:
    """DeepSpeed#1643, !503: one step count and one bias correction were shared by all parameters."""
    a, b = (kit.parameter(torch.randn(7)) for _ in range(2))
    trial = kit.trial(case, [a, b])
    for i in range(4):
        a.grad = torch.randn(7)
        b.grad = torch.randn(7) if i >= 2 else None  # joins late: its own count begins at 1
        trial.step()
    if trial.truth.rule.slots:
        steps = [int(trial.optimizer.state[p]["step"]) for p in (a, b) if "step" in trial.optimizer.state[p]]
        assert steps in ([4, 2], [])
