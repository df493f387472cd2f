"""Steps by a table in Triton against those by lists: the integers that go up, and every bit of what kernels do."""

from __future__ import annotations

import importlib
import math
from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from by_table import ByTable
from step_tables import launcher_of
from test_optim_step_cpu import DTYPES, INF, UPDATES, Case, case
from test_step_triton import here
from torch import Tensor

import fusedtrain as ft
from fusedtrain import dispatch
from fusedtrain.optim import planned

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
from fusedtrain.backends import step_tables, triton_norm, triton_planned, triton_step, triton_table  # noqa: E402

pytestmark = [
    pytest.mark.skipif(bool(dispatch.load("triton").why_not), reason=str(dispatch.load("triton").why_not)),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),  # NumPy's, which interprets: inf is no error
]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
F32, F64, BF16, F16 = DTYPES[0], DTYPES[1], DTYPES[2], DTYPES[3]
MIXES = [(F32, F32, F32), (BF16, BF16, F32), (F32, BF16, BF16), (F16, F32, F64), (F64, F64, F64), (BF16, F64, F16)]
SHAPES: list[tuple[int, ...]] = [(0,), (7,), (), (3, 5), (2 * triton_step.BLOCK + 5,)]
ADAMW = [[0.1 * (k + 1), 1.0, INF, 0.0, 0.9, 0.99, 1e-8, 0.01 * k] for k in range(3)]


@pytest.fixture(scope="module")
def by_table() -> Callable[..., None]:
    return ByTable(launcher_of(dispatch.load("triton")))


def mixed(shapes: list[tuple[int, ...]]) -> Case:
    """A step with every mix of dtypes, three groups and three kinds of counters."""
    cases = [case("adamw", shapes, *mix, table=ADAMW, seed=i) for i, mix in enumerate(MIXES)]
    lists = {name: [x for made in cases for x in getattr(made, name)] for name in ("params", "grads", "steps", "group")}
    states = [x for slot in range(2) for made in cases for x in made.states[slot * len(shapes) :][: len(shapes)]]
    return replace(cases[0], **lists, states=states)


def measured(made: Case) -> Case:
    """Where Triton runs, with the norm that a table computes."""
    made = here(made)
    norm, nonfinite = dispatch.load("triton").global_norm(made.grads, 2.0)
    outputs = {name: torch.zeros_like(norm) for name in ("grad_norm", "clip_coef")}
    return replace(made, norm=norm, nonfinite=nonfinite, **outputs)


