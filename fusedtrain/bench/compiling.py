"""``torch.compile`` for benchmarks: what is called compiled is compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_LIMIT = 10_000
_lifted: contextlib.ExitStack | None = None
"""That of the innermost `limits`."""


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Where `compiled` functions are made and run: at its end dynamo's limits are again what they were."""
    global _lifted
    outer = _lifted
    with contextlib.ExitStack() as stack:
        _lifted = stack
        try:
            yield
        finally:
            _lifted = outer


def compiled(f: Any) -> Any:
    """``torch.compile(f)`` for the shapes that it is called with, all within `limits`.

    torch compiles one code object eight times and then runs it as it is, with no more than a warning. Here every
    workload compiles the same few anew, for tensors of its own: the limit is lifted, and reaching it is an error. And
    what was compiled for one shape may not become a slower program for any shape because another workload has another.

    Raises:
        RuntimeError: called outside of `limits`, and so for a function that torch might not compile.
    """
    if _lifted is None:
        raise RuntimeError("compiled() outside of compiling.limits(): torch would soon run the function as it is")
    from torch._dynamo import config  # which takes seconds to import

    settings: Any = config
    lifted = {"recompile_limit": _LIMIT, "accumulated_recompile_limit": _LIMIT, "fail_on_recompile_limit_hit": True}
    # Not in each call: that would cost as much as a small step.
    _lifted.enter_context(settings.patch(**lifted))
    return torch.compile(f, dynamic=False)
