"""The Triton operator of the optimizer step, called directly: values, memory, order, skipping, refusals."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_optim_step_cpu import DTYPES, HYPER, INF, UPDATES, Case, case
from torch import Tensor

from fusedtrain import dispatch, rules
from fusedtrain.backends import reference
from fusedtrain.testing import error

triton_step = pytest.importorskip("fusedtrain.backends.triton_step")
pytestmark = [
    pytest.mark.skipif(bool(dispatch.load("triton").why_not), reason=str(dispatch.load("triton").why_not)),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),  # NumPy's, which interprets: inf is no error
]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BLOCK = 1024
sizes = st.one_of(
    st.just(()),
    st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
    st.sampled_from([(BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (3, BLOCK), (2 * BLOCK + 77,)]),
)


def here(made: Case) -> Case:
    """The call with its tensors where the backend works; the hyperparameters stay on the host."""
    lists = {
        name: [x if x.is_meta else x.to(DEVICE) for x in getattr(made, name)]
        for name in ("params", "grads", "states", "steps")
    }
    scalars = {
        name: None if x is None else x.to(DEVICE)
        for name in ("norm", "nonfinite", "inv_scale", "found_inf", "grad_norm", "clip_coef", "skipped")
        if isinstance(x := getattr(made, name), Tensor) or x is None
    }
    return replace(made, **lists, **scalars)


def run(made: Case) -> Case:
    return here(made).run(dispatch.load("triton").optim_step_)


def bias_correction_of_truth(made: Case, i: int) -> float:
    """By what the truth itself errs, relatively: ``1 - beta^t`` in fp64 loses what the rounding of the power lost."""
    names = (*rules.LAUNCH_HYPER, *rules.UPDATES[made.rule].hyper)
    row = dict(zip(names, made.hyper[made.group[i]].tolist(), strict=True))
    if not {"beta1", "eps"} <= row.keys():
        return 0.0
    t = float(made.steps[i]) + 1
    return sum(2.0**-53 / (1 - row[name] ** t) for name in ("beta1", "beta2"))


def assert_accurate(given_: Case, ours: Case) -> None:
    """Everything written errs against fp64 at most twice as much as the reference in the same dtypes. Where that is
    fp64 itself, as much as the reference in fp32 in proportion to the precision, and by what the truth errs."""
    truth = given_.copy(torch.float64).run(reference.optim_step_)
    # As vectors: of a 0-dim tensor torch takes the products with fp64 hyperparameters in fp64.
    theirs = given_.copy().as_vectors().run(reference.optim_step_)
    single = given_.copy(torch.float32).as_vectors().run(reference.optim_step_)
    n = len(given_.params)
    for k, (x, y, f, z, before) in enumerate(
        zip(ours.written(), theirs.written(), single.written(), truth.written(), given_.written(), strict=True)
    ):
        i = k % n
        x = x.cpu()
        if x.numel() == 0:
            continue
        if not x.is_floating_point() or k >= len(given_.params) + len(given_.states):
            assert torch.equal(x, y.reshape(x.shape))
            continue
        doubly = given_.params[i].dtype == torch.float64
        # What was there before has been rounded as well: a small difference of large values is as wrong as they are.
        largest = max(float(z.abs().max()), float(before.double().abs().max()))
        eps = torch.finfo(x.dtype).eps
        if x.dtype == torch.float64:
            unit = torch.finfo(torch.float32).eps
            in_single = max(error(f.reshape(z.shape).double(), z), unit * largest)
            allowed = 4 * in_single * (torch.finfo(torch.float64).eps / unit if doubly else 1)
        else:
            allowed = 2 * max(error(y.reshape(x.shape), z), eps * largest)
        if k < n:
            step = float((z - given_.params[i].double()).abs().max())
            allowed += step * bias_correction_of_truth(given_, i)
        assert error(x, z) <= allowed, (k, x.dtype, error(x, z), allowed)
    assert torch.equal(ours.skipped.cpu(), truth.skipped)
    torch.testing.assert_close(ours.clip_coef.cpu(), truth.clip_coef)
    torch.testing.assert_close(ours.grad_norm.cpu(), truth.grad_norm)


@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
@given(st.data())
@pytest.mark.parametrize("rule", UPDATES)
def test_equals_the_specification(rule: str, data: st.DataObject) -> None:
    rows = [HYPER[name] for name in (*rules.LAUNCH_HYPER, *rules.UPDATES[rule].hyper)]
    table = data.draw(st.lists(st.tuples(*rows).map(list), min_size=1, max_size=3))
    made = case(
        rule,
        data.draw(st.lists(sizes, min_size=1, max_size=4)),
        data.draw(st.sampled_from(DTYPES)),
        data.draw(st.sampled_from(DTYPES)),
        data.draw(st.sampled_from([None, None, *DTYPES])),
        table,
        data.draw(st.sampled_from(["contiguous", "transposed", "offset"])),
        data.draw(st.integers(0, 2**31)),
    )
    if data.draw(st.booleans()):
        made.norm, made.nonfinite = reference.global_norm(made.grads, 2.0)
        made.max_norm = data.draw(st.sampled_from([0.0, 0.5, 1e6, INF]))
    if data.draw(st.booleans()):
        made.inv_scale = torch.tensor(data.draw(st.sampled_from([1.0, 2.0**-4, 0.3])))
    assert_accurate(made, run(made.copy()))


@pytest.mark.parametrize("p_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("g_dtype", DTYPES, ids=str)
def test_every_choice_of_dtypes(p_dtype: torch.dtype, g_dtype: torch.dtype) -> None:
    for s_dtype in DTYPES:
        made = case("adam_amsgrad", [(BLOCK,), (70,)], p_dtype, g_dtype, s_dtype)
        made.norm, made.max_norm = torch.tensor(40.0), 1.0
        assert_accurate(made, run(made.copy()))


def test_a_list_may_mix_dtypes() -> None:
    """One launch each, and what is written once is written once."""
    made = case("adamw", [(50,), (BLOCK,), (3, 5), (7,)])
    for i, dtype in enumerate((torch.bfloat16, torch.float64, torch.float32, torch.bfloat16)):
        made.params[i] = made.params[i].to(dtype)
    made.grads[3], made.states[4 + 3] = made.grads[3].half(), made.states[4 + 3].bfloat16()
    made.norm, made.max_norm, made.inv_scale = torch.tensor(8.0), 1.0, torch.tensor(0.5)
    made.grad_norm = made.norm  # read by every launch, and then written
    ran = run(made.copy())
    expected = made.copy().run(reference.optim_step_)
    for x, y in zip(ran.written(), expected.written(), strict=True):
        torch.testing.assert_close(x.cpu(), y)
    made.found_inf = torch.ones(())
    assert int(run(made.copy()).skipped) == 1


def test_norm_may_be_written_where_it_is_read() -> None:
    made = here(case("sgd", [(5 * BLOCK,), (3,)]))
    expected = made.copy()
    made.norm = made.grad_norm = torch.tensor(8.0, device=DEVICE)
    expected.norm = torch.tensor(8.0, device=DEVICE)
    made.max_norm = expected.max_norm = 1.0
    made.inv_scale = expected.inv_scale = torch.tensor(0.5, device=DEVICE)
    run(made)
    run(expected)
    assert float(made.grad_norm) == 4.0
    assert all(torch.equal(x, y) for x, y in zip(made.written(), expected.written(), strict=True))


def test_hyper_may_be_where_the_parameters_are() -> None:
    made = here(case("adamw", [(40,), (BLOCK,)], table=[[0.1, 1, INF, 0, 0.9, 0.99, 1e-8, 0.1]] * 2))
    on_device = made.copy()
    on_device.hyper = made.hyper.to(DEVICE)
    run(made)
    run(on_device)
    assert all(torch.equal(x, y) for x, y in zip(made.written(), on_device.written(), strict=True))


@pytest.mark.parametrize("programs", [1, 3, 16])
def test_the_grid_does_not_matter(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusedtrain.backends import triton_table

    made = case("adamw", [(2 * BLOCK + 3,), (0,), (7,), (BLOCK,), (9,)])
    expected = run(made.copy())
    monkeypatch.setattr(triton_table.Size, "grid", lambda self, device, chunks: (programs,))
    other = run(made.copy())
    assert all(torch.equal(x, y) for x, y in zip(other.written(), expected.written(), strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_A21_every_offset_and_nothing_beside(dtype: torch.dtype) -> None:
    """Views at every offset of elements: what is around them stays as it is."""
    for n in (1, BLOCK + 9):
        for offset in range(0, 16 // dtype.itemsize + 1, 3):
            made = here(case("adamw", [(n,)], dtype, s_dtype=dtype, seed=offset))
            expected = run(made.copy())
            buffers = []

            def place(x: Tensor, begin: int, buffers: list[tuple[Tensor, int]] = buffers) -> Tensor:
                buffer = x.new_full((32 + x.numel() + 32,), 77.0)
                buffers.append((buffer, begin))
                return buffer[16 + begin :][: x.numel()].copy_(x)

            made.params = [place(x, offset) for x in made.params]
            made.grads = [place(x, (offset * 7 + 3) % 8) for x in made.grads]
            made.states = [place(x, (offset * 5 + i) % 8) for i, x in enumerate(made.states)]
            made.run(dispatch.load("triton").optim_step_)
            for x, y in zip(made.written(), expected.written(), strict=True):
                assert torch.equal(x, y)
            for buffer, begin in buffers:
                assert bool((buffer[: 16 + begin] == 77).all())
                assert bool((buffer[16 + begin + n :] == 77).all())


@pytest.mark.parametrize("rule", UPDATES)
@pytest.mark.parametrize("flag", ["found_inf", "nonfinite"])
def test_B6_a_skipped_step_changes_nothing(rule: str, flag: str) -> None:
    made = case(rule, [(2, BLOCK), (), (3,)])
    made.norm, made.max_norm = torch.tensor(4.0), 1.0
    if flag == "found_inf":
        made.found_inf = torch.ones(1)
    else:
        made.nonfinite, made.skip_nonfinite = torch.tensor(1.0), True
    ran = run(made.copy())
    assert all(torch.equal(x.cpu(), y) for x, y in zip(ran.written(), made.written(), strict=True))
    assert int(ran.skipped) == 1
    assert float(ran.grad_norm) == 4.0
    assert float(ran.clip_coef) == pytest.approx(0.25, rel=1e-6)
    made.skip_nonfinite, made.found_inf = False, None
    assert int(run(made.copy()).skipped) == 0


def test_B7_what_a_buffer_holds_before_the_first_step_does_not_count() -> None:
    made = case("sgd_momentum", [(5,)], table=[[0.1, 1, INF, 0, 0.0, 0.9, 0.5, 1.0]])
    made.states[0].fill_(math.nan)
    ran = run(made.copy())
    assert torch.equal(ran.states[0].cpu(), made.grads[0])
    assert ran.params[0].isfinite().all()


def test_B17_the_step_count_may_be_large() -> None:
    made = case("adamw", [(3,), (3,), (3,)])
    made.steps = [torch.tensor(2.0**24), torch.tensor(2.0**24, dtype=torch.float64), torch.tensor(2**24)]
    ran = run(made)
    assert [int(x) for x in ran.steps] == [2**24, 2**24 + 1, 2**24 + 1]
    assert all(x.isfinite().all() for x in ran.written())


def test_counters_of_many_parameters() -> None:
    made = case("sgd", [(1,), *[(0,)] * 298, (2,)])
    ran = run(made.copy())
    assert [int(x) for x in ran.steps] == [i % 3 + 1 for i in range(300)]


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999, 0.9999999])
@pytest.mark.parametrize("t", [1, 2, 10, 1000, 10**6])
def test_bias_corrections(beta: float, t: int) -> None:
    """Against ``-expm1(t log(beta))``, which is right in all places: within the few units in the last place by which
    its two functions err. From m = 1 and g = 1 the step tells the first."""
    p, m, v = (torch.full((1,), x, dtype=torch.float64) for x in (0.0, 1.0, 0.0))
    g = torch.ones(1, dtype=torch.float64)
    step = torch.tensor(t - 1, dtype=torch.int64)
    hyper = torch.tensor([[1.0, 1.0, INF, 0.0, beta, 0.0, 1.0, 0.0]], dtype=torch.float64)
    # u = m / bias_correction1 / (sqrt(v) / sqrt(1) + 1), and m stays 1, v becomes 1
    u = -float(run(Case("adam", [p], [g], [m, v], [step], hyper, [0])).params[0])
    exact = 1.0 if beta == 0 else -math.expm1(t * math.log(beta)) if t > 1 else 1 - beta
    assert 1 / (2 * u) == pytest.approx(exact, rel=16 * 2.0**-52)


def test_a_nan_shows_where_it_is_and_only_there() -> None:
    for rule in UPDATES:
        made = case(rule, [(70,)])
        made.grads[0][33] = math.nan
        assert run(made).params[0].isnan().nonzero().tolist() == [[33]]


@pytest.mark.parametrize("rule", UPDATES)
def test_an_infinite_parameter_without_gradient_stays(rule: str) -> None:
    for lr in (0.0, 0.1):
        for weight_decay in (0.0, 0.1):
            values = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": weight_decay, "momentum": 0.9}
            row = [lr, 1.0, INF, 0.0, *(values.get(key, 0.0) for key in rules.UPDATES[rule].hyper)]
            made = case(rule, [(3,)], table=[row])
            made.params[0].copy_(torch.tensor([-INF, INF, 1.0]))
            for x in (*made.grads, *made.states, *made.steps):
                x.zero_()
            p = run(made).params[0]
            assert (float(p[0]), float(p[1])) == (-INF, INF)
            assert p[2].isfinite()


def test_no_parameters() -> None:
    assert int(run(case("adamw", [])).skipped) == 0


def test_empty_parameters_are_counted() -> None:
    made = case("adamw", [(0,), (2, 0)])
    made.norm, made.max_norm = torch.tensor(0.0), 1.0
    ran = run(made.copy())
    assert [int(x) for x in ran.steps] == [1, 2]
    assert float(ran.clip_coef) == 1.0


def refused(made: Case, match: str) -> None:
    """Raises, and has written nothing."""
    made = here(made)
    before = made.copy()
    with pytest.raises(RuntimeError, match=r"fusedtrain\.optim_step_: .*" + match):
        made.run(triton_step.optim_step_)  # the operator itself has no kernel to choose for some of them
    assert all(torch.equal(x, y) for x, y in zip(made.written(), before.written(), strict=True))


one, base, zeros = torch.zeros(1), torch.zeros(20), torch.zeros
MALFORMED: dict[str, Callable[[], dict[str, Any]]] = {
    "unknown rule 'sdg'; choose one of .*adamw": lambda: {"rule": "sdg"},
    r"grads has 1 entries; it must have 2": lambda: {"grads": [zeros(3, 4)]},
    r"states has 3 entries; it must have 4": lambda: {"states": [zeros(3, 4)] * 3},
    r"steps has 0 entries": lambda: {"steps": []},
    r"group has 3 entries": lambda: {"group": [0, 0, 0]},
    r"group\[1\] is 1, but hyper has 1 rows": lambda: {"group": [0, 1]},
    r"group\[0\] is -1": lambda: {"group": [-1, 0]},
    r"hyper has shape \(1, 7\)": lambda: {"hyper": zeros(1, 7, dtype=torch.float64)},
    r"hyper has shape \(1, 8\) and dtype float32": lambda: {"hyper": zeros(1, 8)},
    r"grads\[1\] has shape \(4,\); it must have that of params\[1\], \(5,\)": lambda: {
        "grads": [zeros(3, 4), zeros(4)]
    },
    r"grads\[0\] has dtype int64": lambda: {"grads": [zeros(3, 4, dtype=torch.int64), zeros(5)]},
    r"params\[0\] has dtype complex64": lambda: {"params": [zeros(3, 4, dtype=torch.complex64), zeros(5)]},
    r"states\[3\] has shape \(6,\)": lambda: {"states": [zeros(3, 4), zeros(5), zeros(3, 4), zeros(6)]},
    r"steps\[1\] has shape \(2,\)": lambda: {"steps": [one, zeros(2)]},
    r"steps\[0\] has shape \(\) and dtype int32": lambda: {"steps": [zeros((), dtype=torch.int32), one]},
    r"inv_scale has shape \(2,\)": lambda: {"inv_scale": torch.ones(2)},
    r"found_inf has dtype bool": lambda: {"found_inf": torch.ones((), dtype=torch.bool)},
    r"skipped_steps has shape \(\) and dtype float32": lambda: {"skipped": zeros(())},
    r"max_norm is 1 but norm is None": lambda: {"max_norm": 1.0},
    r"max_norm is NaN": lambda: {"max_norm": math.nan},
    r"nonfinite is None": lambda: {"skip_nonfinite": True},
    r"params\[0\] of shape \(3, 4\) is not dense": lambda: {"params": [zeros(3, 8)[:, ::2], zeros(5)]},
    r"params\[1\] of shape \(5,\) is not dense": lambda: {"params": [zeros(3, 4), zeros(1).expand(5)]},
    r"grads\[0\] has other strides than params\[0\].*\(3, 4\)": lambda: {"grads": [zeros(4, 3).t(), zeros(5)]},
    r"grads\[0\] is on meta": lambda: {"grads": [zeros(3, 4, device="meta"), zeros(5)]},
    r"grads\[1\] is sparse": lambda: {"grads": [zeros(3, 4), zeros(5).to_sparse()]},
}
SHARED: dict[str, Callable[[], dict[str, Any]]] = {
    r"steps\[0\] and steps\[1\] share memory": lambda: {"steps": [one.to(DEVICE)] * 2},
    r"params\[0\] and params\[1\] share memory": lambda: (lambda x: {"params": [x[:12].view(3, 4), x[11:16]]})(
        base.to(DEVICE)
    ),
    r"states\[.\] and states\[.\] share memory": lambda: (
        lambda x: {"states": [zeros(3, 4), x[:5], zeros(3, 4), x[4:9]]}
    )(base.to(DEVICE)),
}


@pytest.mark.parametrize("match", [*MALFORMED, *SHARED])
def test_malformed_calls_are_refused_before_anything_is_written(match: str) -> None:
    change = {**MALFORMED, **SHARED}[match]()
    refused(replace(case("adamw", [(3, 4), (5,)]), **change), match)


def test_the_table_of_rules_is_whole() -> None:
    from fusedtrain.backends import triton_updates

    assert list(triton_updates.UPDATES) == list(rules.UPDATES)
    source = Path(triton_updates.__file__).read_text("utf-8")
    assert not re.search(r"tl\.(load|store|atomic)", source), "a rule touches memory"
