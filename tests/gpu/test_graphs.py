"""CUDA graphs: what is captured is the work, not the values. A18, A25, E1, E3, E4."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from optim_cases import CASES, takes
from stepping import assert_bitwise, everything, optimizer, parameters, random
from torch import Tensor

import fusedtrain as ft
from fusedtrain import rng

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
SHAPES: list[tuple[int, ...]] = [(64, 33), (7,), (129,), (0,), (5, 5)]


def capture(work: Callable[[], object], warm: int = 3) -> torch.cuda.CUDAGraph:
    """The work as a graph, after some calls on a side stream as torch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def churn() -> None:
    """Takes and gives back memory of the device and of the host, pinned too, and fills it."""
    for size in (1, 1000, 100_000):
        torch.full((size,), math.nan, device=CUDA)
        torch.full((size,), math.nan, pin_memory=True)
        torch.full((size,), math.nan)
    torch.cuda.empty_cache()


@pytest.mark.parametrize("case", CASES)
def test_E4_A25_replays_follow_lr_and_gradients(on_gpu: str, case: str) -> None:
    """pytorch!77862, #106802, !119764: replays froze lr and step, or read metadata whose memory had gone."""
    xs = random(SHAPES, CUDA, torch.float32)
    grads = [random(SHAPES, CUDA, torch.float32, seed) for seed in range(12)]
    lrs = [0.1 / (i + 1) for i in range(12)]
    rate = torch.tensor(0.1, device=CUDA)
    params = parameters([x.clone() for x in xs], [g.clone() for g in grads[0]])
    settings = {"capturable": True} if takes(case, "capturable") else {}
    opt = optimizer(case, params, **{"lr": rate, "max_norm": 1.0, "backend": on_gpu, **settings})
    graph = capture(opt.step)
    # Captured, not run: the warm-up steps were the first three. From here on as eager steps.
    twins = parameters([p.detach().clone() for p in params])
    eager = optimizer(case, twins, lr=0.1, max_norm=1.0, backend=on_gpu)
    eager.load_state_dict({**opt.state_dict(), "param_groups": eager.state_dict()["param_groups"]})
    norms = []
    for gs, lr in zip(grads, lrs, strict=True):
        rate.fill_(lr)
        for p, q, g in zip(params, twins, gs, strict=True):
            p.grad.copy_(g)
            q.grad = g
        eager.param_groups[0]["lr"] = lr
        churn()
        graph.replay()
        norms.append(float(opt.grad_norm))
        eager.step()
        assert norms[-1] == float(eager.grad_norm)
        # lr comes as a float64 of a float32 here, and as a float64 there.
        for a, b in zip(everything(opt), everything(eager), strict=True):
            torch.testing.assert_close(a, b)
    assert len(set(norms)) == len(norms)


def test_E4_replays_of_equal_values_are_bitwise_eager(on_gpu: str) -> None:
    xs, gs = random(SHAPES, CUDA, torch.float32), random(SHAPES, CUDA, torch.float32, 1)
    params, twins = (parameters([x.clone() for x in xs], [g.clone() for g in gs]) for _ in range(2))
    opt, eager = (optimizer("adamw", ps, max_norm=1.0, backend=on_gpu) for ps in (params, twins))
    graph = capture(opt.step)
    for _ in range(100):
        graph.replay()
    for _ in range(103):
        eager.step()
    assert_bitwise(everything(opt), everything(eager))


def test_E4_a_replay_reads_its_settings_whatever_settings_came_since(on_gpu: str) -> None:
    """Where lr is a tensor, the others lie beside it on the device: a cache must not let go what a graph reads."""
    xs, gs = random(SHAPES, CUDA, torch.float32), random(SHAPES, CUDA, torch.float32, 1)
    params, twins = (parameters([x.clone() for x in xs], [g.clone() for g in gs]) for _ in range(2))
    rate = torch.tensor(0.1, device=CUDA)
    settings = {"lr": rate, "max_norm": 1.0, "capturable": True, "backend": on_gpu}
    opt, eager = (optimizer("adamw", ps, **settings) for ps in (params, twins))
    graph = capture(opt.step)
    for i in range(40):
        ones = [torch.ones(3, device=CUDA)]
        optimizer("adamw", parameters(ones, [torch.ones_like(x) for x in ones]), eps=1e-7 * (i + 1), **settings).step()
    taken = [torch.full((64,), math.nan, device=CUDA) for _ in range(1000)]
    for _ in range(3):
        graph.replay()
    for _ in range(6):
        eager.step()
    assert_bitwise(everything(opt), everything(eager))
    del taken


def test_A18_a_replay_works_on_the_gradients_that_were_captured(on_gpu: str) -> None:
    """dion!104, pytorch!107504: gradients set to None move, and the captured pointers with freed memory stay. Those of
    the capture belong to the graph: the step it does is the step of what they hold."""
    x = torch.zeros(1000, device=CUDA)
    (p,) = parameters([x])
    static = torch.ones_like(x)
    p.grad = static
    opt = optimizer("sgd", [p], lr=1.0, weight_decay=0.0, backend=on_gpu)
    graph = capture(opt.step, warm=1)
    p.grad = None
    churn()
    p.grad = torch.full_like(x, 100.0)
    before = p.detach().clone()
    graph.replay()
    torch.testing.assert_close(p.detach(), before - 1)


