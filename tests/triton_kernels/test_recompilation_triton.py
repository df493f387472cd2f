"""Training compiles each kernel once, and to wide accesses: seen where Triton compiles for a GPU that is not there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fusedtrain.backends import step_tables

pytest.importorskip("triton")
SCRIPT = '''
import math
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


class Driver:
    """A GPU to compile for, and none to launch on."""

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)


triton.runtime.driver.set_active(Driver())
launch = JITFunction.run
kernels = set()


def compile_only(self, *args, grid, warmup, **kwargs):
    kernels.add(self)
    return launch(self, *args, grid=grid, warmup=True, **kwargs)


JITFunction.run = compile_only

from fusedtrain import rules
from fusedtrain.backends import triton_norm, triton_planned, triton_scale, triton_step, triton_tensor_norms


def shifted(n, offset):
    return torch.ones(n + offset)[offset:]


launcher = triton_planned.step_launcher("cpu")
keys = rules.UPDATES["adamw"].slots
steps = by_table = 0
for sizes in ([1], [16], [1000, 0, 17], [3] * 16, [70000] * 17, [1, 2**20]):
    for offset in (0, 1):
        lr, t, max_norm = 0.1 / (steps + 1), steps, (1.0, 0.5, math.inf, 16.0)[steps % 4]
        params, grads, m, v = ([shifted(n, offset) for n in sizes] for _ in range(4))
        found_inf, scale = torch.zeros(2)[offset:][:1], torch.ones(2)[offset:][:1]
        norm, nonfinite = triton_norm.global_norm(grads, 2.0)
        triton_tensor_norms.tensor_norms(grads, 2.0)
        norm, nonfinite = torch.ones(4)[offset : offset + 1], torch.zeros(4)[offset : offset + 1]
        triton_scale.clip_scale_(grads, norm, max_norm)
        row = [lr, 1.0, math.inf, 0.0, 0.9, 0.99, 1e-8, 0.1]
        hyper = torch.tensor([row] * (steps % 3 + 1), dtype=torch.float64)
        counts = [torch.tensor(float(t)) for _ in sizes]
        skipped = torch.zeros(2, dtype=torch.int64)[offset]
        triton_step.optim_step_(
            "adamw", params, grads, [*m, *v], counts, hyper, [steps % (steps % 3 + 1)] * len(sizes),
            norm, nonfinite, scale, found_inf, max_norm, True,
            torch.ones(4)[offset], torch.ones(4)[offset], skipped,
        )
        steps += 1
        if launcher is None:
            continue
        groups, entries = [{"params": params}], [dict(zip(keys, states)) for states in zip(m, v)]
        state = dict(zip(params, entries))
        for p, g in zip(params, grads):
            p.grad = g
        table = launcher.table(groups, [steps % 3 % len(hyper)], state, keys, entries, counts)
        for rate in (lr, lr / 2):
            hyper[:, 0] = rate
            assert table.refresh(groups, state)
            outputs = torch.ones(5)[offset : offset + 3]
            assert launcher.step(table, "adamw", hyper, 2.0, scale, found_inf, max_norm, True, outputs, skipped)
            by_table += 1

for kernel in sorted(kernels, key=lambda kernel: kernel.fn.__name__):
    compiled = list(kernel.device_caches[0][0].values())
    ptx = compiled[0].asm["ptx"]
    wide = ptx.count("ld.global.v4.b32"), ptx.count("st.global.v4.b32")
    print(kernel.fn.__name__, len(compiled), *wide, ".local" in ptx)
print(steps, by_table, launcher is not None)
'''


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Words of the lines that the script prints."""
    folder = tmp_path_factory.mktemp("compiled")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder)
    script = folder / "steps.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_no_size_rate_step_or_alignment_compiles_anew(steps: list[list[str]]) -> None:
    kernels = ("norm_kernel", "scale_kernel", "step_kernel", "tensor_norms_kernel")
    assert [words[:2] for words in steps[:4]] == [[kernel, "1"] for kernel in kernels]
    assert steps[4:] in ([["12", "24", "True"]], [["12", "0", "False"]])
    assert step_tables.parts() is None or steps[4][2] == "True"


def test_accesses_are_wide_and_none_is_to_local_memory(steps: list[list[str]]) -> None:
    """A thread has eight elements: two vectors of p, g and both moments, of which all but g are written. A norm has
    four such blocks on their way at once, scaling one."""
    assert {words[0]: words[2:] for words in steps[:4]} == {
        "norm_kernel": ["8", "0", "False"],
        "scale_kernel": ["2", "2", "False"],
        "step_kernel": ["8", "6", "False"],
        "tensor_norms_kernel": ["8", "0", "False"],
    }
