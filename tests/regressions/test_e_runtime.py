"""Section E of the catalogue, and the rest of C and F that needs processes: RNG, compilation, threads, ranks."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import kit
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import fusedtrain as ft
from fusedtrain import rng

F = ft.functional
HERE = Path(__file__).resolve().parent


def rank_environment(**more: str) -> dict[str, str]:
    path = [str(Path(ft.__file__).parent.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", **more}


@pytest.mark.parametrize("shape", [(0,), (1,), (7, 3), (100_000,)])
@pytest.mark.parametrize("p", [0.0, 0.1, 1.0])
def test_E2_E11_every_training_call_draws_alike(backend: str, shape: tuple[int, ...], p: float) -> None:
    """pytorch!191019: streams overlap if less is reserved than used; bigscience!276: ranks drift apart if what is drawn
    depends on p, shape, activation or backend."""
    states = set()
    calls = (
        lambda: F.act_dropout(torch.ones(shape), "gelu", p),
        lambda: F.act_dropout(torch.ones(shape), "identity", p, bias=torch.zeros(shape[-1:])),
        lambda: F.act_dropout(torch.ones(5), "relu", 0.5),
        lambda: F.gated_act_dropout(torch.ones(*shape, 2), "silu", p),
        lambda: ft.nn.Dropout(p)(torch.ones(shape)),
    )
    for call in calls:
        torch.manual_seed(9)
        call()
        states.add(torch.get_rng_state().numpy().tobytes())
    torch.manual_seed(9)
    untouched = torch.get_rng_state().numpy().tobytes()
    assert len(states) == 1
    assert untouched not in states


def test_E2_what_torch_draws_next_is_independent(backend: str) -> None:
    """pytorch!191019: another random operation after ours must not see the same numbers."""
    torch.manual_seed(3)
    keep = F.act_dropout(torch.ones(100_000), "identity", 0.5) != 0
    after = torch.rand(100_000) >= 0.5
    assert abs(float((keep & after).float().mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 100_000)


@pytest.mark.parametrize("schedule", ["StepLR", "OneCycleLR", "ReduceLROnPlateau"])
def test_E5_schedules_do_not_recompile_for_ever(backend: str, schedule: str) -> None:
    """pytorch#120934, #133898: guards on float lr and step recompiled at every step. With a tensor lr there is one
    compilation (and one for the first step, which makes the states)."""
    torch._dynamo.reset()
    p = kit.parameter(torch.ones(4), torch.ones(4))
    opt = ft.optim.AdamW([p], lr=torch.tensor(0.1), max_norm=1.0)
    make = {
        "StepLR": lambda: torch.optim.lr_scheduler.StepLR(opt, 2),
        "OneCycleLR": lambda: torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=40, cycle_momentum=False),
        "ReduceLROnPlateau": lambda: torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=1),
    }
    scheduler = make[schedule]()
    counter = CompileCounterWithBackend("eager")
    step = torch.compile(opt.step, backend=counter)
    for i in range(12):
        step()
        scheduler.step(*([1.0] if schedule == "ReduceLROnPlateau" else []))
        if i == 3:
            settled = counter.frame_count
    assert counter.frame_count == settled
    assert settled <= 4
    assert p.detach().isfinite().all()


def test_E8_threads_share_nothing(backend: str) -> None:
    """triton#11494, mamba#84: caches raced under DataParallel. Eight threads, each with its own model and step."""
    results: dict[int, list[Tensor]] = {}

    def work(i: int) -> None:
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(64, 32, generator=generator)
        w = torch.nn.Parameter(torch.randn(32, 32, generator=generator))
        opt = ft.optim.AdamW([w], lr=1e-2, max_norm=1.0)
        for _ in range(5):
            opt.zero_grad()
            F.act_dropout(x @ w, "gelu", 0.2, generator=generator).square().sum().backward()
            opt.step()
        results[i] = [w.detach(), opt.grad_norm]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for other in results.values():
        kit.assert_bitwise(other, results[0])


def test_E10_ranks_with_their_own_seeds_have_their_own_masks(backend: str) -> None:
    """transformers#31412: all ranks had one seed. seed + rank gives independent masks, one seed the same."""
    masks = []
    for seed in (100, 101, 100):
        torch.manual_seed(seed)
        masks.append(F.act_dropout(torch.ones(10_000), "identity", 0.5) != 0)
    assert torch.equal(masks[0], masks[2])
    both = float((masks[0] & masks[1]).float().mean())
    assert abs(both - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 10_000)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_E12_masks_do_not_depend_on_the_work_split(backend: str, threads: int) -> None:
    """pytorch!186886, xformers: a counter tied to the tiling. The element index is the logical one."""
    state = torch.tensor([77, 4])
    n = 300_007
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = F.act_dropout(torch.ones(n), "identity", 0.3, rng_state=state)
        dx = torch.autograd.grad(
            F.act_dropout(x := torch.ones(n, requires_grad=True), "gelu", 0.3, rng_state=state).sum(), x
        )[0]
    finally:
        torch.set_num_threads(before)
    keep = rng.keep_mask(state, rng.drop_threshold(0.3), (n,))
    assert torch.equal(y != 0, keep)
    assert torch.equal(dx != 0, keep)


CORE = "A11 or A15 or A17 or B6 or B7 or B10 or C1_ or C18 or D3 or D8 or D20"


