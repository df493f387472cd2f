"""Every kernel on small tensors of every alignment, against the specification, with guards around what is written.

Small enough for a sanitizer to watch. A21 (tilelang#2526, DeepSpeed!1318): vectors chosen by dtype and size, not by the
pointer, are misaligned on views.
"""

from __future__ import annotations

import math

import pytest
import torch
from nonfinite import NONFINITE, spoil
from optim_cases import CASES
from stepping import FLOATS, assert_like_reference, everything, optimizer, parameters, random
from torch import Tensor

import fusedtrain as ft
from fusedtrain import dispatch, rng, rules
from fusedtrain.testing import assert_as_accurate

SIZES = (1, 7, 8, 33, 0, 130)
_GUARD = 64
"""Bytes on each side."""
BOTH = [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)]


class Guarded:
    """Tensors inside larger buffers, so many bytes from an aligned address, between bytes that must stay."""

    def __init__(self) -> None:
        self.buffers: list[tuple[Tensor, int, int]] = []

    def place(self, x: Tensor, offset: int) -> Tensor:
        size = x.numel() * x.element_size()
        buffer = torch.full((2 * _GUARD + offset + size,), 0xAB, dtype=torch.uint8, device=x.device)
        begin = _GUARD + offset
        self.buffers.append((buffer, begin, begin + size))
        return buffer[begin : begin + size].view(x.dtype).view(x.shape).copy_(x)

    def check(self) -> None:
        for buffer, begin, end in self.buffers:
            around = torch.cat([buffer[:begin], buffer[end:]])
            assert bool((around == 0xAB).all()), "written beyond a tensor"


