"""Tables that stay on a device, emulated or interpreted: what repeated steps launch and copy, what they notice, when
they stand aside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from devices import DEVICES, HYPER, SHAPES, Device
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fusedtrain as ft
from fusedtrain.optim import planned

if torch.cuda.is_available():
    pytest.skip("what a GPU does is counted on it: tests/gpu/test_planned.py", allow_module_level=True)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    with DEVICES[request.param]() as made:
        made.since()
        yield made


def parameters(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    return params


def everything(opt: Any) -> list[Tensor]:
    params = [p for group in opt.param_groups for p in group["params"]]
    states = [x for p in params for _, x in sorted(opt.state[p].items())]
    return [*(p.detach() for p in params), *states, *(x for x in (opt.grad_norm, opt.clip_coef) if x is not None)]


class Twins:
    """An optimizer, and one of equal parameters that always steps by lists."""

    def __init__(self, device: Device, **settings: Any) -> None:
        self.settings = {"max_norm": 1.0, "backend": device.backend, **settings}
        self.opt, self.twin = (ft.optim.AdamW(parameters(), **self.settings) for _ in range(2))
        for _ in range(2):  # the second is the first by a table
            self.step()

    def step(self) -> None:
        self.opt.step()
        self.follow()

    def follow(self) -> None:
        """The twin does as the optimizer did, and must arrive where it is."""
        self.twin._planner = planned.Planner()
        self.twin._planner.wait = 1
        self.twin.step()
        ours, theirs = everything(self.opt), everything(self.twin)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    def costs(self, device: Device) -> tuple[int, ...]:
        """Launches, copies and bytes of the next step of the optimizer."""
        device.since()
        self.opt.step()
        spent = device.since()
        self.follow()
        return spent

    @property
    def params(self) -> list[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
        pairs = zip(self.opt.param_groups, self.twin.param_groups, strict=True)
        return [pair for a, b in pairs for pair in zip(a["params"], b["params"], strict=True)]

    @property
    def table(self) -> planned.Table | None:
        return self.opt._planner and self.opt._planner.table


def test_two_launches_and_nothing_is_copied_where_nothing_changed(device: Device) -> None:
    twins = Twins(device)
    for _ in range(3):
        assert twins.costs(device) == (2, 0, 0)
    for p, q in twins.params:
        p.grad.mul_(2)  # type: ignore[union-attr]
        q.grad.mul_(2)  # type: ignore[union-attr]
    assert twins.costs(device) == (2, 0, 0)


def test_one_launch_without_a_norm(device: Device) -> None:
    assert Twins(device, max_norm=None).costs(device) == (1, 0, 0)


def test_of_a_scheduler_only_the_hyperparameters_are_copied(device: Device) -> None:
    twins = Twins(device)
    for lr in (0.5, 0.25):
        for opt in (twins.opt, twins.twin):
            opt.param_groups[0]["lr"] = lr
        assert twins.costs(device) == (2, 1, HYPER)
    assert twins.costs(device) == (2, 0, 0)


def test_of_a_gradient_elsewhere_only_its_row_is_copied(device: Device) -> None:
    twins = Twins(device)
    for which in ([3], [0], [0, 4], [0, 1, 2, 3, 4], [2, 3]):
        for i in which:
            for p in twins.params[i]:
                p.grad = p.grad.clone() * 0.5  # type: ignore[union-attr]
        kept = [p.grad for p, _ in twins.params]
        assert twins.costs(device) == (2, 1, device.bytes_of_rows(which[0], which[-1]))
        del kept
    assert twins.costs(device) == (2, 0, 0)


def test_another_stream_gets_a_table_of_its_own(device: Device) -> None:
    twins = Twins(device)
    sizes = []
    for stream in (1, 2, 1):
        device.set_stream(stream)
        launches, copies, copied = twins.costs(device)
        assert (launches, copies) == (2, 1)
        sizes.append(copied)
        assert twins.costs(device) == (2, 0, 0)
    assert len(set(sizes)) == 1
    assert sizes[0] > HYPER


@pytest.mark.parametrize("launch", [0, 1])
def test_after_a_launch_that_failed_the_table_is_brought_anew(device: Device, launch: int) -> None:
    twins = Twins(device)
    before = [x.clone() for x in everything(twins.opt)[:-2]]
    device.fail_launch_after(launch)
    with pytest.raises(RuntimeError, match=device.failure):
        twins.opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before, everything(twins.opt)[:-2], strict=True))
    _, copies, copied = twins.costs(device)
    assert copies == 1
    assert copied > HYPER
    assert twins.costs(device) == (2, 0, 0)


def test_a_step_that_is_captured_stands_aside_and_the_table_survives(device: Device) -> None:
    twins = Twins(device)
    table = twins.table
    assert table is not None
    device.set_capturing(True)
    for _ in range(3 * planned._PATIENCE):
        launches, copies, _ = twins.costs(device)
        assert (launches, copies) == (2, 2)  # those of the lists: of the norm and of the step
        assert twins.table is table
    device.set_capturing(False)
    assert twins.costs(device) == (2, 0, 0)
    assert twins.table is table


def test_the_first_step_may_be_captured(device: Device) -> None:
    device.set_capturing(True)
    opt = ft.optim.AdamW(parameters(), max_norm=1.0, backend=device.backend)
    for _ in range(2):
        opt.step()
    device.set_capturing(False)
    device.since()
    opt.step()
    assert device.since()[:2] == (2, 1)


def test_a_mode_of_the_dispatcher_sees_the_step(device: Device) -> None:
    class Seen(TorchDispatchMode):
        names: list[str] = []  # noqa: RUF012

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(func.name())
            return func(*args, **(kwargs or {}))

    twins = Twins(device)
    table = twins.table
    with Seen() as seen:
        twins.opt.step()
    twins.follow()
    assert any("optim_step_" in name for name in seen.names)
    assert twins.table is table
    assert twins.costs(device) == (2, 0, 0)


@pytest.mark.parametrize("name", ["grad_scale", "found_inf", "_skipped"])
def test_a_scalar_on_another_device_is_not_for_a_table(device: Device, name: str) -> None:
    opt = Twins(device).opt
    assert planned.step(opt, opt._settings())
    setattr(opt, name, torch.ones((), device="meta"))
    assert not planned.step(opt, opt._settings())
    assert opt._planner is not None
    assert opt._planner.table is None


def test_a_parameter_on_another_device_is_not_for_a_table(device: Device) -> None:
    twins = Twins(device)
    table = twins.table
    assert table is not None
    elsewhere = torch.nn.Parameter(torch.ones(700, device="meta"))
    elsewhere.grad = torch.ones_like(elsewhere)
    torch.utils.swap_tensors(twins.params[3][0], elsewhere)
    assert not table.table.refresh(twins.opt.param_groups, twins.opt.state)
    with pytest.raises(ValueError, match=r"dense memory|another device"):
        planned.Table(twins.opt, twins.opt._settings(), table.launcher, table.device, table.dtypes)


def test_tensors_that_are_not_of_the_library_are_refused(device: Device) -> None:
    """Those of the host by a library for CUDA: its kernels could not reach them."""
    twins = Twins(device)
    table = twins.table
    assert table is not None
    launcher = table.launcher
    entries = [twins.opt.state[p] for p, _ in twins.params]
    steps = [entry["step"] for entry in entries]
    arguments = (twins.opt.param_groups, [0], twins.opt.state, ("exp_avg", "exp_avg_sq"), entries, steps)
    assert len(launcher.table(*arguments)) == len(SHAPES)
    launcher._on_host = False
    try:
        with pytest.raises(ValueError, match="a device that is not the library's"):
            launcher.table(*arguments)
    finally:
        launcher._on_host = True


def test_hyperparameters_that_are_tensors(device: Device) -> None:
    rates = [torch.tensor(0.1) for _ in range(2)]
    twins = Twins(device, lr=rates[0])
    twins.twin.param_groups[0]["lr"] = rates[1]
    assert twins.costs(device) == (2, 0, 0)
    for rate in rates:
        rate.fill_(0.01)
    assert twins.costs(device) == (2, 1, HYPER)


def test_tensors_of_all_types_share_a_table(device: Device) -> None:
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    results = []
    for wait in (0, 100):
        params = [p for i, dtype in enumerate(dtypes) for p in parameters(i, dtype)]
        opt = ft.optim.AdamW(params, max_norm=1.0, nonfinite="skip", backend=device.backend)
        opt._planner = planned.Planner()
        opt._planner.wait = wait
        for _ in range(3):
            device.since()
            opt.step()
        launches = device.launches_by_table if wait == 0 else device.launches_by_lists
        assert device.since()[0] == launches(len(dtypes))
        results.append(everything(opt))
        assert opt.grad_norm is not None
        assert opt.grad_norm.dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_grad_scaler_skips_and_goes_on(device: Device) -> None:
    twins = Twins(device)
    scalers = [torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2) for _ in range(2)]
    for bad in (False, True, False, False):
        for k, (opt, scaler) in enumerate(zip((twins.opt, twins.twin), scalers, strict=True)):
            for pair in twins.params:
                generator = torch.Generator().manual_seed(int(bad))
                grad = torch.randn(pair[k].shape, generator=generator)
                pair[k].grad = scaler.scale(grad.fill_(torch.inf) if bad else grad)
            if k == 1:
                opt._planner = planned.Planner()
                opt._planner.wait = 1
            scaler.step(opt)
            scaler.update()
        ours, theirs = everything(twins.opt), everything(twins.twin)
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(ours, theirs, strict=True))
    assert twins.table is not None
    assert int(twins.opt.skipped_steps) == 1
    assert scalers[0].get_scale() == scalers[1].get_scale()
