"""Section B of the catalogue, state: dtypes of states and counters, checkpoints, copies, flags."""

from __future__ import annotations

import copy
import io
import math
import pickle

import kit
import optim_cases
import pytest
import torch
from torch import Tensor

import fusedtrain as ft
from fusedtrain import rules


def trained(case: str, dtype: torch.dtype = torch.float32, steps: int = 3) -> tuple[torch.optim.Optimizer, Tensor]:
    torch.manual_seed(2)
    p = kit.parameter(torch.randn(4, 5).to(dtype))
    opt = kit.make(case, [p])
    for _ in range(steps):
        p.grad = torch.randn(4, 5).to(dtype)
        opt.step()
    return opt, p


def through_disk(state: dict[str, object]) -> dict[str, object]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, object] = torch.load(file, weights_only=True)
    return loaded


def assert_continues_alike(opts: list[torch.optim.Optimizer], params: list[Tensor]) -> None:
    for _ in range(2):
        g = torch.randn(params[0].shape).to(params[0].dtype)
        for opt, p in zip(opts, params, strict=True):
            p.grad = g.clone()
            opt.step()
    kit.assert_bitwise(params[1:], params[:1] * (len(params) - 1))


def test_B8_a_group_without_gradients_keeps_its_own_count(backend: str, case: str) -> None:
    """TE#1986: the count of a group that was empty on some ranks fell behind, and bias correction was wrong."""
    p, q = kit.parameter(torch.randn(5)), kit.parameter(torch.randn(5))
    trial = kit.trial(case, [p, q])
    trial.optimizer = kit.make(case, [{"params": [p]}, {"params": []}, {"params": [q]}])
    for i in range(4):
        p.grad = torch.randn(5)
        q.grad = torch.randn(5) if i % 2 else None
        trial.step()


def test_B10_making_states_changes_nothing(backend: str, case: str) -> None:
    """Megatron!5976: states were made by a step with zero gradients, which decayed the weights."""
    p = kit.parameter(torch.randn(5), torch.randn(5))
    opt = kit.make(case, [p])
    opt.found_inf = torch.tensor(1.0)
    before = p.detach().clone()
    opt.step()
    del opt.found_inf
    assert torch.equal(p, before)
    fresh = kit.parameter(before.clone(), p.grad.clone())
    kit.make(case, [fresh]).step()
    opt.step()
    assert torch.equal(p, fresh), "the first real update is the first"


@pytest.mark.parametrize("flags", [{}, {"capturable": True}, {"fused": True}, {"foreach": True}])
def test_B11_B12_step_is_a_scalar_on_any_option(backend: str, case: str, flags: dict[str, bool]) -> None:
    """pytorch#80809, #103256: its device depended on flags; pytorch#108860: its shape was (1,)."""
    if not all(optim_cases.takes(case, flag) for flag in flags):
        pytest.skip("torch's SGD and Adagrad have no such flag")
    p = kit.parameter(torch.randn(5), torch.randn(5))
    opt = kit.make(case, [p], **flags)
    opt.step()
    step = opt.state[p].get("step")
    if step is not None:
        assert step.shape == ()
        assert step.device == p.device
        assert float(step) == 1


@pytest.mark.parametrize("torch_flags", [{"foreach": False}, {"fused": True}, {"foreach": True}])
@pytest.mark.parametrize("case", kit.HAVE_TORCH)
def test_B11_checkpoints_of_torch_both_ways(backend: str, case: str, torch_flags: dict[str, bool]) -> None:
    """pytorch#103256, !102619: resuming with other flags crashed. Here: torch to us and back in mid-training."""
    if not all(optim_cases.takes(case, flag, torch.optim) for flag in torch_flags):
        pytest.skip("torch's RMSprop has no such flag")
    ours, p = trained(case)
    q, r = (kit.parameter(p.detach().clone()) for _ in range(2))
    theirs = kit.make_torch(case, [q], **torch_flags)
    theirs.load_state_dict(through_disk(ours.state_dict()))
    back = kit.make(case, [r])
    back.load_state_dict(through_disk(theirs.state_dict()))
    for _ in range(3):
        g = torch.randn(4, 5)
        for opt, x in ((ours, p), (theirs, q), (back, r)):
            x.grad = g.clone()
            opt.step()
    torch.testing.assert_close(p, q)
    kit.assert_bitwise([p], [r])


