"""Training compiles each kernel of activation + dropout once: counted where Triton compiles for a GPU that need not be
there, as for the step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_recompilation_triton import SCRIPT as STEPS

pytest.importorskip("fusedtrain.backends.triton_act")
CALLS = """
import torch
from fusedtrain.backends import triton_act as act, triton_gated as gated

calls = 0
state = torch.tensor([1, 2, 3])
for shape in ((1, 1), (16, 16), (3, 1000), (17, 48), (1, 2**20)):
    for offset in (0, 1):
        for threshold in (1, 16, 6554, 65536):
            width = shape[1]

            def made(*shape):
                n = shape[0] * shape[-1] if len(shape) > 1 else shape[0]
                return torch.ones(n + offset)[offset:].view(shape)

            x, dy, twice, bias, b2 = made(*shape), made(*shape), made(shape[0], 2 * width), made(width), made(2 * width)
            rng_state = state[offset : offset + 2]
            act.act_dropout(x, bias, dy, rng_state, threshold, "gelu")
            act.act_dropout_grad(dy, x, bias, rng_state, threshold, "gelu", False, True)
            gated.gated_act_dropout(twice, b2, rng_state, threshold, "silu")
            gated.gated_act_dropout_grad(dy, twice, b2, rng_state, threshold, "silu", True)
            calls += 1
compiled = {kernel.fn.__name__: len(kernel.device_caches[0][0]) for kernel in kernels}
print(calls, sorted(compiled.items()))
"""


def test_no_size_threshold_or_alignment_compiles_anew(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = tmp_path / "calls.py"
    script.write_text(STEPS.partition("from fusedtrain import rules")[0] + CALLS)
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    names = (
        "act_dropout_grad_kernel",
        "act_dropout_kernel",
        "gated_act_dropout_grad_kernel",
        "gated_act_dropout_kernel",
    )
    assert done.stdout.strip() == f"40 {[(name, 1) for name in names]}"
