"""What `act_dropout` and `gated_act_dropout` compute and drop, what they draw, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fusedtrain as ft
from fusedtrain import rng, rules
from fusedtrain.testing import assert_as_accurate, error, truth, with_layout

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "transposed", "sliced", "offset")

# torch's own operators of the same name: neither the specification nor a kernel of ours.
TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "squared_relu": lambda x: torch.relu(x).square(),
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "mish": F.mish,
    # On a GPU F.hardswish of fp64 has a sixth in fp32.
    "hardswish": lambda x: F.hardswish(x) if x.dtype != torch.float64 else x * F.relu6(x + 3) / 6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": lambda x: F.softplus(x, threshold=80),
}
CALLS = (ft.functional.act_dropout, ft.functional.gated_act_dropout)

shapes = st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)
probabilities = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
states = st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**63 - 1))


def test_the_table_of_truth_is_complete() -> None:
    assert TORCH.keys() == rules.ACTIVATIONS.keys()


def drop(a: Tensor, state: Tensor, p: float) -> Tensor:
    threshold = rng.drop_threshold(p)
    return torch.where(rng.keep_mask(state, threshold, a.shape), a * rng.keep_scale(threshold), 0.0)


MANY = (256, 9)
"""The shape over which torch's own error is measured: over an element or two it may be zero by luck."""


def run(f: Callable[..., Tensor], *args: Tensor | None) -> list[Tensor]:
    """The result of ``f`` and its gradients in all arguments but the last, which is the gradient of the result."""
    *inputs, dy = args
    leaves = [None if a is None else a.detach().requires_grad_() for a in inputs]
    y = f(*leaves)
    wanted = [a for a in leaves if a is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, dy)]


def check(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], args: list[Tensor | None], many: list[Tensor | None]
) -> None:
    """Results and gradients for ``args`` against fp64, by the error torch makes for ``many`` in the same dtype (for
    fp64: in fp32, scaled). The roundings that cannot be avoided are allowed anyway: of y its last one; of a gradient
    that of the stored y it may be computed from, of its scaling, of the slope and the last one."""
    eps = torch.finfo(many[-1].dtype).eps
    names = ["y", *(f"gradient {i}" for i, a in enumerate(args[:-1]) if a is not None)]
    actual, exact = run(ours, *args), truth(run, theirs, *args)
    exact_many = truth(run, theirs, *many)
    if many[-1].dtype == torch.float64:
        many = [None if a is None else a.float() for a in many]
    rounding = torch.finfo(many[-1].dtype).eps
    for name, a, t, m, mt in zip(names, actual, exact, run(theirs, *many), exact_many, strict=True):
        assert a.dtype == args[-1].dtype, name
        assert a.shape == t.shape, name
        relative = max(2 * error(m, mt) / rounding, (1 if name == "y" else 4) * float(mt.abs().max()))
        assert error(a, t) <= eps * relative, name


cases = st.fixed_dictionaries(
    {
        "activation": st.sampled_from(list(TORCH)),
        "dtype": st.sampled_from(DTYPES),
        "layout": st.sampled_from(LAYOUTS),
        "shape": shapes,
        "p": probabilities,
        "state": states,
        "with_bias": st.booleans(),
        "with_residual": st.booleans(),
    }
)


