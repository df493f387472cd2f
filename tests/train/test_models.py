"""The two sides hold the same model: same names, same weights, same function."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fusedtrain import rules
from fusedtrain.testing import assert_as_accurate
from fusedtrain.train import models, settings, sides
from fusedtrain.train.world import World

INPUTS = {
    "mlp": lambda: torch.randn(5, 1, 8, 8),
    "conv": lambda: torch.randn(5, 1, 8, 8),
    "transformer": lambda: torch.randint(256, (3, 16)),
}


def options(model: str, **more):
    task = next(task for task, names in settings.MODELS.items() if model in names)
    return settings.new({"task": task, "model": model, "width": 32, "device": "cpu", **more})


@pytest.mark.parametrize("model", INPUTS)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_both_sides_are_one_function(model, activation):
    """As accurate as the stock model in fp32 is against the same model in fp64."""
    s = options(model, activation=activation)
    stock, fused = sides.build_all(s, World())
    x = INPUTS[model]()
    assert [(n, p.shape) for n, p in stock.model.named_parameters()] == [
        (n, p.shape) for n, p in fused.model.named_parameters()
    ]
    for p, q in zip(stock.model.parameters(), fused.model.parameters(), strict=True):
        assert torch.equal(p, q)
    for side in (stock, fused):
        side.model.eval()
    with torch.no_grad():
        ours, theirs = fused.model(x), stock.model(x)
        double = stock.model.double()
        assert_as_accurate(ours, theirs, double(x.double() if x.is_floating_point() else x), factor=4)


@pytest.mark.parametrize(
    ("activation", "init", "std"),
    [("relu", "auto", (2 / 64) ** 0.5), ("gelu", "auto", (2 / 576) ** 0.5), ("gelu", "he", (2 / 64) ** 0.5)],
)
def test_initialisation_has_the_deviation_of_its_paper(activation, init, std):
    model = models.build(models.StockParts(), options("mlp", activation=activation, init=init, width=512))
    models.initialise(model, options("mlp", activation=activation, init=init), torch.Generator().manual_seed(0))
    first = next(p for p in model.parameters() if p.shape == (512, 64))
    assert first.std().item() == pytest.approx(std, rel=0.02)
    assert all(not p.any() for p in model.parameters() if p.dim() == 1)


def test_norms_keep_their_weights_of_one():
    model = models.build(models.StockParts(), options("transformer"))
    models.initialise(model, options("transformer"), torch.Generator())
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 2 * settings.DEFAULTS["text"]["depth"] + 1
    assert all((m.weight == 1).all() for m in norms)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_convolutions_of_any_depth_fit_the_image(depth):
    s = options("conv", depth=depth)
    assert models.build(models.StockParts(), s)(INPUTS["conv"]()).shape == (5, 10)


def test_transformer_does_not_see_the_future():
    model = models.build(models.FusedParts(), options("transformer")).eval()
    x = INPUTS["transformer"]()
    changed = x.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 256
    with torch.no_grad():
        a, b = model(x), model(changed)
    assert torch.equal(a[:, :9], b[:, :9])
    assert not torch.equal(a[:, 9:], b[:, 9:])
