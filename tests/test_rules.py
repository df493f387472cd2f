"""The specification itself: the rules against torch where torch has them, against arbitrary precision where it errs."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusedtrain import dispatch, rules

ACTIVATIONS = sorted(rules.ACTIVATIONS)
UPDATES = sorted(rules.UPDATES)

TORCH_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x * 1,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "squared_relu": lambda x: F.relu(x).square(),
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
}

mp = mpmath.mp.clone()
mp.dps = 50
_GELU_Z = mp.sqrt(2 / mp.pi)
# The same functions from their definitions, in arithmetic of 50 digits.
EXACT: dict[str, Callable[[mpmath.mpf], mpmath.mpf]] = {
    "identity": lambda x: x,
    "relu": lambda x: max(x, mp.zero),
    "leaky_relu": lambda x: x if x > 0 else mp.mpf(0.01) * x,
    "squared_relu": lambda x: max(x, mp.zero) ** 2,
    "elu": lambda x: x if x > 0 else mp.expm1(x),
    "gelu": lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2,
    "gelu_tanh": lambda x: x / (1 + mp.exp(-2 * _GELU_Z * (x + mp.mpf("0.044715") * x**3))),
    "quick_gelu": lambda x: x / (1 + mp.exp(-mp.mpf("1.702") * x)),
    "silu": lambda x: x / (1 + mp.exp(-x)),
    "mish": lambda x: x * mp.tanh(mp.log1p(mp.exp(x))),
    "hardswish": lambda x: x * min(max(x + 3, mp.zero), mp.mpf(6)) / 6,
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
    "tanh": mp.tanh,
    "softplus": lambda x: mp.log1p(mp.exp(x)),
}
KINKS = (0.0, -3.0, 3.0)


def points(low: float, high: float, n: int) -> Tensor:
    """Both signs, spread evenly in magnitude and in exponent, off the kinks: fp64 (4 n,)."""
    even = torch.linspace(low, high, n, dtype=torch.float64) + 1e-3
    wide = torch.logspace(-12, math.log10(high), n, dtype=torch.float64)
    return torch.cat([even, -even, wide, -wide])


def test_every_activation_has_an_oracle() -> None:
    assert set(TORCH_ACTIVATIONS) == set(EXACT) == set(rules.ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_torchs(name: str) -> None:
    x = points(0.0, 12.0, 500)
    # Where torch itself departs from the definition (softplus is linear beyond 20, gelu cancels): see the exact test.
    torch.testing.assert_close(rules.ACTIVATIONS[name].fwd(x), TORCH_ACTIVATIONS[name](x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_exact(name: str) -> None:
    """Within 4 (slopes: 16) roundings of the definition at a point as close to x: nothing cancels, so fp64 can serve as
    the truth for fp32. A slope that is a function of the output is as accurate as the output, absolutely."""
    x = points(0.0, 36.0, 24)
    rule = rules.ACTIVATIONS[name]
    eps = mp.mpf(torch.finfo(torch.float64).eps)
    tiny = mp.mpf(torch.finfo(torch.float64).tiny)
    absolute = rule.saves == "output"
    for value, y, slope in zip(x.tolist(), rule.fwd(x).tolist(), rule.grad(x).tolist(), strict=True):
        f, df, ddf = mp.taylor(EXACT[name], mp.mpf(value), 2, chop=False)
        ddf *= 2
        assert abs(y - f) <= 4 * eps * (abs(f) + abs(value * df)) + tiny, (value, y)
        assert abs(slope - df) <= 16 * eps * (abs(df) + abs(value * ddf) + absolute) + tiny, (value, slope)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_grad_is_the_derivative(name: str) -> None:
    rule = rules.ACTIVATIONS[name]
    x = points(0.0, 20.0, 300).requires_grad_()
    (autograd,) = torch.autograd.grad(rule.fwd(x).sum(), x)
    torch.testing.assert_close(rule.grad(x.detach()), autograd, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_grad_at_kinks_is_torchs(name: str) -> None:
    x = torch.tensor([0.0, -0.0, 1e4, -1e4, math.nan], dtype=torch.float64, requires_grad=True)
    (theirs,) = torch.autograd.grad(TORCH_ACTIVATIONS[name](x).sum(), x)
    ours = rules.ACTIVATIONS[name].grad(x.detach())
    torch.testing.assert_close(ours[:4], theirs[:4], rtol=1e-12, atol=0)
    assert ours[4].isnan() or ours[4] == theirs[4], "at a NaN, NaN or what torch does"


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_propagates_nan_and_never_makes_one(name: str) -> None:
    rule = rules.ACTIVATIONS[name]
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([math.nan], dtype=dtype)
        assert rule.fwd(x).isnan().all()
        largest = torch.finfo(dtype).max
        x = torch.tensor(
            [0.0, -0.0, 1e-45, 88.0, -88.0, 89.0, -89.0, 200.0, -200.0, 1e4, -1e4, 65504, -65504], dtype=dtype
        )
        assert rule.fwd(x).isfinite().all()
        assert rule.grad(x).isfinite().all()
        assert not rule.fwd(torch.tensor([largest, -largest], dtype=dtype)).isnan().any()


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if rules.ACTIVATIONS[n].grad_from_output])
def test_grad_from_output_is_grad(name: str) -> None:
    rule = rules.ACTIVATIONS[name]
    x = points(0.0, 8.0, 200)
    slope = rule.grad_from_output(rule.fwd(x))
    # The output holds the slope to the rounding of the output: where it saturates, absolutely.
    torch.testing.assert_close(slope, rule.grad(x), rtol=1e-11, atol=4 * torch.finfo(torch.float64).eps)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_is_saved_suffices(name: str) -> None:
    rule = rules.ACTIVATIONS[name]
    assert rule.saves in {"nothing", "output", "input"}
    if rule.saves == "output":
        assert rule.grad_from_output is not None
    if rule.saves == "nothing":
        x = points(0.0, 8.0, 50)
        assert torch.equal(rule.grad(x), rule.grad(torch.zeros_like(x)))


def test_memory_family_is_as_designed() -> None:
    saves_output = {name for name, rule in rules.ACTIVATIONS.items() if rule.saves == "output"}
    assert saves_output == {"relu", "leaky_relu", "squared_relu", "sigmoid", "tanh", "elu", "softplus"}


# ---- updates

LION = "lion"  # torch has none
TORCH_UPDATES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p, lr, h: torch.optim.SGD(p, lr, weight_decay=h["weight_decay"], foreach=False),
    "sgd_momentum": lambda p, lr, h: torch.optim.SGD(
        p,
        lr,
        momentum=h["momentum"],
        dampening=0 if h["nesterov"] else h["dampening"],
        weight_decay=h["weight_decay"],
        nesterov=bool(h["nesterov"]),
        foreach=False,
    ),
    **{
        name: lambda p, lr, h, cls=cls, amsgrad=amsgrad: cls(
            p, lr, (h["beta1"], h["beta2"]), h["eps"], h["weight_decay"], amsgrad=amsgrad, foreach=False
        )
        for name, cls, amsgrad in (
            ("adam", torch.optim.Adam, False),
            ("adam_amsgrad", torch.optim.Adam, True),
            ("adamw", torch.optim.AdamW, False),
            ("adamw_amsgrad", torch.optim.AdamW, True),
        )
    },
    "adagrad": lambda p, lr, h: torch.optim.Adagrad(
        p, lr, h["lr_decay"], h["weight_decay"], eps=h["eps"], foreach=False
    ),
    **{
        name: lambda p, lr, h, centered="centered" in name: torch.optim.RMSprop(
            p,
            lr,
            h["alpha"],
            h["eps"],
            h["weight_decay"],
            h.get("momentum", 0.0),
            centered,
            foreach=False,
        )
        for name in ("rmsprop", "rmsprop_momentum", "rmsprop_centered", "rmsprop_centered_momentum")
    },
}
HYPER = {
    "weight_decay": st.sampled_from([0.0, 0.01, 0.3]),
    "momentum": st.sampled_from([0.5, 0.9, 0.99]),
    "dampening": st.sampled_from([0.0, 0.25]),
    "nesterov": st.sampled_from([0.0, 1.0]),
    "beta1": st.sampled_from([0.0, 0.8, 0.9]),
    "beta2": st.sampled_from([0.9, 0.95, 0.999]),
    "eps": st.sampled_from([1e-8, 1e-3, 1.0]),
    "lr_decay": st.sampled_from([0.0, 0.1]),
    "alpha": st.sampled_from([0.1, 0.9, 0.99]),
}


def step(name: str, p: Tensor, g: Tensor, states: rules.States, t: int, h: dict[str, float], lr: float) -> rules.States:
    """One step of a rule on ``p``, in place."""
    update = rules.UPDATES[name]
    count = torch.tensor(float(t), dtype=torch.float64)
    u, states = update.direction(p, g, states, count, *(h[k] for k in update.hyper))
    p -= lr * u
    return states


def test_every_update_has_an_oracle() -> None:
    assert set(TORCH_UPDATES) | {LION} == set(rules.UPDATES)


@pytest.mark.parametrize("name", sorted(TORCH_UPDATES))
@settings(max_examples=25, deadline=None)
@given(data=st.data(), lr=st.sampled_from([1e-3, 0.1]), seed=st.integers(0, 2**31))
def test_update_is_torchs(name: str, data: st.DataObject, lr: float, seed: int) -> None:
    h = {key: data.draw(HYPER[key], label=key) for key in rules.UPDATES[name].hyper}
    if h.get("nesterov"):
        h["dampening"] = 0.0
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(13, dtype=torch.float64, generator=generator)
    q = p.clone().requires_grad_()
    states = tuple(torch.zeros_like(p) for _ in rules.UPDATES[name].slots)
    theirs = TORCH_UPDATES[name]([q], lr, h)
    for t in range(1, 8):
        g = torch.randn(13, dtype=torch.float64, generator=generator) * 10.0 ** (t - 4)
        q.grad = g.clone()
        states = step(name, p, g, states, t, h, lr)
        theirs.step()
    torch.testing.assert_close(p, q.detach(), rtol=1e-12, atol=1e-13)
    for slot, state in zip(rules.UPDATES[name].slots, states, strict=True):
        torch.testing.assert_close(state, theirs.state[q][slot], rtol=1e-12, atol=1e-13)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_lion_is_algorithm_2(data: st.DataObject, seed: int) -> None:
    """Chen et al. 2023, algorithm 2, element by element in Python floats."""
    h = {key: data.draw(HYPER[key], label=key) for key in rules.UPDATES[LION].hyper}
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(5, dtype=torch.float64, generator=generator)
    states: rules.States = (torch.zeros_like(p),)
    theta, m = p.tolist(), [0.0] * 5
    for t in range(1, 6):
        g = torch.randn(5, dtype=torch.float64, generator=generator)
        states = step(LION, p, g, states, t, h, 1e-2)
        for i, gi in enumerate(g.tolist()):
            c = h["beta1"] * m[i] + (1 - h["beta1"]) * gi
            theta[i] -= 1e-2 * (math.copysign(1.0, c) * (c != 0) + h["weight_decay"] * theta[i])
            m[i] = h["beta2"] * m[i] + (1 - h["beta2"]) * gi
    torch.testing.assert_close(p, torch.tensor(theta, dtype=torch.float64), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(states[0], torch.tensor(m, dtype=torch.float64), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", UPDATES)
def test_every_hyperparameter_matters(name: str) -> None:
    """Each column of the row changes the second step, so none can be dropped or swapped unseen."""
    base = {
        "weight_decay": 0.1,
        "momentum": 0.9,
        "dampening": 0.2,
        "nesterov": 0.0,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 0.1,
        "lr_decay": 0.1,
        "alpha": 0.9,
    }
    other = {
        "weight_decay": 0.2,
        "momentum": 0.7,
        "dampening": 0.1,
        "nesterov": 1.0,
        "beta1": 0.6,
        "beta2": 0.9,
        "eps": 0.5,
        "lr_decay": 0.3,
        "alpha": 0.7,
    }

    def three_steps(h: dict[str, float]) -> Tensor:
        p = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        states: rules.States = tuple(torch.zeros_like(p) for _ in rules.UPDATES[name].slots)
        for t, scale in enumerate((1.0, -0.05, -0.2), start=1):
            states = step(name, p, scale * torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64), states, t, h, 0.1)
        return torch.cat([p, *states])

    for key in rules.UPDATES[name].hyper:
        assert not torch.equal(three_steps(base), three_steps({**base, key: other[key]})), key


@pytest.mark.parametrize("name", UPDATES)
def test_tables_agree_with_signatures(name: str) -> None:
    update = rules.UPDATES[name]
    assert tuple(inspect.signature(update.direction).parameters)[4:] == update.hyper
    p = torch.ones(3, dtype=torch.float64)
    before = p.clone()
    states = tuple(torch.zeros(3, dtype=torch.float64) for _ in update.slots)
    u, new = update.direction(p, p * 2, states, torch.ones((), dtype=torch.float64), *(0.5 for _ in update.hyper))
    assert len(new) == len(update.slots)
    assert u.shape == p.shape
    assert torch.equal(p, before), "a rule returns a direction, it never writes p"


# ---- what precedes a rule


def test_gradient_is_prepared_in_the_order_of_the_contract() -> None:
    p = torch.tensor([2.0, -2.0, 0.0], dtype=torch.float64)
    g = torch.tensor([8.0, 8.0, -80.0], dtype=torch.float64)
    prepared = rules.prepare_gradient(p, g, inv_scale=0.5, clip_coef=0.25, sign=-1.0, clip_value=1.5, l1=0.1)
    # 8 * 0.5 * 0.25 = 1, maximized: -1; l1 is outside the clamp; -80 * ... = 10 clamps to 1.5
    assert prepared.tolist() == [-0.9, -1.1, 1.5]
    assert rules.LAUNCH_HYPER == ("lr", "sign", "clip_value", "l1")


@given(norm=st.floats(0, 1e30), max_norm=st.floats(1e-6, 1e6))
def test_clip_coefficient_is_torchs(norm: float, max_norm: float) -> None:
    g = torch.tensor([norm], dtype=torch.float64, requires_grad=True)
    g.grad = g.detach().clone()
    torch.nn.utils.clip_grad_norm_([g], max_norm)
    coef = rules.clip_coefficient(torch.tensor(norm, dtype=torch.float64), max_norm)
    torch.testing.assert_close(coef * norm, g.grad[0], rtol=1e-12, atol=0)
    assert 0 <= float(coef) <= 1


def test_clip_coefficient_of_odd_values() -> None:
    one = torch.ones((), dtype=torch.float64)
    assert float(rules.clip_coefficient(one * 5, 0.0)) == 0
    assert float(rules.clip_coefficient(one * 5, math.inf)) == 1
    assert float(rules.clip_coefficient(one * math.inf, 1.0)) == 0
    assert math.isnan(rules.clip_coefficient(one * math.nan, 1.0))


@given(
    values=st.lists(st.lists(st.floats(-1e6, 1e6), max_size=6), min_size=1, max_size=4),
    norm_type=st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, math.inf]),
)
def test_vector_norm_is_exact(values: list[list[float]], norm_type: float) -> None:
    tensors = [torch.tensor(v, dtype=torch.float64) for v in values]
    flat = [mp.mpf(x) for v in values for x in v]
    largest = max(map(abs, flat), default=mp.zero)
    exact = largest if norm_type == math.inf else mp.fsum(abs(x) ** norm_type for x in flat) ** (1 / mp.mpf(norm_type))
    # Relative accuracy also where the sum of powers leaves the range of fp64, as torch's own does.
    assert float(rules.vector_norm(tensors, norm_type)) == pytest.approx(float(exact), rel=1e-12, abs=0)


# ---- the native rules are the same list


def native_names(call: Callable[[], object]) -> set[str]:
    """A rule of an unknown name is refused with the names there are."""
    with pytest.raises((RuntimeError, ValueError)) as refusal:
        call()
    listed = re.search(r"(?:there are:|choose one of) *([\w, ]+)", str(refusal.value))
    assert listed is not None, str(refusal.value)
    return set(listed[1].replace(" ", "").split(","))


@pytest.mark.skipif(dispatch.load("cpu").why_not is not None, reason=str(dispatch.load("cpu").why_not))
class TestNative:
    def test_activations_are_the_same(self) -> None:
        op = dispatch.load("cpu").act_dropout
        assert native_names(lambda: op(torch.ones(4), None, None, None, 0, "no_such_rule")) == set(rules.ACTIVATIONS)

    def test_updates_are_the_same(self) -> None:
        op = dispatch.load("cpu").optim_step_
        p, g, count = torch.ones(4), torch.ones(4), torch.zeros(())
        hyper = torch.zeros((1, 4), dtype=torch.float64)
        none = (None,) * 4
        tail = (-1.0, False, None, None, None)
        call = lambda rule: op(rule, [p], [g], [], [count], hyper, [0], *none, *tail)  # noqa: E731
        assert native_names(lambda: call("no_such_rule")) == set(rules.UPDATES)
