"""Tools for tests and benchmarks of numerical code: derived tolerances, and tensors of awkward layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def error(actual: Tensor, truth: Tensor) -> float:
    """The largest absolute error against an fp64 truth, over the entries where both are finite; inf if they differ in
    where they are NaN or infinite."""
    a, t = actual.detach().double(), truth.detach().double().to(actual.dtype).double()
    finite = t.isfinite()
    same = torch.equal(a[~finite].nan_to_num(nan=1.5), t[~finite].nan_to_num(nan=1.5)) and bool(
        a[finite].isfinite().all()
    )
    if not same:
        return float("inf")
    difference = (a - truth.detach().double())[finite].abs()
    return float(difference.max()) if difference.numel() else 0.0


def assert_as_accurate(
    actual: Tensor, theirs: Tensor, truth: Tensor, factor: float = 2.0, before: Tensor | None = None
) -> None:
    """Asserts that ``actual`` errs at most ``factor`` times as much as torch's own result of the same dtype does, both
    against an fp64 truth. A floor of one rounding of the largest value keeps an exact torch result from demanding more
    than the dtype can hold; of ``before`` too, where the result is what was there before and something added to it, and
    may be the small difference of large numbers."""
    finite = [x[x.isfinite()].abs().double() for x in (truth, before) if x is not None]
    largest = max((float(x.max()) for x in finite if x.numel()), default=0.0)
    floor = max(torch.finfo(actual.dtype).eps * largest, torch.finfo(actual.dtype).tiny)
    ours, allowed = error(actual, truth), factor * max(error(theirs, truth), floor)
    if not ours <= allowed:
        raise AssertionError(
            f"error {ours:.3e} against fp64 exceeds {allowed:.3e} ({factor} x torch's own, {actual.dtype})"
        )


def truth(f: Callable[..., Any], *args: Any) -> Any:
    """``f`` in fp64: floating tensors among the arguments are promoted first."""
    return f(*(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args))


def with_layout(x: Tensor, kind: str) -> Tensor:
    """A tensor equal to ``x`` in another memory layout: ``"contiguous"``, ``"transposed"`` (dense, permuted strides),
    ``"sliced"`` (gaps between elements), ``"offset"`` (storage offset of one element, so misaligned)."""
    if kind == "contiguous":
        return x.clone()
    if kind == "transposed":
        return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    if kind == "sliced":
        wide = x.new_full((*x.shape, 2), float("nan"))
        wide[..., 0] = x
        return wide[..., 0]
    if kind == "offset":
        flat = x.new_full((x.numel() + 1,), float("nan"))
        view = flat[1:].view(x.shape)
        view.copy_(x)
        return view
    raise ValueError(f"with_layout: unknown layout {kind!r}")
