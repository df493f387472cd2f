"""Section D of the catalogue: dropout and activations."""

from __future__ import annotations

import math

import kit
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fusedtrain as ft
from fusedtrain import rng, rules
from fusedtrain.testing import error, with_layout

F = ft.functional
ACTIVATIONS = sorted(rules.ACTIVATIONS)
STATE = torch.tensor([1234567, 8])


@pytest.fixture(params=ACTIVATIONS)
def activation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_D1_every_call_has_its_own_mask(backend: str) -> None:
    """flash-attention#314: the generator was not advanced."""
    x = torch.ones(4096)
    before = torch.get_rng_state()
    first, second = F.act_dropout(x, "identity", 0.5), F.act_dropout(x, "identity", 0.5)
    assert not torch.equal(first, second)
    assert not torch.equal(torch.get_rng_state(), before)


def test_D2_gradient_with_a_frozen_mask(backend: str, activation: str) -> None:
    """apex!860: the wrong tensor was saved for the backward."""
    x, bias, residual = (torch.randn(*s, dtype=torch.float64) * 2 for s in [(4, 6), (6,), (4, 6)])
    x = torch.where(x.abs() < 0.1, x.sign() + 0.3, x)  # numeric differences do not cross kinks

    def f(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return F.act_dropout(x, activation, 0.3, bias=bias, residual=residual, rng_state=STATE)

    inputs = tuple(t.requires_grad_() for t in (x, bias * 0, residual))
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradcheck(lambda x: F.act_dropout(x, activation, 0.3, rng_state=STATE), (x,))


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (9,), (63, 5), (1024,), (3, 4097)])
@pytest.mark.parametrize("dtype", kit.FLOATS, ids=str)
def test_D3_backward_uses_the_mask_of_the_forward(backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """mamba!1023: the backward regenerated another mask."""
    for name in ("identity", "relu", "gelu"):
        x = torch.ones(shape, dtype=dtype, requires_grad=True)
        y = F.act_dropout(x, name, 0.5)
        y.sum().backward()
        assert torch.equal(y != 0, x.grad != 0)
    gated = torch.ones((*shape[:-1], 2 * shape[-1]), dtype=dtype, requires_grad=True)
    y = F.gated_act_dropout(gated, "silu", 0.5)
    y.sum().backward()
    kept = y != 0
    assert torch.equal(torch.cat([kept, kept], -1), gated.grad != 0)


def neighbours(mask: Tensor, p: float) -> None:
    """Keep rate, and the joint rate of elements at small distances, within 5 sigma of independence."""
    n, q = mask.numel(), 1 - p
    assert abs(float(mask.float().mean()) - q) < 5 * math.sqrt(p * q / n)
    for distance in (1, 2, 3, 4, 7, 8, 16, 64):
        both = float((mask[distance:] & mask[:-distance]).float().mean())
        assert abs(both - q * q) < 5 * math.sqrt(q * q * (1 - q * q) * 3 / n), distance


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_D4_D5_neighbours_are_independent(backend: str, p: float) -> None:
    """pytorch#198333: four neighbours shared a mask; xformers!164: too many numbers for one seed."""
    n = 1_000_000 if backend == "cpu" else 200_000
    mask = F.act_dropout(torch.ones(n), "identity", p) != 0
    neighbours(mask, p)
    square = math.isqrt(n)
    transposed = F.act_dropout(torch.ones(square, square).t(), "identity", p) != 0
    neighbours(transposed.flatten(), p)
    neighbours(transposed.t().flatten(), p)


def test_D4_check_can_fail() -> None:
    mask = (torch.rand(250_000) >= 0.5).repeat_interleave(4)
    with pytest.raises(AssertionError):
        neighbours(mask, 0.5)


def test_D6_masks_do_not_repeat_beyond_32_bits() -> None:
    """FlagGems!23, triton!6832: the offset was 32 bits. Element indices and offsets have 64."""
    here = rng.lanes(STATE, 1000)
    for start in (2**31, 2**32, 2**35, 2**40):
        assert not torch.equal(rng.lanes(STATE, 1000, start), here)
    for offset in (2**31, 2**32, 2**33, 2**34, 2**40):
        assert not torch.equal(rng.lanes(torch.tensor([1234567, 8 + offset]), 1000), here)
    for seed in (2**31, 2**32, 2**62):
        assert not torch.equal(rng.lanes(torch.tensor([1234567 + seed, 8]), 1000), here)


def test_D7_mask_does_not_depend_on_the_buffer(backend: str) -> None:
    """vllm!55009: a seed made of the address gives a reused buffer the same mask for ever."""
    x = torch.ones(1000)
    torch.manual_seed(5)
    first, second = F.act_dropout(x, "relu", 0.5), F.act_dropout(x, "relu", 0.5)
    torch.manual_seed(5)
    again = F.act_dropout(torch.ones(1000), "relu", 0.5)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_D8_dropped_is_zero_whatever_it_was(backend: str, activation: str, value: float) -> None:
    """pytorch#59421: 0 * inf is NaN on the CPU. Here a dropped value is selected away, forward and backward."""
    x = torch.full((64,), value, requires_grad=True)
    keep = rng.keep_mask(STATE, rng.drop_threshold(0.5), x.shape)
    y = F.act_dropout(x, activation, 0.5, rng_state=STATE)
    (dx,) = torch.autograd.grad(y, x, torch.full((64,), math.inf))
    assert (y[~keep] == 0).all()
    assert (dx[~keep] == 0).all()
    kept = kit.act(activation, torch.tensor(value)) * 2
    torch.testing.assert_close(y[keep].double(), kept.expand(int(keep.sum())), equal_nan=True)
    everything = F.act_dropout(x, activation, 1.0)
    assert (everything == 0).all()
    gated = torch.full((4, 64), value)
    assert (F.gated_act_dropout(gated, activation, 1.0) == 0).all()


def test_D9_p_zero_keeps_everything(backend: str) -> None:
    """pytorch#151717: p=0 still dropped an element in 2**24 or so. The threshold is an integer: 0 drops nothing."""
    assert rng.drop_threshold(0.0) == 0
    n = 2**24 if backend == "cpu" else 2**16
    assert torch.equal(F.act_dropout(torch.ones(n), "relu", 0.0), torch.ones(n))
    # The lane 0 of 65536 exists, and only a threshold above it drops it.
    lanes, mask = rng.lanes(STATE, 2**18), rng.keep_mask(STATE, 1, (2**18,))
    assert (lanes == 0).any()
    assert torch.equal(mask, lanes != 0)


def test_D11_evaluation_is_the_activation(backend: str, activation: str) -> None:
    """pytorch!77933, csarofeen!1275: the flag was mishandled. Nothing is drawn either."""
    x = torch.randn(33, 7, requires_grad=True)
    before = torch.get_rng_state()
    y = F.act_dropout(x, activation, 0.7, training=False)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(torch.get_rng_state(), before)
    kit.assert_conditioned(activation, x, y, dx)
    module = ft.nn.ActDropout(activation, 0.7).eval()
    assert torch.equal(module(x), y)


@pytest.mark.parametrize("dtype", kit.FLOATS, ids=str)
def test_D13_D15_large_inputs_stay_finite(backend: str, activation: str, dtype: torch.dtype) -> None:
    """llm-scaler!484, executorch#22323 (gelu_tanh), lalamo!328, ds4!498 (silu): NaN from an exp that overflows."""
    magnitudes = [8, 9, 10, 11, 12, 13, 20, 50, 87, 88, 89, 100, 200, 1e4, 65504]
    if activation == "squared_relu" and dtype == torch.float16:
        magnitudes = [m for m in magnitudes if m * m < 65504]
    x = torch.tensor([s * m for m in magnitudes for s in (1, -1)] * 3, dtype=dtype, requires_grad=True)
    y = F.act_dropout(x, activation, 0.0)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all()
    assert dx.isfinite().all()
    kit.assert_conditioned(activation, x, y, dx, roundings=64)  # the slope as torch derives it cancels a little


def test_D16_gelu_has_a_negative_tail(backend: str) -> None:
    """tt-metal#56517: 1 + tanh cancels, and the tail is 0 or 200 % wrong (torch's own fp32 gelu errs by 1e-3 at -5)."""
    x = torch.linspace(-6, -2, 4001)
    for name in ("gelu", "gelu_tanh"):
        y, exact = F.act_dropout(x, name, 0.0).double(), kit.act(name, x)
        assert float(((y - exact) / exact).abs().max()) <= 1e-5, name


def test_D18_in_place_is_seen_by_autograd(backend: str, activation: str) -> None:
    """Liger!262, #272: written in place without a version bump, other uses of the input differentiate garbage."""
    w = torch.randn(50, requires_grad=True)
    x = w * 1.0
    other = x.square()  # saves x
    y = F.act_dropout(x, activation, 0.5, inplace=True)
    assert y is x
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.sum().backward()
    x = w * 1.0
    y = F.act_dropout(x, activation, 0.5, inplace=True, rng_state=STATE)
    (dw,) = torch.autograd.grad(y.sum(), w)
    z = F.act_dropout(w, activation, 0.5, rng_state=STATE)
    assert torch.equal(y, z)
    torch.testing.assert_close(dw, torch.autograd.grad(z.sum(), w)[0])
    plain = torch.randn(9)
    version = plain._version
    F.act_dropout(plain, activation, 0.5, inplace=True)
    assert plain._version > version


@pytest.mark.parametrize("kind", ["contiguous", "transposed", "sliced", "offset"])
def test_D20_layout_does_not_matter(backend: str, activation: str, kind: str) -> None:
    """pytorch#47176: values follow the logical order whatever the strides; dense layouts are kept."""
    base = torch.randn(3, 10, 6)
    x = with_layout(base, kind).requires_grad_()
    y = F.act_dropout(x, activation, 0.4, rng_state=STATE)
    z = F.act_dropout(base, activation, 0.4, rng_state=STATE)
    assert error(y, z) <= 4 * torch.finfo(torch.float32).eps * float(z.abs().max())
    if kind in ("contiguous", "transposed") and activation != "identity":
        assert y.stride() == x.stride()
    dy = with_layout(torch.randn(3, 10, 6), "transposed")
    (dx,) = torch.autograd.grad(y, x, dy)
    base.requires_grad_()
    z = F.act_dropout(base, activation, 0.4, rng_state=STATE)
    (dz,) = torch.autograd.grad(z, base, dy.contiguous())
    torch.testing.assert_close(dx, dz)


@pytest.mark.parametrize("reentrant", [True, False])
def test_D21_checkpointing_changes_nothing(backend: str, reentrant: bool) -> None:
    """OLMo-core!828: recomputed with another mask, the loss changes when activations are checkpointed."""
    model = torch.nn.Sequential(ft.nn.LinearActDropout(12, 20, "gelu", 0.4), ft.nn.LinearActDropout(20, 4, "relu", 0.2))
    x = torch.randn(30, 12, requires_grad=True)

    def gradients(checkpointed: bool) -> list[Tensor]:
        torch.manual_seed(3)
        y = checkpoint(model, x, use_reentrant=reentrant) if checkpointed else model(x)
        grads = torch.autograd.grad if not reentrant else None
        if grads is not None:
            return list(grads(y.square().sum(), [x, *model.parameters()]))
        for t in (x, *model.parameters()):
            t.grad = None
        y.square().sum().backward()
        return [t.grad for t in (x, *model.parameters())]

    for a, b in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(a, b)
