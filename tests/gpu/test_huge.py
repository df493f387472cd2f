"""Tensors beyond 2^31 elements: A1 to A6. Values are looked at, since a truncated size often crashes nothing."""

from __future__ import annotations

import math

import pytest
import torch

import fusedtrain as ft
from fusedtrain import rng

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
BEYOND = [2**31 + 8, 2**32 + 1]


def room(gib: float) -> None:
    """Skips the test where the GPU has not so much memory free."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gib:
        pytest.skip(f"needs {gib:.0f} GiB of GPU memory, {free:.0f} are free")


def ends(n: int) -> list[int]:
    """Elements whose index is where 32 bits end."""
    return sorted({0, 1, 2**31 - 1, 2**31, min(2**32 - 1, n - 1), min(2**32, n - 1), n - 1})


@pytest.mark.parametrize("n", BEYOND)
def test_A1_A2_every_element_of_a_huge_parameter_is_updated(on_gpu: str, n: int) -> None:
    """pytorch#101449, DeepSpeed#7640: 32-bit sizes crash, or silently update nothing."""
    room(2 * 2 * n / 2**30 + 4)
    p = torch.nn.Parameter(torch.zeros(n, dtype=torch.float16, device=CUDA))
    p.grad = torch.ones_like(p)
    ft.optim.SGD([p], lr=1.0, max_norm=math.inf, backend=on_gpu).step()
    assert p.detach()[ends(n)].tolist() == [-1.0] * len(ends(n))
    assert all(bool((part == -1).all()) for part in p.detach().split(2**28))


def test_A1_adamw_beyond_2_to_31(on_gpu: str) -> None:
    n = BEYOND[0]
    room((2 + 2 + 4 + 4) * n / 2**30 + 4)
    p = torch.nn.Parameter(torch.zeros(n, dtype=torch.bfloat16, device=CUDA))
    p.grad = torch.ones_like(p)
    opt = ft.optim.AdamW([p], lr=0.5, weight_decay=0.0, backend=on_gpu)
    opt.step()
    # The first direction of Adam is the sign of the gradient.
    assert all(bool((part == -0.5).all()) for part in p.detach().split(2**28))
    state = opt.state[p]
    assert all(bool((part == part[0]).all() and part[0] > 0) for part in state["exp_avg_sq"].split(2**28))


@pytest.mark.parametrize("n", BEYOND)
def test_A3_norm_and_scaling_of_a_huge_tensor(on_gpu: str, n: int) -> None:
    """apex#1654, TE#2918: the same truncation in the norm and the scaling kernels."""
    room(2 * n / 2**30 + 4)
    g = torch.ones(n, dtype=torch.float16, device=CUDA)
    assert float(ft.global_norm([g])) == pytest.approx(math.sqrt(n), rel=1e-6)
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float16, device=CUDA).expand(n))
    p.grad = g
    ft.clip_grad_norm_([p], math.sqrt(n) / 2)
    assert g[ends(n)].tolist() == [0.5] * len(ends(n))
    assert all(bool((part == 0.5).all()) for part in g.split(2**28))
    g[-1] = math.inf
    assert float(ft.global_norm([g])) == math.inf


def test_A2_a_small_tensor_after_huge_ones(on_gpu: str) -> None:
    """Cumulative sizes beyond 2^32, though the last tensor is small."""
    n = BEYOND[0]
    room(2 * 2 * 2 * n / 2**30 + 4)
    params = [torch.nn.Parameter(torch.zeros(k, dtype=torch.float16, device=CUDA)) for k in (n, 3, n, 5)]
    for p in params:
        p.grad = torch.full_like(p, 2.0)
    opt = ft.optim.SGD(params, lr=1.0, max_norm=math.inf, backend=on_gpu)
    opt.step()
    assert [p.detach()[[0, -1]].tolist() for p in params] == [[-2.0, -2.0]] * 4
    assert float(opt.grad_norm) == pytest.approx(2 * math.sqrt(2 * n + 8), rel=1e-6)


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_A4_rows_beyond_2_to_31(on_gpu: str, activation: str) -> None:
    """Liger!251, !804: ``program_id * stride`` wraps. The mask of the last rows is that of their own indices."""
    rows, width = 2**16 + 1, 2**15
    room(4 * 2 * rows * width / 2**30 + 6)
    x = torch.ones(rows, width, dtype=torch.bfloat16, device=CUDA, requires_grad=True)
    state = torch.tensor([3, 4], device=CUDA)
    y = ft.functional.act_dropout(x, activation, 0.5, rng_state=state, backend=on_gpu)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    small = torch.ones(1, 1, dtype=torch.bfloat16, device=CUDA, requires_grad=True)
    kept = 2 * ft.functional.act_dropout(small, activation, 0.0, backend=on_gpu)
    (slope,) = torch.autograd.grad(kept, small)
    for row in (0, 2**16 - 1, 2**16):
        lanes = rng.lanes(state, width, row * width)
        keep = lanes >= rng.drop_threshold(0.5)
        for written, value in ((y.detach(), kept), (dx, slope)):
            expected = torch.where(keep, value.detach().item(), 0.0).to(torch.bfloat16)
            torch.testing.assert_close(written[row], expected, rtol=torch.finfo(torch.bfloat16).eps, atol=0)


def test_A5_A6_a_small_view_of_a_wide_parent(on_gpu: str) -> None:
    """mamba!988, pytorch!196431: ``row * stride`` overflows though every size is small."""
    room(2 * 4 * 40960 * 35072 / 2**30 + 4)
    parent = torch.empty(4, 40960, 35072, dtype=torch.bfloat16, device=CUDA)
    x = parent[..., :64].copy_(torch.randn(4, 40960, 64, device=CUDA)).requires_grad_()
    packed = x.detach().contiguous().requires_grad_()
    state = torch.tensor([1, 2], device=CUDA)
    outs = [ft.functional.act_dropout(t, "gelu", 0.25, rng_state=state, backend=on_gpu) for t in (x, packed)]
    assert torch.equal(*outs)
    dx, dpacked = (torch.autograd.grad(out.sum(), t)[0] for out, t in zip(outs, (x, packed), strict=True))
    assert torch.equal(dx, dpacked)
    assert torch.equal(ft.global_norm([x.detach()]), ft.global_norm([packed.detach()]))


def test_masks_do_not_repeat_beyond_2_to_32(on_gpu: str) -> None:
    """D6 (FlagGems!23, triton!2668): a 32-bit element index begins anew."""
    n = 2**32 + 1024
    room(2 * 2 * n / 2**30 + 2)
    x = torch.ones(n, dtype=torch.bfloat16, device=CUDA)
    state = torch.tensor([5, 0], device=CUDA)
    y = ft.functional.act_dropout(x, "identity", 0.5, rng_state=state, inplace=True, backend=on_gpu)
    first, beyond = y[:1024] != 0, y[2**32 :] != 0
    assert not torch.equal(first, beyond)
    assert torch.equal(beyond, rng.lanes(state, 1024, 2**32) >= rng.drop_threshold(0.5))
