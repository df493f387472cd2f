"""States: dtypes, state dicts both ways, copies, pickles, corrupt checkpoints."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from optim_pairs import ALL_STATES, IN_TORCH, assert_bitwise, clones, every_class, grads_for, parameters, snapshot
from torch.nn import Parameter

import fusedtrain as ft
from fusedtrain.optim import hyper


@pytest.mark.parametrize("cls", IN_TORCH)
@pytest.mark.parametrize(
    "options",
    [{}, {"amsgrad": True}, {"momentum": 0.9, "dampening": 0.3}, {"momentum": 0.9, "centered": True}],
    ids=str,
)
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


@every_class
def test_loaded_state_is_a_copy_and_in_the_layout_of_the_parameter(cls: type) -> None:
    p, q = Parameter(torch.randn(4, 3)), Parameter(torch.randn(3, 4).t())
    first, second = (cls([x], lr=0.1, **ALL_STATES.get(cls, {})) for x in (p, q))
    p.grad, q.grad = torch.ones(4, 3), torch.ones(4, 3)
    first.step()
    before = {key: value.clone() for key, value in first.state[p].items()}
    second.load_state_dict(first.state_dict())
    assert second.state[q].keys() == before.keys()
    assert all(value.stride() == q.stride() for key, value in second.state[q].items() if key != "step")
    second.step()
    assert all(torch.equal(first.state[p][key], value) for key, value in before.items())


@every_class
def test_every_state_of_a_checkpoint_is_checked(cls: type) -> None:
    p = Parameter(torch.randn(3))
    opt = cls([p], lr=0.1, **ALL_STATES.get(cls, {}))
    p.grad = torch.ones(3)
    opt.step()
    for key in [key for key in opt.state[p] if key != "step"]:
        for bad in (torch.tensor([1.0, torch.nan, 1.0]), torch.ones(2), torch.ones(3).to(torch.float8_e4m3fn)):
            saved = copy.deepcopy(opt.state_dict())
            saved["state"][0][key] = bad
            before = snapshot(opt)
            with pytest.raises(ValueError, match=rf"{cls.__name__}.load_state_dict: state '{key}' of parameter 0"):
                opt.load_state_dict(saved)
            assert_bitwise(snapshot(opt), before)


@every_class
def test_what_users_put_beside_the_states_is_loaded_as_torch_loads_it(cls: type) -> None:
    ours = parameters()
    opt = cls(ours, lr=0.1)
    grads_for(ours)
    opt.step()
    opt.state["mine"] = {"a": torch.ones(2)}
    opt.state["number"] = 7
    other = cls(clones(ours), lr=0.1)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert torch.equal(other.state["mine"]["a"], torch.ones(2))
    assert other.state["number"] == 7
    assert len(other.state) == len(opt.state)


@every_class
@pytest.mark.parametrize("state", [None, [1], 3.0, torch.ones(3)], ids=lambda x: type(x).__name__)
def test_a_state_that_is_no_dict_is_refused(cls: type, state: object) -> None:
    ours = parameters((3,))
    opt: Any = cls(ours, lr=0.1, **ALL_STATES.get(cls, {}))
    grads_for(ours)
    opt.step()
    before = snapshot(opt)
    saved = {**opt.state_dict(), "state": {0: state}}
    with pytest.raises(ValueError, match="load_state_dict: the state of parameter 0 of group 0 is no dict but"):
        opt.load_state_dict(saved)
    assert_bitwise(snapshot(opt), before)


@pytest.mark.parametrize("cls", IN_TORCH)
def test_groups_hold_what_torchs_hold(cls: type) -> None:
    values = {"foreach": False, "capturable": True, "maximize": True, "weight_decay": 0.25, "eps": 0.5, "momentum": 0.5}
    torchs = getattr(torch.optim, cls.__name__)
    taken = {key: x for key, x in values.items() if key in inspect.signature(torchs).parameters}
    ours, theirs = (c(parameters(), lr=0.5, **taken) for c in (cls, torchs))
    for key, value in theirs.param_groups[0].items():
        if key != "params":
            assert ours.param_groups[0][key] == value, key
    assert theirs.defaults.items() <= ours.defaults.items()


@every_class
def test_every_number_of_a_group_is_read_again(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no snapshot of the groups can be taken."""
    monkeypatch.setattr(hyper, "snapshot", lambda groups: None)
    (p,) = parameters((3,))
    opt: Any = cls([p], lr=0.1, **ALL_STATES.get(cls, {}))
    group = opt.param_groups[0]
    read_once = {"initial_accumulator_value", "norm_type"}
    numbers = [k for k, x in group.items() if type(x) in (int, float) and k not in read_once]
    assert {"lr", "weight_decay"} <= set(numbers)
    for key in numbers:
        p.grad = torch.ones(3)
        opt.step()
        group[key] = 0.5 * group[key] + 0.125
        kept, twin = snapshot(opt), copy.deepcopy(opt)
        twin._seen = None
        q = twin.param_groups[0]["params"][0]
        p.grad, q.grad = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.5, -1.0, 2.0])
        opt.step()
        twin.step()
        assert_bitwise(snapshot(opt), snapshot(twin))
        assert not torch.equal(p, kept[0])


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