def assert_agree(ours: Case, theirs: Case) -> None:
    outputs = [[x.grad_norm, x.clip_coef, x.skipped] for x in (ours, theirs)]
    for x, y in zip([*ours.written(), *outputs[0]], [*theirs.written(), *outputs[1]], strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(*(t.contiguous().view(-1).view(torch.uint8) for t in (x, y)))


def assert_both_ways_agree(made: Case, by_table: Callable[..., None]) -> Case:
    ours = made.copy().run(by_table)
    assert_agree(ours, made.copy().run(dispatch.load("triton").optim_step_))
    return ours


@pytest.mark.parametrize("mix", MIXES, ids=lambda m: "-".join(str(d).removeprefix("torch.") for d in m))
@pytest.mark.parametrize("rule", UPDATES)
def test_both_ways_agree_in_every_bit(rule: str, mix: tuple[torch.dtype, ...], by_table: Callable[..., None]) -> None:
    made = measured(case(rule, SHAPES, *mix))
    made.max_norm, made.inv_scale = 1.0, torch.tensor(0.5, device=made.params[0].device)
    ran = assert_both_ways_agree(made, by_table)
    assert [float(x) for x in ran.steps] == [float(x) + 1 for x in made.steps]
    assert 0 < float(ran.clip_coef) < 1


@pytest.mark.parametrize("bad", ["nothing", "a gradient", "found_inf"])
def test_both_ways_agree_where_dtypes_are_mixed(bad: str, by_table: Callable[..., None]) -> None:
    made = mixed([(7,), (3, 5)])
    if bad == "a gradient":
        made.grads[-1][0, 0] = math.nan
    made = measured(made)
    made.max_norm, made.skip_nonfinite = 0.5, True
    made.found_inf = torch.full((), float(bad == "found_inf"), device=made.params[0].device)
    ran = assert_both_ways_agree(made, by_table)
    assert int(ran.skipped) == (bad != "nothing")
    assert bool((ran.params[0] != made.params[0]).any()) == (bad == "nothing")


def test_both_ways_agree_without_a_norm(by_table: Callable[..., None]) -> None:
    assert_both_ways_agree(here(case("adamw", SHAPES, table=ADAMW)), by_table)


def test_hyperparameters_that_are_on_the_device(by_table: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are where one of them is a tensor there: they do not go through the host."""
    made = here(case("adamw", SHAPES, table=ADAMW))
    made.hyper = made.hyper.to(made.params[0].device)
    monkeypatch.setattr(triton_planned, "on_host", lambda x: False)  # the interpreter's device is the host
    monkeypatch.setattr(triton_planned.DeviceMemory, "draw_hyper", None)
    assert_both_ways_agree(made, by_table)


# The integers


class Nothing:
    """A kernel that does nothing."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@pytest.fixture
def integers(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What goes up, copy by copy, where kernels do nothing."""
    seen: list[list[int]] = []
    upload, refill = triton_table._upload, triton_planned.refill

    def seen_upload(values: array[int], device: torch.device) -> Tensor:
        seen.append(values.tolist())
        return upload(values, device)

    def seen_refill(to: Tensor, values: Tensor) -> None:
        seen.append(values.tolist())
        refill(to, values)

    monkeypatch.setattr(triton_norm, "norm_kernel", Nothing())
    monkeypatch.setattr(triton_step, "step_kernel", Nothing())
    monkeypatch.setattr(triton_table, "_upload", seen_upload)
    monkeypatch.setattr(triton_planned, "refill", seen_refill)
    return seen


@pytest.mark.parametrize("shapes", [[(0,)], SHAPES, [((7 * i) % 4,) for i in range(3400)]], ids=len)
@pytest.mark.parametrize("offset", [0, 1])
def test_integers_are_those_of_the_lists(
    shapes: list[tuple[int, ...]], offset: int, by_table: Callable[..., None], integers: list[list[int]]
) -> None:
    """What C++ writes and what Python writes: every row, up to 20,400 of them, in tables one after another."""
    made = here(mixed(shapes))
    if offset:  # now and then an address that is not aligned
        for k in range(0, len(made.grads), 7):
            g = made.grads[k]
            made.grads[k] = torch.cat([g.flatten()[:1], g.flatten()])[-g.numel() or 1 :][: g.numel()].view(g.shape)
    made.norm, made.nonfinite = dispatch.load("triton").global_norm(made.grads, 2.0)
    made.max_norm = 0.75
    for_norm, integers[:] = [*integers], []
    made.run(dispatch.load("triton").optim_step_)
    for_step, integers[:] = [*integers], []
    made.run(by_table)
    (ours,) = integers
    hyper = made.hyper.view(torch.int64).flatten().tolist()
    assert len(for_norm) == len({mix[1] for mix in MIXES})
    assert len(for_step) == len(MIXES)
    assert all(table[-len(hyper) :] == hyper for table in for_step)
    theirs = [*for_norm, *(table[: -len(hyper)] for table in for_step), hyper]
    assert ours == [x for table in theirs for x in table]


def test_fields_are_as_many_as_the_kernels_read() -> None:
    for states in range(4):
        names = triton_table.fields(["p", "g", *(f"state{k}" for k in range(states))], triton_step.MORE)
        assert len(names) == triton_table.FIELDS.value + 2 + states + triton_step.OTHERS.value
    assert len(triton_table.fields(["g"])) == triton_norm.WIDTH.value


# Many, none, and mistakes


def test_twenty_thousand_tensors() -> None:
    """Most of them empty, so that interpreting their chunks takes no minutes; all count their steps."""
    results = []
    for wait in (0, 100):
        generator = torch.Generator().manual_seed(0)
        sizes = [1 if i % 1000 == 0 else 0 for i in range(20_000)]
        params = [torch.nn.Parameter(torch.randn(n, generator=generator).to(DEVICE)) for n in sizes]
        for p in params:
            p.grad = torch.ones_like(p)
        opt = ft.optim.AdamW(params, lr=0.1, max_norm=1.0, backend="triton")
        opt._planner = planned.Planner()
        opt._planner.wait = wait
        for _ in range(3):
            opt.step()
        assert (opt._planner.table is None) == (wait > 0)
        assert {float(opt.state[p]["step"]) for p in params} == {3.0}
        results.append(torch.cat([p.detach() for p in params]))
    assert torch.equal(*results)


def trained(steps: int, moves: bool) -> list[Tensor]:
    """Parameters after steps whose gradients move, or stay where they are."""
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(5))]
    opt = ft.optim.AdamW(params, lr=0.1, max_norm=1.0, backend="triton")
    former = []
    for i in range(steps):
        for p in params:
            if moves or p.grad is None:
                former.append(p.grad)
                p.grad = torch.empty_like(p)
            p.grad.fill_(float(i % 2))
        opt.step()
    return [*(p.detach() for p in params), *(opt.state[p]["step"] for p in params)]


@pytest.mark.skipif("torch.cuda.is_available()", reason="the bugs are planted in what the interpreter calls")
def test_bugs_that_are_planted_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = trained(4, moves=True)
    assert all(torch.equal(x, y) for x, y in zip(right, trained(4, moves=False), strict=True))
    bring = triton_planned.DeviceMemory.bring

    def only_once(self: Any) -> None:
        if not hasattr(self, "brought"):
            bring(self)
        self.brought = True

    with monkeypatch.context() as patched:
        patched.setattr(triton_planned.DeviceMemory, "bring", only_once)
        assert not torch.equal(trained(4, moves=True)[0], right[0])
    with monkeypatch.context() as patched:  # so the last program of the second launch is not the last one
        patched.setattr(triton_step, "done_last", ticket_that_stays)
        assert [float(x) for x in trained(4, moves=False)[2:]] != [4.0, 4.0]


@triton.jit
def ticket_that_stays(table):  # type: ignore[no-untyped-def]
    return tl.atomic_add(table, 1) == tl.num_programs(0) - 1


@pytest.mark.parametrize("near", [0, 10**6])
def test_copies_are_few_and_short(near: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies near together goes in one copy, what does not in copies of its own."""
    copied: list[int] = []
    refill = triton_planned.refill
    params = [torch.nn.Parameter(torch.ones(1, device=DEVICE)) for _ in range(12)]
    for p in params:
        p.grad = torch.ones_like(p)
    opt = ft.optim.AdamW(params, lr=0.1, max_norm=1.0, backend="triton")
    opt.step()
    opt.step()
    monkeypatch.setattr(triton_planned, "NEAR", near)
    monkeypatch.setattr(
        triton_planned, "refill", lambda to, values: (copied.append(values.numel()), refill(to, values))[1]
    )
    kept, params[5].grad = params[5].grad, torch.full_like(params[5], 2.0)
    opt.step()
    if near:
        assert copied == [7 * triton_norm.WIDTH.value + triton_table.HEAD.value + 6 * 10]
    else:
        assert copied == [triton_norm.WIDTH.value, 10]
    copied.clear()
    opt.step()
    assert copied == []
    del kept


@pytest.mark.parametrize("change", ["max_norm", "norm_type", "no norm", "a norm again"])
def test_settings_that_change_between_steps(change: str) -> None:
    results = []
    for wait in (0, 100):
        params = [torch.nn.Parameter(torch.full((n,), 2.0, device=DEVICE)) for n in (3, 40)]
        opt = ft.optim.AdamW(params, lr=0.1, max_norm=None if change == "a norm again" else 1.0, backend="triton")
        opt._planner = planned.Planner()
        opt._planner.wait = wait
        for i in range(5):
            for p in params:
                p.grad = torch.full_like(p, float(i + 1))
            if i == 3:
                for group in opt.param_groups:
                    group["norm_type" if change == "norm_type" else "max_norm"] = {
                        "max_norm": 0.5,
                        "norm_type": 3.0,
                        "no norm": None,
                        "a norm again": 0.25,
                    }[change]
            opt.step()
        assert (opt._planner.table is None) == (wait > 0)
        results.append([*(p.detach() for p in params), *(x for x in (opt.grad_norm, opt.clip_coef) if x is not None)])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


# Without a table


def test_without_what_tables_are_made_with_steps_go_by_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    assert triton_planned.step_launcher("cpu") is not None
    absent = monkeypatch.context
    with absent() as patched:
        patched.setattr(step_tables.libraries, "load_library", lambda name: "not built")
        assert triton_planned.step_launcher("cpu") is None
    with absent() as patched:
        patched.setattr(step_tables, "same_sources", lambda *_: False)
        assert triton_planned.step_launcher("cpu") is None
    import_module = importlib.import_module

    def without_plan(name: str, package: str | None = None) -> Any:
        if name == "fusedtrain._plan":
            raise ImportError(name)
        return import_module(name, package)

    with absent() as patched:
        patched.setattr(step_tables.importlib, "import_module", without_plan)
        assert triton_planned.step_launcher("cpu") is None


WRONG: dict[str, Callable[[], dict[str, Any]]] = {
    "hyper has shape": lambda: {"hyper": torch.zeros(1, 3, dtype=torch.float64)},
    "hyper has 1 rows": lambda: {"hyper": torch.zeros(1, 8, dtype=torch.float64)},
    "hyper is of": lambda: {"hyper": None},
    "inv_scale has shape": lambda: {"inv_scale": torch.zeros(2)},
    "found_inf has dtype int32": lambda: {"found_inf": torch.zeros((), dtype=torch.int32)},
    "found_inf is of": lambda: {"found_inf": torch.nn.Parameter(torch.zeros(()))},
    "skipped_steps has": lambda: {"skipped_steps": torch.zeros(())},
    r"outputs has shape \(2,\)": lambda: {"outputs": torch.zeros(2)},
    "max_norm is NaN": lambda: {"max_norm": math.nan},
    "norm_type is 0": lambda: {"norm_type": 0.0},
    "norm_type is nan": lambda: {"norm_type": math.nan},
}


@pytest.mark.skipif("torch.cuda.is_available()", reason="the scalars are on the host, as the interpreter's device is")
@pytest.mark.parametrize("match", WRONG)
def test_scalars_that_a_step_cannot_take_are_refused(match: str) -> None:
    made = case("adamw", [(3,), (5,)], table=ADAMW)
    launcher = launcher_of(dispatch.load("triton"))
    keys = ("exp_avg", "exp_avg_sq")
    for p, g in zip(made.params, made.grads, strict=True):
        p.grad = g
    entries = [dict(zip(keys, made.states[i::2], strict=True)) for i in range(2)]
    groups, state = [{"params": [p]} for p in made.params], dict(zip(made.params, entries, strict=True))
    table = launcher.table(groups, [0, 1], state, keys, entries, made.steps)
    right = {
        "rule": "adamw",
        "hyper": made.hyper,
        "norm_type": 2.0,
        "inv_scale": None,
        "found_inf": None,
        "max_norm": 1.0,
        "skip_nonfinite": True,
        "outputs": torch.zeros(3),
        "skipped_steps": None,
    }
    before = made.copy()
    assert table.refresh(groups, state)
    with pytest.raises(ValueError, match=match):
        launcher.step(table, **{**right, **WRONG[match]()})
    assert all(torch.equal(x, y) for x, y in zip(made.written(), before.written(), strict=True))
    with pytest.raises(RuntimeError, match="refresh"):  # the gradients were let go
        launcher.step(table, **right)
    assert table.refresh(groups, state)
    assert launcher.step(table, **right)
    assert not torch.equal(made.params[0], before.params[0])
