"""What an optimizer refuses, and that it has written nothing then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_pairs import assert_bitwise, every_class, grads_for, snapshot
from torch import Tensor
from torch.nn import Parameter

import fusedtrain as ft


def _sparse(p: Parameter) -> Tensor:
    return torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.long), torch.zeros(0), (3,))


@every_class
@pytest.mark.parametrize(
    ("dtype", "grad", "match"),
    [
        (torch.float32, _sparse, "does not support sparse gradients"),
        (torch.complex64, torch.ones_like, "does not support complex parameters"),
        (torch.float8_e5m2, torch.zeros_like, "float8_e5m2"),
    ],
)
def test_refused_tensors(cls: type, dtype: torch.dtype, grad: Callable[[Any], Tensor], match: str) -> None:
    first, second = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    bad = Parameter(torch.zeros(3).to(dtype))
    opt = cls([{"params": [first]}, {"params": [second, bad]}], max_norm=1.0)
    grads_for([first, second])
    opt.step()
    bad.grad = grad(bad)
    before = snapshot(opt)
    with pytest.raises(RuntimeError, match=rf"{cls.__name__}\.step.*{match}.*parameter 1 of group 1"):
        opt.step()
    assert_bitwise(snapshot(opt), before)


BAD_SETTINGS = [
    ("lr", -0.1, "Invalid learning rate: -0.1"),
    ("lr", torch.nan, "Invalid learning rate: nan"),
    ("lr", float("inf"), "Invalid learning rate: inf"),
    ("lr", True, "Invalid learning rate: True"),
    ("lr", "0.1", "Invalid learning rate: '0.1'"),
    ("lr", torch.tensor([0.1, 0.2]), "Tensor lr must be 1-element"),
    ("weight_decay", -1, "Invalid weight_decay value: -1"),
    ("weight_decay", torch.nan, "Invalid weight_decay value: nan"),
    ("betas", (1.0, 0.9), "Invalid beta parameter at index 0: 1.0"),
    ("betas", (0.9, -0.1), "Invalid beta parameter at index 1: -0.1"),
    ("betas", 0.9, "betas must be a pair"),
    ("eps", -1e-8, "Invalid epsilon value: -1e-08"),
    ("momentum", -0.5, "Invalid momentum value: -0.5"),
    ("momentum", torch.nan, "Invalid momentum value: nan"),
    ("dampening", torch.nan, "Invalid dampening value: nan"),
    ("l1", -0.1, "Invalid l1 value: -0.1"),
    ("max_norm", -1.0, "max_norm must be >= 0, not -1.0"),
    ("max_norm", torch.nan, "max_norm must be >= 0, not nan"),
    ("max_norm", True, "max_norm must be a number >= 0, not True"),
    ("max_norm", "1", "max_norm must be a number >= 0, not '1'"),
    ("clip_value", -0.5, "clip_value must be >= 0, not -0.5"),
    ("norm_type", 0, "norm_type must be > 0 or inf, not 0"),
    ("norm_type", -2.0, "norm_type must be > 0 or inf, not -2.0"),
    ("nonfinite", "ignore", "nonfinite must be one of propagate, skip, raise, not 'ignore'"),
    ("differentiable", True, "differentiable=True is not supported"),
    ("alpha", -0.1, "Invalid alpha value: -0.1"),
    ("lr_decay", torch.nan, "Invalid lr_decay value: nan"),
    ("trust_coefficient", -1.0, "Invalid trust_coefficient value: -1.0"),
    ("trust_coefficient", "1", "Invalid trust_coefficient value: '1'"),
]


@every_class
@pytest.mark.parametrize(("key", "value", "match"), BAD_SETTINGS, ids=lambda x: str(x)[:20])
def test_bad_settings_are_refused(cls: type, key: str, value: Any, match: str) -> None:
    good = cls([Parameter(torch.ones(2))], lr=0.1)
    if key not in good.defaults:
        return
    with pytest.raises((ValueError, TypeError), match=match) as error:
        cls([Parameter(torch.ones(2))], **{key: value})
    assert cls.__name__ in str(error.value)
    with pytest.raises((ValueError, TypeError), match=match):
        good.add_param_group({"params": [Parameter(torch.ones(2))], key: value})
    assert len(good.param_groups) == 1
    p = good.param_groups[0]["params"][0]
    p.grad = torch.ones_like(p)
    good.step()
    before = snapshot(good)
    good.param_groups[0][key] = value  # as a scheduler would
    with pytest.raises((ValueError, TypeError), match=match):
        good.step()
    assert_bitwise(snapshot(good), before)


def test_other_refusals() -> None:
    p = Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"AdamW.*unknown backend 'gpu'"):
        ft.optim.AdamW([p], backend="gpu")
    with pytest.raises(ValueError, match="duplicate parameters: number 1 "):
        ft.optim.SGD([p, p], lr=0.1)
    with pytest.raises(ValueError, match="duplicate parameters"):
        ft.optim.SGD([("a", p), ("b", p)], lr=0.1)
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        ft.optim.SGD([{"params": [p]}, {"params": [p]}], lr=0.1)
    with pytest.raises(ValueError, match="Nesterov momentum requires a momentum and zero dampening"):
        ft.optim.SGD([p], lr=0.1, nesterov=True)
    differing = [{"params": [p]}, {"params": [Parameter(torch.ones(2))], "max_norm": 1.0}]
    with pytest.raises(ValueError, match=r"max_norm is 1.0 in parameter group 1 but 2.0 in group 0"):
        ft.optim.AdamW(differing, max_norm=2.0)
    opt = ft.optim.AdamW([{"params": [p]}, {"params": [Parameter(torch.ones(2))]}], max_norm=2.0)
    opt.param_groups[1]["max_norm"] = 1.0
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"max_norm is 1.0 in parameter group 1 but 2.0 in group 0"):
        opt.step()
    opt.set_max_norm(3.0)
    opt.step()
    with pytest.raises(ValueError, match="must be >= 0"):
        opt.set_max_norm(-1.0)


def test_refused_backend_leaves_everything() -> None:
    p = Parameter(torch.ones(2))
    p.grad = torch.ones_like(p)
    opt = ft.optim.AdamW([p], backend="reference")
    opt.step()
    before = snapshot(opt)
    opt.backend = "cuda"
    with pytest.raises(RuntimeError, match="cannot run it"):
        opt.step()
    assert_bitwise(snapshot(opt), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_B38_shared_memory_of_a_later_call_changes_nothing(dtype: torch.dtype) -> None:
    first, base = Parameter(torch.ones(3)), torch.ones(8, dtype=dtype)
    if dtype == torch.float32:  # by stand-ins, as they have gaps
        views = [Parameter(base[::2]), Parameter(base[::2])]
    else:
        views = [Parameter(base[:5]), Parameter(base[3:])]
    opt = ft.optim.SGD([first, *views], lr=0.1)
    for p in (first, *views):
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="share memory"):
        opt.step()
    assert first.tolist() == [1.0] * 3
    assert first._version == 0
    assert base.tolist() == [1.0] * 8


def test_columns_of_one_matrix_are_apart() -> None:
    base = torch.ones(4, 6)
    columns = [Parameter(base[:, :2]), Parameter(base[:, 2:3]), Parameter(base[:, 3:])]
    opt = ft.optim.SGD(columns, lr=0.25)
    for _ in range(2):
        for p in columns:
            p.grad = torch.ones_like(p)
        opt.step()
    assert (base == 0.5).all()
