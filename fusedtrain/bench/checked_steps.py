"""Three steps of clip + AdamW on numbers in which every part of the rule shows, in every dtype.

At the settings that are timed a step moves a parameter by less than bf16 can tell, and Adam does not see a scale that
all gradients have in common: a provider that does nothing, or never clips, would pass. Here a step moves parameters by
about their own size, decay takes a quarter of them away, epsilon is a part of the denominator that counts, and each of
the gradients is clipped by another factor, the last one not at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm

from fusedtrain import rules
from fusedtrain.bench.accuracy import one_thread
from fusedtrain.bench.peers import Settings

SCALES = (1.0, 1 / 4, 1 / 16)
"""Of the gradients; powers of two, so that they are exact in every dtype."""
ROUNDINGS = len(SCALES) / 2
"""In eps of the largest parameter, allowed before they are doubled: one eps, two roundings, for each step."""
EPS = 1e-2
_BOUND = 1 / 8
"""Of the norm, in that of the first gradient: it is clipped to an eighth, the second to a half, the third is below."""


@dataclass(frozen=True)
class CheckedSteps:
    """The rule at the norm that the gradients of a list of parameters have."""

    settings: Settings
    coefficients: tuple[Tensor, ...]
    """Of clipping, by which each gradient is multiplied: fp64 ()."""
    of_torch: tuple[Tensor, ...]
    """The same as torch finds them, in the dtype of the gradients: of 10^8 of fp32 it errs by 10^-4."""

    @classmethod
    def of(cls, grads: Sequence[Tensor], eps: float = EPS) -> CheckedSteps:
        """For these gradients, which are the first ones."""
        with one_thread():
            norm = rules.vector_norm(list(grads), 2.0)
            bound = _BOUND * float(norm) or 1.0  # of no elements it is zero
            coefficients = tuple(rules.clip_coefficient(norm * scale, bound) for scale in SCALES)
        total = get_total_norm(list(grads), 2.0)
        of_torch = tuple(rules.clip_coefficient(total * scale, bound) for scale in SCALES)
        settings = dataclasses.replace(Settings(), lr=0.5, eps=eps, weight_decay=0.5, max_norm=bound)
        return cls(settings, coefficients, of_torch)

    def exact(self, x: Tensor, g: Tensor) -> Tensor:
        """What the steps make of elements ``x``, in fp64. ``g``: their first gradient."""
        s = self.settings
        p = x.double()
        states: rules.States = (torch.zeros_like(p), torch.zeros_like(p))
        for turn, coefficient in enumerate(self.coefficients):
            count = torch.tensor(turn + 1.0, dtype=torch.float64, device=x.device)
            clipped = gradient(x, g, turn).double() * coefficient
            u, states = rules.adamw(p, clipped, states, count, *s.betas, s.eps, s.weight_decay)
            p = p - s.lr * u
        return p

    def plain(self, x: Tensor, g: Tensor) -> Tensor:
        """What torch's plain operators of that dtype make of them, by its own norm."""
        p = Parameter(x.clone())
        opt = torch.optim.AdamW([p], **self.settings.adamw(), foreach=False)
        for turn, coefficient in enumerate(self.of_torch):
            clipped = gradient(x, g, turn)
            p.grad = clipped * coefficient.to(clipped.dtype)
            opt.step()
        return p.detach()


def gradient(x: Tensor, g: Tensor, turn: int) -> Tensor:
    """That of a step, from the first values and the first gradient. Its sign changes for some elements at the second
    step, and for all at the third."""
    scaled = g * SCALES[turn]
    return scaled if turn == 0 else scaled * x.sign() if turn == 1 else -scaled


def values(seed: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Of magnitudes from 1/2 to 1, of either sign: what is near to zero shows no decay and no step."""
    generator = torch.Generator(device).manual_seed(seed)
    drawn = torch.rand(shape, generator=generator, device=device) * 2 - 1
    return ((drawn + torch.where(drawn < 0, -1.0, 1.0)) / 2).to(dtype)
