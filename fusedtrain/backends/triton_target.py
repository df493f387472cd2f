"""What Triton's kernels are compiled for in this process."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Not at all: they are interpreted."""

NVIDIA = tl.constexpr(not (torch.version.hip or torch.version.xpu))
"""For NVIDIA's GPUs, unless torch was built for those of AMD or Intel."""
