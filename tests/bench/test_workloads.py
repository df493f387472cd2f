"""The workloads: every one is what its name says, and no wrong provider gets past its check."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types

import pytest
import torch
from torch import Tensor

import fusedtrain as ft
from fusedtrain import rules
from fusedtrain.bench import act_providers, checked_steps, clip_norm, peers, shapes, step_providers
from fusedtrain.bench.accuracy import Accuracy
from fusedtrain.bench.act_dropout import ActDropout
from fusedtrain.bench.clip_norm import ClipNorm
from fusedtrain.bench.optim_step import OptimStep, _parts
from fusedtrain.bench.train_step import TrainStep
from fusedtrain.bench.workload import SUITES
from fusedtrain.bench.workloads import FOR_GPU, QUICK, WORKLOADS

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SMALL = OptimStep("small", lambda: [(30, 20), (7,), (0,), (1,)])
ACT = ActDropout("small", "gelu", (64, 128), torch.float32)
HERE = ["fusedtrain-cpu", "fusedtrain-reference", "torch-loop", "torch-foreach", "torch-fused", "torch-grad_scale"]


@pytest.mark.parametrize(
    ("listed", "tensors", "millions"),
    [
        (shapes.gpt2(), 148, 124.4),
        (shapes.gpt2(48, 1600), 580, 1557.6),
        (shapes.resnet50(), 161, 25.557),
        (shapes.resnet18(), 62, 11.690),
        (shapes.mobilenet_v2(), 158, 3.505),
        (shapes.bert_base(), 199, 109.5),
        (shapes.vit_large(), 296, 304.3),
        (shapes.llama3_8b(), 291, 8030.3 / 8),
        (shapes.llama3_8b(1), 291, 8030.3),
        (shapes.lora(), 20_000, 163.8),
    ],
)
def test_models_have_the_sizes_that_their_papers_say(listed, tensors: int, millions: float) -> None:
    assert len(listed) == tensors
    assert shapes.count(listed) / 1e6 == pytest.approx(millions, rel=1e-3)


def test_names_are_unique_and_every_provider_is_one() -> None:
    assert len(WORKLOADS) > 20
    assert {w.suite for w in WORKLOADS.values()} == set(SUITES) - {"scaling"}
    assert set(QUICK) | FOR_GPU <= set(WORKLOADS)
    for name, workload in WORKLOADS.items():
        assert workload.name == name
        assert workload.baseline in workload.providers()
        assert workload.providers()[0].startswith("fusedtrain-")
        with pytest.raises(ValueError, match="no provider 'nobody'"):
            workload.why_not("nobody", CPU, workload.dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("provider", HERE)
def test_every_way_to_step_passes_its_check(provider: str, dtype: torch.dtype) -> None:
    if SMALL.why_not(provider, CPU, dtype):
        pytest.skip(str(SMALL.why_not(provider, CPU, dtype)))
    SMALL.check(provider, CPU, dtype)
    dataclasses.replace(SMALL, group_per_tensor=True).check(provider, CPU, dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", act_providers.PLAIN)
@pytest.mark.parametrize("provider", ["fusedtrain-cpu", "fusedtrain-reference", "torch-eager"])
def test_every_way_to_drop_passes_its_check(provider: str, activation: str, gated: bool, dtype: torch.dtype) -> None:
    workload = dataclasses.replace(ACT, activation=activation, gated=gated)
    if workload.why_not(provider, CPU, dtype):
        pytest.skip(str(workload.why_not(provider, CPU, dtype)))
    workload.check(provider, CPU, dtype)


KINDS = {
    "small": SMALL,
    "groups": dataclasses.replace(SMALL, group_per_tensor=True),
    "one tensor": OptimStep("one", lambda: [(5000,)]),
    "tensors of one element": OptimStep("ones", lambda: shapes.many(148, 1)),
    "one element": OptimStep("1", lambda: [(1,)]),
}
WRONG = {
    "nothing": {},
    "negated": {"maximize": True},
    "no clipping": {},
    "scaled to the bound": {},
    "no decay": {"weight_decay": 0.0},
    "another epsilon": {"eps": 1e-6},
    "one tensor forgotten": {},
    "one step forgotten": {},
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_step_is_found(what: str, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(groups: peers.Groups, settings: peers.Settings) -> object:
        params = peers.params_of(groups)
        stepped = params[:-1] if what == "one tensor forgotten" else params
        opt = torch.optim.AdamW(stepped, **{**settings.adamw(), **WRONG[what]})
        calls = 0

        def call() -> None:
            nonlocal calls
            calls += 1
            if what == "scaled to the bound":
                scale = settings.max_norm / torch.nn.utils.get_total_norm([p.grad for p in params])
                for p in params:
                    p.grad *= scale
            elif what != "no clipping":
                torch.nn.utils.clip_grad_norm_(params, settings.max_norm)
            if what != "nothing" and not (what == "one step forgotten" and calls == 2):
                opt.step()

        return call

    if what == "one tensor forgotten" and len(KINDS[kind].shapes()) == 1:
        pytest.skip("there is but one")
    monkeypatch.setitem(step_providers.PROVIDERS, "torch-loop", wrong)
    with pytest.raises(AssertionError, match="against fp64"):
        KINDS[kind].check("torch-loop", CPU, dtype)


@pytest.mark.parametrize(("eps", "passes"), [(2.6, True), (3.4, False)])
def test_three_steps_may_err_by_three_eps(eps: float, passes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one tensor of 100 elements torch's own errs by one, and another right order of operations by 2.6."""
    workload = OptimStep("few", lambda: [(100,)])

    def rough(groups: peers.Groups, settings: peers.Settings) -> object:
        (p,) = peers.params_of(groups)
        x = p.detach().clone()
        steps = checked_steps.CheckedSteps.of([p.grad.clone()])
        exact = steps.exact(x, p.grad.clone())
        shifted = exact.abs().argmax()
        exact[shifted] += eps * torch.finfo(p.dtype).eps * exact.abs().max()
        return lambda: p.detach().copy_(exact)

    monkeypatch.setitem(step_providers.PROVIDERS, "torch-loop", rough)
    with contextlib.nullcontext() if passes else pytest.raises(AssertionError, match="against fp64"):
        workload.check("torch-loop", CPU, torch.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("provider", HERE)
def test_a_right_step_is_not(provider: str, kind: str, dtype: torch.dtype, seed: int) -> None:
    if KINDS[kind].why_not(provider, CPU, dtype):
        pytest.skip(str(KINDS[kind].why_not(provider, CPU, dtype)))
    found = dataclasses.replace(KINDS[kind], seed=seed).check(provider, CPU, dtype)
    assert 0 < found.theirs < 0.06  # what is allowed, of values and steps of 1/2 and more


def test_the_norm_that_torch_takes_of_many_elements_is_no_fault() -> None:
    """In fp32 it errs by more than a rounding, and the step with it."""
    found = OptimStep("one tensor of 2^22", lambda: [(2**22,)]).check("torch-fused", CPU, torch.float32)
    assert found.error > 4 * torch.finfo(torch.float32).eps


def test_a_yardstick_that_overflows_lets_nothing_pass() -> None:
    truth = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for broken in (math.inf, math.nan):
        with pytest.raises(AssertionError, match="against fp64"):
            Accuracy().add(torch.tensor([1.0, 2.5]), torch.tensor([1.0, broken]), truth)
        Accuracy().add(torch.tensor([1.0, 2.0]), torch.tensor([1.0, broken]), truth)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("clips", [True, False])
@pytest.mark.parametrize("provider", ["fusedtrain-cpu", "fusedtrain-reference", "torch-loop", "torch-foreach"])
def test_every_way_to_clip_passes_its_check(provider: str, clips: bool, dtype: torch.dtype) -> None:
    workload = ClipNorm("small", lambda: [(30, 20), (7,), (0,), (1,)], clips)
    if workload.why_not(provider, CPU, dtype):
        pytest.skip(str(workload.why_not(provider, CPU, dtype)))
    workload.check(provider, CPU, dtype)


@pytest.mark.parametrize("what", ["half the bound", "one gradient forgotten", "always scaled"])
def test_a_wrong_clipping_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(params: list, bound: float) -> None:
        if what == "always scaled":
            for p in params:
                p.grad *= 0.999
            return
        torch.nn.utils.clip_grad_norm_(
            params[:-1] if "forgotten" in what else params, bound / 2 if "half" in what else bound
        )

    monkeypatch.setitem(clip_norm.PROVIDERS, "torch-loop", wrong)
    with pytest.raises(AssertionError):
        ClipNorm("small", lambda: [(30, 20), (7,)], clips=what != "always scaled").check(
            "torch-loop", CPU, torch.float32
        )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_call_of_every_provider_has_something_to_clip(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although one calls ten times as often as the other, and gradients are put back now and then."""
    names = ("fusedtrain-cpu", "torch-foreach")
    workload = ClipNorm("small", lambda: [(30, 20), (500,)])
    if workload.why_not(names[0], CPU, dtype):
        pytest.skip(str(workload.why_not(names[0], CPU, dtype)))
    found: dict[str, list[float]] = {}

    def noted(name: str) -> clip_norm.Clip:
        clip = clip_norm.PROVIDERS[name]

        def noting(params: list, bound: float) -> None:
            norm = float(rules.vector_norm([p.grad for p in params], 2.0))
            clip(params, bound)
            after = float(rules.vector_norm([p.grad for p in params], 2.0))
            found.setdefault(name, []).append(bound / norm)
            assert after < norm and math.isfinite(after)

        return noting

    for name in names:
        monkeypatch.setitem(clip_norm.PROVIDERS, name, noted(name))
    inputs = workload.inputs(CPU, dtype)
    calls = [workload.make(name, CPU, dtype, inputs) for name in names]
    for turn in range(400):
        calls[turn % 10 == 0]()
    assert [len(found[name]) for name in names] == [360, 40]
    assert all(ratio < 0.999 for ratios in found.values() for ratio in ratios)


def test_steps_for_a_cuda_graph_are_capturable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph refuses torch's optimizers unless they are told; without a GPU they are only seen to be told."""
    told = []

    def stepped(params: object, capturable: bool, **settings: object) -> object:
        told.append(capturable)
        return types.SimpleNamespace(step=lambda: None)

    monkeypatch.setattr(torch.optim, "AdamW", stepped)
    for capturable in (False, True):
        for provider in ("torch-loop", "torch-foreach", "torch-fused", "torch-grad_scale"):
            dataclasses.replace(SMALL, capturable=capturable).make(provider, CPU, torch.float32)
        mlp = TrainStep("mlp", "fusedtrain.bench.models:mlp", capturable=capturable)
        mlp.make("torch-fused", CPU, torch.float32)
    assert told == [False] * 5 + [True] * 5


def test_a_backward_alone_is_not_measured_as_a_cuda_graph() -> None:
    assert "needs its forward within" in (dataclasses.replace(ACT, mode="backward").no_graph() or "")
    assert ACT.no_graph() is None


def test_a_backward_that_runs_once_is_not_measured_alone() -> None:
    for device, mode, refused in ((CPU, "backward", False), (CUDA, "both", False), (CUDA, "backward", True)):
        why_not = dataclasses.replace(ACT, mode=mode).why_not("torch-compiled", device, torch.bfloat16)
        assert ("runs once" in (why_not or "")) is refused


def test_clipping_is_not_measured_as_a_cuda_graph() -> None:
    assert "one bound for ever" in (ClipNorm("small", lambda: [(3,)]).no_graph() or "")
    assert ClipNorm("small", lambda: [(3,)], clips=False).no_graph() is None
    assert SMALL.no_graph() is None


@pytest.mark.parametrize("gated", [False, True])
def test_a_zero_that_is_kept_is_not_taken_for_a_drop(gated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As there are among hundreds of millions of random numbers, whose slope is not zero."""
    workload = dataclasses.replace(ACT, gated=gated)
    x, dy = workload.inputs(CPU, torch.bfloat16)
    x.detach()[::7] = 0.0
    monkeypatch.setattr(ActDropout, "inputs", lambda self, device, dtype: (x, dy))
    monkeypatch.setattr(ActDropout, "_check_rate", lambda self, y: None)  # which sees too many zeros here
    workload.check("torch-eager", CPU, torch.bfloat16)


def _no_value(x: Tensor) -> Tensor:
    """Zero, with the gradient of x."""
    return x - x.detach()


@pytest.mark.parametrize("what", ["drops nothing", "drops half", "no scale", "another activation", "another backward"])
def test_a_wrong_dropout_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    f = torch.nn.functional
    ways = {
        "drops nothing": lambda x: f.gelu(x),
        "drops half": lambda x: f.dropout(f.gelu(x), 0.5) * 0.5 / 0.9,
        "no scale": lambda x: f.dropout(f.gelu(x), 0.1) * 0.9,
        "another activation": lambda x: f.dropout(f.gelu(x, approximate="tanh"), 0.1),
        "another backward": lambda x: f.dropout(f.gelu(x.detach()), 0.1) + _no_value(f.dropout(f.gelu(x), 0.1)),
    }
    monkeypatch.setitem(act_providers.PROVIDERS, "torch-eager", lambda activation, p, gated: ways[what])
    with pytest.raises(AssertionError):
        ACT.check("torch-eager", CPU, torch.float32)


def test_another_mask_of_ours_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = act_providers.PROVIDERS["fusedtrain-reference"]

    def make(activation: str, p: float, gated: bool) -> object:
        def f(x: Tensor, rng_state: Tensor) -> Tensor:
            return ours(activation, p, gated)(x, rng_state=rng_state + 4)  # type: ignore[call-arg]

        return f

    monkeypatch.setitem(act_providers.PROVIDERS, "fusedtrain-reference", make)
    with pytest.raises(AssertionError):
        ACT.check("fusedtrain-reference", CPU, torch.float32)


@pytest.mark.parametrize("provider", HERE)
def test_states_have_the_dtype_that_bytes_are_counted_by(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.optim.Optimizer] = []
    for kind in (torch.optim.AdamW, ft.optim.AdamW):
        right = kind.__init__

        def noted(self: torch.optim.Optimizer, *args: object, right: object = right, **settings: object) -> None:
            made.append(self)
            right(self, *args, **settings)

        monkeypatch.setattr(kind, "__init__", noted)
    if SMALL.why_not(provider, CPU, torch.bfloat16):
        pytest.skip(str(SMALL.why_not(provider, CPU, torch.bfloat16)))
    SMALL.make(provider, CPU, torch.bfloat16)()
    states = [t.dtype for opt in made for state in opt.state.values() for t in state.values() if t.numel() > 1]
    own = provider in step_providers.OWN_DTYPE
    assert states and set(states) == {torch.bfloat16 if own else torch.float32}


def test_bytes_are_counted_as_the_budget_says() -> None:
    n = 30 * 20 + 7 + 1
    assert SMALL.bytes(torch.float32) == 32 * n
    assert SMALL.bytes(torch.bfloat16) == 24 * n
    assert SMALL.bytes(torch.bfloat16, "fusedtrain-cpu") == SMALL.bytes(torch.bfloat16, "bitsandbytes") == 24 * n
    assert SMALL.bytes(torch.bfloat16, "torch-fused") == SMALL.bytes(torch.bfloat16, "optimi") == 16 * n
    assert SMALL.bytes(torch.float32, "torch-fused") == 32 * n
    m = 64 * 128
    assert [dataclasses.replace(ACT, mode=mode).bytes(torch.bfloat16) for mode in ("forward", "backward", "both")] == [
        4 * m,
        6 * m,
        10 * m,
    ]
    assert dataclasses.replace(ACT, gated=True).bytes(torch.bfloat16) == (6 + 10) * m
    clip = ClipNorm("small", lambda: [(30, 20), (7,), (1,)])
    assert clip.bytes(torch.float32) == 12 * n
    assert dataclasses.replace(clip, clips=False).bytes(torch.float32) == 4 * n


def test_peers_that_would_compile_for_long_say_so() -> None:
    long = peers.Peer("torch", lambda groups: lambda: None, most_tensors=3, most_shapes=2)
    assert long.why_not(CPU, [(1,), (2,), (1,)]) is None
    assert "is measured on up to 3 tensors, here are 4" in (long.why_not(CPU, [(1,)] * 4) or "")
    assert "up to 2 different shapes, here are 3" in (long.why_not(CPU, [(1,), (2,), (3,)]) or "")
    assert "runs on cuda only" in (peers.PEERS["apex"].why_not(CPU, [(1,)]) or "")


def test_a_seed_changes_the_numbers_and_nothing_else() -> None:
    for workload in (SMALL, ClipNorm("small", SMALL.shapes), ACT):
        other = dataclasses.replace(workload, seed=1)
        tensors = [w.inputs(CPU, torch.float32) for w in (workload, workload, other)]
        first = [t.params[0] if isinstance(t, clip_norm.Falling) else t[0] for t in tensors]
        first = [t[0] if isinstance(t, list) else t for t in first]
        assert torch.equal(first[0], first[1])
        assert not torch.equal(first[0], first[2])


def test_the_parameters_of_models_are_generated_from_few_numbers() -> None:
    assert shapes.gpt2(1, 64)[0] == (50257, 64)
    assert shapes.count(shapes.llama3_8b(1)) == 8_030_261_248  # as its authors count them
    assert shapes.count(shapes.resnet50()) == 25_557_032  # torchvision's
    assert shapes.count(shapes.resnet18()) == 11_689_512
    assert shapes.count(shapes.mobilenet_v2()) == 3_504_872
    assert shapes.count(shapes.gpt2()) == 124_439_808
    assert shapes.count(shapes.gpt2(48, 1600)) == 1_557_611_200


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
@pytest.mark.parametrize("sizes", [[], [0], [5], [3, 0, 4, 1], [7, 7]])
def test_parts_cover_every_element_once(sizes: list[int], limit: int) -> None:
    parts = list(_parts(sizes, limit))
    seen = [(i, e) for part in parts for i, where in part for e in range(where.start, where.stop)]
    assert seen == [(i, e) for i, size in enumerate(sizes) for e in range(size)]
    assert all(sum(w.stop - w.start for _, w in part) <= limit for part in parts)
    assert len(parts) == math.ceil(sum(sizes) / limit)
