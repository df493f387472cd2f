"""Training on the CPU backend against training on the reference backend."""

from __future__ import annotations

import pytest
import torch

import fusedtrain as ft
from fusedtrain.testing import assert_as_accurate
from fusedtrain.train import settings, tasks
from fusedtrain.train.sides import Fused
from fusedtrain.train.world import World

STEPS = 50

needs_cpu = pytest.mark.skipif(
    not ft.backends()["cpu"].startswith("available"), reason=f"CPU backend: {ft.backends()['cpu']}"
)


def trained(given: dict, backend: str, dtype: str = "float32") -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The losses of `STEPS` steps, and every mask: where the output of an activation + dropout is zero, module by
    module, step by step, and the state of the random numbers after it."""
    s = settings.new({**given, "backend": backend, "dtype": dtype})
    task, side = tasks.load(s), Fused(s, World())
    masks: list[torch.Tensor] = []
    for module in side.model.modules():
        if isinstance(module, ft.nn.ActDropout | ft.nn.LinearActDropout):
            module.register_forward_hook(lambda _, __, y: masks.append(y.detach() == 0))
    losses = []
    for step in range(STEPS):
        losses.append(side.step(task, task.batch(step), s.lr).loss)
        masks.append(side.rng)
    return torch.stack(losses), masks


@needs_cpu
@pytest.mark.parametrize("kind", ["mlp", "conv", "text"])
def test_fifty_steps_on_the_cpu_backend_and_on_the_reference(kind, small):
    """Masks equal to the bit. Losses: the masks do not depend on the dtype, so that the reference in fp64 is the truth
    of both, and the CPU backend may err against it little more than the reference in fp32 does. Four times, not
    twice: 50 steps of training amplify the rounding of each by a factor that depends on the rounding.

    No activation here is zero but where it is dropped: of gelu and tanh only zero itself is."""
    given = small(kind, steps=STEPS, dropout=0.3)
    if kind == "mlp":
        given["activation"] = "tanh"
    ours, masks = trained(given, "cpu")
    reference, reference_masks = trained(given, "reference")
    truth, true_masks = trained(given, "reference", "float64")
    assert len(masks) >= 2 * STEPS
    dropped = torch.cat([m.flatten() for m in masks if m.dtype == torch.bool]).float().mean()
    assert 0.1 < dropped < 0.35
    for mask, other, true in zip(masks, reference_masks, true_masks, strict=True):
        assert torch.equal(mask, other)
        assert torch.equal(mask, true)
    assert not torch.equal(ours[0], ours[-1])
    assert_as_accurate(ours, reference, truth, factor=4)
