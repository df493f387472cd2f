"""What frameworks do with an optimizer: groups, schedulers, closures, versions, profiler, DCP."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optim_pairs import IN_TORCH, assert_bitwise, clones, every_class, grads_for, parameters, plain, snapshot
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_post_hook

import fusedtrain as ft


@every_class
def test_groups_added_later(cls: type) -> None:
    first, second = parameters((3,), (4,))
    same = clones([first, second])
    opt, reference = cls([first], lr=0.1), plain(cls, same[:1], lr=0.1)
    for step in range(4):
        if step == 2:
            opt.add_param_group({"params": [second], "lr": 0.02})
            reference.add_param_group({"params": [same[1]], "lr": 0.02})
            if cls is ft.optim.Adagrad:  # that of torch 2.11 makes no states for a group that comes later
                reference.state[same[1]] = {"step": torch.zeros(()), "sum": torch.zeros(4)}
        grads_for([first, second], same)
        opt.step()
        reference.step()
    torch.testing.assert_close([first.detach(), second.detach()], [p.detach() for p in same])


def has_momentum(opt: torch.optim.Optimizer) -> bool:
    return bool({"momentum", "betas"} & opt.defaults.keys())


@pytest.mark.parametrize("cls", IN_TORCH)
@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=8, cycle_momentum=has_momentum(o)),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2, cycle_momentum=has_momentum(o)),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 8),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    ],
    ids=["OneCycleLR", "CyclicLR", "CosineAnnealingLR", "LambdaLR"],
)
def test_schedulers(cls: type, make: Callable[[Any], Any]) -> None:
    kwargs = {"momentum": 0.9} if cls in (ft.optim.SGD, ft.optim.RMSprop) else {}
    ours = parameters()
    same = clones(ours)
    opt, reference = cls(ours, lr=0.1, **kwargs), plain(cls, same, lr=0.1, **kwargs)
    schedulers = [make(opt), make(reference)]
    for _ in range(7):
        grads_for(ours, same)
        opt.step()
        reference.step()
        for scheduler in schedulers:
            scheduler.step()
    torch.testing.assert_close([p.detach() for p in ours], [p.detach() for p in same])


def test_tensor_betas_are_read_each_step() -> None:
    ours = parameters((5,))
    same = clones(ours)
    betas = (torch.tensor([[0.9]]), torch.tensor(0.99))
    opt = ft.optim.AdamW(ours, lr=0.1, betas=betas)
    reference = torch.optim.AdamW(same, lr=0.1, betas=(0.9, 0.99), foreach=False)
    for step in range(3):
        if step == 1:
            opt.param_groups[0]["betas"][1].fill_(0.5)
            reference.param_groups[0]["betas"] = (0.9, 0.5)
        grads_for(ours, same)
        opt.step()
        reference.step()
    torch.testing.assert_close(ours[0], same[0])


@every_class
def test_versions_are_raised(cls: type, backend: str, device: torch.device) -> None:
    p = Parameter(torch.ones(3, device=device))
    q = torch.ones(3, device=device, requires_grad=True)
    opt = cls([p], lr=0.1, backend=backend)
    y = (p * q).sum()
    y.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    versions = [v._version for v in opt.state[p].values()]
    opt.step()
    assert all(v._version > old for v, old in zip(opt.state[p].values(), versions, strict=True))


def test_closure_runs_with_gradients_and_its_loss_comes_back() -> None:
    (p,) = parameters((3,))
    opt = ft.optim.AdamW([p], lr=0.1, max_norm=1.0)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [opt.step(closure).item() for _ in range(3)]
    assert losses[2] < losses[0]


def test_is_torchs_and_known_to_the_profiler() -> None:
    (p,) = parameters((3,))
    opt = ft.optim.AdamW([p], lr=0.1)
    assert isinstance(opt, torch.optim.AdamW)
    assert isinstance(ft.optim.SGD([p]), torch.optim.SGD)
    p.grad = torch.ones(3)
    with torch.profiler.profile() as profile:
        opt.step()
    assert any(event.key == "Optimizer.step#AdamW.step" for event in profile.key_averages())


def test_averaged_model_and_dcp() -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.optim.swa_utils import AveragedModel

    for cls in IN_TORCH:
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        averaged = AveragedModel(model)
        opt = cls(model.parameters(), lr=0.1, max_norm=1.0)
        start = [p.detach().clone() for p in model.parameters()]
        empty = get_optimizer_state_dict(model, opt)  # steps once, with zero gradients and no learning rate
        assert_bitwise([p.detach() for p in model.parameters()], start)
        assert all(v.isfinite().all() for s in empty["state"].values() for v in s.values())
        grads_for(list(model.parameters()))
        opt.step()
        averaged.update_parameters(model)
        saved = copy.deepcopy(get_optimizer_state_dict(model, opt))
        other = cls(model.parameters(), lr=0.5)
        set_optimizer_state_dict(model, other, saved)
        assert_bitwise(snapshot(other), snapshot(opt))
        assert other.param_groups[0]["lr"] == 0.1


@given(data=st.data())
def test_many_groups_and_holes(data: st.DataObject) -> None:
    """Any number of groups with their own settings, parameters without gradients and empty ones among them."""
    group = st.lists(st.sampled_from([0, 1, 3, 17]), min_size=1, max_size=4)
    sizes = data.draw(st.lists(group, min_size=1, max_size=5))
    lrs = [data.draw(st.floats(0, 1)) for _ in sizes]
    decays = [data.draw(st.floats(0, 1)) for _ in sizes]
    ours = [[Parameter(torch.randn(n, dtype=torch.float64)) for n in group] for group in sizes]
    same = [clones(group) for group in ours]

    def groups(lists: list[list[Parameter]]) -> list[dict[str, Any]]:
        return [{"params": ps, "lr": lr, "weight_decay": wd} for ps, lr, wd in zip(lists, lrs, decays, strict=True)]

    max_norm = data.draw(st.sampled_from([0.1, 2.0, 1e6]))
    opt = ft.optim.AdamW(groups(ours), max_norm=max_norm)
    reference = torch.optim.AdamW(groups(same), foreach=False)
    flat, flat_same = list(chain(*ours)), list(chain(*same))
    for _ in range(2):
        grads_for(flat, flat_same)
        for p, q in zip(flat, flat_same, strict=True):
            if data.draw(st.booleans()):
                p.grad = q.grad = None
        torch.nn.utils.clip_grad_norm_(flat_same, max_norm)
        opt.step()
        reference.step()
    torch.testing.assert_close([p.detach() for p in flat], [p.detach() for p in flat_same])


def test_hooks_and_profiler_see_every_step() -> None:
    """torch's wrapper of `step` is entered only for them."""
    p = Parameter(torch.ones(3))
    opt, seen = ft.optim.SGD([p], lr=0.1), []

    def step() -> None:
        p.grad = torch.ones(3)
        opt.step()

    step()
    opt.register_step_pre_hook(lambda *_: seen.append("before"))
    opt.register_step_post_hook(lambda *_: seen.append("after"))
    step()
    everywhere = register_optimizer_step_post_hook(lambda *_: seen.append("global"))
    step()
    everywhere.remove()
    assert seen == ["before", "after", "before", "after", "global"]
    plain = ft.optim.SGD([p], lr=0.1)
    with torch.profiler.profile() as profile:
        p.grad = torch.ones(3)
        plain.step()
    assert "Optimizer.step#SGD.step" in {event.key for event in profile.key_averages()}