@settings(max_examples=80)
@given(case=cases)
def test_values_and_gradients(backend: str, device: torch.device, case: dict[str, Any]) -> None:
    activation, p, state = case["activation"], case["p"], torch.tensor(case["state"], device=device)

    def ours(x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        options: dict[str, Any] = {"bias": bias, "residual": residual, "rng_state": state, "backend": backend}
        return ft.functional.act_dropout(x, activation, p, **options)

    def theirs(x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        y = drop(TORCH[activation](x if bias is None else x + bias), state, p)
        return y if residual is None else y + residual

    def arguments(shape: tuple[int, ...], layout: str) -> list[Tensor | None]:
        def normal(*shape: int) -> Tensor:
            return with_layout(torch.randn(shape, device=device).to(case["dtype"]), layout)

        bias = normal(shape[-1]) if case["with_bias"] else None
        return [3 * normal(*shape), bias, normal(*shape) if case["with_residual"] else None, normal(*shape)]

    check(ours, theirs, arguments(case["shape"], case["layout"]), arguments(MANY, "contiguous"))


@settings(max_examples=40)
@given(case=cases)
def test_gated_values_and_gradients(backend: str, device: torch.device, case: dict[str, Any]) -> None:
    activation, p, state = case["activation"], case["p"], torch.tensor(case["state"], device=device)

    def ours(x: Tensor, bias: Tensor | None) -> Tensor:
        return ft.functional.gated_act_dropout(x, activation, p, bias=bias, rng_state=state, backend=backend)

    def theirs(x: Tensor, bias: Tensor | None) -> Tensor:
        gate, up = (x if bias is None else x + bias).chunk(2, dim=-1)
        return drop(TORCH[activation](gate) * up, state, p)

    def arguments(shape: tuple[int, ...], layout: str) -> list[Tensor | None]:
        def normal(*shape: int) -> Tensor:
            return with_layout(torch.randn(shape, device=device).to(case["dtype"]), layout)

        wide = (*shape[:-1], 2 * shape[-1])
        return [normal(*wide), normal(wide[-1]) if case["with_bias"] else None, normal(*shape)]

    check(ours, theirs, arguments(case["shape"], case["layout"]), arguments(MANY, "contiguous"))


@settings(max_examples=40)
@given(shape=shapes, p=probabilities, state=states, layout=st.sampled_from(LAYOUTS), dtype=st.sampled_from(DTYPES))
def test_masks_are_those_of_the_contract(
    backend: str,
    device: torch.device,
    shape: tuple[int, ...],
    p: float,
    state: tuple[int, int],
    layout: str,
    dtype: Any,
) -> None:
    """Forward and backward, to the bit, on every backend: the mask of x in logical order whatever its layout."""
    rng_state = torch.tensor(state, device=device)
    expected = rng.keep_mask(rng_state, rng.drop_threshold(p), shape)
    for activation in ("identity", "relu", "gelu"):
        x = with_layout(torch.ones(shape, dtype=dtype, device=device), layout).requires_grad_()
        y = ft.functional.act_dropout(x, activation, p, rng_state=rng_state, backend=backend)
        assert torch.equal(y != 0, expected)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert torch.equal(dx != 0, expected)
    x = torch.ones((*shape[:-1], 2 * shape[-1]), dtype=dtype, device=device, requires_grad=True)
    y = ft.functional.gated_act_dropout(x, "gelu", p, rng_state=rng_state, backend=backend)
    assert torch.equal(y != 0, expected)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(dx != 0, torch.cat([expected, expected], dim=-1))


@pytest.mark.parametrize("call", CALLS)
def test_one_draw_per_training_call(backend: str, device: torch.device, call: Callable[..., Tensor]) -> None:
    x = torch.randn(3, 8, device=device)
    torch.manual_seed(5)
    rng.draw(x.device)
    drawn = torch.rand(4, device=device)
    for p, shape in ((0.0, (3, 8)), (0.3, (3, 8)), (1.0, (1000,)), (0.5, (0, 4))):
        torch.manual_seed(5)
        call(torch.randn(shape, device=device, generator=torch.Generator(device)), "gelu", p, backend=backend)
        assert torch.equal(drawn, torch.rand(4, device=device)), p
    torch.manual_seed(5)
    call(x, "gelu", 0.5, training=False, backend=backend)
    call(x, "gelu", 0.5, rng_state=torch.tensor([1, 2], device=device), backend=backend)
    call(x, "gelu", 0.5, generator=torch.Generator(device).manual_seed(1), backend=backend)
    rng.draw(x.device)
    assert torch.equal(drawn, torch.rand(4, device=device))


@pytest.mark.parametrize("call", CALLS)
def test_seeds_and_generators_reproduce(backend: str, device: torch.device, call: Callable[..., Tensor]) -> None:
    x = torch.randn(64, 64, device=device)
    torch.manual_seed(1)
    state = rng.draw(x.device)
    torch.manual_seed(1)
    first, second = call(x, "gelu", backend=backend), call(x, "gelu", backend=backend)
    assert not torch.equal(first == 0, second == 0)
    assert torch.equal(first, call(x, "gelu", rng_state=state, backend=backend))
    generator = torch.Generator(device).manual_seed(1)
    assert torch.equal(first, call(x, "gelu", generator=generator, backend=backend))
    assert torch.equal(second, call(x, "gelu", generator=generator, backend=backend))


@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_dropped_infinities_are_zero(backend: str, device: torch.device, activation: str) -> None:
    """D8 (pytorch#59421): selected, never multiplied by zero, forward and backward."""
    state = torch.tensor([3, 4], device=device)
    kept = rng.keep_mask(state, rng.drop_threshold(0.5), (3, 64))
    values = torch.tensor([[math.inf], [-math.inf], [math.nan]], device=device).expand(3, 64)
    for call, x in (
        (ft.functional.act_dropout, values.clone()),
        (ft.functional.gated_act_dropout, torch.cat([values, values], dim=1)),
    ):
        x.requires_grad_()
        y = call(x, activation, 0.5, rng_state=state, backend=backend)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert (y[~kept] == 0).all()
        assert (dx[(~kept).repeat(1, x.shape[1] // 64)] == 0).all()
        assert y[2][kept[2]].isnan().all()
        everything = call(x, activation, 1.0, backend=backend)
        assert torch.equal(everything, torch.zeros_like(everything))


def test_eval_is_the_activation(backend: str, device: torch.device) -> None:
    x = torch.randn(5, 6, device=device, requires_grad=True)
    for activation in TORCH:
        y = ft.functional.act_dropout(x, activation, 0.9, training=False, backend=backend)
        double = x.detach().double()
        assert_as_accurate(y, TORCH[activation](x), TORCH[activation](double))
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert (dx != 0).all() or activation in ("relu", "squared_relu")
    assert ft.functional.act_dropout(x, "identity", 0.9, training=False, backend=backend) is x
    assert ft.functional.act_dropout(x, "identity", 0.0, backend=backend) is x


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,), (2, 1, 5)])
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_small_and_empty(backend: str, device: torch.device, shape: tuple[int, ...], activation: str) -> None:
    x = torch.randn(shape, device=device, requires_grad=True)
    bias = torch.zeros(shape[-1:], device=device, requires_grad=True) if shape else None
    y = ft.functional.act_dropout(x, activation, 0.5, bias=bias, backend=backend)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    if bias is not None:
        assert bias.grad is not None
        assert bias.grad.shape == bias.shape


def test_other_dtypes_of_bias_and_residual_follow_x(backend: str, device: torch.device) -> None:
    x = torch.randn(4, 6, device=device).bfloat16().requires_grad_()
    bias = torch.randn(6, device=device, requires_grad=True)
    residual = torch.randn(4, 6, device=device, requires_grad=True)
    y = ft.functional.act_dropout(x, "gelu", 0.2, bias=bias, residual=residual, backend=backend)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert (x.grad.dtype, bias.grad.dtype, residual.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)


X = torch.zeros(4, 6)
STATE = torch.tensor([1, 2])
BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("p above", {"p": 1.5}, ValueError, r"p=1\.5"),
    ("p below", {"p": -0.1}, ValueError, r"p=-0\.1"),
    ("p nan", {"p": math.nan}, ValueError, "p=nan"),
    ("p bool", {"p": True}, TypeError, "p=True"),
    ("p str", {"p": "0.5"}, TypeError, "p='0.5'"),
    ("p tensor", {"p": torch.tensor(0.5)}, TypeError, "p=tensor"),
    ("activation", {"activation": "gleu"}, ValueError, "activation='gleu'.*'gelu'.*softplus"),
    ("activation none", {"activation": None}, ValueError, "activation=None"),
    ("bias shape", {"bias": torch.zeros(5)}, ValueError, r"bias of shape \(5,\).*\(6,\)"),
    ("bias rank", {"bias": torch.zeros(4, 6)}, ValueError, r"bias of shape \(4, 6\)"),
    ("bias type", {"bias": 1.0}, TypeError, "bias=1.0"),
    ("bias dtype", {"bias": torch.zeros(6, dtype=torch.int32)}, TypeError, "bias of torch.int32"),
    ("bias device", {"bias": torch.zeros(6, device="meta")}, ValueError, "bias on meta"),
    ("x int", {"x": torch.zeros(4, 6, dtype=torch.int64)}, TypeError, "x of torch.int64"),
    ("x complex", {"x": torch.zeros(4, 6, dtype=torch.complex64)}, TypeError, "x of torch.complex64"),
    ("x sparse", {"x": torch.zeros(4, 6).to_sparse()}, TypeError, "torch.sparse_coo"),
    ("x list", {"x": [0.0]}, TypeError, r"x=\[0\.0\]"),
    ("state dtype", {"rng_state": STATE.int()}, ValueError, r"rng_state=torch.int32 \(2,\)"),
    ("state shape", {"rng_state": torch.tensor([1])}, ValueError, r"\(1,\)"),
    ("state type", {"rng_state": (1, 2)}, ValueError, r"rng_state=\(1, 2\)"),
    ("state device", {"rng_state": STATE.to("meta")}, ValueError, "rng_state on meta"),
    ("both", {"rng_state": STATE, "generator": torch.Generator()}, ValueError, "not both"),
    ("generator type", {"generator": 3}, TypeError, "generator=3"),
    ("generator device", {"x": X.to("meta"), "generator": torch.Generator()}, ValueError, "generator of cpu"),
    ("backend", {"backend": "tpu"}, ValueError, "unknown backend 'tpu'"),
]
BAD_ACT = [
    ("0-dim bias", {"x": torch.zeros(()), "bias": torch.zeros(1)}, ValueError, "no last dimension"),
    ("residual shape", {"residual": torch.zeros(6)}, ValueError, r"residual of shape \(6,\)"),
    ("residual device", {"residual": X.to("meta")}, ValueError, "residual on meta"),
    ("inplace leaf", {"x": X.clone().requires_grad_(), "inplace": True}, RuntimeError, "leaf"),
    ("inplace view of leaf", {"x": X.clone().requires_grad_()[1:], "inplace": True}, RuntimeError, "leaf"),
    ("inplace expanded", {"x": torch.zeros(6).expand(4, 6), "inplace": True}, RuntimeError, "expanded"),
    (
        "inplace overlap",
        {"x": torch.zeros(9).as_strided((4, 6), (1, 1)), "inplace": True},
        RuntimeError,
        r"strides \(1, 1\): several elements share one place",
    ),
]
BAD_GATED = [
    ("odd", {"x": torch.zeros(4, 5)}, ValueError, r"\(4, 5\).*even"),
    ("0-dim", {"x": torch.zeros(())}, ValueError, r"\(\).*even"),
]
CASES = [(call, *case) for call in CALLS for case in BAD]
CASES += [(CALLS[0], *case) for case in BAD_ACT] + [(CALLS[1], *case) for case in BAD_GATED]
NAMES = [f"{call.__name__}-{name}" for call, name, *_ in CASES]


@pytest.mark.parametrize(
    ("call", "name", "arguments", "kind", "message"), CASES, ids=lambda v: getattr(v, "__name__", v)
)
def test_bad_input_changes_nothing(
    call: Callable[..., Tensor], name: str, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    arguments = {"x": X, **arguments}
    x, before = arguments["x"], torch.get_rng_state()
    version = getattr(x, "_version", None)
    with pytest.raises(kind, match=message) as caught:
        call(**arguments)
    assert str(caught.value).startswith(f"fusedtrain.functional.{call.__name__}: ")
    assert torch.equal(before, torch.get_rng_state())
    assert getattr(x, "_version", None) == version


def test_a_backend_that_cannot_run_it_is_refused_with_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSEDTRAIN_BACKEND", raising=False)
    with pytest.raises(RuntimeError, match=r"backend 'cuda' cannot run it \(float32 on cpu\).*reference: can run it"):
        ft.functional.act_dropout(X, backend="cuda")
    with pytest.raises(RuntimeError, match="float8_e4m3fn"):
        ft.functional.act_dropout(X.to(torch.float8_e4m3fn))


@pytest.mark.parametrize(
    ("backend", "environment", "message"),
    [
        (None, None, r"no backend can run it .*\. Cast the tensors\.$"),
        (None, "reference", r"'reference' of FUSEDTRAIN_BACKEND cannot .*\. Unset it or cast the tensors\.$"),
        ("reference", None, r"backend 'reference' cannot .*\. Choose another backend= or cast the tensors\.$"),
        ("reference", "cpu", r"backend 'reference' cannot .*\. Choose another backend= or cast the tensors\.$"),
    ],
)
def test_the_remedy_is_for_what_was_chosen(
    backend: str | None, environment: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUSEDTRAIN_BACKEND", raising=False)
    if environment is not None:
        monkeypatch.setenv("FUSEDTRAIN_BACKEND", environment)
    with pytest.raises(RuntimeError, match=message):
        ft.functional.act_dropout(X.to(torch.float8_e4m3fn), backend=backend)
