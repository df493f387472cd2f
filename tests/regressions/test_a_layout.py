"""Section A of the catalogue, layout: strides, gaps, overlap, alignment, and tensors that move between steps."""

from __future__ import annotations

import kit
import optim_cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fusedtrain as ft
from fusedtrain.testing import with_layout

LAYOUTS = ("contiguous", "transposed", "sliced", "offset")


def check_A11(case: str, make: kit.Make = kit.make) -> None:
    big = torch.randn(6, 10)
    kit.trial(case, [kit.parameter(torch.randn(6, 5), big.chunk(2, dim=1)[0])], make).step()


def check_A12(case: str, dtype: torch.dtype, make: kit.Make = kit.make) -> None:
    x, g = torch.randn(2, 2, 3, 4, 5, dtype=dtype)
    for last_p, last_g in ((True, False), (False, True), (True, True)):
        p = x.clone(memory_format=torch.channels_last if last_p else torch.contiguous_format)
        grad = g.clone(memory_format=torch.channels_last if last_g else torch.contiguous_format)
        trial = kit.trial(case, [kit.parameter(p, grad)], make)
        for _ in range(2):
            trial.step()


def check_A14(case: str, make: kit.Make = kit.make) -> None:
    kit.trial(case, [kit.parameter(torch.randn(4, 6), torch.randn(6, 4).t())], make).step()


def check_A15(case: str, make: kit.Make = kit.make) -> None:
    base = torch.arange(8.0).reshape(2, 4)
    p = kit.parameter(base[:, ::2], torch.ones(2, 2))
    trial = kit.trial(case, [p], make)
    for _ in range(2):
        p.grad = torch.randn(2, 2)
        trial.step()
    assert base[:, 1::2].tolist() == [[1, 3], [5, 7]], "the gaps belong to somebody else"


def test_A11_gradient_is_a_chunk(backend: str, case: str) -> None:
    """bnb#1185: a strided gradient was read as if it were row-major."""
    check_A11(case)


@pytest.mark.parametrize("dtype", kit.FLOATS, ids=str)
def test_A12_channels_last(backend: str, case: str, dtype: torch.dtype) -> None:
    """ROCm/apex!97: each list was contiguous in some format, the formats were never compared."""
    check_A12(case, dtype)


def test_A14_gradient_is_transposed(backend: str, case: str) -> None:
    """torch 2.13 on the CPU: fused SGD, Adam, AdamW walk raw pointers and are silently wrong."""
    check_A14(case)


def test_A15_parameter_has_gaps(backend: str, case: str) -> None:
    """torch 2.13 on the CPU: the gaps are overwritten, half of the parameter is not updated."""
    check_A15(case)


@pytest.mark.parametrize("check", [check_A14, check_A15])
@pytest.mark.parametrize("case", optim_cases.HAVE_TORCH_FUSED)
def test_A14_A15_can_fail(check: object, case: str) -> None:
    """The checks see the bugs of torch's own fused optimizers. A torch without them may skip this."""

    def torch_fused(case: str, params: list[Tensor]) -> torch.optim.Optimizer:
        return kit.make_torch(case, params, fused=True)

    try:
        check(case, torch_fused)  # type: ignore[operator]
    except AssertionError:
        return
    pytest.skip(f"torch {torch.__version__} has mended its fused {kit.SETTINGS[case][0]}")


@pytest.mark.parametrize(
    "overlapping",
    [
        lambda: torch.zeros(1, 3).expand(4, 3),
        lambda: torch.zeros(8).as_strided((4, 3), (1, 1)),
        lambda: torch.zeros(12).as_strided((2, 3, 2), (2, 2, 1)),
    ],
    ids=["expanded", "window", "partial"],
)
def test_A16_overlapping_parameter_is_refused(backend: str, case: str, overlapping: object) -> None:
    """torch 2.13 on the CPU: fused steps write out of bounds and abort the process; titans-pytorch#64."""
    x = overlapping()  # type: ignore[operator]
    good, bad = kit.parameter(torch.ones(3), torch.ones(3)), kit.parameter(x, torch.ones(x.shape))
    opt = kit.make(case, [good, bad])
    with pytest.raises(RuntimeError, match=type(opt).__name__):
        opt.step()
    assert good.tolist() == [1.0] * 3, "all parameters are checked before the first is written"
    assert not x.any()


