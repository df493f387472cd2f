"""``torch.compile`` for benchmarks: what is called compiled is compiled."""

from __future__ import annotations

from typing import Any

import torch

_LIMIT = 10_000


def compiled(f: Any) -> Any:
    """``torch.compile(f)`` for the shapes that it is called with.

    torch compiles one code object eight times and then runs it as it is, with no more than a warning. Here every
    workload compiles the same few anew, for tensors of its own: the limit is lifted, and reaching it is an error. And
    what was compiled for one shape may not become a slower program for any shape because another workload has another.
    """
    from torch._dynamo import config  # which takes seconds to import

    settings: Any = config
    settings.recompile_limit = settings.accumulated_recompile_limit = _LIMIT
    settings.fail_on_recompile_limit_hit = True
    return torch.compile(f, dynamic=False)
