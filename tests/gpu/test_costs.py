"""What a step costs besides its time: launches, memory, and what the backward keeps."""

from __future__ import annotations

import pytest
import torch
from step_tables import launcher_of
from stepping import optimizer, parameters

import fusedtrain as ft
from fusedtrain import dispatch, rules
from fusedtrain.bench import observe

CUDA = torch.device("cuda")


def step_of(backend: str, tensors: int, groups: int, numel: int = 100) -> object:
    xs = [torch.ones(numel, device=CUDA) for _ in range(tensors)]
    params = parameters(xs, [torch.ones_like(x) for x in xs])
    listed = params if groups == 1 else [{"params": [p], "lr": 1e-3 * (i + 1)} for i, p in enumerate(params)]
    opt = optimizer("adamw", listed, max_norm=1.0, backend=backend)
    for _ in range(3):  # states exist, kernels are compiled, tables are built
        opt.step()
    return opt.step


@pytest.mark.gpu
@pytest.mark.parametrize(("tensors", "groups"), [(1, 1), (2000, 1), (500, 500)])
def test_clip_and_step_are_two_launches(on_gpu: str, tensors: int, groups: int) -> None:
    launcher_of(dispatch.load(on_gpu))  # without `_plan` steps go by lists, which takes two fills more
    kernels = observe.launches(step_of(on_gpu, tensors, groups))  # type: ignore[arg-type]
    assert sum(kernels.values()) == 2, kernels


@pytest.mark.gpu
@pytest.mark.parametrize(("tensors", "groups"), [(1, 1), (2000, 1), (500, 500)])
def test_the_first_steps_too(on_gpu: str, tensors: int, groups: int) -> None:
    """The way by lists, which takes new gradients and new learning rates."""
    xs = [torch.ones(10, device=CUDA) for _ in range(tensors)]
    params = parameters(xs, [torch.ones_like(x) for x in xs])
    listed = params if groups == 1 else [{"params": [p]} for p in params]
    opt = optimizer("adamw", listed, max_norm=1.0, backend=on_gpu)
    opt.step()
    opt.param_groups[0]["lr"] = 0.5
    for p in params:
        p.grad = torch.full_like(p, 2.0)
    kernels = {name: n for name, n in observe.launches(opt.step).items() if "fill" not in name.lower()}
    assert sum(kernels.values()) == 2, kernels


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_one_launch_forward_and_one_backward(on_gpu: str, activation: str) -> None:
    x = torch.ones(512, 1024, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.ones(1024, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    state = torch.tensor([1, 2], device=CUDA)

    def forward() -> torch.Tensor:
        return ft.functional.act_dropout(x, activation, 0.1, bias=bias, rng_state=state, backend=on_gpu)

    y, dy = forward(), torch.ones(512, 1024, device=CUDA, dtype=torch.bfloat16)
    torch.autograd.grad(y, (x, bias), dy, retain_graph=True)
    assert sum(observe.launches(forward).values()) == 1
    kernels = observe.launches(lambda: torch.autograd.grad(y, (x, bias), dy, retain_graph=True))
    # The gradient of the bias comes in fp32, and is rounded to the dtype of the bias by torch.
    ours = {name: n for name, n in kernels.items() if "at::native" not in name}
    assert sum(ours.values()) == 1, kernels


@pytest.mark.gpu
def test_a_step_allocates_next_to_nothing(on_gpu: str) -> None:
    """The table, partial sums and outputs: a small share of the tensors, where torch's foreach takes copies of them."""
    step = step_of(on_gpu, 64, 1, numel=1 << 20)
    tensors = 64 * 4 * (1 << 20)
    assert observe.peak_bytes(step) < tensors / 100  # type: ignore[operator,arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", rules.ACTIVATIONS)
def test_saved_for_the_backward(backend: str, device: torch.device, activation: str, dtype: torch.dtype) -> None:
    """Nothing beyond y where y determines the gradient; else x and the 16 bytes of the RNG state."""
    if backend == "reference":
        pytest.skip("torch differentiates the specification, and keeps what it likes")
    x = torch.ones(256, 128, dtype=dtype, device=device, requires_grad=True)
    saved = observe.saved_bytes(lambda: ft.functional.act_dropout(x, activation, 0.1, backend=backend))
    expected = {"nothing": 16, "output": 0, "input": x.numel() * x.element_size() + 16}
    assert saved == expected[rules.ACTIVATIONS[activation].saves]


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_memory_of_forward_and_backward(on_gpu: str, activation: str) -> None:
    """In bytes that are really allocated: y, then dx; a mask would show."""
    x = torch.ones(4096, 4096, dtype=torch.bfloat16, device=CUDA, requires_grad=True)
    size, slack = x.numel() * 2, 1 << 20
    out: list[torch.Tensor] = []
    forward = observe.peak_bytes(lambda: out.append(ft.functional.act_dropout(x, activation, 0.1, backend=on_gpu)))
    assert size <= forward <= size + slack  # type: ignore[operator]
    dy = torch.ones_like(x)
    backward = observe.peak_bytes(lambda: torch.autograd.grad(out[0], x, dy))
    assert size <= backward <= size + slack  # type: ignore[operator]


def test_what_counts_launches_sees_events() -> None:
    """Without a GPU there are no kernels, but operators: a counter that sees nothing would pass everything above."""
    x = torch.ones(10)
    seen = observe.events(lambda: (x.add(1), x.add(2)))
    assert seen["cpu_op", "aten::add"] == 2
    if torch.cuda.is_available():
        y = x.cuda()
        assert sum(observe.launches(lambda: (y.add(1), y.add(2))).values()) == 2
    else:
        assert observe.launches(lambda: x.add(1)) == {}