def test_B13_survives_pickle_deepcopy_and_lost_attributes(backend: str, case: str) -> None:
    """pytorch#81700, torchlars#4: attributes that an old pickle lacks."""
    opt, p = trained(case)
    twin = copy.deepcopy(opt)
    q = twin.param_groups[0]["params"][0]
    assert q is not p
    again = pickle.loads(pickle.dumps(opt))  # noqa: S301  our own bytes
    r = again.param_groups[0]["params"][0]
    assert_continues_alike([opt, twin, again], [p, q, r])

    like_torchs = (getattr(torch.optim, kit.SETTINGS[name][0])([torch.zeros(1)]) for name in kit.HAVE_TORCH)
    torch_keys = {"trust_coefficient", *(key for theirs in like_torchs for key in theirs.param_groups[0])}
    old = copy.deepcopy(opt)
    bare = {"state": old.state, "param_groups": old.param_groups, "defaults": old.defaults}
    for group in bare["param_groups"]:
        for key in set(group) - torch_keys:
            del group[key]
    for key in set(bare["defaults"]) - torch_keys:
        del bare["defaults"][key]
    fresh = type(opt).__new__(type(opt))
    fresh.__setstate__(bare)
    assert_continues_alike([opt, fresh], [p, fresh.param_groups[0]["params"][0]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_B14_B28_states_of_narrow_parameters_are_fp32(backend: str, case: str, dtype: torch.dtype) -> None:
    """flashoptim#2: fp32 states were rounded at every step; AReaL#1292: moments in bf16, the loss stays 3x higher."""
    p = kit.parameter(torch.randn(64).to(dtype), torch.randn(64).to(dtype))
    trial = kit.trial(case, [p])
    trial.step()
    p.grad = torch.randn(64).to(dtype)
    trial.step()  # compares the states with fp32 accuracy
    for name in trial.truth.rule.slots:
        state = trial.optimizer.state[p][name]
        assert state.dtype == torch.float32
        assert not torch.equal(state, state.to(dtype).float()), f"{name} was rounded to {dtype}"


@pytest.mark.parametrize("dtype", kit.FLOATS, ids=str)
def test_B15_B29_states_survive_loading(backend: str, case: str, dtype: torch.dtype) -> None:
    """Megatron#1359, torchtitan!4615: loading casts every state but "step" to the parameter's dtype; bnb#1382: NaN
    after loading."""
    opt, p = trained(case, dtype)
    for name in rules.UPDATES[kit.SETTINGS[case][2]].slots:
        opt.state[p][name].view(-1)[0] = 1 + 2.0**-10
    q = kit.parameter(p.detach().clone())
    fresh = kit.make(case, [q])
    fresh.load_state_dict(through_disk(opt.state_dict()))
    for key, value in opt.state[p].items():
        if isinstance(value, Tensor):
            loaded = fresh.state[q][key]
            assert (loaded.dtype, loaded.device, loaded.stride()) == (value.dtype, value.device, value.stride())
            assert torch.equal(loaded, value)
    assert_continues_alike([opt, fresh], [p, q])


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_B16_the_count_goes_beyond_256(backend: str, default: torch.dtype) -> None:
    """torchao!4915, pytorch#110940: made in the default dtype bf16, it stopped at 256."""
    torch.set_default_dtype(default)
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.float32))
    opt = ft.optim.AdamW([p], lr=1e-6)
    p.grad = torch.ones_like(p)
    for _ in range(300):
        opt.step()
    step = opt.state[p]["step"]
    assert int(step) == 300
    assert step.dtype in (torch.float32, torch.float64, torch.int64)
    opt.load_state_dict(through_disk(opt.state_dict()))
    opt.step()
    assert int(opt.state[p]["step"]) == 301


def test_B17_the_count_at_2_to_24(backend: str, case: str) -> None:
    """A float32 counter stops there; the update must stay right and finite, since 1 - beta**t is 1 by then."""
    opt, p = trained(case, steps=1)
    if "step" in opt.state[p]:
        opt.state[p]["step"].fill_(2**24)
    for _ in range(3):
        opt.step()
    assert p.detach().isfinite().all()


