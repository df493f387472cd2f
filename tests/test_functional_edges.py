"""Where activation + dropout meets the rarer parts of autograd: each once gave a wrong answer or a late error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

import fusedtrain as ft
from fusedtrain import rng, rules

act_dropout = ft.functional.act_dropout
STATE = torch.tensor([5, 8])


@pytest.mark.parametrize("inplace", [False, True])
def test_forward_mode_derivative(backend: str, device: torch.device, inplace: bool) -> None:
    x, t = torch.randn(64, device=device), torch.randn(64, device=device)
    keep = rng.keep_mask(STATE, rng.drop_threshold(0.3), x.shape).to(device)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone(), t.clone())
        y = act_dropout(dual, "relu", 0.3, rng_state=STATE.to(device), inplace=inplace, backend=backend)
        tangent = forward_ad.unpack_dual(y).tangent
    scale = rng.keep_scale(rng.drop_threshold(0.3))
    torch.testing.assert_close(tangent, torch.where(keep & (x > 0), t * scale, 0.0))


def test_hessian_is_that_of_the_specification() -> None:
    x = torch.randn(4, dtype=torch.float64)

    def ours(x: Tensor) -> Tensor:
        return act_dropout(x, "gelu", 0.3, rng_state=STATE).sum()

    def spec(x: Tensor) -> Tensor:
        keep = rng.keep_mask(STATE, rng.drop_threshold(0.3), x.shape)
        return torch.where(keep, rules.gelu(x) * rng.keep_scale(rng.drop_threshold(0.3)), 0.0).sum()

    torch.testing.assert_close(torch.func.hessian(ours)(x), torch.autograd.functional.hessian(spec, x))


def test_inplace_refused_by_autograd_changes_nothing(backend: str, device: torch.device) -> None:
    y = torch.randn(4, 6, device=device, requires_grad=True) * 1
    before = y.detach().clone()
    piece, _ = y.chunk(2)
    with pytest.raises(RuntimeError, match="view and is being modified inplace"):
        act_dropout(piece, "relu", 0.5, inplace=True, backend=backend)
    assert torch.equal(y, before)


def test_inplace_on_an_inference_tensor_outside_inference_mode_is_refused(backend: str, device: torch.device) -> None:
    with torch.inference_mode():
        x = torch.randn(8, device=device)
        before = x.clone()
    with pytest.raises(RuntimeError, match="inference tensor"):
        act_dropout(x, "relu", 0.5, inplace=True, backend=backend)
    assert torch.equal(x, before)


def test_inplace_where_dimensions_interleave_but_share_nothing(backend: str, device: torch.device) -> None:
    memory = torch.randn(8, device=device)
    before = memory.clone()
    x = memory.as_strided((2, 3), (3, 2))  # places 0, 2, 4 and 3, 5, 7
    assert act_dropout(x, "relu", 0.0, inplace=True, backend=backend) is x
    expected = before.relu()
    expected[[1, 6]] = before[[1, 6]]
    assert torch.equal(memory, expected)


def test_inplace_on_a_lazily_negated_tensor(backend: str, device: torch.device) -> None:
    z = torch.randn(16, dtype=torch.complex64, device=device)
    expected = torch.relu(z.conj().imag.clone())
    x = z.conj().imag
    assert x.is_neg()
    assert torch.equal(act_dropout(x, "relu", 0.0, inplace=True, backend=backend), expected)
    assert torch.equal(x, expected)


def test_a_wider_bias_is_not_rounded_on_the_way(backend: str, device: torch.device) -> None:
    x = torch.ones(4096, 1, dtype=torch.bfloat16, device=device, requires_grad=True)
    bias = torch.zeros(1, device=device, requires_grad=True)
    dy = torch.ones_like(x)
    dy[0] = 3
    act_dropout(x, "relu", 0.0, bias=bias, backend=backend).backward(dy)
    assert bias.grad is not None
    assert bias.grad.item() == 4098  # no bf16 number


def test_meta_tensor_among_real_ones_is_refused() -> None:
    x, ghost = torch.randn(4), torch.ones(4, device="meta")
    with pytest.raises(RuntimeError, match="one device"):
        torch.ops.fusedtrain.act_dropout(x, ghost, None, None, 0, "relu")
    with pytest.raises(RuntimeError, match="one device"):
        torch.ops.fusedtrain.act_dropout_(x, None, ghost, None, 0, "relu")
    with pytest.raises(RuntimeError, match="one device"):
        torch.ops.fusedtrain.global_norm([x, ghost], 2.0)


@pytest.mark.parametrize("activation", sorted(rules.ACTIVATIONS))
def test_slope_of_huge_inputs_is_finite(backend: str, device: torch.device, activation: str) -> None:
    x = torch.tensor([3e13, 3e38, -3e13, -3e38], device=device, requires_grad=True)
    act_dropout(x, activation, 0.0, backend=backend).sum().backward()
    assert x.grad is not None
    if activation == "squared_relu":  # its slope is 2x
        assert x.grad[0] > 0
    else:
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_saturated_slope_is_never_negative(backend: str, device: torch.device, activation: str) -> None:
    x = torch.linspace(-30, 30, 4096, dtype=torch.bfloat16, device=device, requires_grad=True)
    for p in (0.05, 0.1, 0.3, 0.45):
        (slope,) = torch.autograd.grad(act_dropout(x, activation, p, backend=backend).sum(), x)
        assert (slope >= 0).all()


def test_linear_can_be_built_of_fake_tensors() -> None:
    ft.nn.he_gain.cache_clear()
    with FakeTensorMode():
        ft.nn.LinearActDropout(3, 4, "gelu")


@pytest.mark.parametrize("activation", [[], ["relu"], None, 3])
def test_activation_that_is_no_name(activation: object) -> None:
    with pytest.raises(ValueError, match="no such activation"):
        act_dropout(torch.randn(3), activation)  # type: ignore[arg-type]
