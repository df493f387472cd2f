"""Memory that was freed under a tensor is refused by every kernel, before it is touched."""

from __future__ import annotations

import math

import pytest
import torch

from fusedtrain import dispatch

KERNELS = [name for name in dispatch.ORDER if name != "reference"]  # of which torch itself makes what it can


def lost(dtype: torch.dtype, offset: int, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """A view of a storage that is freed. Behind an offset torch's address of it is not null."""
    flat = torch.ones(offset + 4, dtype=dtype, device=device)
    view = flat[offset : offset + math.prod(shape)].view(shape)
    flat.untyped_storage().resize_(0)
    return view


@pytest.mark.parametrize("which", ["params", "grads", "states", "steps", "norm", "skipped_steps"])
@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("backend", KERNELS, indirect=True)
def test_A17_freed_memory_of_a_step(backend: str, device: torch.device, which: str, offset: int) -> None:
    params, grads, exp_avg, exp_avg_sq = (torch.ones(4, device=device) for _ in range(4))
    scalar = torch.zeros((), device=device)
    arguments = {"params": params, "grads": grads, "states": exp_avg, "steps": scalar, "norm": scalar.clone()}
    arguments["skipped_steps"] = torch.zeros((), dtype=torch.int64, device=device)
    like = arguments[which]
    arguments[which] = lost(like.dtype, offset, tuple(like.shape), device)
    *lists, norm, skipped_steps = arguments.values()
    p, g, s, step = ([x] for x in lists)
    hyper = torch.tensor([[0.1, 1.0, math.inf, 0.0, 0.9, 0.99, 1e-8, 0.1]], dtype=torch.float64)
    with pytest.raises(RuntimeError, match=rf"{which}.* has no memory: its storage was freed"):
        dispatch.load(backend).optim_step_(
            "adamw",
            p,
            g,
            [*s, exp_avg_sq],
            step,
            hyper,
            [0],
            norm,
            None,
            None,
            None,
            1.0,
            False,
            None,
            None,
            skipped_steps,
        )


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("backend", KERNELS, indirect=True)
def test_A17_freed_memory_of_norms_and_activations(backend: str, device: torch.device, offset: int) -> None:
    kernels = dispatch.load(backend)
    x = lost(torch.float32, offset, (1, 4), device)
    for call in (
        lambda: kernels.global_norm([torch.ones(3, device=device), x], 2.0),
        lambda: kernels.tensor_norms([torch.ones(3, device=device), x], 2.0),
        lambda: kernels.act_dropout(x, None, None, None, 0, "gelu"),
        lambda: kernels.clip_scale_([x], torch.ones((), device=device), 0.5),
    ):
        with pytest.raises(RuntimeError, match=r"has no memory: its storage was freed"):
            call()
