"""The modules: drop-in for torch's, initialised for their activation, and whole under copying, saving and printing."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusedtrain as ft
from fusedtrain import rules

MODULES: list[tuple[type[nn.Module], tuple[Any, ...], dict[str, Any], str]] = [
    (ft.nn.Dropout, (0.25,), {}, "Dropout(p=0.25, inplace=False)"),
    (ft.nn.Dropout, (0.25, True), {"backend": "reference"}, "Dropout(p=0.25, inplace=True, backend='reference')"),
    (ft.nn.ActDropout, ("gelu", 0.25), {}, "ActDropout('gelu', p=0.25, inplace=False)"),
    (ft.nn.GatedActDropout, ("silu", 0.25), {}, "GatedActDropout('silu', p=0.25)"),
    (
        ft.nn.LinearActDropout,
        (8, 6, "tanh", 0.25),
        {"bias": False},
        "LinearActDropout(in_features=8, out_features=6, bias=False, activation='tanh', p=0.25)",
    ),
    (
        ft.nn.LinearActDropout,
        (8, 6),
        {"backend": "reference"},
        "LinearActDropout(in_features=8, out_features=6, bias=True, activation='relu', p=0.5, backend='reference')",
    ),
]
IDS = [text for *_, text in MODULES]


def seeded(module: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(4)
    return module(x.clone())


@pytest.mark.parametrize(("cls", "args", "kwargs", "text"), MODULES, ids=IDS)
def test_a_module_of_pytorch(cls: type[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any], text: str) -> None:
    module, x = cls(*args, **kwargs), torch.randn(4, 8)
    assert repr(module) == text
    y = seeded(module, x)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)  # what follows unpickles bytes that this very test wrote
    for twin in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert repr(twin) == text
        assert torch.equal(seeded(twin, x), y)
    assert (y == 0).any()
    module.eval()
    assert torch.equal(module(x.clone()), module(x.clone()))
    assert module.train()(x.clone()).dtype == x.dtype


@pytest.mark.parametrize("cls", [ft.nn.Dropout, ft.nn.ActDropout, ft.nn.GatedActDropout, ft.nn.LinearActDropout])
def test_bad_settings_are_refused_by_the_constructor(cls: type[nn.Module]) -> None:
    args = (4, 4) if cls is ft.nn.LinearActDropout else ()
    name = rf"^fusedtrain\.nn\.{cls.__name__}: "
    for p, kind in ((1.5, ValueError), (math.nan, ValueError), (-1, ValueError), (True, TypeError), ("1", TypeError)):
        with pytest.raises(kind, match=name + "p="):
            cls(*args, p=p)
    with pytest.raises(ValueError, match=name + "unknown backend 'gpu'"):
        cls(*args, backend="gpu")
    if cls is not ft.nn.Dropout:
        with pytest.raises(ValueError, match=name + "activation='rellu'.*Did you mean 'relu'"):
            cls(*args, activation="rellu")


def test_a_subclass_is_named_in_its_errors() -> None:
    class Mine(ft.nn.ActDropout):
        pass

    with pytest.raises(ValueError, match="Mine: p=2"):
        Mine(p=2)


def test_dropout_is_torchs(backend: str, device: torch.device) -> None:
    ours, x = ft.nn.Dropout(0.3, backend=backend), torch.randn(64, 64, device=device)
    assert isinstance(ours, nn.Dropout)
    y = ours(x)
    assert torch.equal(y[y != 0], x[y != 0] * (65536 / (65536 - round(0.3 * 65536))))
    assert abs(float((y == 0).float().mean()) - 0.3) < 5 * math.sqrt(0.3 * 0.7 / x.numel())
    assert ours.eval()(x) is x
    inplace = ft.nn.Dropout(0.3, inplace=True, backend=backend)
    leaf = torch.ones(3, device=device, requires_grad=True)
    assert inplace.eval()(leaf) is leaf  # nothing is written, so nothing is refused
    assert ft.nn.Dropout(0.0, inplace=True, backend=backend)(leaf) is leaf
    inplace.train()
    assert inplace(x) is x
    assert (x == 0).any()


def test_modules_call_the_functions(backend: str, device: torch.device) -> None:
    x = torch.randn(16, 8, device=device)
    linear = ft.nn.LinearActDropout(8, 6, "gelu", 0.3, backend=backend).to(device)
    nn.init.normal_(linear.bias)
    product = nn.functional.linear(x, linear.weight)
    f = ft.functional
    pairs = [
        (ft.nn.ActDropout("mish", 0.3, backend=backend), lambda: f.act_dropout(x, "mish", 0.3, backend=backend)),
        (
            ft.nn.GatedActDropout("mish", 0.3, backend=backend),
            lambda: f.gated_act_dropout(x, "mish", 0.3, backend=backend),
        ),
        (linear, lambda: f.act_dropout(product, "gelu", 0.3, bias=linear.bias, backend=backend)),
    ]
    for module, function in pairs:
        y = seeded(module, x)
        torch.manual_seed(4)
        assert torch.equal(y, function())


def test_state_dicts_interchange_with_linear() -> None:
    ours, theirs, x = ft.nn.LinearActDropout(8, 6, "gelu", 0.5).eval(), nn.Linear(8, 6), torch.randn(4, 8)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), nn.functional.gelu(theirs(x)))
    theirs.reset_parameters()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), nn.functional.gelu(theirs(x)))
    assert isinstance(ours, nn.Linear)
    placed = ft.nn.LinearActDropout(8, 6, device="meta", dtype=torch.bfloat16)
    assert (placed.weight.device.type, placed.bias.dtype) == ("meta", torch.bfloat16)


@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_initialisation(activation: str) -> None:
    """He et al. 2015: the second moment of what the next layer sees is that of a unit normal input. Glorot & Bengio
    2010 for the activations that are linear around zero: the variance of weights is that of their formula."""
    fan_in, fan_out = 512, 384
    linear = ft.nn.LinearActDropout(fan_in, fan_out, activation, 0.0)
    assert not linear.bias.any()
    w = linear.weight.detach().double()
    n = w.numel()
    if activation in ft.nn.XAVIER:
        gain = nn.init.calculate_gain({"identity": "linear"}.get(activation, activation))
        variance = gain**2 * 2 / (fan_in + fan_out)
        assert w.abs().max() <= math.sqrt(3 * variance)
        fourth = 1.8  # E[u^4] / E[u^2]^2 of a uniform
    else:
        z = torch.randn(1_000_000, dtype=torch.float64)
        moment = rules.ACTIVATIONS[activation].fwd(z).square()
        spread = float(moment.std() / moment.mean()) / math.sqrt(moment.numel())
        assert abs(ft.nn.he_gain(activation) ** 2 * float(moment.mean()) - 1) < 5 * spread
        variance = ft.nn.he_gain(activation) ** 2 / fan_in
        fourth = 3.0
    assert abs(float(w.square().mean()) / variance - 1) < 5 * math.sqrt((fourth - 1) / n)
    assert abs(float(w.mean())) < 5 * math.sqrt(variance / n)


def test_gains_that_are_known_in_closed_form() -> None:
    assert ft.nn.he_gain("relu") == pytest.approx(math.sqrt(2), rel=1e-6)
    assert ft.nn.he_gain("leaky_relu") == pytest.approx(nn.init.calculate_gain("leaky_relu", 0.01), rel=1e-6)
    assert ft.nn.he_gain("squared_relu") == pytest.approx(math.sqrt(2 / 3), rel=1e-6)


def test_layers_without_elements() -> None:
    assert ft.nn.LinearActDropout(0, 3)(torch.zeros(2, 0)).shape == (2, 3)
    assert ft.nn.LinearActDropout(3, 0)(torch.zeros(2, 3)).shape == (2, 0)
