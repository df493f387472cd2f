"""Section B of the catalogue, gradient scaling: GradScaler, skipped steps, found_inf in every form."""

from __future__ import annotations

import math

import kit
import pytest
import torch
from torch import Tensor

import fusedtrain as ft

SCALE = 2.0**10


def scaled_trial(
    case: str, dtype: torch.dtype = torch.float32, **settings: object
) -> tuple[object, torch.nn.Parameter]:
    torch.manual_seed(1)
    p = kit.parameter(torch.randn(37).to(dtype))
    return kit.make(case, [p], **settings), p


def scaler_of(scale: float = SCALE) -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.zeros(()))  # makes its tensors
    return scaler


def test_B1_overflow_is_judged_from_the_gradients_of_the_step(backend: str, case: str) -> None:
    """pytorch#96755, !97415: found_inf was stale after clipping; a step with nonfinite="skip" looks itself."""
    opt, p = scaled_trial(case, max_norm=1.0, nonfinite="skip")
    scaler = scaler_of()
    p.grad = torch.randn(37) * SCALE
    scaler.unscale_(opt)  # finds nothing
    p.grad[5] = math.inf  # as an operation between unscale_ and step may
    before = kit.snapshot(opt)
    scaler.step(opt)
    kit.assert_bitwise(kit.snapshot(opt)[:1], before[:1])
    assert int(opt.skipped_steps) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_B2_B3_all_ways_to_scale_and_clip_agree(backend: str, case: str, dtype: torch.dtype) -> None:
    """Lightning#15501: unscaled a second time after unscale_; Lightning!15555, #21435: fused + AMP refused clipping."""
    g = torch.randn(37).to(dtype)

    def run(way: str) -> Tensor:
        opt, p = scaled_trial(case, dtype, max_norm=0.5)
        scaler = scaler_of()
        for _ in range(2):
            p.grad = g * SCALE if way != "plain" else g.clone()
            if way == "unscale_ first":
                scaler.unscale_(opt)
            if way == "plain":
                opt.step()
            else:
                scaler.step(opt)
                scaler.update()
        return p.detach()

    plain = run("plain")
    assert torch.equal(run("scaler.step"), plain)
    if dtype != torch.float16:  # torch's scaler refuses to unscale fp16 gradients by itself
        assert torch.equal(run("unscale_ first"), plain)


@pytest.mark.parametrize("case", kit.HAVE_TORCH)
def test_B3_equals_unscale_clip_and_step_of_torch(backend: str, case: str) -> None:
    """The three calls it replaces, over five steps."""
    opt, p = scaled_trial(case, max_norm=0.5)
    q = kit.parameter(p.detach().clone())
    theirs = kit.make_torch(case, [q], foreach=False)
    scalers = scaler_of(), scaler_of()
    for _ in range(5):
        p.grad = torch.randn(37) * SCALE
        q.grad = p.grad.clone()
        scalers[0].step(opt)
        scalers[1].unscale_(theirs)
        norm = torch.nn.utils.clip_grad_norm_([q], 0.5)
        scalers[1].step(theirs)
        for scaler in scalers:
            scaler.update()
        torch.testing.assert_close(opt.grad_norm, norm)
        torch.testing.assert_close(p, q)


def test_B4_a_scaler_that_ignores_the_flag(backend: str, case: str) -> None:
    """apex!1794: such a scaler unscales and skips by itself and calls step() with nothing set on the object."""
    opt, p = scaled_trial(case, max_norm=0.5)
    plain, q = scaled_trial(case, max_norm=0.5)
    g = torch.randn(37)
    p.grad, q.grad = g * SCALE, g.clone()
    p.grad.div_(SCALE)
    opt.step()
    plain.step()
    assert torch.equal(p, q)


def test_B5_a_skipped_step_shows(backend: str, case: str) -> None:
    """accelerate#4242, pytorch#67590: the skip was invisible and the schedule went on."""
    opt, p = scaled_trial(case)
    scaler = scaler_of()
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda n: 1 / (1 + n))
    lr = schedule.get_last_lr()[0]
    for bad, skipped in ((True, 1), (False, 1), (True, 2)):
        p.grad = torch.full((37,), math.inf if bad else 1.0)
        before = int(opt.skipped_steps)
        scaler.step(opt)
        scaler.update()
        if int(opt.skipped_steps) == before:
            schedule.step()
        assert int(opt.skipped_steps) == skipped
    assert schedule.get_last_lr()[0] == lr / 2


