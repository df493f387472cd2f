"""Gradients of `act_dropout`: first, second, in place; what they save; under checkpoint, autocast and functorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import fusedtrain as ft
from fusedtrain import dispatch, rng, rules
from fusedtrain.testing import with_layout

act_dropout, gated_act_dropout = ft.functional.act_dropout, ft.functional.gated_act_dropout

KINKS = (-3.0, 0.0, 3.0)


def smooth(*shape: int, device: torch.device) -> Tensor:
    """fp64 numbers that finite differences can be taken around: none near a kink of an activation."""
    x = torch.randn(shape, dtype=torch.float64, device=device) * 2
    for kink in KINKS:
        x = torch.where((x - kink).abs() < 0.05, x + 0.1, x)
    return x.requires_grad_()


def check_gradients(f: Callable[..., Tensor], inputs: tuple[Tensor, ...], backend: str) -> None:
    """First and second. Of interpreted kernels, where a call takes tens of milliseconds, along random directions."""
    fast = backend == "triton"
    assert torch.autograd.gradcheck(f, inputs, fast_mode=fast)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=fast)


VARIANTS = [(activation, "") for activation in rules.ACTIVATIONS]
VARIANTS += [(a, variant) for a in ("identity", "squared_relu", "tanh", "gelu") for variant in ("inplace", "residual")]


@pytest.mark.parametrize(("activation", "variant"), VARIANTS)
def test_gradcheck(backend: str, device: torch.device, activation: str, variant: str) -> None:
    state = torch.tensor([11, 8], device=device)
    x, residual = smooth(2, 3, device=device), smooth(2, 3, device=device)
    bias = torch.full((3,), 1e-3, dtype=torch.float64, device=device, requires_grad=True)
    inplace = variant == "inplace"

    def f(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        added = residual if variant == "residual" else None
        x = x.clone() if inplace else x
        return act_dropout(
            x, activation, 0.3, bias=bias, residual=added, inplace=inplace, rng_state=state, backend=backend
        )

    check_gradients(f, (x, bias, residual), backend)


@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_gated_gradcheck(backend: str, device: torch.device, activation: str) -> None:
    state = torch.tensor([11, 8], device=device)
    x = smooth(2, 4, device=device)
    bias = torch.full((4,), 1e-3, dtype=torch.float64, device=device, requires_grad=True)

    def f(x: Tensor, bias: Tensor) -> Tensor:
        return gated_act_dropout(x, activation, 0.3, bias=bias, rng_state=state, backend=backend)

    check_gradients(f, (x, bias), backend)


def saved_bytes(f: Callable[[], Tensor]) -> int:
    """Bytes that ``f`` saves for its backward in other storages than that of its result."""
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        y = f()
    return sum({t.data_ptr(): t.nbytes for t in saved if t.data_ptr() != y.data_ptr()}.values())


@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_what_is_saved(backend: str, device: torch.device, activation: str) -> None:
    if dispatch.load(backend).differentiable:
        pytest.skip("the reference leaves its gradient to torch, which saves what it likes")
    x = torch.randn(32, 32, device=device, requires_grad=True)
    bias = torch.randn(32, device=device, requires_grad=True)
    residual = torch.randn(32, 32, device=device)
    options: dict[str, Any] = {"rng_state": torch.tensor([1, 2], device=device), "backend": backend}
    whole = x.nbytes + bias.nbytes + 16
    expected = {"nothing": 16, "output": 0, "input": whole}[rules.ACTIVATIONS[activation].saves]
    assert saved_bytes(lambda: act_dropout(x, activation, 0.3, bias=bias, **options)) == expected
    expected = 16 if activation == "identity" else whole
    assert saved_bytes(lambda: act_dropout(x, activation, 0.3, bias=bias, residual=residual, **options)) == expected
    assert saved_bytes(lambda: gated_act_dropout(x, activation, 0.3, bias=bias, **options)) == whole
    with torch.no_grad():
        assert saved_bytes(lambda: act_dropout(x, activation, 0.3, bias=bias, **options)) == 0


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
def test_inplace_writes_x(backend: str, device: torch.device, activation: str, layout: str) -> None:
    state = torch.tensor([5, 6], device=device)
    source = torch.randn(4, 6, device=device)
    expected = act_dropout(source, activation, 0.4, rng_state=state, backend=backend)
    leaf = source.clone().requires_grad_()
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            x = with_layout(leaf, layout)
            version = x._version
            y = act_dropout(x, activation, 0.4, inplace=True, rng_state=state, backend=backend)
        assert y is x
        assert torch.equal(y, expected)
        assert y.requires_grad == enabled
        assert x._version > version
    frozen = source.clone()
    with torch.inference_mode():
        x = frozen.clone()
        assert act_dropout(x, activation, 0.4, inplace=True, rng_state=state, backend=backend) is x
        assert torch.equal(x, expected)


def test_an_overwritten_activation_is_noticed(backend: str, device: torch.device) -> None:
    """D18 (Liger!262): without a version bump the backward of an earlier reader would silently use the new values."""
    leaf = torch.randn(4, 6, device=device, requires_grad=True)
    x = leaf * 2
    reader = x.square().sum()
    act_dropout(x, "relu", 0.4, inplace=True, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        reader.backward()


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_inplace_on_views_and_for_a_bias_alone(backend: str, device: torch.device, activation: str) -> None:
    state = torch.tensor([5, 6], device=device)
    leaf = torch.randn(4, 6, device=device, requires_grad=True)
    base = leaf * 1
    act_dropout(base[1:3], activation, 0.4, inplace=True, rng_state=state, backend=backend)
    (dx,) = torch.autograd.grad(base.sum(), leaf)
    part = leaf[1:3].detach().requires_grad_()
    (inner,) = torch.autograd.grad(act_dropout(part, activation, 0.4, rng_state=state, backend=backend).sum(), part)
    expected = torch.ones_like(dx)
    expected[1:3] = inner
    torch.testing.assert_close(dx, expected)
    x, bias = torch.randn(4, 6, device=device), torch.randn(6, device=device, requires_grad=True)
    reference = act_dropout(x.clone(), activation, 0.4, bias=bias, rng_state=state, backend=backend)
    y = act_dropout(x, activation, 0.4, bias=bias, inplace=True, rng_state=state, backend=backend)
    assert y is x
    grads = [torch.autograd.grad(out.sum(), bias)[0] for out in (reference, y)]
    torch.testing.assert_close(*grads)


def test_only_the_gradients_that_are_wanted(backend: str, device: torch.device) -> None:
    state = torch.tensor([5, 6], device=device)
    tensors = [torch.randn(s, device=device) for s in ((4, 6), (6,), (4, 6))]
    for wanted in range(3):
        x, bias, residual = (t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors))
        y = act_dropout(x, "gelu", 0.4, bias=bias, residual=residual, rng_state=state, backend=backend)
        y.sum().backward()
        assert [t.grad is not None for t in (x, bias, residual)] == [i == wanted for i in range(3)]


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_checkpoint_reproduces_masks(backend: str, device: torch.device, activation: str, reentrant: bool) -> None:
    def layer(x: Tensor) -> Tensor:
        return act_dropout(act_dropout(x, activation, 0.3, backend=backend) + 1, activation, 0.5, backend=backend)

    x = torch.randn(16, 16, device=device, requires_grad=True)
    torch.manual_seed(9)
    (plain,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.manual_seed(9)
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(plain, x.grad)


def test_autocast_keeps_the_dtype(backend: str, device: torch.device) -> None:
    x = torch.randn(4, 6, device=device, requires_grad=True)
    linear = ft.nn.LinearActDropout(6, 8, "gelu", 0.1, backend=backend).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert act_dropout(x, "gelu", backend=backend).dtype == torch.float32
        assert act_dropout(x.bfloat16(), "gelu", backend=backend).dtype == torch.bfloat16
        y = linear(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert linear.bias.grad.dtype == linear.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("call", [act_dropout, gated_act_dropout])
def test_vmap_honours_randomness(backend: str, device: torch.device, call: Callable[..., Tensor]) -> None:
    x = torch.ones(5, 64, device=device)

    def f(x: Tensor) -> Tensor:
        return call(x, "gelu", 0.5, backend=backend)

    masks = torch.vmap(f, randomness="different")(x) != 0
    assert len({tuple(row) for row in masks.tolist()}) == 5
    masks = torch.vmap(f, randomness="same")(x) != 0
    assert len({tuple(row) for row in masks.tolist()}) == 1
    assert 0 < int(masks[0].sum()) < masks.shape[1]
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(f)(x)
    torch.vmap(lambda x: call(x, "gelu", 0.5, training=False, backend=backend))(x)


@pytest.mark.parametrize(("call", "width"), [(act_dropout, 4), (gated_act_dropout, 2)])
def test_vmap_over_no_samples(backend: str, device: torch.device, call: Callable[..., Tensor], width: int) -> None:
    x = torch.randn(3, 0, 4, device=device, dtype=torch.bfloat16, requires_grad=True)
    states = torch.zeros(0, 2, dtype=torch.int64, device=device)
    y = torch.vmap(lambda x, s: call(x, "gelu", 0.5, rng_state=s, backend=backend), in_dims=(1, 0))(x, states)
    assert y.shape == (0, 3, width)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_vmap_is_a_loop_over_samples(backend: str, device: torch.device) -> None:
    x, bias = torch.randn(6, 3, 7, device=device), torch.randn(7, 3, device=device)
    states = torch.stack([torch.tensor([i, 4 * i], device=device) for i in range(3)])

    def f(x: Tensor, bias: Tensor, state: Tensor) -> Tensor:
        return act_dropout(x, "gelu", 0.5, bias=bias, rng_state=state, backend=backend)

    y = torch.vmap(f, in_dims=(1, 1, 0), out_dims=1)(x, bias, states)
    loop = torch.stack([f(x[:, i], bias[:, i], states[i]) for i in range(3)], dim=1)
    assert torch.equal(y, loop)

    def g(x: Tensor, bias: Tensor, state: Tensor) -> Tensor:
        return f(x, bias, state).square().sum()

    grads = torch.vmap(torch.func.grad(g, argnums=(0, 1)), in_dims=(1, 1, 0))(x, bias, states)
    for i in range(3):
        dx, dbias = torch.func.grad(g, argnums=(0, 1))(x[:, i], bias[:, i], states[i])
        torch.testing.assert_close(grads[0][i], dx)
        torch.testing.assert_close(grads[1][i], dbias)


def test_per_sample_gradients_see_the_masks_of_the_forward(backend: str, device: torch.device) -> None:
    x = torch.ones(5, 64, device=device)

    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        y = act_dropout(x, "gelu", 0.5, backend=backend)
        return y.sum(), y

    grads, y = torch.vmap(torch.func.grad(f, has_aux=True), randomness="different")(x)
    assert torch.equal(grads != 0, y != 0)
    assert len({tuple(row) for row in (y != 0).tolist()}) == 5


def test_inplace_under_functorch(backend: str, device: torch.device) -> None:
    x = torch.randn(5, 8, device=device)
    state = torch.tensor([5, 6], device=device)

    def f(x: Tensor, inplace: bool) -> Tensor:
        return act_dropout(x * 1, "relu", 0.5, inplace=inplace, rng_state=state, backend=backend).square().sum()

    for wrap in (torch.func.grad, lambda f: torch.vmap(torch.func.grad(f), in_dims=(0, None))):
        torch.testing.assert_close(wrap(f)(x, True), wrap(f)(x, False))
    y = x.clone()
    torch.vmap(lambda row: act_dropout(row, "relu", 0.5, inplace=True, rng_state=state, backend=backend))(y)
    assert torch.equal(y == 0, (x <= 0) | ~rng.keep_mask(state, rng.drop_threshold(0.5), (8,)))


def test_threads_of_backward_share_nothing(backend: str, device: torch.device) -> None:
    """One forward, its backward twice: the mask is regenerated, not consumed."""
    x = torch.randn(16, 16, device=device, requires_grad=True)
    y = act_dropout(x, "gelu", 0.5, backend=backend)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    torch.rand(1, device=device)
    assert torch.equal(first, torch.autograd.grad(y.sum(), x)[0])
