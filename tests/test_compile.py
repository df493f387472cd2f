"""torch.compile and the operator registrations of activation + dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch._functorch.config as functorch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import fusedtrain as ft
from fusedtrain import dispatch
from fusedtrain.testing import with_layout

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Compiling is slow: what does not depend on the backend is tested on the default one of this device."""


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def model(backend: str) -> nn.Module:
    """Every kind of call: bias, residual, gated, in place; saved output, saved input, saved nothing."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = ft.nn.LinearActDropout(8, 32, "gelu", 0.2, backend=backend)
            self.gate = ft.nn.GatedActDropout("silu", 0.3, backend=backend)
            self.act = ft.nn.ActDropout("tanh", 0.4, inplace=True, backend=backend)
            self.down = nn.Linear(16, 8)
            self.drop = ft.nn.Dropout(0.1, backend=backend)

        def forward(self, x: Tensor) -> Tensor:
            h = self.act(self.gate(self.up(x)) * 2)
            y = ft.functional.act_dropout(self.down(h), "relu", 0.5, self.training, residual=x, backend=backend)
            return self.drop(y)

    return Block()


def step(f: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    y = f(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiled_is_eager(backend: str, device: torch.device, training: bool) -> None:
    """In one graph, with the masks of the same seed, and without compiling again from step to step."""
    module, x = model(backend).to(device).train(training), torch.randn(6, 8, device=device, requires_grad=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for seed in range(3):
        for a, b in zip(step(compiled, module, x, seed), step(module, module, x, seed), strict=True):
            torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


def test_inductor() -> None:
    """Two draws for the same x stay two, and their masks are those of eager mode."""
    x = torch.randn(8, 32, device=DEVICE, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        return ft.functional.act_dropout(x, "identity", 0.5) * 2 + ft.functional.act_dropout(x, "identity", 0.5)

    compiled = torch.compile(f, fullgraph=True)
    for seed in range(2):
        for a, b in zip(step(compiled, nn.Identity(), x, seed), step(f, nn.Identity(), x, seed), strict=True):
            torch.testing.assert_close(a, b)
    assert len((compiled(x) / x).round().unique()) == 4  # 0, 2, 4, 6


def test_dynamic_shapes_compile_once() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    f = torch.compile(
        lambda x: ft.functional.act_dropout(x, "gelu", 0.5),
        fullgraph=True,
        dynamic=True,
        backend=counter,
    )
    for rows in (4, 5, 9, 17):
        x = torch.randn(rows, 8, device=DEVICE)
        torch.manual_seed(rows)
        y = f(x)
        torch.manual_seed(rows)
        torch.testing.assert_close(y, ft.functional.act_dropout(x, "gelu", 0.5))
    assert counter.frame_count == 1


def test_checkpoint_in_a_compiled_region() -> None:
    """D21 (OLMo-core!828): the backward recomputes the masks of the forward. They are those of eager mode, unless torch
    gives what is recomputed a generator of its own, as it does on GPUs by default, for F.dropout too."""

    def layer(x: Tensor) -> Tensor:
        y = ft.functional.act_dropout(x, "identity", 0.5)
        return ft.functional.act_dropout(y + 0.0, "gelu", 0.5)

    def f(x: Tensor) -> Tensor:
        return checkpoint(layer, x, use_reentrant=False)

    x = torch.ones(8, 64, device=DEVICE, requires_grad=True)
    for own_generator in (True, False):
        torch.compiler.reset()
        with functorch.patch(graphsafe_rng_functionalization=own_generator):
            compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
            y, grad = step(compiled, nn.Identity(), x, 1)
        assert torch.equal(y != 0, grad != 0)
        if DEVICE.type == "cpu" or not own_generator:
            torch.testing.assert_close([y, grad], step(f, nn.Identity(), x, 1))


def test_inplace_compiles() -> None:
    def f(x: Tensor) -> Tensor:
        ft.functional.act_dropout(x, "gelu", 0.5, inplace=True)
        return x.square().sum()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    results = []
    for g in (f, compiled):
        leaf = torch.linspace(-2, 2, 24, device=DEVICE).reshape(4, 6).requires_grad_()
        x = leaf * 1
        torch.manual_seed(3)
        (grad,) = torch.autograd.grad(g(x), leaf)
        results.append((x.detach(), grad))
    torch.testing.assert_close(*results)


# ---- the raw operators

STATE = torch.tensor([3, 4])
THRESHOLD = 20_000


def tensors(requires_grad: bool, *shapes: tuple[int, ...], layout: str = "contiguous") -> list[Tensor]:
    return [with_layout(torch.randn(shape), layout).requires_grad_(requires_grad) for shape in shapes]


def needs_cpu_library() -> None:
    why_not = dispatch.load("cpu").why_not
    if why_not:
        pytest.skip(f"backend cpu: {why_not}")


OPERANDS = [
    ("identity", "contiguous", (4, 6)),
    ("relu", "transposed", (4, 6)),
    ("gelu", "contiguous", (4, 6)),
    ("gelu", "transposed", (4, 6)),
    ("gelu", "sliced", (4, 6)),
    ("gelu", "contiguous", (0, 6)),
]


@pytest.mark.parametrize("grad", [False, True], ids=["", "grad"])
@pytest.mark.parametrize(("activation", "layout", "shape"), OPERANDS)
def test_opcheck_of_the_forward_operators(activation: str, layout: str, shape: tuple[int, ...], grad: bool) -> None:
    needs_cpu_library()
    x, bias, residual = tensors(grad, shape, shape[-1:], shape, layout=layout)
    tail = (STATE, THRESHOLD, activation)
    torch.library.opcheck(torch.ops.fusedtrain.act_dropout, (x, bias, residual, *tail))
    torch.library.opcheck(torch.ops.fusedtrain.act_dropout, (x, None, None, *tail))
    torch.library.opcheck(torch.ops.fusedtrain.gated_act_dropout, (x, bias, *tail))


def test_opcheck_of_the_other_operators() -> None:
    needs_cpu_library()
    ops = torch.ops.fusedtrain
    x, bias = torch.randn(4, 6), torch.randn(6)
    for activation in ("identity", "relu", "gelu"):
        torch.library.opcheck(ops.act_dropout_, (x.clone(), bias, None, STATE, THRESHOLD, activation))
        saved = None if activation == "identity" else x
        arguments = (x, saved, None, STATE, THRESHOLD, activation, activation == "relu", True)
        torch.library.opcheck(ops.act_dropout_grad, arguments)
        torch.library.opcheck(ops.gated_act_dropout_grad, (x[:, :3], x, bias, STATE, THRESHOLD, activation, True))
    torch.library.opcheck(ops.draw_rng_state, (), {"device": torch.device("cpu")})


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "gelu"])
def test_raw_operators_are_differentiable(activation: str) -> None:
    needs_cpu_library()

    def act(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return torch.ops.fusedtrain.act_dropout(x, bias, residual, STATE, THRESHOLD, activation)

    def gated(x: Tensor, bias: Tensor) -> Tensor:
        return torch.ops.fusedtrain.gated_act_dropout(x, bias, STATE, THRESHOLD, activation)

    for f, shapes in ((act, ((2, 4), (4,), (2, 4))), (gated, ((2, 4), (4,)))):
        arguments = [t.detach().double().add(0.01).requires_grad_() for t in tensors(False, *shapes)]
        assert torch.autograd.gradcheck(f, arguments)
        assert torch.autograd.gradgradcheck(f, arguments)