def offsets(dtype: torch.dtype) -> range:
    """Distances from a 16-byte boundary that a tensor of this dtype can have."""
    return range(0, 16, dtype.itemsize)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_step(backend: str, device: torch.device, case: str, dtype: torch.dtype) -> None:
    """Every rule and dtype, clipped: each tensor at another distance from alignment, gradients at yet another."""
    shapes = [(n,) for n in SIZES]
    xs = random(shapes, device, dtype)
    grads = [random(shapes, device, dtype, seed) for seed in (1, 2)]
    settings = {"max_norm": 1.0, "l1": 0.01, "clip_value": 0.2}
    places, guarded = offsets(dtype), Guarded()
    params = parameters([guarded.place(x, places[i % len(places)]) for i, x in enumerate(xs)])
    opt = optimizer(case, params, **settings, backend=backend)
    for step, gs in enumerate(grads):
        for i, (p, g) in enumerate(zip(params, gs, strict=True)):
            p.grad = guarded.place(g, places[(3 * i + step + 1) % len(places)])
        opt.step()
    guarded.check()
    assert_like_reference(everything(opt), case, xs, grads, **settings)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_step_at_every_offset(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """All operands alike, so that vectors can be used after a scalar head; and the gradient alone elsewhere."""
    places, guarded = offsets(dtype), Guarded()
    pairs = [(a, b) for a in places for b in {a, places[0], places[-1]}]
    shapes = [(41,)] * len(pairs)
    xs, gs = random(shapes, device, dtype), random(shapes, device, dtype, 1)
    at = [guarded.place(x, a) for x, (a, _) in zip(xs, pairs, strict=True)]
    params = parameters(at, [guarded.place(g, b) for g, (_, b) in zip(gs, pairs, strict=True)])
    opt = optimizer("adamw", params, max_norm=1.0, backend=backend)
    opt.step()
    guarded.check()
    assert_like_reference(everything(opt), "adamw", xs, [gs], max_norm=1.0)


@pytest.mark.parametrize(("dtype", "grad_dtype"), BOTH, ids=str)
def test_step_of_mixed_dtypes(backend: str, device: torch.device, dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    """B26: fp32 gradients of bf16 parameters and the reverse, through the operator itself."""
    n = 77
    (p,) = random([(n,)], device, dtype)
    (g,) = random([(n,)], device, grad_dtype, 1)
    hyper = torch.tensor([[0.01, 1.0, math.inf, 0.0, 0.9, 0.95, 1e-8, 0.1]], dtype=torch.float64)

    def step(name: str, where: torch.device, wide: torch.dtype | None) -> list[Tensor]:
        x, y = (t.to(where, wide or t.dtype, copy=True) for t in (p, g))
        states = [torch.zeros(n, dtype=wide or torch.float32, device=where) for _ in range(2)]
        count = torch.zeros((), device=where)
        op = dispatch.load(name).optim_step_
        op("adamw", [x], [y], states, [count], hyper, [0], *[None] * 4, -1.0, False, *[None] * 3)
        return [x.cpu(), *(s.cpu() for s in states), count.cpu()]

    cpu = torch.device("cpu")
    ours, plain, exact = (
        step(backend, device, None),
        step("reference", cpu, None),
        step("reference", cpu, torch.float64),
    )
    for a, b, truth in zip(ours, plain, exact, strict=True):
        assert_as_accurate(a, b, truth, factor=4.0)


@pytest.mark.parametrize("skip", ["found_inf", "nonfinite"])
@pytest.mark.parametrize("case", CASES)
def test_a_skipped_step_writes_nothing(backend: str, device: torch.device, case: str, skip: str) -> None:
    """B6, B7: bitwise, and on the very first step too."""
    shapes = [(n,) for n in SIZES]
    params = parameters(random(shapes, device, torch.float32), random(shapes, device, torch.float32, 1))
    opt = optimizer(case, params, max_norm=1.0, nonfinite="skip", backend=backend)
    for step in range(2):
        before = [p.detach().clone() for p in params] if step == 0 else [x.clone() for x in everything(opt)]
        if skip == "found_inf":
            opt.found_inf = torch.ones((), device=device)
        else:
            params[-1].grad[-1] = math.nan
        opt.step()
        now = [p.detach() for p in params] if step == 0 else everything(opt)
        assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))
        if skip == "found_inf":
            del opt.found_inf
        else:
            params[-1].grad[-1] = 0.5
        if step == 0:
            opt.step()
    assert int(opt.skipped_steps) == 2


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_every_nonfinite_gradient_is_skipped(backend: str, device: torch.device, dtype: torch.dtype, p: float) -> None:
    """Of any dtype among all, of either sign, by lists and by a table."""
    xs, gs = ([random([(33,)], device, d, seed)[0] for d in FLOATS] for seed in (0, 1))
    params = parameters(xs, gs)
    opt = optimizer("sgd_momentum", params, max_norm=1.0, norm_type=p, nonfinite="skip", backend=backend)
    grad = gs[FLOATS.index(dtype)]
    for count, bad in enumerate(NONFINITE, 1):
        opt.step()
        before, kept = [x.clone() for x in everything(opt)], grad.clone()
        spoil(grad, bad)
        opt.step()
        assert all(torch.equal(a, b) for a, b in zip(everything(opt), before, strict=True)), bad
        assert int(opt.skipped_steps) == count, bad
        grad.copy_(kept)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_global_norm(backend: str, device: torch.device, dtype: torch.dtype, p: float) -> None:
    guarded = Guarded()
    places = offsets(dtype)
    tensors = [guarded.place(x, o) for o in places for x in random([(n,) for n in SIZES], device, dtype, o)]
    norm, nonfinite = dispatch.load(backend).global_norm(tensors, p)
    exact = rules.vector_norm([x.cpu() for x in tensors], p)
    theirs = torch.linalg.vector_norm(torch.cat([x.cpu().to(norm.dtype) for x in tensors]), p)
    assert_as_accurate(norm.cpu(), theirs, exact)
    assert float(nonfinite) == 0
    for bad in NONFINITE:
        for i in (0, 1, 3, -1):
            kept = tensors[i].clone()
            spoil(tensors[i], bad)
            norm, nonfinite = dispatch.load(backend).global_norm(tensors, p)
            assert float(nonfinite) == 1, bad
            assert not norm.isfinite(), bad
            tensors[i].copy_(kept)
    guarded.check()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_tensor_norms(backend: str, device: torch.device, dtype: torch.dtype, p: float) -> None:
    """Of tensors of less than a chunk and of several, against the specification; the bits of the norm of each alone."""
    guarded, places, ops = Guarded(), offsets(dtype), dispatch.load(backend)
    tensors = [guarded.place(x, o) for o in places for x in random([(n,) for n in SIZES], device, dtype, o)]
    tensors += [guarded.place(x, places[-1]) for x in random([(70_001,), (16_384,)], device, dtype)]
    norms = ops.tensor_norms(tensors, p)
    assert torch.equal(norms, torch.stack([ops.global_norm([x], p)[0] for x in tensors]))
    for x, norm in zip(tensors, norms, strict=True):
        theirs = torch.linalg.vector_norm(x.cpu().to(norm.dtype), p) if x.numel() else torch.zeros_like(norm.cpu())
        # The truth of fp64 is a computation in fp64, with errors of its own.
        factor = 16.0 if dtype == torch.float64 else 2.0
        assert_as_accurate(norm.cpu(), theirs, rules.vector_norm([x.cpu()], p), factor)
    for bad in NONFINITE:
        for i in (0, 3, -1):
            kept = tensors[i].clone()
            spoil(tensors[i], bad)
            finite = ops.tensor_norms(tensors, p).isfinite()
            assert not finite[i], bad
            assert int(finite.sum()) == len(tensors) - 1
            tensors[i].copy_(kept)
    guarded.check()


