"""LAMB and LARS: what scaling an update to the size of its parameter changes, and what it leaves alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from optim_pairs import PLAIN, clones, grads_for, parameters
from torch.nn import Parameter

import fusedtrain as ft
from fusedtrain import rules
from fusedtrain.testing import assert_as_accurate

EPS = torch.finfo(torch.float32).eps  # a parameter rounds by half of it, of which a move is a share
SETTINGS: dict[type, dict[str, Any]] = {
    ft.optim.LAMB: {"lr": 0.05, "betas": (0.9, 0.95), "weight_decay": 0.1},
    ft.optim.LARS: {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.1, "trust_coefficient": 0.02},
}
layerwise = pytest.mark.parametrize("cls", SETTINGS)


def on(device: torch.device, dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return [Parameter(p.detach().to(device, dtype)) for p in parameters((5, 3), (4,), (), (40, 30))]


@layerwise
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_equals_the_paper(backend: str, device: torch.device, cls: type, dtype: torch.dtype) -> None:
    params = on(device, dtype)
    same, exact = clones(params, torch.float32), clones(params, torch.float64)
    opt: Any = cls(params, **SETTINGS[cls], backend=backend)
    plain = [PLAIN[cls](x, **SETTINGS[cls]) for x in (same, exact)]
    for _ in range(4):
        grads_for(params, same, exact)
        for one in (opt, *plain):
            one.step()
        for p, q, r in zip(params, same, exact, strict=True):
            # States are fp32 or fp64; the next step is from where this one has put a rounded parameter.
            precision = torch.finfo(torch.float64).eps / EPS if dtype == torch.float64 else 1.0
            assert_as_accurate(p.detach(), q.detach().to(dtype), r.detach(), factor=4.0 * precision)
            with torch.no_grad():
                q.copy_(p)
                r.copy_(p)


@layerwise
def test_every_tensor_moves_by_the_same_share_of_its_norm(backend: str, device: torch.device, cls: type) -> None:
    params = [Parameter(torch.randn(n, device=device) * 10.0**k) for k, n in enumerate((7, 1000, 33), start=-1)]
    before = [p.detach().double() for p in params]
    share = 0.25
    settings = {"lr": share} if cls is ft.optim.LAMB else {"lr": 0.5, "trust_coefficient": share / 0.5}
    opt: Any = cls(params, **settings, backend=backend)
    for p in params:
        p.grad = torch.randn_like(p)
    opt.step()
    for p, was in zip(params, before, strict=True):
        moved = float((p.detach().double() - was).norm() / was.norm())
        assert moved == pytest.approx(share, rel=2 * EPS / share)


@layerwise
def test_without_a_coefficient_it_is_the_rule_alone(backend: str, device: torch.device, cls: type) -> None:
    settings = {**SETTINGS[cls], "trust_coefficient": None, "max_norm": 1.0}
    base = ft.optim.AdamW if cls is ft.optim.LAMB else ft.optim.SGD
    others = {key: value for key, value in settings.items() if key != "trust_coefficient"}
    if cls is ft.optim.LAMB:
        others["eps"] = 1e-6
    params = on(device)
    same, exact = clones(params), clones(params, torch.float64)
    made: Any = (cls(params, **settings, backend=backend), *(base(x, **others, backend=backend) for x in (same, exact)))
    for _ in range(3):
        grads_for(params, same, exact)
        for opt in made:
            opt.step()
    for p, q, r in zip(params, same, exact, strict=True):
        assert_as_accurate(p.detach(), q.detach(), r.detach(), factor=4.0)


@layerwise
def test_the_coefficient_is_of_the_group_and_may_change(backend: str, device: torch.device, cls: type) -> None:
    p, q = (Parameter(torch.tensor([3.0, 4.0], device=device)) for _ in range(2))
    opt: Any = cls(
        [{"params": [p], "trust_coefficient": 0.5}, {"params": [q], "trust_coefficient": 0.25}],
        lr=0.1,
        weight_decay=0.0,
        backend=backend,
    )
    moves = []
    for coefficient in (None, 0.125):
        if coefficient is not None:
            opt.param_groups[1]["trust_coefficient"] = coefficient
        before = [x.detach().clone() for x in (p, q)]
        for x in (p, q):
            x.grad = torch.ones_like(x)
        opt.step()
        moves += [float((x.detach() - was).norm() / was.norm()) for x, was in zip((p, q), before, strict=True)]
    assert moves == pytest.approx([0.05, 0.025, 0.05, 0.0125], rel=2 * EPS / 0.0125)


@layerwise
@pytest.mark.parametrize("what", ["parameter", "gradient"])
def test_the_ratio_is_one_where_a_norm_is_zero(backend: str, device: torch.device, cls: type, what: str) -> None:
    p = Parameter(torch.full((3,), 0.0 if what == "parameter" else 2.0, device=device))
    p.grad = torch.full_like(p, 1.0 if what == "parameter" else 0.0)
    eps = {"eps": 1e-30} if cls is ft.optim.LAMB else {}
    opt: Any = cls([p], lr=0.5, weight_decay=0.0, trust_coefficient=0.5, **eps, backend=backend)
    opt.step()
    expected = -0.25 if what == "parameter" else 2.0  # the directions of both rules are 1 in the first step
    torch.testing.assert_close(p.detach(), torch.full_like(p, expected))


@layerwise
def test_an_infinite_element_stays_and_does_not_take_the_others_with_it(
    backend: str, device: torch.device, cls: type
) -> None:
    p = Parameter(torch.tensor([1.0, -math.inf, 2.0], device=device))
    p.grad = torch.ones_like(p)
    opt: Any = cls([p], lr=0.5, weight_decay=0.1, backend=backend)
    opt.step()
    after = p.detach().cpu()
    assert after[1] == -math.inf
    assert bool(after[[0, 2]].isfinite().all())
    assert bool((after[[0, 2]] < torch.tensor([1.0, 2.0])).all())


def test_trust_ratio_of_odd_norms() -> None:
    def ratio(p: float, u: float) -> float:
        return float(rules.trust_ratio(*(torch.tensor(x, dtype=torch.float64) for x in (p, u))))

    assert ratio(3.0, 2.0) == 1.5
    odd = (0.0, math.inf, math.nan)
    assert [ratio(x, 2.0) for x in odd] == [ratio(2.0, x) for x in odd] == [1.0] * 3
    single = rules.trust_ratio(torch.tensor(1e30), torch.tensor(1e-30))
    assert float(single) == pytest.approx(1e60, rel=4 * EPS), "in fp32 it would be infinite"


def test_memory_of_the_parameters_and_gradients_is_theirs(backend: str, device: torch.device) -> None:
    """Neither is replaced, and gradients are only read."""
    p = Parameter(torch.randn(4, 3, device=device).t())
    g = torch.randn(4, 3, device=device).t()
    p.grad = g
    kept, where, stride = g.clone(), p.data_ptr(), p.stride()
    opt = ft.optim.LAMB([p], lr=0.1, max_norm=0.1, clip_value=0.01, backend=backend)
    opt.step()
    assert torch.equal(g, kept)
    assert (p.data_ptr(), p.stride()) == (where, stride)


def test_version_counters_of_states_are_raised(backend: str, device: torch.device) -> None:
    p = Parameter(torch.randn(3, device=device))
    opt = ft.optim.LARS([p], backend=backend)
    p.grad = torch.ones_like(p)
    opt.step()
    before = opt.state[p]["momentum_buffer"]._version
    opt.step()
    assert opt.state[p]["momentum_buffer"]._version > before


@layerwise
def test_tensors_that_share_memory_are_refused(backend: str, device: torch.device, cls: type) -> None:
    """The operator steps copies, and does not see it."""
    x = torch.ones(4, device=device)
    p, q = Parameter(x), Parameter(x.view(2, 2))
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    opt: Any = cls([p, q], backend=backend)
    with pytest.raises(RuntimeError, match=rf"{cls.__name__}.step: two tensors that it writes share memory"):
        opt.step()
    assert torch.equal(x, torch.ones_like(x))


@pytest.mark.parametrize("size", [1e-20, 1e-14, 1e-8, 1.0, 1e15])
@pytest.mark.parametrize("of", [1e-3, 1.0, 1e4])
def test_gradients_of_any_size_move_as_far(backend: str, device: torch.device, size: float, of: float) -> None:
    """The direction is what is left of a far step: of small ones, more than what p rounds to."""
    p = Parameter(torch.linspace(-1, 2, 50, device=device) * of)
    before = p.detach().double()
    share = 2.0**-6
    opt = ft.optim.LARS([p], lr=share, momentum=0.0, trust_coefficient=1.0, backend=backend)
    p.grad = torch.linspace(3, -2, 50, device=device) * size * of
    g = p.grad.double()
    opt.step()
    wanted = -share * before.norm() / g.norm() * g
    error = (p.detach().double() - before - wanted).norm() / wanted.norm()
    assert float(error) < 2 * EPS / share


@layerwise
@pytest.mark.parametrize(
    "settings",
    [{"l1": 0.3}, {"clip_value": 0.2}, {"maximize": True}, {"max_norm": 0.5}, {"nesterov": True}, {"dampening": 0.5}],
    ids=str,
)
def test_it_is_the_rule_alone_scaled(backend: str, device: torch.device, cls: type, settings: dict[str, Any]) -> None:
    """With everything that a step has besides: the direction is what the other class moves by at a rate of 1."""
    base: Any = ft.optim.AdamW if cls is ft.optim.LAMB else ft.optim.SGD
    own = {key: x for key, x in SETTINGS[cls].items() if key not in ("lr", "trust_coefficient")}
    own |= {"eps": 1e-6} if cls is ft.optim.LAMB else {}
    if not settings.keys() <= base([Parameter(torch.ones(1))]).defaults.keys():
        return
    params = on(device, torch.float64)
    opt: Any = cls(params, lr=0.25, trust_coefficient=0.5, **own, **settings, backend=backend)
    followed = clones(params)
    alone = base(followed, lr=1.0, **own, **settings, backend=backend)
    for _ in range(3):
        grads_for(params, followed)
        before = [p.detach().clone() for p in params]
        opt.step()
        alone.step()
        for p, q, was in zip(params, followed, before, strict=True):
            u = was - q.detach()
            torch.testing.assert_close(p.detach(), was - 0.125 * was.norm() / u.norm() * u)
            with torch.no_grad():
                q.copy_(p)


def test_groups_of_several_rules_have_their_own_coefficients(backend: str, device: torch.device) -> None:
    groups: list[dict[str, Any]] = [
        {"params": [Parameter(torch.tensor([3.0, 4.0], device=device))], "momentum": m, "trust_coefficient": c}
        for m, c in ((0.9, 0.5), (0.0, 0.25), (0.9, torch.tensor([0.125])), (0.0, None))
    ]
    opt = ft.optim.LARS(groups, lr=0.1, backend=backend)
    for group in groups:
        group["params"][0].grad = torch.ones(2, device=device)
    opt.step()
    moves = [float((group["params"][0].detach() - torch.tensor([3.0, 4.0], device=device)).norm()) for group in groups]
    assert moves == pytest.approx([0.25, 0.125, 0.0625, 0.1 * 2**0.5], rel=2 * EPS / 0.0125)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@layerwise
def test_a_skipped_step_keeps_every_bit(backend: str, device: torch.device, cls: type, dtype: torch.dtype) -> None:
    """Also those of NaN, of both zeros and of infinities."""
    odd = [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1.5, 6e-8]
    p = Parameter(torch.tensor(odd, device=device).to(dtype))
    bits = p.detach().clone().view(torch.uint8)
    opt: Any = cls([p], lr=0.5, nonfinite="skip", backend=backend)
    for _ in range(2):
        p.grad = torch.full_like(p, math.nan)
        opt.step()
        assert torch.equal(p.detach().view(torch.uint8), bits)
    assert int(opt.skipped_steps) == 2


def test_a_state_dict_goes_to_adamw_and_back() -> None:
    params = parameters()
    lamb = ft.optim.LAMB(params, lr=0.1)
    grads_for(params)
    lamb.step()
    other = torch.optim.AdamW(clones(params))
    other.load_state_dict({"state": lamb.state_dict()["state"], "param_groups": other.state_dict()["param_groups"]})
    for p, q in zip(params, other.param_groups[0]["params"], strict=True):
        assert other.state[q].keys() == lamb.state[p].keys()
        for key, value in lamb.state[p].items():
            assert torch.equal(other.state[q][key], torch.as_tensor(value))