def test_A17_tensors_may_move_between_steps(backend: str, case: str) -> None:
    """dion!63: tables keyed on pointers went stale; the allocator hands the same address to another tensor."""
    p, q = kit.parameter(torch.randn(40), torch.randn(40)), kit.parameter(torch.randn(3, 5), torch.randn(3, 5))
    trial = kit.trial(case, [p, q])
    trial.step()
    p.grad = torch.randn(40)  # another gradient
    trial.step()
    q.grad = torch.randn(5, 3).t()  # the same shape, other strides
    trial.step()
    p.data = p.data.clone()  # the parameter itself
    trial.step()
    p.grad = None
    trial.step()
    storage = torch.randn(200)
    p.grad, q.grad = storage[:40], storage[40:55].view(3, 5)
    trial.step()
    p.grad, q.grad = storage[160:], storage[:15].view(3, 5)  # q's gradient now begins where p's did
    trial.step()


def test_A17_states_may_be_replaced(backend: str) -> None:
    """As A17 for states: load_state_dict makes new ones at every call."""
    p = kit.parameter(torch.randn(9), torch.randn(9))
    trial = kit.trial("adamw", [p])
    for _ in range(3):
        trial.step()
        trial.optimizer.load_state_dict(trial.optimizer.state_dict())
        trial.follow()


@settings(max_examples=60, deadline=None)
@given(
    backend=st.sampled_from(kit.backends()),
    case=st.sampled_from(kit.CASES),
    dtype=st.sampled_from(kit.FLOATS),
    numel=st.one_of(st.integers(1, 257), st.sampled_from([1023, 1024, 32768, 32769])),
    offsets=st.tuples(st.integers(0, 15), st.integers(0, 15)),
    seed=st.integers(0, 999),
)
def test_A21_any_alignment(
    backend: str, case: str, dtype: torch.dtype, numel: int, offsets: tuple[int, int], seed: int
) -> None:
    """tilelang#2526, DeepSpeed!1318: vector loads chosen from the type, not from the pointer. Guards around the data
    stay as they were."""
    generator = torch.Generator().manual_seed(seed)
    guard = 32

    def inside(offset: int) -> tuple[Tensor, Tensor]:
        buffer = torch.full((numel + offset + 2 * guard,), 171.0, dtype=dtype)
        view = buffer[guard + offset : guard + offset + numel]
        return buffer, view.copy_(torch.randn(numel, generator=generator))

    (buffer, x), (_, g) = inside(offsets[0]), inside(offsets[1])
    trial = kit.trial(case, [kit.parameter(x, g)], max_norm=1.0, backend=backend)
    for _ in range(2):
        trial.step()
    outside = torch.cat([buffer[: guard + offsets[0]], buffer[guard + offsets[0] + numel :]])
    assert bool((outside == 171.0).all())


@pytest.mark.parametrize("kind_g", LAYOUTS)
@pytest.mark.parametrize("kind_p", LAYOUTS)
def test_A14_every_pair_of_layouts(backend: str, kind_p: str, kind_g: str) -> None:
    """As A11 to A21, all pairs, with clipping."""
    p, g = torch.randn(2, 5, 7)
    x = with_layout(p, kind_p)
    trial = kit.trial("adamw", [kit.parameter(x, with_layout(g, kind_g))], max_norm=0.5)
    for _ in range(2):
        trial.step()


@pytest.mark.parametrize("kind", LAYOUTS)
def test_A14_norm_and_clipping_of_any_layout(backend: str, kind: str) -> None:
    """As A11 to A21 for the norm, and for gradients clipped in place."""
    g = torch.randn(5, 7)
    p = kit.parameter(torch.zeros(5, 7), with_layout(g, kind))
    norm = ft.clip_grad_norm_([p], 0.5)
    torch.testing.assert_close(norm, g.norm())
    torch.testing.assert_close(p.grad, g * (0.5 / (g.norm() + 1e-6)))
    ft.clip_grad_value_([p], 0.01)
    torch.testing.assert_close(p.grad, (g * (0.5 / (g.norm() + 1e-6))).clamp(-0.01, 0.01))
