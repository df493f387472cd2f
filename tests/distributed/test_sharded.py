"""Two processes over gloo: the norm and the step of replicated and sharded parameters are those of one process."""

from __future__ import annotations

import os
import re
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import fusedtrain as ft

RANKS = 2
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo"
)


def _worker(rank: int, port: int, outcomes: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(RANKS))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    for body in BODIES:
        torch.manual_seed(0)
        try:
            body(rank)
            dist.barrier()
        except Exception:
            outcomes.put((body.__name__, f"rank {rank}: {traceback.format_exc()}"))
            return  # the ranks may have lost each other
        outcomes.put((body.__name__, ""))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[str]]:
    """What each body raised, or "", by rank. One pair of processes runs them all: starting one costs seconds. One that
    dies on its way out, as one of torch 2.14 did, has told all of it before: what it has not told fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = mp.get_context("spawn").SimpleQueue()
    context = mp.start_processes(_worker, (port, queue), nprocs=RANKS, join=False, start_method="spawn")
    deadline = time.monotonic() + 240
    try:
        while not context.join(timeout=1) and time.monotonic() < deadline:
            pass
    except mp.ProcessExitedException as died:
        warnings.warn(str(died), stacklevel=1)
    for process in context.processes:
        if process.is_alive():
            process.terminate()
    found: dict[str, list[str]] = {}
    while not queue.empty():
        name, error = queue.get()
        found.setdefault(name, []).append(error)
    return found


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3, bias=False), nn.Linear(3, 1))


def batch(step: int) -> Tensor:
    """The same on every rank: rank r takes the rows r, r + 2, ..."""
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(step))


def train_alone(cls: type, steps: int, **kwargs: Any) -> tuple[list[Tensor], list[Tensor]]:
    net = model()
    opt = cls(net.parameters(), lr=0.1, **kwargs)
    norms = []
    for step in range(steps):
        opt.zero_grad()
        net(batch(step)).square().mean().backward()
        opt.step()
        norms.append(opt.grad_norm)
    return [p.detach() for p in net.parameters()], norms


def whole(x: Tensor) -> Tensor:
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def train_together(net: nn.Module, parameters: list[nn.Parameter], rank: int, cls: type, **kwargs: Any) -> None:
    """Steps a wrapped model and holds it to the lone process, norm by norm."""
    expected, norms = train_alone(cls, 4, **kwargs)
    opt = cls(parameters, lr=0.1, **kwargs)
    for step, norm in enumerate(norms):
        opt.zero_grad()
        net(batch(step)[rank::RANKS]).square().mean().backward()
        opt.step()
        assert type(opt.grad_norm) is Tensor
        torch.testing.assert_close(opt.grad_norm, norm, rtol=1e-5, atol=0)
    for p, e in zip(parameters, expected, strict=True):
        torch.testing.assert_close(whole(p.detach()), e, rtol=1e-4, atol=1e-5)  # AdamW divides tiny by tiny


def ddp(rank: int) -> None:
    for cls in (ft.optim.AdamW, ft.optim.SGD):
        net = nn.parallel.DistributedDataParallel(model(), gradient_as_bucket_view=True)
        train_together(net, list(net.parameters()), rank, cls, max_norm=0.1)


def fsdp2(rank: int) -> None:
    from torch.distributed.fsdp import fully_shard

    for cls, kwargs in (
        (ft.optim.AdamW, {"max_norm": 0.1}),
        (ft.optim.SGD, {"max_norm": 0.2, "momentum": 0.9, "norm_type": 1.0}),
        (ft.optim.AdamW, {"max_norm": 0.05, "norm_type": torch.inf}),
        (ft.optim.Adagrad, {"max_norm": 0.1, "initial_accumulator_value": 0.3}),
        (ft.optim.RMSprop, {"max_norm": 0.1, "centered": True}),
    ):
        net = model()
        for layer in (net[0], net[2]):
            fully_shard(layer)  # 7 rows and 3 rows over 2 ranks: uneven shards
        fully_shard(net)  # and a bias of one element, of which a rank has nothing
        train_together(net, list(net.parameters()), rank, cls, **kwargs)


def fsdp2_checkpoint(rank: int) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    def build() -> tuple[nn.Module, Any]:
        net = model()
        fully_shard(net)
        return net, ft.optim.AdamW(net.parameters(), lr=0.1, max_norm=0.1)

    def step(net: nn.Module, opt: Any, i: int) -> None:
        opt.zero_grad()
        net(batch(i)).square().mean().backward()
        opt.step()

    net, opt = build()
    step(net, opt, 0)
    for p in net.parameters():
        state = opt.state[p]["exp_avg"]
        assert isinstance(state, DTensor)
        assert state.placements == p.placements
    other_net, other = build()
    with torch.no_grad():
        for p, q in zip(net.parameters(), other_net.parameters(), strict=True):
            q.copy_(p)
    set_optimizer_state_dict(other_net, other, get_optimizer_state_dict(net, opt))
    step(net, opt, 1)
    step(other_net, other, 1)
    for p, q in zip(net.parameters(), other_net.parameters(), strict=True):
        assert torch.equal(p.to_local(), q.to_local())


def mixed(rank: int) -> None:
    """Plain, replicated and sharded parameters, on two meshes, in one optimizer and one clip."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    line, grid = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2))
    values = [torch.randn(n, 3) for n in (5, 4, 3, 2)]
    grads = [torch.randn(n, 3) for n in (5, 4, 3, 2)]
    layouts = [(line, [Shard(0)]), (line, [Replicate()]), (grid, [Replicate(), Shard(1)]), None]

    def place(x: Tensor, layout: Any) -> Tensor:
        return x.clone() if layout is None else distribute_tensor(x.clone(), *layout)

    for norm_type in (2.0, torch.inf):
        alone = [nn.Parameter(v.clone()) for v in values]
        spread = [nn.Parameter(place(v, at)) for v, at in zip(values, layouts, strict=True)]
        opts = [ft.optim.AdamW(ps, lr=0.1, max_norm=0.5, norm_type=norm_type) for ps in (alone, spread)]
        for _ in range(2):
            for p, q, g, at in zip(alone, spread, grads, layouts, strict=True):
                p.grad, q.grad = g.clone(), place(g, at)
            for opt in opts:
                opt.step()
            torch.testing.assert_close(opts[1].grad_norm, opts[0].grad_norm)
        for p, q in zip(alone, spread, strict=True):
            torch.testing.assert_close(whole(q.detach()), p.detach())
        norms = [ft.clip_grad_norm_(ps, 0.5, norm_type) for ps in (alone, spread)]
        torch.testing.assert_close(norms[1], norms[0])
        assert type(norms[1]) is Tensor
        for p, q in zip(alone, spread, strict=True):
            torch.testing.assert_close(whole(q.grad), p.grad)
        ft.clip_grad_value_(spread, 0.01)
        assert all(whole(q.grad).abs().max() <= 0.01 for q in spread)


