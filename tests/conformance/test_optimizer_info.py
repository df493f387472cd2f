"""Our optimizers through the machinery that torch tests its own with (`OptimizerInfo`), against torch's for-loop ones.

torch's ``fused=True`` is never the oracle: on the CPU it walks raw memory and is wrong for tensors of unequal layout.
"""

from __future__ import annotations

import functools
import io
from copy import deepcopy
from typing import Any

import pytest

pytest.importorskip("expecttest")
pytest.importorskip("psutil")

import torch
from torch.nn import Parameter
from torch.testing._internal import common_optimizers as upstream
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, OptimizerInfo, OptimizerInput, optims
from torch.testing._internal.common_utils import TestCase

import fusedtrain as ft
from fusedtrain.testing import assert_as_accurate

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
STEPS = 7

close = functools.partial(torch.testing.assert_close, rtol=0, atol=0)


def plain_inputs(device: Any, dtype: Any = None) -> list[OptimizerInput]:
    """For classes that torch does not have."""
    options: list[dict[str, Any]] = [{}, {"lr": 0.01}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "maximize": True}]
    return [OptimizerInput(params=None, kwargs=kwargs, desc=str(kwargs)) for kwargs in options]


def info(cls: type, inputs: Any, errors: Any, **kwargs: Any) -> OptimizerInfo:
    return OptimizerInfo(
        cls,
        optim_inputs_func=inputs,
        optim_error_inputs_func=errors,
        supported_impls=("fused",),
        not_og_supported_flags=("fused",),
        supports_fused_on=("cpu", "cuda"),
        supports_complex=False,
        supports_sparse=False,
        **kwargs,
    )


INFOS = [
    info(ft.optim.AdamW, upstream.optim_inputs_func_adamw, upstream.optim_error_inputs_func_adamw),
    info(ft.optim.Adam, upstream.optim_inputs_func_adam, upstream.optim_error_inputs_func_adam),
    info(ft.optim.SGD, upstream.optim_inputs_func_sgd, upstream.optim_error_inputs_func_sgd),
    info(ft.optim.Adagrad, upstream.optim_inputs_func_adagrad, upstream.optim_error_inputs_func_adagrad),
    info(ft.optim.RMSprop, upstream.optim_inputs_func_rmsprop, upstream.optim_error_inputs_func_rmsprop),
    *(
        info(cls, plain_inputs, upstream.get_error_inputs_for_all_optims)
        for cls in (ft.optim.Lion, ft.optim.LAMB, ft.optim.LARS)
    ),
]
IN_TORCH = [known for known in INFOS if hasattr(torch.optim, known.optim_cls.__name__)]


def make_params(device: str, dtype: torch.dtype, contiguous: bool = True) -> list[Parameter]:
    """A matrix, a vector, a scalar, and an empty tensor last."""
    matrix = torch.randn(7, 5) if contiguous else torch.randn(5, 7).t()
    return [Parameter(x.to(device, dtype)) for x in (matrix, torch.randn(3), torch.randn(()), torch.empty(0))]


def set_grads(params: list[Parameter]) -> None:
    for p in params:
        p.grad = torch.randn_like(p)


def model_and_step(optim_info: OptimizerInfo, device: str, **kwargs: Any) -> tuple[torch.nn.Module, Any, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1)).to(device)
    optimizer = optim_info.optim_cls(model.parameters(), lr=0.01, **kwargs)
    x = torch.randn(8, 4, device=device)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return model, optimizer, step