def test_skipping_is_decided_by_each_replay(on_gpu: str) -> None:
    (p,) = parameters([torch.zeros(100, device=CUDA)], [torch.ones(100, device=CUDA)])
    opt = optimizer("adamw", [p], nonfinite="skip", max_norm=1.0, backend=on_gpu)
    graph = capture(opt.step)
    for bad in (False, True, True, False):
        p.grad.fill_(math.nan if bad else 1.0)
        before = [t.clone() for t in everything(opt)]
        graph.replay()
        changed = not all(torch.equal(a, b) for a, b in zip(everything(opt), before, strict=True))
        assert changed is not bad
    assert int(opt.skipped_steps) == 2


def test_clip_grad_norm_is_captured(on_gpu: str) -> None:
    gs = random(SHAPES, CUDA, torch.float32)
    params = parameters([torch.zeros_like(g) for g in gs], [g.clone() for g in gs])
    graph = capture(lambda: ft.clip_grad_norm_(params, 1.0))
    for scale in (1.0, 1e-4, 50.0):
        for p, g in zip(params, gs, strict=True):
            p.grad.copy_(g * scale)
        graph.replay()
        norm = float(torch.cat([p.grad.flatten() for p in params]).double().norm())
        start = float(torch.cat([(g * scale).flatten() for g in gs]).double().norm())
        assert norm == pytest.approx(min(start, 1.0), rel=1e-5)


@pytest.mark.parametrize("activation", ["identity", "gelu", "relu"])
def test_E1_masks_differ_between_replays_and_agree_within(on_gpu: str, activation: str) -> None:
    """flash-attn!166, pytorch!100196, apex!1025: the same mask in every replay, or another one in the backward."""
    x = torch.full((333, 65), 2.0, device=CUDA, requires_grad=True)
    y, dx = torch.empty_like(x), torch.empty_like(x)

    def work() -> None:
        out = ft.functional.act_dropout(x, activation, 0.5, backend=on_gpu)
        y.copy_(out.detach())
        dx.copy_(torch.autograd.grad(out.sum(), x)[0])

    graph = capture(work)
    masks: list[Tensor] = []
    for _ in range(4):
        graph.replay()
        masks.append(y != 0)
        assert torch.equal(dx != 0, masks[-1])
        rate = float(masks[-1].float().mean())
        assert abs(rate - 0.5) < 5 * math.sqrt(0.25 / x.numel())
    for i, mask in enumerate(masks):
        assert not any(torch.equal(mask, other) for other in masks[:i])
    torch.cuda.manual_seed(5)
    graph.replay()
    first = y.clone()
    torch.cuda.manual_seed(5)
    graph.replay()
    assert torch.equal(first, y)


def test_E1_a_given_state_is_read_by_each_replay(on_gpu: str) -> None:
    x, state = torch.ones(1001, device=CUDA), torch.tensor([1, 4], device=CUDA)
    y = torch.empty_like(x)
    graph = capture(lambda: y.copy_(ft.functional.act_dropout(x, "identity", 0.5, rng_state=state, backend=on_gpu)))
    for seed in (7, 8):
        state[0] = seed
        graph.replay()
        keep = rng.keep_mask(torch.tensor([seed, 4]), rng.drop_threshold(0.5), (1001,))
        assert torch.equal(y.cpu() != 0, keep)


def test_E3_two_graphs_of_one_generator_draw_their_own(on_gpu: str) -> None:
    """pytorch!176752: captures that share a generator shared numbers too."""
    x = torch.ones(4099, device=CUDA)
    outs = torch.empty(2, 4099, device=CUDA)
    graphs = [
        capture(lambda i=i: outs[i].copy_(ft.functional.act_dropout(x, "identity", 0.5, backend=on_gpu)))
        for i in range(2)
    ]
    for graph in graphs:
        graph.replay()
    both = float(((outs[0] != 0) & (outs[1] != 0)).float().mean())
    assert abs(both - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4099)


def test_a_whole_training_step_is_captured(on_gpu: str) -> None:
    """Forward, backward, clip and step in one graph: the loss goes down, and bitwise as without a graph."""
    results = []
    for graphed in (False, True):
        torch.manual_seed(0)
        layer = ft.nn.LinearActDropout(32, 32, "gelu", 0.0, backend=on_gpu).to(CUDA)
        opt = ft.optim.AdamW(layer.parameters(), lr=1e-2, max_norm=1.0, backend=on_gpu)
        x = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).to(CUDA)
        losses = torch.zeros(1, device=CUDA)
        for p in layer.parameters():
            p.grad = torch.zeros_like(p)

        def work(layer: torch.nn.Module = layer, x: Tensor = x, opt: object = opt, losses: Tensor = losses) -> None:
            opt.zero_grad(set_to_none=False)  # type: ignore[attr-defined]
            loss = (layer(x) - x).square().mean()
            loss.backward()
            opt.step()  # type: ignore[attr-defined]
            losses.copy_(loss.detach().reshape(1))

        if graphed:
            graph = capture(work)
            for _ in range(17):
                graph.replay()
        else:
            for _ in range(20):
                work()
        results.append([losses, *(p.detach() for p in layer.parameters())])
    assert_bitwise(*results)