@pytest.mark.skipif("FUSEDTRAIN_NAN_FILLED" in os.environ, reason="this is that run")
def test_E13_nothing_reads_uninitialised_memory() -> None:
    """torch 2.13: `empty` mostly hands out zero pages, which hides such reads. Here it is filled with NaN."""
    here = f"({CORE}) and {kit.backends()[0]}"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", here, HERE]
    done = subprocess.run(
        command, env=rank_environment(FUSEDTRAIN_NAN_FILLED="1"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 100


RANK = """
import math, os, sys, torch, torch.distributed as dist, fusedtrain as ft
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
generator = torch.Generator().manual_seed(0)
xs = [torch.randn(s, generator=generator) for s in ((6, 4), (8,), (1, 3))]
gs = [torch.randn(x.shape, generator=generator) for x in xs]
placements = [[Shard(0)], [Replicate()], [Shard(0)]]  # the last leaves nothing for rank 1

def sharded(bad=None):
    params = []
    for i, (x, g, where) in enumerate(zip(xs, gs, placements)):
        p = torch.nn.Parameter(distribute_tensor(x.clone(), mesh, where))
        g = g.clone()
        if bad == i:
            g.view(-1)[0] = math.nan
        p.grad = distribute_tensor(g, mesh, where)
        params.append(p)
    return params

whole = [torch.nn.Parameter(x.clone()) for x in xs]
for p, g in zip(whole, gs):
    p.grad = g.clone()
exact = float(torch.cat([g.flatten() for g in gs]).double().norm())
params = sharded()
norm = ft.clip_grad_norm_(params, 0.5)
assert type(norm) is torch.Tensor, type(norm)  # C14
assert math.isclose(float(norm), exact, rel_tol=1e-6), (float(norm), exact)  # C11, C12
params = sharded()
opt, plain = ft.optim.AdamW(params, max_norm=0.5), ft.optim.AdamW(whole, max_norm=0.5)
for _ in range(2):
    opt.step(); plain.step()
for p, q in zip(params, whole):
    torch.testing.assert_close(p.full_tensor(), q.detach())
params = sharded(bad=0)  # the NaN is in the shard of rank 0 alone
opt = ft.optim.AdamW(params, max_norm=0.5, nonfinite="skip")
opt.step()
assert int(opt.skipped_steps) == 1  # C19: on both ranks
for p, x in zip(params, xs):
    assert torch.equal(p.full_tensor(), x)
dist.destroy_process_group()
"""


TWO_MESHES = """
import math, os, sys, torch, torch.distributed as dist, fusedtrain as ft
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
line, grid = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2))
layouts = [(line, [Shard(0)]), (grid, [Replicate(), Shard(1)]), (grid, [Replicate(), Replicate()]), None]
generator = torch.Generator().manual_seed(0)
xs, gs = ([torch.randn(n, 3, generator=generator) for n in (5, 4, 3, 2)] for _ in range(2))
exact = torch.cat([g.flatten() for g in gs]).double()

def place(x, layout):
    return x.clone() if layout is None else distribute_tensor(x.clone(), *layout)

def spread():
    params = [torch.nn.Parameter(place(x, layout)) for x, layout in zip(xs, layouts)]
    for p, g, layout in zip(params, gs, layouts):
        p.grad = place(g, layout)
    return params

for norm_type in (2.0, 1.0, math.inf):
    expected = float(exact.norm(norm_type))
    params = spread()
    found = [ft.global_norm([p.grad for p in params], norm_type), ft.clip_grad_norm_(params, 0.5, norm_type)]
    opt = ft.optim.SGD(spread(), lr=1.0, max_norm=0.5, norm_type=norm_type)
    opt.step()
    for norm in (*found, opt.grad_norm):
        assert type(norm) is torch.Tensor, type(norm)
        assert math.isclose(float(norm), expected, rel_tol=1e-6), (norm_type, float(norm), expected)
    coef = min(1.0, 0.5 / expected)
    for p, q, x, g in zip(params, opt.param_groups[0]["params"], xs, gs):
        grad, stepped = (t.full_tensor() if hasattr(t, "full_tensor") else t for t in (p.grad, q.detach()))
        torch.testing.assert_close(grad, g * coef, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(stepped, x - g * coef, rtol=1e-5, atol=1e-6)
dist.destroy_process_group()
"""


LEAVE = """
print("done", rank, flush=True)
os._exit(0)
"""
"""The end of each rank. A thread of gloo may hold the tensors of the last collective for longer than the call took, and
where a mesh keeps its group, that thread outlives `destroy_process_group`. If the interpreter is being finalized when
it lets go of them, torch aborts ("terminate called without an active exception", pytorch#179291), with fusedtrain and
without."""


def run_two_ranks(script: str, tmp_path: Path) -> None:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("torch without gloo")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script + LEAVE, str(rank), str(tmp_path / "store")],
            env=rank_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for i, rank in enumerate(ranks):
            out, err = rank.communicate(timeout=120)
            assert rank.returncode == 0, err
            assert f"done {i}" in out
    finally:
        for rank in ranks:
            rank.kill()


def test_C11_C12_C14_C19_two_ranks(tmp_path: Path) -> None:
    """Megatron!7228, !5916: replicated parameters counted per rank, or those of one rank not at all; pytorch#170862:
    the norm was a partial DTensor; ColossalAI!1175: ranks disagreed on an overflow and hung."""
    run_two_ranks(RANK, tmp_path)


def test_C13_parameters_on_two_meshes_and_on_none(tmp_path: Path) -> None:
    """pytorch#180346, !180501, Megatron!6489: norms kept their meshes, and could not be stacked."""
    run_two_ranks(TWO_MESHES, tmp_path)