@pytest.mark.gpu
def test_tensor_norms_of_several_devices() -> None:
    """Gathered on the device of the first tensor, in the order of the tensors."""
    values = [torch.full((n,), float(n)) for n in (4, 9, 16, 25)]
    spread = [x.to("cuda" if i % 2 else "cpu") for i, x in enumerate(values)]
    for xs in (spread, spread[::-1]):
        norms = ft.tensor_norms(xs)
        assert norms.device.type == xs[0].device.type
        assert norms.tolist() == [x.numel() ** 1.5 for x in xs]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_clip_grad_norm(chosen: str, device: torch.device, dtype: torch.dtype) -> None:
    guarded = Guarded()
    places = offsets(dtype)
    gs = [guarded.place(x, o) for o in places for x in random([(n,) for n in SIZES], device, dtype, o)]
    before = [g.clone() for g in gs]
    params = parameters([torch.zeros_like(g) for g in gs], gs)
    norm = ft.clip_grad_norm_(params, 1e6)
    assert all(torch.equal(a, b) for a, b in zip(gs, before, strict=True))
    ft.clip_grad_norm_(params, 1.0)
    coef = rules.clip_coefficient(rules.vector_norm([g.cpu() for g in before], 2.0), 1.0)
    assert float(norm) > 1
    for g, was in zip(gs, before, strict=True):
        if g.numel():
            assert_as_accurate(g.cpu(), was.cpu() * coef.to(dtype), was.cpu().double() * coef)
    guarded.check()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_act_dropout(backend: str, device: torch.device, activation: str, dtype: torch.dtype) -> None:
    """Every activation and dtype, forward and backward, with a bias: masks to the bit, values by the specification."""
    state = torch.tensor([2**40 + 3, 12], device=device)
    threshold = rng.drop_threshold(0.3)
    collected: list[list[list[Tensor]]] = [[], [], []]
    for rows, width in ((3, 8), (5, 13), (1, 1), (0, 4)):
        keep = rng.keep_mask(state.cpu(), threshold, (rows, width))
        guarded = Guarded()
        for offset in {0, dtype.itemsize, 16 - dtype.itemsize}:
            x, dy = (guarded.place(t, offset) for t in random([(rows, width)] * 2, device, dtype, 3))
            (bias,) = random([(width,)], device, dtype, 4)

            def both(name: str, *tensors: Tensor) -> list[Tensor]:
                leaves = [t.detach().clone(memory_format=torch.preserve_format) for t in tensors]
                x_, b_ = (t.requires_grad_() for t in leaves[:2])
                here = state.to(x_.device)
                y = ft.functional.act_dropout(x_, activation, 0.3, bias=b_, rng_state=here, backend=name)
                return [y.detach(), *torch.autograd.grad(y, (x_, b_), leaves[2])]

            tensors = x, bias, dy
            ours = [t.cpu() for t in both(backend, *tensors)]
            plain = both("reference", *(t.cpu() for t in tensors))
            exact = both("reference", *(t.cpu().double() for t in tensors))
            for written in ours[:2]:
                assert not bool((written != 0)[~keep].any()), "a dropped element is not zero"
            for kind, results in zip(collected, (ours, plain, exact), strict=True):
                kind.append(results)
        guarded.check()
    # All shapes together, so that a slope near its zero, where it cancels, is measured against the others.
    for a, b, truth in zip(*(zip(*kind, strict=True) for kind in collected), strict=True):
        together = (torch.cat([t.flatten() for t in ts]) for ts in (a, b, truth))
        # The truth of fp64 is a computation in fp64, with errors of its own.
        assert_as_accurate(*together, factor=8.0 if dtype == torch.float64 else 4.0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
def test_gated_act_dropout(backend: str, device: torch.device, activation: str, dtype: torch.dtype) -> None:
    state = torch.tensor([9, 4], device=device)
    for rows, width in ((3, 8), (5, 13), (2, 1)):
        x, dy = random([(rows, 2 * width), (rows, width)], device, dtype, 5)

        def both(name: str, x: Tensor, dy: Tensor) -> list[Tensor]:
            leaf = x.detach().clone().requires_grad_()
            here = state.to(x.device)
            y = ft.functional.gated_act_dropout(leaf, activation, 0.4, rng_state=here, backend=name)
            return [y.detach(), *torch.autograd.grad(y, leaf, dy)]

        ours = [t.cpu() for t in both(backend, x, dy)]
        plain, exact = both("reference", x.cpu(), dy.cpu()), both("reference", x.cpu().double(), dy.cpu().double())
        keep = rng.keep_mask(state.cpu(), rng.drop_threshold(0.4), (rows, width))
        for written in (ours[0], *ours[1].chunk(2, dim=-1)):
            assert not bool((written != 0)[~keep].any())
        for a, b, truth in zip(ours, plain, exact, strict=True):
            assert_as_accurate(a, b, truth, factor=4.0)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_masks_are_those_of_the_contract(backend: str, device: torch.device, p: float) -> None:
    """A size that no tile divides, with the residual and in place; and far beyond the 32-bit half of the offset."""
    for state in ([5, 8], [-(2**62), 2**62 - 4], [2**63 - 1, -4]):
        n = 5003
        keep = rng.keep_mask(torch.tensor(state), rng.drop_threshold(p), (n,))
        x = torch.ones(n, device=device)
        here = torch.tensor(state, device=device)
        y = ft.functional.act_dropout(x, "identity", p, rng_state=here, backend=backend)
        assert torch.equal(y.cpu() != 0, keep)
        r = torch.full_like(x, 4.0)
        z = ft.functional.act_dropout(x, "identity", p, rng_state=here, residual=r, backend=backend)
        assert torch.equal(z.cpu() != 4, keep)
        ft.functional.act_dropout(x, "identity", p, rng_state=here, inplace=True, backend=backend)
        assert torch.equal(x, y)
