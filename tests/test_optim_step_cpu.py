"""The CPU operator of the optimizer step, called directly: values, memory, order, skipping, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusedtrain import dispatch, rules
from fusedtrain.backends import reference
from fusedtrain.testing import assert_as_accurate, error, with_layout

pytestmark = pytest.mark.skipif(bool(dispatch.load("cpu").why_not), reason=str(dispatch.load("cpu").why_not))

UPDATES = sorted(rules.UPDATES)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INF = math.inf
HYPER = {  # a range for each hyperparameter of a rule
    "lr": st.floats(1e-4, 1.0),
    "sign": st.sampled_from([1.0, -1.0]),
    "clip_value": st.sampled_from([INF, 0.3, 1e-3]),
    "l1": st.sampled_from([0.0, 0.05]),
    "weight_decay": st.sampled_from([0.0, 0.1]),
    "momentum": st.floats(0.1, 0.99),
    "dampening": st.sampled_from([0.0, 0.5]),
    "nesterov": st.sampled_from([0.0, 1.0]),
    "beta1": st.floats(0.5, 0.95),
    "beta2": st.floats(0.9, 0.9999),
    "eps": st.sampled_from([1e-8, 1e-3]),
    "lr_decay": st.sampled_from([0.0, 0.1]),
    "alpha": st.floats(0.5, 0.99),
}
sizes = st.one_of(
    st.just(()),
    st.lists(st.integers(0, 40), min_size=1, max_size=3).map(tuple),
    st.integers(1000, 1100).map(lambda n: (n,)),
    st.just((33, 1021)),
)


@pytest.fixture(autouse=True)
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads; one where a test does not ask, since small work on many threads is mostly waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@dataclass
class Case:
    """The arguments of one call."""

    rule: str
    params: list[Tensor]
    grads: list[Tensor]
    states: list[Tensor]
    steps: list[Tensor]
    hyper: Tensor
    group: list[int]
    inv_scale: Tensor | None = None
    found_inf: Tensor | None = None
    norm: Tensor | None = None
    nonfinite: Tensor | None = None
    max_norm: float = -1.0
    skip_nonfinite: bool = False
    grad_norm: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    clip_coef: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    skipped: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))

    def run(self, op: Callable[..., Any] | None = None) -> Case:
        (op or torch.ops.fusedtrain.optim_step_)(
            self.rule,
            self.params,
            self.grads,
            self.states,
            self.steps,
            self.hyper,
            self.group,
            self.norm,
            self.nonfinite,
            self.inv_scale,
            self.found_inf,
            self.max_norm,
            self.skip_nonfinite,
            self.grad_norm,
            self.clip_coef,
            self.skipped,
        )
        return self

    def copy(self, dtype: torch.dtype | None = None) -> Case:
        def copied(x: Tensor) -> Tensor:
            return x.to(dtype, copy=True) if dtype else x.clone()

        lists = {name: [copied(x) for x in getattr(self, name)] for name in ("params", "grads", "states")}
        outputs = {name: getattr(self, name).clone() for name in ("grad_norm", "clip_coef", "skipped")}
        return replace(self, **lists, **outputs, steps=[x.clone() for x in self.steps])

    def as_vectors(self) -> Case:
        lists = {
            name: [x.reshape(x.shape or (1,)) for x in getattr(self, name)] for name in ("params", "grads", "states")
        }
        return replace(self, **lists)

    def written(self) -> list[Tensor]:
        return [*self.params, *self.states, *self.steps]


def case(
    rule: str,
    shapes: list[tuple[int, ...]],
    p_dtype: torch.dtype = torch.float32,
    g_dtype: torch.dtype | None = None,
    s_dtype: torch.dtype | None = None,
    table: list[list[float]] | None = None,
    layout: str = "contiguous",
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    s_dtype = s_dtype or (torch.float64 if p_dtype == torch.float64 else torch.float32)

    def normal(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return with_layout(torch.randn(shape, generator=generator).to(dtype), layout if shape else "contiguous")

    update = rules.UPDATES[rule]
    table = table or [[0.1, 1.0, INF, 0.0, *(0.1 if name == "weight_decay" else 0.9 for name in update.hyper)]]
    states = {key: [normal(s, s_dtype).abs_() for s in shapes] for key in update.slots}
    for a, v in zip(states.get("grad_avg", ()), states.get("square_avg", ()), strict=False):
        a.copy_(v.sqrt() / 2)  # as of averages: what is left of the second without the first is not mere rounding
    steps = [
        torch.tensor(float(i % 3), dtype=(torch.float32, torch.float64, torch.int64)[i % 3]) for i in range(len(shapes))
    ]
    return Case(
        rule,
        [normal(s, p_dtype) for s in shapes],
        [normal(s, g_dtype or p_dtype) for s in shapes],
        [x for xs in states.values() for x in xs],
        steps,
        torch.tensor(table, dtype=torch.float64),
        [i % len(table) for i in range(len(shapes))],
    )


def assert_accurate(given_: Case, ours: Case) -> None:
    """Everything written errs against fp64 at most three times as much as the reference in the same dtypes, which
    divides where kernels multiply by a rounded reciprocal. Where that is fp64 itself, four times as much as the
    reference in fp32, in proportion to the precision: the truth errs too."""
    truth = given_.copy(torch.float64).run(reference.optim_step_)
    is_double = any(p.dtype == torch.float64 for p in given_.params)
    # As vectors: of a 0-dim tensor torch takes the products with fp64 hyperparameters in fp64.
    theirs = given_.copy(torch.float32 if is_double else None).as_vectors().run(reference.optim_step_)
    for x, y, z, before in zip(ours.written(), theirs.written(), truth.written(), given_.written(), strict=True):
        if x.numel() == 0:
            continue
        y = y.reshape(x.shape)
        if x.dtype == torch.float64 and is_double:
            largest = max(float(z.abs().max()), float(before.abs().max()))
            single = max(error(y, z), torch.finfo(torch.float32).eps * largest)
            assert error(x, z) <= 4 * single * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        elif x.dtype == torch.float64:  # a state that is computed in fp32
            assert_as_accurate(x.float(), y.float(), z, factor=3.0, before=before)
        elif x.is_floating_point():
            assert_as_accurate(x, y, z, factor=3.0, before=before)
        else:
            assert torch.equal(x, y)
    assert torch.equal(ours.skipped, truth.skipped)
    torch.testing.assert_close(ours.clip_coef, truth.clip_coef)
    torch.testing.assert_close(ours.grad_norm, truth.grad_norm)


@settings(max_examples=15, phases=[Phase.explicit, Phase.generate])
@given(st.data())
@pytest.mark.parametrize("rule", UPDATES)
def test_equals_the_specification(rule: str, data: st.DataObject) -> None:
    rows = [HYPER[name] for name in (*rules.LAUNCH_HYPER, *rules.UPDATES[rule].hyper)]
    table = data.draw(st.lists(st.tuples(*rows).map(list), min_size=1, max_size=3))
    p_dtype = data.draw(st.sampled_from(DTYPES))
    made = case(
        rule,
        data.draw(st.lists(sizes, min_size=1, max_size=6)),
        p_dtype,
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
    assert_accurate(made, made.copy().run())


@pytest.mark.parametrize("layouts", [("transposed", "contiguous"), ("contiguous", "transposed")])
def test_A14_other_strides_are_refused(layouts: tuple[str, str]) -> None:
    made = case("adamw", [(3, 4)])
    made.params, made.grads = (
        [with_layout(x, k) for x in xs] for xs, k in zip((made.params, made.grads), layouts, strict=True)
    )
    refused(made, r"grads\[0\] has other strides than params\[0\].*\(3, 4\)")


def test_strides_of_a_dimension_of_size_one_do_not_matter() -> None:
    made = case("sgd", [(4, 1, 3)])
    made.grads = [made.grads[0].as_strided((4, 1, 3), (3, 999, 1))]
    assert_accurate(made, made.copy().run())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_A21_every_offset_and_nothing_beside(dtype: torch.dtype) -> None:
    """Views at every offset of elements: the bytes around them stay as they are."""
    size = dtype.itemsize
    for n in (1, 2, 7, 8, 31, 33, 257):
        for offset in range(16):
            made = case("adamw", [(n,)], dtype, s_dtype=dtype, seed=offset)
            expected = made.copy().run()
            buffers = []

            def place(x: Tensor, elements: int, buffers: list[bytearray] = buffers) -> Tensor:
                buffers.append(bytearray(b"\xab" * (64 + (elements + x.numel()) * size + 64)))
                view = torch.frombuffer(buffers[-1], dtype=dtype, count=x.numel(), offset=64 + elements * size)
                return view.copy_(x).view(x.shape)

            made.params = [place(x, offset) for x in made.params]
            made.grads = [place(x, (offset * 7 + 3) % 16) for x in made.grads]
            made.states = [place(x, (offset * 5 + i) % 16) for i, x in enumerate(made.states)]
            made.run()
            for x, y in zip(made.written(), expected.written(), strict=True):
                assert torch.equal(x, y)
            for buffer, elements in zip(buffers, (offset, (offset * 7 + 3) % 16), strict=False):
                begin = 64 + elements * size
                assert set(buffer[:begin]) == set(buffer[begin + n * size :]) == {0xAB}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_do_not_matter(threads: Callable[[int], None], dtype: torch.dtype) -> None:
    made = case("adamw", [(300, 1000), (7,), (0,), (200_001,), *[(100,)] * 200], dtype)
    results = []
    for n in (1, 2, 3, 2):
        threads(n)
        results.append(made.copy().run())
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0].written(), other.written(), strict=True))


@pytest.mark.parametrize("rule", UPDATES)
@pytest.mark.parametrize("flag", ["found_inf", "nonfinite"])
def test_B6_a_skipped_step_changes_nothing(rule: str, flag: str) -> None:
    made = case(rule, [(40, 50), (), (3,)])
    made.norm, made.max_norm = torch.tensor(4.0), 1.0
    if flag == "found_inf":
        made.found_inf = torch.ones(1)
    else:
        made.nonfinite, made.skip_nonfinite = torch.tensor(1.0), True
    ran = made.copy().run()
    assert all(torch.equal(x, y) for x, y in zip(ran.written(), made.written(), strict=True))
    assert int(ran.skipped) == 1
    assert float(ran.grad_norm) == 4.0
    assert float(ran.clip_coef) == pytest.approx(0.25, rel=1e-6)


def test_B7_what_a_buffer_holds_before_the_first_step_does_not_count() -> None:
    made = case("sgd_momentum", [(5,)], table=[[0.1, 1, INF, 0, 0.0, 0.9, 0.5, 1.0]])
    made.states[0].fill_(math.nan)
    made.run()
    assert torch.equal(made.states[0], made.grads[0])
    assert made.params[0].isfinite().all()


def test_B17_the_step_count_may_be_large() -> None:
    made = case("adamw", [(3,), (3,), (3,)])
    made.steps = [torch.tensor(2.0**24), torch.tensor(2.0**24, dtype=torch.float64), torch.tensor(2**24)]
    made.run()
    assert [int(x) for x in made.steps] == [2**24, 2**24 + 1, 2**24 + 1]
    assert all(x.isfinite().all() for x in made.written())


def test_a_nan_shows_where_it_is_and_only_there() -> None:
    for rule in UPDATES:
        made = case(rule, [(70,)])
        made.grads[0][33] = math.nan
        made.run()
        assert made.params[0].isnan().nonzero().tolist() == [[33]]


def refused(made: Case, match: str) -> None:
    """Raises, and has written nothing."""
    before = made.copy()
    with pytest.raises(RuntimeError, match=r"fusedtrain\.optim_step_: .*" + match):
        made.run()
    assert all(torch.equal(x, y) for x, y in zip(made.written(), before.written(), strict=True))


def test_malformed_calls_are_refused_before_anything_is_written() -> None:
    def make() -> Case:
        return case("adamw", [(3, 4), (5,)])

    one = torch.zeros(1)
    base = torch.zeros(20)
    changes: dict[str, dict[str, Any]] = {
        "unknown rule 'sdg'; choose one of .*adamw": {"rule": "sdg"},
        r"grads has 1 entries; it must have 2": {"grads": [torch.zeros(3, 4)]},
        r"states has 3 entries; it must have 4": {"states": [torch.zeros(3, 4)] * 3},
        r"steps has 0 entries": {"steps": []},
        r"group has 3 entries": {"group": [0, 0, 0]},
        r"group\[1\] is 1, but hyper has 1 rows": {"group": [0, 1]},
        r"group\[0\] is -1": {"group": [-1, 0]},
        r"hyper has shape \(1, 7\)": {"hyper": torch.zeros(1, 7, dtype=torch.float64)},
        r"hyper has shape \(1, 8\) and dtype Float": {"hyper": torch.zeros(1, 8)},
        r"grads\[1\] has shape \(4,\); it must have that of params\[1\], \(5,\)": {
            "grads": [torch.zeros(3, 4), torch.zeros(4)]
        },
        r"grads\[0\] has dtype Long": {"grads": [torch.zeros(3, 4, dtype=torch.int64), torch.zeros(5)]},
        r"params\[0\] has dtype ComplexFloat": {"params": [torch.zeros(3, 4, dtype=torch.complex64), torch.zeros(5)]},
        r"states\[3\] has shape \(6,\)": {
            "states": [torch.zeros(3, 4), torch.zeros(5), torch.zeros(3, 4), torch.zeros(6)]
        },
        r"steps\[1\] has shape \(2,\)": {"steps": [one, torch.zeros(2)]},
        r"steps\[0\] has shape \(\) and dtype Int": {"steps": [torch.zeros((), dtype=torch.int32), one]},
        r"inv_scale has shape \(2,\)": {"inv_scale": torch.ones(2)},
        r"found_inf has dtype Bool": {"found_inf": torch.ones((), dtype=torch.bool)},
        r"skipped_steps has shape \(\) and dtype Float": {"skipped": torch.zeros(())},
        r"max_norm is 1 but norm is None": {"max_norm": 1.0},
        r"max_norm is NaN": {"max_norm": math.nan},
        r"nonfinite is None": {"skip_nonfinite": True},
        r"params\[0\] of shape \(3, 4\) is not dense": {"params": [torch.zeros(3, 8)[:, ::2], torch.zeros(5)]},
        r"params\[1\] of shape \(5,\) is not dense": {"params": [torch.zeros(3, 4), torch.zeros(1).expand(5)]},
        r"steps\[0\] and steps\[1\] share memory": {"steps": [one, one]},
        r"params\[0\] and params\[1\] share memory": {"params": [base[:12].view(3, 4), base[11:16]]},
        r"share memory": {"states": [torch.zeros(3, 4), base[:5], torch.zeros(3, 4), base[4:9]]},
    }
    for match, change in changes.items():
        refused(replace(make(), **change), match)


def test_no_parameters() -> None:
    made = case("adamw", [])
    made.run()
    assert int(made.skipped) == 0


@pytest.mark.parametrize("rule", sorted(rules.UPDATES))
@pytest.mark.parametrize("lr", [0.0, 0.1])
def test_an_infinite_parameter_without_gradient_stays(rule: str, lr: float) -> None:
    """A logit held at -inf, by any rule and decay, as when a checkpoint is made with zero gradients and lr = 0."""
    for name in ("cpu", "reference"):
        backend = dispatch.load(name)
        if backend.why_not:
            continue
        for weight_decay in (0.0, 0.1):
            update = rules.UPDATES[rule]
            values = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": weight_decay, "momentum": 0.9}
            row = [lr, 1.0, math.inf, 0.0, *(values.get(key, 0.0) for key in update.hyper)]
            p, g = torch.tensor([-math.inf, math.inf, 1.0]), torch.zeros(3)
            states = [torch.zeros(3) for _ in update.slots]
            hyper = torch.tensor([row], dtype=torch.float64)
            args = (hyper, [0], None, None, None, None, -1.0, False, None, None, None)
            backend.optim_step_(rule, [p], [g], states, [torch.zeros(())], *args)
            assert p[0] == -math.inf
            assert p[1] == math.inf
            assert p[2].isfinite()