class TestOptimizers(TestCase):
    @optims(INFOS)
    def test_errors(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        for error in optim_info.optim_error_inputs_func(device=device, dtype=dtype):
            given = error.optimizer_error_input
            assert error.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
            # Where torch still warns, of a duplicate in a group, we raise with its words.
            kind = ValueError if issubclass(error.error_type, Warning) else error.error_type
            words = error.error_regex
            # torch refuses it with fused=True alone, and lists that for GPUs only.
            if given.kwargs.get("differentiable"):
                kind, words = ValueError, "differentiable=True is not supported"
            params = [Parameter(torch.ones(1, device=device))] if given.params is None else given.params
            with pytest.raises(kind, match=words):
                optim_info.optim_cls(params, **given.kwargs)

    @optims(IN_TORCH, dtypes=FLOATS)
    def test_matches_for_loop(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        reference = getattr(torch.optim, optim_info.optim_cls.__name__)
        for given in optim_info.optim_inputs_func(device, dtype):
            for contiguous in (True, False):
                ours = make_params(device, dtype, contiguous)
                same = [Parameter(p.detach().clone()) for p in ours]
                exact = [Parameter(p.detach().double()) for p in ours]
                optimizers = [
                    optim_info.optim_cls(ours, fused=True, **deepcopy(given.kwargs)),
                    reference(same, foreach=False, **deepcopy(given.kwargs)),
                    reference(exact, foreach=False, **deepcopy(given.kwargs)),
                ]
                for step in range(STEPS):
                    for i, (p, q, r) in enumerate(zip(ours, same, exact, strict=True)):
                        p.grad = None if step == 2 and i == 0 else torch.randn_like(p)
                        q.grad, r.grad = (None, None) if p.grad is None else (p.grad.clone(), p.grad.double())
                    for optimizer in optimizers:
                        optimizer.step()
                for p, q, r in zip(ours, same, exact, strict=True):
                    # Few elements: torch's own error may be zero by luck. Each step rounds again.
                    assert_as_accurate(p.detach(), q.detach(), r.detach(), factor=2.0 * STEPS)
                    for key, value in optimizers[2].state[r].items():
                        mine = optimizers[0].state[p][key]
                        if key == "step":
                            assert mine.item() == value.item()
                        else:
                            assert_as_accurate(
                                mine, optimizers[1].state[q][key].to(mine.dtype), value, factor=2.0 * STEPS
                            )

    @optims(INFOS)
    def test_goes_right_direction(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        for scheduled in (False, True):
            for given in optim_info.optim_inputs_func(device):
                weight = Parameter(torch.randn(10, 5, device=device))
                x, sign = torch.randn(5, device=device), -1 if given.kwargs.get("maximize") else 1
                optimizer = optim_info.optim_cls([weight], **deepcopy(given.kwargs))
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.9) if scheduled else None

                def closure() -> torch.Tensor:
                    optimizer.zero_grad()  # noqa: B023  called in this iteration
                    loss = sign * (weight @ x).square().sum()  # noqa: B023
                    loss.backward()
                    return loss

                first = closure().item()
                for _ in range(20):
                    last = optimizer.step(closure).item()
                    if scheduler is not None:
                        scheduler.step()
                assert sign * last < sign * first

    @optims(INFOS)
    def test_param_groups(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        slow, fast, frozen = (Parameter(torch.ones(3, device=device)) for _ in range(3))
        groups = [{"params": [slow], "lr": 1e-3}, {"params": [fast], "lr": 1e-1}, {"params": [frozen], "lr": 0.0}]
        optimizer = optim_info.optim_cls(groups, lr=1.0, weight_decay=0.0)
        for p in (slow, fast, frozen):
            p.grad = torch.ones_like(p)
        optimizer.step()
        close(frozen.detach(), torch.ones_like(frozen))
        assert (fast < slow).all() and (slow < 1).all()

    @optims(INFOS)
    def test_no_gradients_no_step(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        for given in optim_info.optim_inputs_func(device, dtype):
            params = make_params(device, dtype)
            before = [p.detach().clone() for p in params]
            optimizer = optim_info.optim_cls(params, **deepcopy(given.kwargs))
            made = len(optimizer.state)  # Adagrad has its states from the beginning
            optimizer.step()
            close([p.detach() for p in params], before)
            assert len(optimizer.state) == made

    @optims(INFOS)
    def test_zero_gradients_move_nothing(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        for given in optim_info.optim_inputs_func(device, dtype):
            params = make_params(device, dtype)
            before = [p.detach().clone() for p in params]
            optimizer = optim_info.optim_cls(params, **{**deepcopy(given.kwargs), "weight_decay": 0.0, "max_norm": 1.0})
            for p in params:
                p.grad = torch.zeros_like(p)
            optimizer.step()
            close([p.detach() for p in params], before)

    @optims(INFOS)
    def test_gradients_are_never_written(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        for given in optim_info.optim_inputs_func(device, dtype):
            params = make_params(device, dtype)
            optimizer = optim_info.optim_cls(params, **deepcopy(given.kwargs), max_norm=1e-3, clip_value=1e-4, l1=0.1)
            set_grads(params)
            before = [(p.grad, p.grad.clone(), p.grad._version) for p in params]
            optimizer.step()
            for p, (grad, values, version) in zip(params, before, strict=True):
                assert p.grad is grad
                assert p.grad._version == version
                close(p.grad, values)

    @optims(INFOS)
    def test_can_be_printed(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        text = repr(optim_info.optim_cls(make_params(device, dtype), max_norm=2.5))
        assert optim_info.optim_cls.__name__ in text
        assert "max_norm: 2.5" in text

    @optims(INFOS)
    def test_state_dict_continues(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        for named in (False, True):
            for given in optim_info.optim_inputs_func(device, dtype):
                model = torch.nn.Linear(3, 2).to(device)
                twin = deepcopy(model)
                make = lambda m: optim_info.optim_cls(  # noqa: E731
                    list(m.named_parameters()) if named else list(m.parameters()),  # noqa: B023
                    **deepcopy(given.kwargs),  # noqa: B023
                )
                first, second = make(model), make(twin)
                for _ in range(2):
                    set_grads(list(model.parameters()))
                    first.step()
                buffer = io.BytesIO()
                torch.save(first.state_dict(), buffer)
                buffer.seek(0)
                second.load_state_dict(torch.load(buffer, weights_only=True))
                twin.load_state_dict(model.state_dict())
                for p, q in zip(model.parameters(), twin.parameters(), strict=True):
                    q.grad = p.grad.clone()
                first.step()
                second.step()
                close(first.state_dict()["state"], second.state_dict()["state"])
                assert repr(first) == repr(second)
                close(dict(model.state_dict()), dict(twin.state_dict()))

    @optims(INFOS)
    def test_state_that_is_no_tensor_loads(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        params = make_params(device, dtype)
        optimizer = optim_info.optim_cls(params)
        set_grads(params)
        optimizer.step()
        saved = deepcopy(optimizer.state_dict())
        for state in saved["state"].values():
            if "step" in state:
                state["step"] = state["step"].item()
        optimizer.load_state_dict(saved)
        optimizer.step()
        if "step" in optimizer.state[params[0]]:
            assert optimizer.state[params[0]]["step"].item() == 2
            assert optimizer.state[params[0]]["step"].shape == ()

    @optims(INFOS)
    def test_old_checkpoint_loads(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        """Groups that lack every flag but the learning rate."""
        params = make_params(device, dtype)
        optimizer = optim_info.optim_cls(params, max_norm=3.0)
        set_grads(params)
        optimizer.step()
        saved = deepcopy(optimizer.state_dict())
        for group in saved["param_groups"]:
            for key in set(group) - {"lr", "params", "betas", "momentum"}:
                del group[key]
        optimizer.load_state_dict(saved)
        optimizer.step()
        assert optimizer.param_groups[0]["max_norm"] == 3.0

    @optims(INFOS)
    def test_hooks(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        _, optimizer, step = model_and_step(optim_info, device)
        calls: list[str] = []
        handles = [
            optimizer.register_step_pre_hook(lambda *_: calls.append("before step")),
            optimizer.register_step_post_hook(lambda *_: calls.append("after step")),
            optimizer.register_state_dict_pre_hook(lambda *_: calls.append("before save")),
            optimizer.register_state_dict_post_hook(lambda *_: calls.append("after save")),
            optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("before load")),
            optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("after load")),
        ]
        step()
        optimizer.load_state_dict(optimizer.state_dict())
        assert calls == ["before step", "after step", "before save", "after save", "before load", "after load"]
        for handle in handles:
            handle.remove()
        step()
        assert len(calls) == 6

    @optims(INFOS)
    def test_load_hook_may_replace_what_is_loaded(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        _, optimizer, step = model_and_step(optim_info, device)
        step()

        def hook(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
            groups = [{**group, "lr": 0.125} for group in state_dict["param_groups"]]
            return {**state_dict, "param_groups": groups}

        optimizer.register_load_state_dict_pre_hook(hook)
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.param_groups[0]["lr"] == 0.125

    @optims(INFOS)
    def test_deepcopy_copies_all_public_attributes(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        _, optimizer, step = model_and_step(optim_info, device, backend="reference")
        step()
        public = lambda o: {key for key in vars(o) if not key.startswith("_")}  # noqa: E731
        assert public(optimizer) == public(deepcopy(optimizer))

    @optims(INFOS)
    def test_tensor_lr(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        plain, tensor = make_params(device, dtype), make_params(device, dtype)
        with torch.no_grad():
            for p, q in zip(plain, tensor, strict=True):
                q.copy_(p)
        lr = torch.tensor([0.02], device=device, dtype=torch.float64)
        first, second = optim_info.optim_cls(plain, lr=0.02), optim_info.optim_cls(tensor, lr=lr)
        for factor in (1.0, 0.5):
            first.param_groups[0]["lr"] = 0.02 * factor
            lr.fill_(0.02 * factor)
            for p, q in zip(plain, tensor, strict=True):
                p.grad = torch.randn_like(p)
                q.grad = p.grad.clone()
            first.step()
            second.step()
        close([p.detach() for p in plain], [q.detach() for q in tensor])
        assert second.param_groups[0]["lr"] is lr

    @optims(INFOS)
    def test_low_precision_states(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        params = make_params(device, torch.bfloat16)
        optimizer = optim_info.optim_cls(params)
        set_grads(params)
        optimizer.step()
        for state in optimizer.state.values():
            assert all(value.dtype == torch.float32 for value in state.values())


instantiate_device_type_tests(TestOptimizers, globals(), only_for=("cpu", "cuda"))