def norms_of_single_tensors(rank: int) -> None:
    """Of plain, replicated, sharded and pending ones, on two meshes: in the order of the list, the same on every rank,
    with one collective for each way of sharding however many tensors have it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    line, grid = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2))
    values = [torch.randn(n, 3) for n in (5, 1, 4, 3, 2, 7, 0)]  # of the second a rank has nothing, of the last both
    values[5] *= 1e30
    layouts = [(line, [Shard(0)]), (line, [Shard(0)]), (line, [Replicate()]), (grid, [Replicate(), Shard(1)])]
    placed = [distribute_tensor(v.clone(), *at) for v, at in zip(values, layouts, strict=False)]
    pending = DTensor.from_local(values[4] / 2, line, [Partial()])
    xs = [*placed, pending, distribute_tensor(values[5], line, [Shard(0)]), values[6]]
    gathers = []
    gather = dist.all_gather_into_tensor
    dist.all_gather_into_tensor = lambda out, part, **kwargs: gathers.append(part.shape) or gather(out, part, **kwargs)
    try:
        for norm_type in (1.0, 2.0, 3.0, torch.inf):
            gathers.clear()
            norms = ft.tensor_norms(xs, norm_type)
            assert type(norms) is Tensor
            torch.testing.assert_close(norms, ft.tensor_norms(values, norm_type))
            assert gathers == [(1, 3), (1, 1)], gathers
            everywhere = torch.empty(2 * len(xs))
            gather(everywhere, norms)
            assert torch.equal(everywhere[: len(xs)], everywhere[len(xs) :])
    finally:
        dist.all_gather_into_tensor = gather
    wide = ft.tensor_norms([x.double() for x in xs])
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide, ft.tensor_norms([v.double() for v in values]))
    placed[0].to_local().fill_(torch.inf if rank == 0 else 1.0)
    assert ft.tensor_norms(placed).isfinite().tolist() == [False, True, True, True]


def pending_sum(rank: int) -> None:
    """Of a Partial gradient each rank holds an addend. Clamped addends do not add up to the clamped sum."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    first = nn.Parameter(torch.ones(2))
    first.grad = torch.full((2,), 3.0)
    p = nn.Parameter(distribute_tensor(torch.zeros(2), mesh, [Replicate()]))
    addend = torch.tensor([0.4, -0.4]) if rank == 0 else torch.tensor([1.0, 0.1])
    p.grad = DTensor.from_local(addend.clone(), mesh, [Partial()])
    try:
        ft.clip_grad_value_([first, p], 0.5)
    except TypeError as error:
        said = str(error)
    else:
        raise AssertionError("addends were clamped")
    assert re.search(r"clip_grad_value_: gradient 1 .*Partial.*redistribute\(placements=p\.placements\)", said), said
    assert torch.equal(p.grad.to_local(), addend)
    assert torch.equal(first.grad, torch.full((2,), 3.0))
    p.grad = p.grad.redistribute(placements=p.placements)  # as the error says
    ft.clip_grad_value_([first, p], 0.5)
    torch.testing.assert_close(whole(p.grad), torch.tensor([0.5, -0.3]))