def test_B18_hyperparameters_are_not_rounded_to_the_parameter(backend: str) -> None:
    """tt-metal#55935: beta2 = 0.999 acted as 0.99609 on bf16 parameters."""
    seen = []
    for beta2 in (0.999, 0.9999):
        p = kit.parameter(torch.zeros(3, dtype=torch.bfloat16), torch.full((3,), 2.0, dtype=torch.bfloat16))
        opt = ft.optim.AdamW([p], betas=(0.9, beta2))
        opt.step()
        seen.append(float(opt.state[p]["exp_avg_sq"][0]))
        assert seen[-1] == pytest.approx((1 - beta2) * 4, rel=1e-5, abs=0)
    assert seen[0] != seen[1]


def test_B20_zero_gradients_in_fp16(backend: str) -> None:
    """optax#1754, pytorch#147437: eps = 1e-8 is 0 in fp16, and 0 / 0 NaN. All arithmetic is fp32 here."""
    p = kit.parameter(torch.ones(2, dtype=torch.float16), torch.tensor([0.0, 1e-5], dtype=torch.float16))
    ft.optim.AdamW([p], lr=0.1, weight_decay=0.0).step()
    assert p[0] == 1
    assert float(p[1]) == pytest.approx(0.9, abs=1e-3)


def test_B22_eps_zero_is_as_torch(backend: str) -> None:
    """torch 2.13: eps = 0 and a zero gradient are 0 / 0. Accepted as there, and NaN as there."""
    ours, theirs = (kit.parameter(torch.ones(2), torch.tensor([0.0, 1.0])) for _ in range(2))
    ft.optim.AdamW([ours], eps=0.0).step()
    torch.optim.AdamW([theirs], eps=0.0, foreach=False).step()
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("t", [1, 2])
def test_B23_eps_is_added_after_the_bias_correction(backend: str, t: int) -> None:
    """tensorflow#9047: eps or eps-hat, and which power of beta. Closed form with eps = 1."""
    p = kit.parameter(torch.zeros(1, dtype=torch.float64))
    opt = ft.optim.Adam([p], lr=1.0, betas=(0.5, 0.75), eps=1.0)
    m = v = x = 0.0
    for i in range(1, t + 1):
        g = 3.0 * i
        p.grad = torch.tensor([g], dtype=torch.float64)
        opt.step()
        m, v = 0.5 * m + 0.5 * g, 0.75 * v + 0.25 * g * g
        x -= (m / (1 - 0.5**i)) / (math.sqrt(v / (1 - 0.75**i)) + 1.0)
    assert float(p) == pytest.approx(x, rel=1e-14)


def test_B37_loading_keeps_what_is_ours(backend: str) -> None:
    """ultralytics!25375, Lightning#19955: the checkpoint replaced the flags of the object."""
    q = kit.parameter(torch.randn(3), torch.randn(3))
    theirs = torch.optim.AdamW([q], lr=0.5, fused=True)
    theirs.step()
    p = kit.parameter(torch.randn(3), torch.randn(3))
    opt = ft.optim.AdamW([p], lr=0.1, max_norm=2.0, l1=0.01, nonfinite="skip", backend=backend)
    opt.load_state_dict(through_disk(theirs.state_dict()))
    group = opt.param_groups[0]
    assert group["lr"] == 0.5
    assert (group["max_norm"], group["l1"], group["nonfinite"]) == (2.0, 0.01, "skip")
    assert opt.backend == backend
    opt.step()
    assert opt.grad_norm is not None


@pytest.mark.parametrize("spoil", ["shape", "nan", "kind", "negative step"])
def test_a_corrupt_checkpoint_changes_nothing(backend: str, spoil: str) -> None:
    """Security table: wrong shapes, NaN, a negative step. The error names the key and nothing has been loaded."""
    opt, _ = trained("adamw")
    state = through_disk(opt.state_dict())
    entry = state["state"][0]  # type: ignore[index]
    key = "step" if spoil == "negative step" else "exp_avg"
    entry[key] = {
        "shape": torch.zeros(2, 3),
        "nan": torch.full((4, 5), math.nan),
        "kind": "text",
        "negative step": torch.tensor(-3.0),
    }[spoil]
    before, lr = kit.snapshot(opt), opt.param_groups[0]["lr"]
    state["param_groups"][0]["lr"] = 7.0  # type: ignore[index]
    with pytest.raises((ValueError, TypeError, RuntimeError), match=key):
        opt.load_state_dict(state)
    kit.assert_bitwise(kit.snapshot(opt), before)
    assert opt.param_groups[0]["lr"] == lr
