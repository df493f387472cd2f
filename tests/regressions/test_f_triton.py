"""Rows E9, F4 and F5 of the catalogue: Triton's cache, its pointers, and tensors that are not for it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import kit
import pytest
import torch
from torch import Tensor

import fusedtrain as ft
from fusedtrain import dispatch

WHY_NOT = dispatch.load("triton").why_not
needs_triton = pytest.mark.skipif(WHY_NOT is not None, reason=f"triton: {WHY_NOT}")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "FUSEDTRAIN_BACKEND")}
    path = os.pathsep.join([str(Path(ft.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


COMPILE = """
import hashlib, torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

class Driver:  # a GPU to compile for, and none to launch on
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

triton.runtime.driver.set_active(Driver())
launch, kernels = JITFunction.run, []

def compile_only(self, *args, grid, warmup, **kwargs):
    kernels.append(self)
    return launch(self, *args, grid=grid, warmup=True, **kwargs)

JITFunction.run = compile_only
from fusedtrain.backends import triton_norm
triton_norm.global_norm([torch.ones(1000)], 2.0)
for kernel in kernels:
    for compiled in kernel.device_caches[0][0].values():
        ptx = hashlib.sha256(compiled.asm["ptx"].encode()).hexdigest()
        print(kernel.fn.__name__, compiled.metadata.shared, compiled.metadata.num_warps, compiled.metadata.hash, ptx)
"""


@needs_triton
def test_E9_processes_with_one_cold_cache_get_one_kernel(tmp_path: Path) -> None:
    """pytorch!92664: the metadata of one rank with the binary of another. A fourth process has a cache of its own."""
    caches = [tmp_path / "shared"] * 3 + [tmp_path / "alone"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COMPILE],
            env=environment(TRITON_CACHE_DIR=str(cache)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for cache in caches
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, error) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, error
    assert len({out for out, _ in outputs}) == 1
    assert outputs[0][0].startswith("norm_kernel ")


@needs_triton
@pytest.mark.parametrize("name", ["norm", "nonfinite", "inv_scale", "found_inf"])
def test_F4_a_scalar_of_another_device_is_refused_before_a_kernel_sees_its_pointer(name: str) -> None:
    """pytorch#180909, #187729: a scalar on the CPU was passed to Triton as a pointer, which 3.7 refuses."""
    scalars = {key: torch.zeros(()) for key in ("norm", "nonfinite", "inv_scale", "found_inf")}
    scalars[name] = torch.zeros((), device="meta")
    p, before = torch.ones(4), torch.ones(4)
    hyper = torch.tensor([[0.1, 1.0, float("inf"), 0.0, 0.0]], dtype=torch.float64)
    step = importlib.import_module("fusedtrain.backends.triton_step").optim_step_
    with pytest.raises(RuntimeError, match=rf"{name} is on meta, not on cpu"):
        step(
            "sgd", [p], [torch.ones(4)], [], [torch.tensor(0.0)], hyper, [0], *scalars.values(), 1.0, True,
            torch.zeros(()), torch.zeros(()), torch.zeros((), dtype=torch.int64),
        )  # fmt: skip
    assert torch.equal(p, before)


@pytest.mark.gpu
@pytest.mark.parametrize("gpu_backend", ["cuda", "triton"])
def test_F4_scalars_on_the_cpu_with_parameters_on_a_gpu(gpu_backend: str) -> None:
    """pytorch#180909, #187729."""
    why_not = dispatch.load(gpu_backend).why_not
    if why_not:
        pytest.skip(f"backend {gpu_backend}: {why_not}")

    def stepped(device: str, backend: str, lr: float | Tensor, found_inf: float) -> Tensor:
        p = kit.parameter(torch.ones(1000, device=device), torch.full((1000,), 4.0, device=device))
        opt = ft.optim.AdamW([p], lr=lr, max_norm=1.0, backend=backend)
        opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(found_inf)
        opt.step()
        return p.detach().cpu()

    for found_inf in (0.0, 1.0):
        expected = stepped("cpu", "reference", 0.1, found_inf)
        torch.testing.assert_close(stepped("cuda", gpu_backend, torch.tensor(0.1), found_inf), expected)
    assert torch.equal(expected, torch.ones(1000))


def test_F5_tensors_on_the_cpu_do_not_reach_triton_where_there_is_a_gpu() -> None:
    """ModernBERT#152: what counted was that there is a GPU, not where the tensors are."""
    code = """
import torch
torch.cuda.device_count = lambda: 1
torch.cuda.is_available = lambda: True
import fusedtrain as ft
from fusedtrain import dispatch
def reached(*args, **kwargs):
    raise SystemExit("a CPU tensor reached Triton")
for op in ("act_dropout", "global_norm", "tensor_norms", "clip_scale_", "optim_step_"):
    if dispatch.load("triton").why_not is None:
        object.__setattr__(dispatch.load("triton"), op, reached)
w = torch.nn.Parameter(torch.ones(8, 8))
opt = ft.optim.AdamW([w], lr=0.1, max_norm=1.0)
ft.functional.act_dropout(torch.ones(4, 8) @ w, "gelu", 0.0).sum().backward()
ft.clip_grad_norm_([w], 1.0)
opt.step()
print(dispatch.load("triton").why_not, bool(w.detach().isfinite().all()), bool((w != 1).all()))
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("True True\n")
    if WHY_NOT is None:
        assert done.stdout == "None True True\n", "Triton was not there to be reached"
