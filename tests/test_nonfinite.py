"""An inf or NaN of any kind, anywhere among the gradients, is found by every norm and skips a step, on every backend.

On a GPU the magnitude of a double leaves a NaN its sign, and NaN that are computed there have one.
"""

from __future__ import annotations

import math

import pytest
import torch
from nonfinite import NONFINITE, spoil
from torch.nn import Parameter

import fusedtrain as ft
from fusedtrain import dispatch

# NumPy's, which interprets Triton.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
every_kind = pytest.mark.parametrize("bad", NONFINITE)
every_order = pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def test_what_is_spoiled_is_what_it_is_called() -> None:
    for dtype in FLOATS:
        for kind in NONFINITE:
            x = torch.ones(3, dtype=dtype)
            spoil(x, kind)
            assert x[:2].tolist() == [1, 1]
            assert x[2].isinf() if kind.endswith("inf") and " " not in kind else x[2].isnan()
            assert " " in kind or bool(x[2].signbit()) == kind.startswith("-")


@every_dtype
@every_order
@pytest.mark.parametrize("beside", [torch.float32, torch.float64], ids=["beside fp32", "beside fp64"])
def test_norms(dtype: torch.dtype, p: float, beside: torch.dtype, backend: str, device: torch.device) -> None:
    ops = dispatch.load(backend)
    for bad in NONFINITE:
        xs = [torch.ones(n, device=device, dtype=d) for n, d in ((5, beside), (33, dtype), (7, beside))]
        spoil(xs[1], bad)
        norm, nonfinite = ops.global_norm(xs, p)
        assert float(nonfinite) == 1, bad
        assert not norm.isfinite(), bad
        assert ops.tensor_norms(xs, p).isfinite().tolist() == [True, False, True], bad


@every_kind
@every_order
def test_among_several_chunks(bad: str, p: float, backend: str, device: torch.device) -> None:
    """Whose partial results are combined: fp64 alone, and beside the largest of finite numbers."""
    for n in (8193, 17_000):
        x = torch.full((n,), torch.finfo(torch.float64).max, device=device, dtype=torch.float64)
        spoil(x, bad)
        norm, nonfinite = dispatch.load(backend).global_norm([x, x[:9000]], p)
        assert float(nonfinite) == 1
        assert not norm.isfinite()


@every_dtype
@every_order
def test_steps_are_skipped(dtype: torch.dtype, p: float, backend: str, device: torch.device) -> None:
    """By lists and, from the second step on, by a table."""
    params = [Parameter(torch.ones(9, device=device, dtype=d)) for d in (dtype, torch.float64)]
    opt = ft.optim.SGD(params, lr=0.1, max_norm=1.0, norm_type=p, nonfinite="skip", backend=backend)
    for count, bad in enumerate(NONFINITE, 1):
        for x in params:
            x.grad = torch.ones_like(x)
        opt.step()
        before = [x.detach().clone() for x in params]
        spoil(params[0].grad, bad)  # type: ignore[arg-type]
        opt.step()
        assert all(torch.equal(x, y) for x, y in zip(params, before, strict=True)), bad
        assert int(opt.skipped_steps) == count, bad


@every_kind
@every_order
def test_error_if_nonfinite(
    bad: str, p: float, backend: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDTRAIN_BACKEND", backend)
    params = [Parameter(torch.ones(9, device=device, dtype=d)) for d in FLOATS]
    for x in params:
        x.grad = torch.ones_like(x)
    spoil(params[1].grad, bad)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="non-finite"):
        ft.clip_grad_norm_(params, 1.0, p, error_if_nonfinite=True)
    assert all(bool((x.grad[:-1] == 1).all()) for x in params)  # type: ignore[index]