def check_B6(opt: torch.optim.Optimizer, p: torch.nn.Parameter, steps_before: int) -> None:
    for _ in range(steps_before):
        p.grad = torch.randn(p.shape)
        opt.step()
    before, grad = kit.snapshot(opt), torch.randn(p.shape)
    p.grad = grad.clone()
    opt.grad_scale, opt.found_inf = torch.tensor(SCALE), torch.tensor(1.0)  # type: ignore[attr-defined]
    opt.step()
    now = kit.snapshot(opt)
    kit.assert_bitwise(now[: len(before)], before)
    assert all(not s.any() for s in now[len(before) :]), "states made by a skipped step are zero"
    assert torch.equal(p.grad, grad), "gradients are only read"


@pytest.mark.parametrize("steps_before", [0, 1, 3])
def test_B6_a_skipped_step_changes_no_bit(backend: str, case: str, steps_before: int) -> None:
    """OLMo-core!309: the step count went on when the step was skipped."""
    opt, p = scaled_trial(case)
    check_B6(opt, p, steps_before)


def test_B6_can_fail() -> None:
    class CountsOn(ft.optim.AdamW):
        def step(self, closure: object = None) -> None:
            super().step()
            for state in self.state.values():
                state["step"] += 1

    p = kit.parameter(torch.randn(37))
    with pytest.raises(AssertionError):
        check_B6(CountsOn([p]), p, 1)


def check_gradients_are_only_read(opt: torch.optim.Optimizer, p: torch.nn.Parameter) -> None:
    g = torch.randn(p.shape)
    p.grad = g * SCALE
    opt.grad_scale, opt.found_inf = torch.tensor(SCALE), torch.tensor(0.0)  # type: ignore[attr-defined]
    opt.step()
    assert torch.equal(p.grad, g * SCALE)


def test_B6_gradients_are_only_read(backend: str, case: str) -> None:
    """torch's fused optimizers write the unscaled gradients back (test_grads_are_never_inplaced_into)."""
    check_gradients_are_only_read(*scaled_trial(case, max_norm=0.5, clip_value=0.1))
    p = kit.parameter(torch.randn(37))
    with pytest.raises(AssertionError):
        check_gradients_are_only_read(torch.optim.AdamW([p], fused=True), p)


def check_B7(make: kit.Make, case: str) -> None:
    p, q = kit.parameter(torch.ones(1000)), kit.parameter(torch.ones(1000))
    opt, plain = make(case, [p]), make(case, [q])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    for i in range(2):
        scaler.scale(torch.zeros(()))
        p.grad = torch.full((1000,), math.inf if i == 0 else 0.25 * scaler.get_scale())
        scaler.step(opt)
        scaler.update()
    q.grad = torch.full((1000,), 0.25)
    plain.step()
    torch.testing.assert_close(p, q)


def test_B7_overflow_on_the_first_step(backend: str, case: str) -> None:
    """torch 2.13: SGD(fused=True, momentum) then takes uninitialised memory for its momentum."""
    check_B7(kit.make, case)


def test_B7_can_fail() -> None:
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills empty tensors with NaN, so that their use shows
    try:
        with pytest.raises(AssertionError):
            check_B7(lambda case, p: kit.make_torch(case, p, fused=True), "sgd_momentum")
    finally:
        torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("value", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("scale", [None, SCALE])
def test_B24_found_inf_and_scale_in_every_form(
    backend: str, shape: tuple[int, ...], value: float, scale: float | None
) -> None:
    """pytorch#140514: found_inf of shape (1,), or summed over devices, broke the fused step."""
    opt, p = scaled_trial("adamw", max_norm=1.0)
    plain, q = scaled_trial("adamw", max_norm=1.0)
    g = torch.randn(37)
    p.grad, q.grad = g * (scale or 1.0), g.clone()
    opt.found_inf = torch.full(shape, value)
    opt.grad_scale = None if scale is None else torch.full(shape, scale)
    start = p.detach().clone()
    opt.step()
    plain.step()
    assert torch.equal(p, start if value else q)


def test_B24_norm_is_that_of_the_unscaled_gradients(backend: str) -> None:
    """And of no gradients at all it is 0, whatever the scale."""
    p = torch.nn.Parameter(torch.ones(3))
    opt = ft.optim.AdamW([p], max_norm=1.0)
    opt.grad_scale, opt.found_inf = torch.tensor(SCALE), torch.tensor(0.0)
    opt.step()
    assert p.tolist() == [1, 1, 1]
    p.grad = torch.tensor([3.0, 4.0, 0.0]) * SCALE
    opt.step()
    assert float(opt.grad_norm) == 5
    assert float(opt.clip_coef) == pytest.approx(0.2)
