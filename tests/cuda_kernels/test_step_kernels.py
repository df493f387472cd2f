"""The CUDA kernel of the optimizer step, on a GPU or run on the CPU: each path, and what it may touch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from by_table import ByTable
from cuda_on_cpu import backend as cuda_emulation
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from step_tables import launcher_of
from test_optim_step_cpu import DTYPES, HYPER, INF, UPDATES, Case, assert_accurate, case
from torch import Tensor

from fusedtrain import dispatch, rules
from fusedtrain.backends import Backend, reference
from fusedtrain.testing import assert_as_accurate

F32, F64, BF16, F16 = DTYPES[0], DTYPES[1], DTYPES[2], DTYPES[3]
VECTORS = [(F32, F32, F32), (BF16, BF16, F32), (F16, F16, F32), (F32, BF16, F32), (F32, F16, F32), (F64, F64, F64)]
OTHERS = [(BF16, BF16, BF16), (F16, F32, F64), (F64, F32, F32), (BF16, F64, F16), (F32, F64, BF16)]
CHUNK = 8192
SHAPES: list[tuple[int, ...]] = [(0,), (1,), (7,), (), (3, 5), (CHUNK,), (0, 3), (2 * CHUNK + 5,), (CHUNK - 1,)]
GUARD = 64  # bytes


@pytest.fixture(scope="module")
def by_lists() -> Backend:
    backend = dispatch.load("cuda") if torch.cuda.is_available() else cuda_emulation.load()
    if backend.why_not:
        pytest.skip(backend.why_not)
    return backend


@pytest.fixture(scope="module", params=["by lists", "by a table"])
def ops(request: pytest.FixtureRequest, by_lists: Backend) -> Backend:
    """Both ways to a step."""
    if request.param == "by lists":
        return by_lists
    return replace(by_lists, optim_step_=ByTable(launcher_of(by_lists)))


@pytest.fixture
def resident() -> Iterator[Callable[[int], None]]:
    """Sets how many blocks are resident at once, which only the emulation lets one choose."""
    if torch.cuda.is_available():
        pytest.skip("the number of resident blocks is the GPU's")
    library = cuda_emulation.emulator()
    yield library.emu_set_resident_blocks
    library.emu_set_resident_blocks(2)


def run(made: Case, ops: Backend) -> Case:
    """Runs a copy where the kernels run, and returns it on the CPU."""
    place = "cuda" if torch.cuda.is_available() else "cpu"

    def moved(of: Case, to: str) -> Case:
        lists = {name: [x.to(to) for x in getattr(of, name)] for name in ("params", "grads", "states", "steps")}
        names = ("norm", "nonfinite", "inv_scale", "found_inf", "grad_norm", "clip_coef", "skipped")
        scalars = {name: x if x is None else x.to(to) for name in names for x in [getattr(of, name)]}
        return replace(of, **lists, **scalars)

    return moved(moved(made.copy(), place).run(ops.optim_step_), "cpu")


def same(a: Case, b: Case) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.written(), b.written(), strict=True))


@pytest.mark.parametrize(
    "dtypes", [*VECTORS, *OTHERS], ids=lambda m: "-".join(str(d).removeprefix("torch.") for d in m)
)
@pytest.mark.parametrize("rule", UPDATES)
def test_every_rule_and_mix_of_types(ops: Backend, rule: str, dtypes: tuple[torch.dtype, ...]) -> None:
    made = case(rule, SHAPES, *dtypes)
    ran = run(made, ops)
    assert_accurate(made, ran)
    assert [float(x) for x in ran.steps] == [float(x) + 1 for x in made.steps]


@settings(max_examples=8, phases=[Phase.explicit, Phase.generate])
@given(st.data())
@pytest.mark.parametrize("rule", UPDATES)
def test_hyperparameters_clipping_and_scaling(ops: Backend, rule: str, data: st.DataObject) -> None:
    rows = [HYPER[name] for name in (*rules.LAUNCH_HYPER, *rules.UPDATES[rule].hyper)]
    table = data.draw(st.lists(st.tuples(*rows).map(list), min_size=1, max_size=3))
    dtypes = data.draw(st.sampled_from([*VECTORS, *OTHERS]))
    shapes = data.draw(st.lists(st.sampled_from([(), (1,), (0,), (33,), (4, 61), (1030,)]), min_size=1, max_size=6))
    layout = data.draw(st.sampled_from(["contiguous", "transposed", "offset"]))
    made = case(rule, shapes, *dtypes, table, layout, data.draw(st.integers(0, 2**31)))
    if data.draw(st.booleans()):
        made.norm, made.nonfinite = reference.global_norm(made.grads, 2.0)
        made.max_norm = data.draw(st.sampled_from([0.0, 0.5, 1e6, INF]))
    if data.draw(st.booleans()):
        made.inv_scale = torch.tensor(data.draw(st.sampled_from([1.0, 2.0**-4, 0.3])))
    assert_accurate(made, run(made, ops))


@pytest.mark.parametrize("dtypes", VECTORS, ids=lambda m: "-".join(str(d).removeprefix("torch.") for d in m))
def test_A21_every_alignment_and_nothing_beside(ops: Backend, dtypes: tuple[torch.dtype, ...]) -> None:
    """The parameter, the gradient and the states start anywhere, alike or not: heads, vectors, tails, single ones."""
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for n in (1, 2, 3, 5, 1029):
        for p_at, g_at, s_at in ((0, 0, 0), (1, 1, 1), (3, 3, 3), (0, 1, 0), (2, 3, 2), (1, 0, 2), (0, 0, 1)):
            made = case("adamw", [(n,)], *dtypes, seed=n + p_at)
            buffers: list[tuple[Tensor, int, int]] = []

            def put(x: Tensor, at: int, buffers: list[tuple[Tensor, int, int]] = buffers) -> Tensor:
                size = x.element_size()
                begin, end = GUARD + at * size, GUARD + at * size + x.numel() * size
                buffer = torch.full((end + GUARD,), 0xAB, dtype=torch.uint8, device=place)
                buffers.append((buffer, begin, end))
                return buffer[begin:end].view(x.dtype).copy_(x)

            put_there = replace(
                made.copy(),
                params=[put(x, p_at) for x in made.params],
                grads=[put(x, g_at) for x in made.grads],
                states=[put(x, s_at) for x in made.states],
                steps=[x.to(place, copy=True) for x in made.steps],
                **{name: getattr(made, name).to(place, copy=True) for name in ("grad_norm", "clip_coef", "skipped")},
            )
            put_there.run(ops.optim_step_)
            lists = {name: [x.cpu() for x in getattr(put_there, name)] for name in ("params", "states", "steps")}
            outputs = {name: getattr(put_there, name).cpu() for name in ("grad_norm", "clip_coef", "skipped")}
            assert_accurate(made, replace(put_there, **lists, **outputs))
            assert torch.equal(put_there.grads[0].cpu(), made.grads[0])
            for buffer, begin, end in buffers:
                around = torch.cat([buffer[:begin], buffer[end:]])
                assert bool((around == 0xAB).all())


@pytest.mark.parametrize("count", [1, 31, 32, 33, 1000, 3000])
def test_any_number_of_tensors(ops: Backend, count: int) -> None:
    """Empty ones in every slot; rows of several groups and step counts."""
    table = [[0.1 * (k + 1), 1.0, INF, 0.0, 0.9, 0.99, 1e-8, 0.01 * k] for k in range(3)]
    made = case("adamw", [((7 * i) % 4,) for i in range(count)], table=table)
    ran, theirs = run(made, ops), made.copy().run(reference.optim_step_)
    truth = made.copy(F64).run(reference.optim_step_)
    for name in ("params", "states"):  # all at once: one of a few elements may happen to have an exact reference
        assert_as_accurate(*(torch.cat(getattr(x, name)) for x in (ran, theirs, truth)))
    assert [float(x) for x in ran.steps] == [float(x) + 1 for x in made.steps]


def test_resident_blocks_do_not_matter(ops: Backend, resident: Callable[[int], None]) -> None:
    made = case("adamw", [(3 * CHUNK + 1,), (0,), *[(5,)] * 40, (2 * CHUNK,)])
    results = []
    for n in (1, 2, 3, 50):
        resident(n)
        results.append(run(made, ops))
    assert all(same(results[0], other) for other in results[1:])


@pytest.mark.parametrize("rule", UPDATES)
@pytest.mark.parametrize("flag", ["found_inf", "nonfinite"])
def test_B6_a_skipped_step_changes_nothing(by_lists: Backend, rule: str, flag: str) -> None:
    made = case(rule, [(CHUNK + 9,), (), (3,), (0,)])
    made.norm, made.max_norm = torch.tensor(4.0), 1.0
    if flag == "found_inf":
        made.found_inf = torch.ones(1)
    else:
        made.nonfinite, made.skip_nonfinite = torch.tensor(1.0), True
    ran = run(made, by_lists)
    assert same(ran, made)
    assert int(ran.skipped) == 1
    assert float(ran.grad_norm) == 4.0
    assert float(ran.clip_coef) == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize("rule", UPDATES)
@pytest.mark.parametrize("flag", ["found_inf", "nonfinite"])
def test_B6_a_skipped_step_of_its_own_norm_changes_nothing(ops: Backend, rule: str, flag: str) -> None:
    made = case(rule, [(CHUNK + 9,), (), (3,), (0,)])
    if flag == "nonfinite":
        made.grads[0][CHUNK] = math.nan
    made.norm, made.nonfinite = reference.global_norm(made.grads, 2.0)
    made.max_norm, made.skip_nonfinite = 1.0, True
    made.found_inf = torch.full((1,), float(flag == "found_inf"))
    ran = run(made, ops)
    assert same(ran, replace(made, grad_norm=ran.grad_norm, clip_coef=ran.clip_coef))
    assert int(ran.skipped) == 1
    assert bool(ran.grad_norm.isnan()) == (flag == "nonfinite")


def test_B7_what_a_buffer_holds_before_the_first_step_does_not_count(ops: Backend) -> None:
    made = case("sgd_momentum", [(5,)], table=[[0.1, 1, INF, 0, 0.0, 0.9, 0.5, 1.0]])
    made.states[0].fill_(math.nan)
    ran = run(made, ops)
    assert torch.equal(ran.states[0], made.grads[0])
    assert ran.params[0].isfinite().all()


def test_B17_the_step_count_may_be_large(ops: Backend) -> None:
    made = case("adamw", [(3,), (CHUNK + 1,), (3,)])
    made.steps = [torch.tensor(2.0**24), torch.tensor(2.0**24, dtype=torch.float64), torch.tensor(2**24)]
    assert [int(x) for x in run(made, ops).steps] == [2**24, 2**24 + 1, 2**24 + 1]


def test_an_output_may_be_the_input(by_lists: Backend, resident: Callable[[int], None]) -> None:
    """grad_norm written into the very norm that all blocks read."""
    resident(3)
    made = case("sgd", [(4 * CHUNK,)])
    made.norm, made.max_norm, made.inv_scale = torch.tensor(8.0), 1.0, torch.tensor(0.5)
    expected = run(made, by_lists)
    aliased = made.copy()
    aliased.norm = aliased.grad_norm = torch.tensor(8.0)
    aliased.run(by_lists.optim_step_)
    assert same(aliased, expected)
    assert float(aliased.grad_norm) == 4.0


def test_one_launch_and_memory_that_a_graph_owns(by_lists: Backend, resident: Callable[[int], None]) -> None:
    library = cuda_emulation.emulator()
    made = case("adamw", [(100,)] * 70, table=[[0.1, 1.0, INF, 0.0, 0.9, 0.99, 1e-8, 0.0]] * 35)
    before = library.emu_launches()
    expected = run(made, by_lists)
    assert library.emu_launches() - before == 1
    library.emu_set_capturing(1)
    try:
        captured = [run(made, by_lists) for _ in range(3)]
    finally:
        library.emu_set_capturing(0)
        library.emu_destroy_graph()
    assert all(same(x, expected) for x in [*captured, run(made, by_lists)])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rule": "sdg"}, "unknown rule 'sdg'"),
        ({"grads": [torch.zeros(3)]}, "grads has 1 entries; it must have 2"),
        ({"group": [0, 1]}, r"group\[1\] is 1, but hyper has 1 rows"),
        ({"max_norm": 1.0}, "max_norm is 1 but norm is None"),
    ],
)
def test_a_malformed_call_is_refused_before_anything_is_written(
    by_lists: Backend, change: dict[str, Any], match: str
) -> None:
    made = replace(case("adamw", [(3,), (5,)]), **change)
    before = made.copy()
    with pytest.raises(RuntimeError, match=rf"fusedtrain\.optim_step_: .*{match}"):
        made.run(by_lists.optim_step_)
    assert same(made, before)