def bad_gradient_on_one_rank(rank: int) -> None:
    """Both skip, neither hangs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    p = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    opt = ft.optim.AdamW([p], lr=0.1, nonfinite="skip", max_norm=1.0)
    for step in range(3):
        g = torch.ones(4)
        if step == 1:
            g[3] = torch.nan  # in the shard of rank 1
        p.grad = distribute_tensor(g, mesh, [Shard(0)])
        opt.step()
    assert opt.skipped_steps.item() == 1
    assert opt.state[p]["step"].item() == 2
    assert bool(whole(p.detach()).isfinite().all())


def gradient_on_one_rank_only(rank: int) -> None:
    """The rank without it takes part in the norm."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    p = nn.Parameter(distribute_tensor(torch.zeros(4), mesh, [Shard(0)]))
    opt = ft.optim.SGD([p], lr=1.0, max_norm=torch.inf)
    if rank == 0:
        p.grad = DTensor.from_local(torch.tensor([3.0, 4.0]), mesh, [Shard(0)])
    opt.step()
    assert opt.grad_norm.item() == 5.0, f"{opt.grad_norm}"


def trust_ratios_of_shards(rank: int) -> None:
    """A rank would see the norm of its part alone: refused, before anything is written. Replicas are stepped alike."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    x, g = torch.arange(1.0, 5.0), torch.ones(4)

    def placed(how: Any) -> nn.Parameter:
        p = nn.Parameter(distribute_tensor(x.clone(), mesh, [how]))
        p.grad = distribute_tensor(g.clone(), mesh, [how])
        return p

    for cls in (ft.optim.LAMB, ft.optim.LARS):
        plain = nn.Parameter(x.clone())
        plain.grad = g.clone()
        try:
            cls([plain, placed(Shard(0))], lr=0.1).step()
        except RuntimeError as error:
            said = str(error)
        else:
            raise AssertionError("a shard was stepped")
        assert re.search(rf"{cls.__name__}\.step: parameter 1 of group 0 is sharded", said), said
        assert torch.equal(plain, x)
        replica = placed(Replicate())
        cls([plain, replica], lr=0.1).step()
        assert not torch.equal(plain, x)
        assert torch.equal(whole(replica.detach()), plain)


BODIES = [
    ddp,
    fsdp2,
    fsdp2_checkpoint,
    mixed,
    norms_of_single_tensors,
    pending_sum,
    bad_gradient_on_one_rank,
    gradient_on_one_rank_only,
    trust_ratios_of_shards,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_two_ranks(body: Callable[[int], None], outcomes: dict[str, list[str]]) -> None:
    raised = outcomes.get(body.__name__, ["it was not reached"])
    assert raised == [""] * RANKS, "\n".join(raised)
