"""Section B of the catalogue, steps: duplicates, groups, errors before writes, versions, DTensors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import kit
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import fusedtrain as ft
from fusedtrain import dispatch, rules


@pytest.fixture
def mesh(tmp_path: object) -> Iterator[object]:
    """A mesh of this process alone."""
    if not dist.is_available():
        pytest.skip("torch without distributed")
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_B25_dtensors_on_a_mesh_of_one(backend: str, case: str, mesh: object) -> None:
    """TE#2424, torchao#2296: states of the global shape, plain states beside DTensors."""
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    x, g = torch.randn(6, 4), torch.randn(6, 4)
    p = kit.parameter(distribute_tensor(x.clone(), mesh, [Shard(0)]), distribute_tensor(g, mesh, [Shard(0)]))
    q = kit.parameter(x, g.clone())
    opt, plain = kit.make(case, [p], max_norm=0.5), kit.make(case, [q], max_norm=0.5)
    for _ in range(2):
        opt.step()
        plain.step()
    assert torch.equal(p.full_tensor(), q)
    assert torch.equal(opt.grad_norm, plain.grad_norm)
    assert not isinstance(opt.grad_norm, DTensor)
    for name in rules.UPDATES[kit.SETTINGS[case][2]].slots:
        state = opt.state[p][name]
        assert isinstance(state, DTensor)
        assert (state.shape, state.placements) == (p.shape, p.placements)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_B26_gradients_of_another_dtype(backend: str, case: str, dtype: torch.dtype) -> None:
    """TE#3358, pytorch#111317: fp32 parameter, narrow gradient: refused or misread."""
    p = kit.parameter(torch.randn(33))
    g = torch.randn(33).to(dtype)
    if not hasattr(p, "grad_dtype"):
        pytest.skip(f"torch {torch.__version__} has no Tensor.grad_dtype")
    p.grad_dtype = dtype
    p.grad = g
    kit.trial(case, [p], max_norm=0.5).step()


def malformed() -> dict[str, Callable[[Callable[..., object], Tensor], object]]:
    """Calls of optim_step_ that must be refused. Each gets the operator and a tensor that must stay as it is."""
    table = torch.tensor([[0.1, 1.0, math.inf, 0.0, 0.9, 0.99, 1e-8, 0.0]], dtype=torch.float64)

    def call(op: Callable[..., object], p: Tensor, **changes: object) -> object:
        arguments = {
            "rule": "adamw",
            "params": [p],
            "grads": [torch.ones(4)],
            "states": [torch.zeros(4), torch.zeros(4)],
            "steps": [torch.zeros(())],
            "hyper": table,
            "group": [0],
        }
        none = (None, None, None, None, -1.0, False, None, None, None)
        return op(*{**arguments, **changes}.values(), *none)

    changes: dict[str, dict[str, object]] = {
        "unknown rule": {"rule": "no_such_rule"},
        "fewer gradients": {"grads": []},
        "too few states": {"states": [torch.zeros(4)]},
        "no states": {"states": []},
        "small state": {"states": [torch.zeros(2), torch.zeros(4)]},
        "small gradient": {"grads": [torch.ones(3)]},
        "no steps": {"steps": []},
        "wide step": {"steps": [torch.zeros(2)]},
        "no groups": {"group": []},
        "group of no row": {"group": [1]},
        "negative group": {"group": [-1]},
        "narrow row": {"hyper": table[:, :5]},
        "integer state": {"states": [torch.zeros(4, dtype=torch.int32), torch.zeros(4)]},
        "integer gradient": {"grads": [torch.ones(4, dtype=torch.int64)]},
        "overlapping state": {"states": [torch.zeros(1).expand(4), torch.zeros(4)]},
    }
    return {name: lambda op, p, c=c: call(op, p, **c) for name, c in changes.items()}


@pytest.mark.parametrize("name", sorted(malformed()))
def test_B30_malformed_lists_are_refused_by_the_operator(name: str) -> None:
    """bnb#2075: a state of half the size was read and written beyond its end. Operators are safe to call directly."""
    backend = dispatch.load("cpu")
    if backend.why_not:
        pytest.skip(f"backend cpu: {backend.why_not}")
    p = torch.ones(4)
    with pytest.raises((RuntimeError, ValueError)):
        malformed()[name](backend.optim_step_, p)  # type: ignore[arg-type]
    assert p.tolist() == [1] * 4


def test_B32_settings_are_per_group(backend: str, case: str) -> None:
    """bnb#1269: overrides of one group were ignored."""
    torch.manual_seed(3)
    values, grads = torch.randn(2, 5), torch.randn(2, 5)
    together = [kit.parameter(v.clone(), g.clone()) for v, g in zip(values, grads, strict=True)]
    apart = [kit.parameter(v.clone(), g.clone()) for v, g in zip(values, grads, strict=True)]
    override = {"lr": 0.5, "weight_decay": 0.25, "l1": 0.1, "clip_value": 0.2}
    kit.make(case, [{"params": together[:1]}, {"params": together[1:], **override}]).step()
    kit.make(case, apart[:1]).step()
    kit.make(case, apart[1:], **override).step()
    kit.assert_bitwise(together, apart)


def test_B33_momentum_has_an_effect(backend: str) -> None:
    """pytorch_optimizer!516: the buffer was zeroed at every step."""
    results = []
    for momentum in (0.0, 0.9):
        p = kit.parameter(torch.zeros(3), torch.ones(3))
        opt = ft.optim.SGD([p], lr=1.0, momentum=momentum)
        opt.step()
        opt.step()
        results.append(float(p[0]))
    assert results == pytest.approx([-2.0, -2.9])


