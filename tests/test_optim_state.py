"""States: dtypes, state dicts both ways, copies, pickles, corrupt checkpoints."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from optim_pairs import CLASSES, assert_bitwise, clones, every_class, grads_for, parameters, snapshot
from torch.nn import Parameter

import fusedtrain as ft


@pytest.mark.parametrize("cls", CLASSES[:3])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"momentum": 0.9, "dampening": 0.3}], ids=str)
def test_state_dict_goes_both_ways_mid_training(cls: type, options: dict[str, Any]) -> None:
    theirs = getattr(torch.optim, cls.__name__)
    if not set(options) <= set(cls([Parameter(torch.ones(1))]).defaults):
        return
    ours = parameters()
    same = clones(ours)
    opt, reference = cls(ours, lr=0.1, max_norm=torch.inf, **options), theirs(same, lr=0.1, foreach=False, **options)
    for turn in range(3):
        for _ in range(2):
            grads_for(ours, same)
            opt.step()
            reference.step()
        torch.testing.assert_close([p.detach() for p in ours], [p.detach() for p in same])
        mine, other = copy.deepcopy(opt.state_dict()), copy.deepcopy(reference.state_dict())
        assert [list(s) for s in mine["state"].values()] == [list(s) for s in other["state"].values()]
        opt, reference = cls(ours, backend="reference"), theirs(same, foreach=False)
        opt.load_state_dict(other)
        reference.load_state_dict(mine)
        assert opt.backend == "reference"
        if turn == 0:  # torch's checkpoint has no such key, until it has loaded ours
            assert opt.param_groups[0]["max_norm"] is None
        for p, q in zip(ours, same, strict=True):
            for key, value in other["state"].get(0, {}).items():
                assert opt.state[ours[0]][key].dtype == value.dtype
            assert opt.state.get(p, {}).keys() == reference.state.get(q, {}).keys()


def test_fp32_states_of_bf16_parameters_survive_a_round_trip() -> None:
    (p,) = parameters((3,), dtype=torch.bfloat16)
    opt = ft.optim.AdamW([p])
    p.grad = torch.randn(3).bfloat16()
    opt.step()
    fine = 1 + 2.0**-10  # not a bf16
    opt.state[p]["exp_avg"].fill_(fine)
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert opt.state[p]["exp_avg"].dtype == torch.float32
    assert opt.state[p]["exp_avg"].tolist() == [fine] * 3
    plain_opt = torch.optim.AdamW([p])
    plain_opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    opt.load_state_dict(plain_opt.state_dict())
    assert opt.state[p]["exp_avg_sq"].dtype == torch.float32


def test_loaded_state_is_a_copy_and_in_the_layout_of_the_parameter() -> None:
    p, q = Parameter(torch.randn(4, 3)), Parameter(torch.randn(3, 4).t())
    first, second = ft.optim.AdamW([p]), ft.optim.AdamW([q])
    p.grad, q.grad = torch.ones(4, 3), torch.ones(4, 3)
    first.step()
    second.load_state_dict(first.state_dict())
    assert second.state[q]["exp_avg"].stride() == q.stride()
    second.step()
    assert first.state[p]["step"].item() == 1


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("exp_avg", torch.zeros(2), r"'exp_avg' of parameter 0 of group 0 is \(2,\), the parameter \(3,\)"),
        (
            "exp_avg_sq",
            torch.tensor([1.0, torch.nan, 1.0]),
            "'exp_avg_sq' of parameter 0 of group 0 has",
        ),
        ("exp_avg", torch.ones(3, dtype=torch.int64), "'exp_avg'.*int64"),
        ("exp_avg", [1.0, 2.0, 3.0], "'exp_avg'.*is no tensor but list"),
        ("step", torch.tensor(-1e30), "'step' of parameter 0 of group 0"),
        ("step", torch.tensor(torch.nan), "'step' of parameter 0 of group 0"),
        ("lr", torch.nan, "Invalid learning rate: nan"),
        ("max_norm", -3.0, "max_norm must be >= 0"),
    ],
)
def test_corrupt_checkpoint_changes_nothing(key: str, value: Any, match: str) -> None:
    (p,) = parameters((3,))
    opt = ft.optim.AdamW([p], max_norm=1.0)
    p.grad = torch.ones(3)
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    (saved["state"][0] if key in saved["state"][0] else saved["param_groups"][0])[key] = value
    before, groups = snapshot(opt), copy.deepcopy(opt.param_groups[0]["lr"])
    with pytest.raises((ValueError, TypeError), match=match):
        opt.load_state_dict(saved)
    assert_bitwise(snapshot(opt), before)
    assert opt.param_groups[0]["lr"] == groups
    opt.step()


def test_skipped_first_sgd_step_is_saved_as_no_step() -> None:
    (p,) = parameters((3,))
    opt = ft.optim.SGD([p], lr=0.1, momentum=0.9, dampening=0.5, nonfinite="skip")
    p.grad = torch.full((3,), torch.nan)
    opt.step()
    assert opt.state_dict()["state"][0]["momentum_buffer"] is None
    others = [copy.deepcopy(opt) for _ in range(2)]
    others[1].load_state_dict(opt.state_dict())
    for other in (opt, *others):
        (r,) = other.param_groups[0]["params"]
        r.grad = torch.ones(3)
        other.step()
        assert torch.equal(other.state[r]["momentum_buffer"], torch.ones(3)), "the first step sets b = g"
        assert other.state_dict()["state"][0]["momentum_buffer"] is not None


@every_class
def test_copies_continue_alike(cls: type) -> None:
    params = parameters()
    opt = cls(params, lr=0.1, max_norm=1.0, nonfinite="skip", backend="reference")
    grads_for(params)
    opt.step()
    pickled = pickle.loads(pickle.dumps(opt))  # noqa: S301  our own bytes
    copied = copy.deepcopy(opt)
    results = []
    grads = [torch.randn_like(p) for p in params]
    for other in (opt, pickled, copied):
        for p, g in zip(other.param_groups[0]["params"], grads, strict=True):
            p.grad = g.clone()
        other.step()
        assert other.backend == "reference"
        results.append([*snapshot(other), other.grad_norm, other.skipped_steps])
    assert_bitwise(results[0], results[1])
    assert_bitwise(results[0], results[2])


@every_class
def test_pickle_of_another_version_loads(cls: type) -> None:
    params = parameters()
    opt = cls(params, lr=0.1, max_norm=1.0)
    grads_for(params)
    opt.step()
    for key in [*(k for k in opt.__getstate__() if k.startswith("_") or k == "backend"), "max_norm", "l1", "nonfinite"]:
        state = copy.deepcopy(opt.__getstate__())
        state.pop(key, None)
        for group in (state["defaults"], *state["param_groups"]):
            group.pop(key, None)
        other = cls.__new__(cls)
        other.__setstate__(state)
        for p in other.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        other.step()
        assert other.skipped_steps.item() == 0


@pytest.mark.parametrize(("saved", "wanted"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_B15_states_are_as_precise_as_their_parameter(saved: torch.dtype, wanted: torch.dtype) -> None:
    """A second moment in bf16 stops growing at 1 where it should reach 3.5: what is added is rounded away."""
    old, new, torchs = (Parameter(torch.ones(4, dtype=d)) for d in (saved, wanted, wanted))
    source = torch.optim.AdamW([old])
    old.grad = torch.full_like(old, 2.0)
    source.step()
    ours, theirs = ft.optim.AdamW([new], lr=0.0), torch.optim.AdamW([torchs], lr=0.0)
    for opt, p in ((ours, new), (theirs, torchs)):
        opt.load_state_dict(source.state_dict())
        for group in opt.param_groups:
            group["lr"] = 0.0
        for _ in range(500):
            p.grad = torch.full_like(p, 2.0)
            opt.step()
    assert ours.state[new]["exp_avg_sq"].dtype == wanted
    torch.testing.assert_close(ours.state[new]["exp_avg_sq"], theirs.state[torchs]["exp_avg_sq"])


def test_states_follow_a_parameter_that_becomes_wider() -> None:
    p = Parameter(torch.ones(4))
    opt = ft.optim.AdamW([p])
    p.grad = torch.ones(4)
    opt.step()
    p.data = p.data.double()
    p.grad = torch.ones(4, dtype=torch.float64)
    opt.step()
    assert {opt.state[p][key].dtype for key in ("exp_avg", "exp_avg_sq")} == {torch.float64}


def test_a_fake_step() -> None:
    """As tools do it that estimate memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        p = Parameter(torch.ones(4))
        opt = ft.optim.AdamW([p], max_norm=1.0)
        for _ in range(2):
            p.grad = torch.ones(4)
            opt.step()
        assert opt.state[p]["exp_avg"].shape == (4,)
