"""`fuse_` changes no result, no name and nothing else; `unfuse_` puts the very modules back."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import nn

import fusedtrain as ft

EXACT: list[tuple[Callable[[], nn.Module], str]] = [
    (nn.ReLU, "relu"),
    (lambda: nn.ReLU(inplace=True), "relu"),
    (nn.LeakyReLU, "leaky_relu"),
    (nn.ELU, "elu"),
    (nn.GELU, "gelu"),
    (lambda: nn.GELU("tanh"), "gelu_tanh"),
    (nn.SiLU, "silu"),
    (lambda: nn.SiLU(inplace=True), "silu"),
    (nn.Mish, "mish"),
    (nn.Hardswish, "hardswish"),
    (nn.Sigmoid, "sigmoid"),
    (nn.Tanh, "tanh"),
    (nn.Softplus, "softplus"),
]


def mlp(act: nn.Module, dropout: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), act, dropout or nn.Dropout(0.5), nn.Linear(16, 4))


@pytest.mark.parametrize(("make", "name"), EXACT)
def test_swap_and_back(make: Callable[[], nn.Module], name: str) -> None:
    model, x = mlp(make()), torch.randn(5, 8)
    children, keys, expected = list(model), list(model.state_dict()), model.eval()(x)
    assert ft.fuse_(model) == ["1"]
    assert isinstance(model[1], ft.nn.ActDropout)
    assert (model[1].activation, model[1].p, model[1].training) == (name, 0.5, False)
    assert list(model.state_dict()) == keys
    assert len(model) == 4
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    assert ft.fuse_(model) == []
    assert ft.unfuse_(model) == ["1"]
    assert all(a is b for a, b in zip(model, children, strict=True))
    assert torch.equal(model(x), expected)
    assert ft.unfuse_(model) == []


def test_training_drops_once_and_trains() -> None:
    model, x = mlp(nn.ReLU(inplace=True)), torch.randn(64, 8)
    ft.fuse_(model)
    hidden = model[:3](x)
    dropped = (hidden == 0) & (model[0](x) > 0)
    share = float(dropped.sum() / (model[0](x) > 0).sum())
    assert 0.35 < share < 0.65
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_modes_and_probabilities_set_meanwhile_are_kept() -> None:
    model = mlp(nn.ReLU())
    model[2].eval()
    ft.fuse_(model)
    assert not model[1].training
    ft.unfuse_(model)
    assert (model[1].training, model[2].training) == (True, False)
    ft.fuse_(model)
    model.train()
    model[1].p = 0.1
    ft.unfuse_(model)
    assert (model[1].training, model[2].training, model[2].p) == (True, True, 0.1)


def test_nested_names() -> None:
    block = mlp(nn.GELU())
    model = nn.ModuleDict({"a": block, "b": nn.Sequential(nn.Linear(4, 8), mlp(nn.Tanh(), ft.nn.Dropout(0.2)))})
    assert ft.fuse_(model) == ["a.1", "b.1.1"]
    assert ft.unfuse_(model) == ["a.1", "b.1.1"]


@pytest.mark.parametrize(
    "activation", ["relu", "gelu", torch.relu, nn.SiLU()], ids=["relu", "gelu", "function", "module"]
)
@pytest.mark.parametrize("cls", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_layers_of_torch(cls: type[nn.Module], activation: str | nn.Module) -> None:
    layer = cls(16, 2, 32, dropout=0.3, activation=activation, batch_first=True).eval()
    model, x = nn.ModuleList([layer]), torch.randn(2, 5, 16)
    operands = (x,) if cls is nn.TransformerEncoderLayer else (x, x)
    expected, keys = layer(*operands), list(model.state_dict())
    original, dropout = layer.activation, layer.dropout
    assert ft.fuse_(model) == ["0.activation"]
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(layer(*operands), expected)
    with torch.no_grad():  # torch's fast path
        torch.testing.assert_close(layer(*operands), expected)
    hidden = layer.train().dropout(layer.activation(layer.linear1(x)))
    assert (hidden == 0).any()
    assert ft.unfuse_(model) == ["0.activation"]
    assert layer.activation is original
    assert layer.dropout is dropout
    assert dropout.training


def test_a_saved_model_still_unfuses() -> None:
    model, x = mlp(nn.GELU()).eval(), torch.randn(5, 8)
    ft.fuse_(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)  # what follows unpickles bytes that this very test wrote
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(loaded(x), model(x))
    assert ft.unfuse_(loaded) == ["1"]
    assert [type(m) for m in loaded] == [nn.Linear, nn.GELU, nn.Dropout, nn.Linear]


class MyReLU(nn.ReLU):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


class MyLayer(nn.TransformerEncoderLayer):
    pass


class Backwards(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        for module in reversed(self):
            input = module(input)
        return input


def hooked(module: nn.Module, kind: str) -> nn.Module:
    getattr(module, f"register_{kind}")(lambda *args: None)
    return module


def shared() -> nn.Module:
    act = nn.ReLU()
    return nn.Sequential(act, nn.Dropout(0.5), nn.Linear(8, 8), act)


def shared_dropout() -> nn.Module:
    dropout = nn.Dropout(0.5)
    return nn.ModuleList([nn.Sequential(nn.ReLU(), dropout), dropout])


def patched() -> nn.Module:
    model = mlp(nn.ReLU())
    model[1].forward = lambda x: x  # type: ignore[method-assign]
    return model


LEFT_ALONE: dict[str, Callable[[], nn.Module]] = {
    "other slope": lambda: mlp(nn.LeakyReLU(0.2)),
    "other alpha": lambda: mlp(nn.ELU(0.5)),
    "other beta": lambda: mlp(nn.Softplus(beta=2)),
    "early linear": lambda: mlp(nn.Softplus(threshold=2)),
    "subclass": lambda: mlp(MyReLU()),
    "other dropout": lambda: mlp(nn.ReLU(), nn.Dropout1d(0.5)),
    "alpha dropout": lambda: mlp(nn.ReLU(), nn.AlphaDropout(0.5)),
    "order": lambda: nn.Sequential(nn.Dropout(0.5), nn.ReLU()),
    "not neighbours": lambda: nn.Sequential(nn.ReLU(), nn.Linear(8, 8), nn.Dropout(0.5)),
    "own forward": lambda: Backwards(nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.5)),
    "list": lambda: nn.ModuleList([nn.ReLU(), nn.Dropout(0.5)]),
    "forward hook": lambda: mlp(hooked(nn.ReLU(), "forward_hook")),
    "forward pre-hook": lambda: mlp(nn.ReLU(), hooked(nn.Dropout(0.5), "forward_pre_hook")),
    "backward hook": lambda: mlp(hooked(nn.ReLU(), "full_backward_hook")),
    "state hook": lambda: mlp(hooked(nn.ReLU(), "load_state_dict_post_hook")),
    "shared activation": shared,
    "shared dropout": shared_dropout,
    "patched": patched,
    "layer with another function": lambda: nn.TransformerEncoderLayer(8, 2, 16, activation=torch.tanh),
    "subclass of a layer": lambda: MyLayer(8, 2, 16),
    "overwrites its input": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5)),
    "is overwritten": lambda: mlp(nn.Sigmoid())[:3].append(nn.ReLU(inplace=True)),
    "is overwritten through a view": lambda: mlp(nn.ELU())[:3].extend([nn.Flatten(), nn.Dropout(0.5, inplace=True)]),
    "is overwritten outside of its container": lambda: nn.Sequential(
        mlp(nn.Tanh())[:3], nn.Sequential(nn.Identity(), nn.LeakyReLU(inplace=True))
    ),
    "overwrites what a hook saw": lambda: nn.Sequential(
        hooked(nn.Linear(8, 8), "forward_hook"), nn.ReLU(inplace=True), nn.Dropout(0.5)
    ),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone(name: str) -> None:
    model = LEFT_ALONE[name]()
    before = dict(model.named_modules(remove_duplicate=False))
    assert ft.fuse_(model) == []
    after = dict(model.named_modules(remove_duplicate=False))
    assert before.keys() == after.keys()
    assert all(before[key] is after[key] for key in before)


@pytest.mark.parametrize("make", [nn.ReLU, nn.Sigmoid, nn.GELU, nn.SiLU])
def test_a_result_that_the_next_module_overwrites_still_has_its_gradient(make: Callable[[], nn.Module]) -> None:
    """The gradient of some activations is computed from the result, which in-place modules destroy."""
    model = nn.Sequential(nn.Linear(8, 8), make(), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(8, 2))
    sites = ft.fuse_(model)
    assert sites == (["1"] if make in (nn.GELU, nn.SiLU) else [])  # whose gradient is computed from the input
    model(torch.randn(5, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("act", "dropout", "overwrites"), [(True, True, True), (False, True, False)])
def test_the_input_is_overwritten_as_before(act: bool, dropout: bool, overwrites: bool) -> None:
    model = nn.Sequential(nn.ReLU(inplace=act), nn.Dropout(0.5, inplace=dropout))
    assert ft.fuse_(model) == ["0"]
    x = torch.randn(64)
    before = x.clone()
    y = model(x)
    assert (y is x) == overwrites
    assert torch.equal(x, before) != overwrites


def test_a_container_used_twice_is_swapped_once() -> None:
    block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5))
    model = nn.Sequential(block, block)
    assert ft.fuse_(model) == ["0.1"]
    assert model[1][1] is model[0][1]
    assert ft.unfuse_(model) == ["0.1"]


def test_bad_input() -> None:
    for f in (ft.fuse_, ft.unfuse_):
        with pytest.raises(TypeError, match=rf"fusedtrain\.{f.__name__}: model=3"):
            f(3)
    model = mlp(nn.ReLU())
    with pytest.raises(ValueError, match="unknown backend 'gpu'"):
        ft.fuse_(model, backend="gpu")
    assert isinstance(model[1], nn.ReLU)


def test_backends_are_kept() -> None:
    model = mlp(nn.ReLU(), ft.nn.Dropout(0.5, backend="reference"))
    ft.fuse_(model)
    assert model[1].backend == "reference"
