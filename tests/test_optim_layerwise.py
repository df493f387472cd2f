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

SETTINGS: dict[type, dict[str, Any]] = {
    ft.optim.LAMB: {"lr": 0.05, "betas": (0.9, 0.95), "weight_decay": 0.1},
    ft.optim.LARS: {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.1, "trust_coefficient": 0.02},
}
layerwise = pytest.mark.parametrize("cls", SETTINGS)


def on(device: torch.device, dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return [Parameter(p.detach().to(device, dtype)) for p in parameters((5, 3), (4,), (), (40, 30))]


@layerwise
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
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
            theirs, factor = (q.detach().to(dtype), 4.0) if dtype != torch.float64 else (q.detach().double(), 1e-6)
            assert_as_accurate(p.detach(), theirs, r.detach(), factor=factor)
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
        assert moved == pytest.approx(share, rel=1e-5)


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
    assert moves == pytest.approx([0.05, 0.025, 0.05, 0.0125], rel=1e-5)


@layerwise
@pytest.mark.parametrize("what", ["parameter", "gradient"])
def test_the_ratio_is_one_where_a_norm_is_zero(backend: str, device: torch.device, cls: type, what: str) -> None:
    p = Parameter(torch.full((3,), 0.0 if what == "parameter" else 2.0, device=device))
    p.grad = torch.full_like(p, 1.0 if what == "parameter" else 0.0)
    opt: Any = cls([p], lr=0.5, weight_decay=0.0, trust_coefficient=0.5, backend=backend)
    opt.step()
    expected = -0.25 if what == "parameter" else 2.0  # the directions of both rules are 1 in the first step
    torch.testing.assert_close(p.detach(), torch.full_like(p, expected), rtol=1e-5, atol=0)


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


def test_version_counters_are_raised(backend: str, device: torch.device) -> None:
    p = Parameter(torch.randn(3, device=device))
    y = (p * p).sum()
    p.grad = torch.ones_like(p)
    ft.optim.LARS([p], backend=backend).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


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