def test_B35_duplicates_are_errors(backend: str, case: str) -> None:
    """pytorch#40967: listed twice in a group, it was updated twice, with a warning."""
    p = kit.parameter(torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match="duplicate parameters"):
        kit.make(case, [p, p])
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        kit.make(case, [{"params": [p]}, {"params": [p]}])
    assert p.tolist() == [1]


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("kind", ["sparse", "empty sparse", "complex", "shape"])
def test_B38_errors_come_before_the_first_write(backend: str, case: str, kind: str, position: int) -> None:
    """pytorch#82486, and atomicity: no parameter, state or count of any group has changed."""
    params = [kit.parameter(torch.ones(3), torch.ones(3)) for _ in range(3)]
    opt = kit.make(case, [{"params": params[:1]}, {"params": params[1:]}], max_norm=1.0)
    opt.step()
    before = kit.snapshot(opt)
    bad = params[position]
    if kind == "complex":
        bad = kit.parameter(torch.ones(3, dtype=torch.complex64), torch.ones(3, dtype=torch.complex64))
        opt.param_groups[position > 0]["params"].append(bad)
    elif kind == "shape":
        bad.data = torch.ones(4)
        before[position] = torch.ones(4)
    else:
        bad.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), [2.0], (3,))
        if kind == "empty sparse":
            bad.grad = torch.sparse_coo_tensor(torch.empty(1, 0, dtype=torch.int64), torch.empty(0), (3,))
    with pytest.raises(RuntimeError, match=type(opt).__name__):  # B39, TE!2675: FusedSGD errors named FusedAdam
        opt.step()
    if kind == "complex":
        opt.param_groups[position > 0]["params"].pop()
    kit.assert_bitwise(kit.snapshot(opt), before)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lr", -0.1),
        ("lr", math.nan),
        ("weight_decay", -1.0),
        ("max_norm", -1.0),
        ("clip_value", math.nan),
        ("l1", -1.0),
        ("l1", math.inf),
        ("nonfinite", "ignore"),
    ],
)
def test_B39_errors_name_the_class_and_the_value(backend: str, case: str, setting: str, value: object) -> None:
    """TE!2675: copied messages. Checked at construction and, since schedulers write groups, again at the step."""
    p = kit.parameter(torch.ones(2), torch.ones(2))
    name = kit.SETTINGS[case][0]
    pattern = f"(?s)(?=.*{name})(?=.*{value})"
    with pytest.raises(ValueError, match=pattern):
        kit.make(case, [p], **{setting: value})
    opt = kit.make(case, [p])
    for group in opt.param_groups:
        group[setting] = value
    with pytest.raises(ValueError, match=pattern):
        opt.step()
    assert p.tolist() == [1, 1]
    with pytest.raises(ValueError, match=f"{name}.*nope"):
        kit.make(case, [p], backend="nope")


def test_B40_shared_tensors_are_not_advanced_twice(backend: str, case: str) -> None:
    """dion!63: one step tensor served several parameters; torch aliases a tensor lr in all groups."""
    lr = torch.tensor(0.01)
    params = [kit.parameter(torch.ones(2), torch.ones(2)) for _ in range(3)]
    opt = kit.make(case, [{"params": params[:2]}, {"params": params[2:]}], lr=lr)
    opt.step()
    opt.step()
    assert float(lr) == pytest.approx(0.01)
    steps = [opt.state[p]["step"] for p in params if "step" in opt.state[p]]
    assert len({id(s) for s in steps}) == len(steps)
    assert {int(s) for s in steps} <= {2}
    kit.assert_bitwise(params[1:], [params[0]] * 2)


def test_B42_a_group_added_later(backend: str, case: str) -> None:
    """pytorch!88015: flags and counts are those of the group, not of the object."""
    p, q = (kit.parameter(torch.ones(3), torch.ones(3)) for _ in range(2))
    opt = kit.make(case, [p], lr=0.1)
    opt.step()
    opt.add_param_group({"params": [q], "lr": 0.5, "maximize": True})
    opt.step()
    fresh = kit.parameter(torch.ones(3), torch.ones(3))
    kit.make(case, [fresh], lr=0.5, maximize=True).step()
    assert torch.equal(q, fresh)
    if "step" in opt.state[p]:
        assert [int(opt.state[x]["step"]) for x in (p, q)] == [2, 1]


def check_B41(make: kit.Make, case: str) -> None:
    p, q = kit.parameter(torch.ones(3)), torch.full((3,), 2.0, requires_grad=True)
    y = (p * q).sum()
    y.backward(retain_graph=True)
    make(case, [p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_B41_a_step_bumps_versions(backend: str, case: str) -> None:
    """Liger#272, torch's fused optimizers: backward after step silently used the new weights."""
    check_B41(kit.make, case)
    p = kit.parameter(torch.ones(3), torch.ones(3))
    opt = kit.make(case, [p])
    opt.step()
    states = [v for v in opt.state[p].values() if isinstance(v, Tensor)]
    versions = [v._version for v in states]
    opt.step()
    assert all(v._version > before for v, before in zip(states, versions, strict=True))


def test_B41_can_fail() -> None:
    try:
        check_B41(lambda case, p: kit.make_torch(case, p, fused=True), "adamw")
    except pytest.fail.Exception:
        return
    pytest.skip(f"torch {torch.__version__} has mended its fused AdamW")


def test_B13_copies_do_not_share(backend: str, case: str) -> None:
    """Lightning and EMA wrappers deep-copy optimizers: a step of one must not move the other."""
    p = kit.parameter(torch.ones(3), torch.ones(3))
    opt = kit.make(case, [p], max_norm=0.5)
    opt.step()
    twin = copy.deepcopy(opt)
    before = kit.snapshot(twin)
    opt.step()
    kit.assert_bitwise(kit.snapshot(twin), before)
