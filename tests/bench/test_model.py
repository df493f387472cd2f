"""``--model``: factories as users write them, good and bad, and what is said of their gain."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fusedtrain.bench import factory, gains, selection, train_step
from fusedtrain.bench.errors import BenchError
from fusedtrain.bench.measure import measure
from fusedtrain.bench.timers import Wall
from fusedtrain.bench.train_step import MODELS, TrainStep

from .conftest import Run

CPU = torch.device("cpu")


def mlp(p: float = 0.25) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Dropout(p), nn.Linear(32, 4), nn.ReLU(), nn.Dropout(p))


class Output(dict):
    pass


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict:
        y = self.net(x)
        return Output(logits=y, loss=nn.functional.cross_entropy(y, labels))


def closure() -> tuple:
    model, x = mlp(), torch.randn(16, 8)
    return model, lambda: model(x).square().mean()


GOOD = {
    "tensor": lambda: (mlp(), torch.randn(16, 8)),
    "arguments": lambda: (mlp(), (torch.randn(16, 8),)),
    "keywords": lambda: (WithLoss(), {"x": torch.randn(16, 8), "labels": torch.arange(16) % 4}),
    "of_the_model": lambda: (mlp(), lambda model: model(torch.ones(16, 8)).square().mean()),
    "closure": closure,
    "no_dropout": lambda: (nn.Linear(8, 4), torch.randn(16, 8)),
}


class ElsewhereOnly(nn.Module):
    """As a model whose kernels are for a GPU alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cpu":
            raise RuntimeError("0 active drivers")
        y: torch.Tensor = self.net(x)
        return y


def raises() -> None:
    raise OSError("no weights\nat all")


BAD = {
    "raises": (raises, "the factory raised OSError: no weights"),
    "module_alone": (mlp, "the factory returned Sequential"),
    "swapped": (lambda: (torch.ones(1), mlp()), "the factory returned Tensor, Sequential"),
    "frozen": (lambda: (mlp().requires_grad_(False), torch.randn(16, 8)), "no parameter to train"),
    "wrong_shape": (lambda: (mlp(), torch.randn(16, 9)), "a forward and backward raised RuntimeError"),
    "no_scalar": (lambda: (mlp(), lambda m: m(torch.ones(16, 8))), "the loss is [16, 4], not one number"),
    "no_float": (lambda: (nn.Embedding(4, 4), lambda m: 3.0), "the loss is float, not one number"),
    "constant": (lambda: (mlp(), lambda: torch.ones(())), "does not require grad"),
}


@pytest.fixture(autouse=True)
def _module() -> Iterator[None]:
    """A module `user_models` with all of these, as if a user had it on the path."""
    module = types.ModuleType("user_models")
    vars(module).update(elsewhere_only=lambda: (ElsewhereOnly(), torch.randn(16, 8)))
    vars(module).update(GOOD, **{name: f for name, (f, _) in BAD.items()}, number=3)
    sys.modules["user_models"] = module
    yield
    del sys.modules["user_models"]
    train_step.shapes_of.cache_clear()
    gains.sites_of.cache_clear()


@pytest.mark.parametrize("name", GOOD)
def test_every_form_of_a_factory_is_trained_and_checked(name: str) -> None:
    step = TrainStep("train", f"user_models:{name}")
    row = measure(step, CPU, Wall(0.001), providers=["fusedtrain-reference", "torch-fused"], rounds=2)
    for found in row["providers"].values():
        assert len(found["seconds"]) == 2
        assert found["saved_bytes"] > 0
    assert row["tensors"] == len(train_step.shapes_of(step.path))


@pytest.mark.parametrize("name", BAD)
def test_bad_factories_are_refused(bench: Run, tmp_path: Path, name: str) -> None:
    done = bench("run", "--model", f"user_models:{name}", "--device", "cpu", "--json", tmp_path / "run.json")
    told = " ".join(done.output.split())
    assert done.exit_code == 2
    assert f"--model user_models:{name}: " in told
    assert BAD[name][1] in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("user_models:tensr", "no such function in user_models. Did you mean 'tensor'?"),
        ("user_models:number", "it is no function but int"),
        ("user_modules:x", "no module 'user_modules'"),
        ("user_models", "it names no factory"),
    ],
)
def test_bad_paths_are_refused(path: str, reason: str) -> None:
    with pytest.raises(BenchError, match="bench: --model") as refused:
        factory.build(path, CPU)
    assert reason in str(refused.value)


def test_a_seed_makes_the_same_model_and_input() -> None:
    a, b, c = (factory.build("user_models:tensor", CPU, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.example, b.example) and not torch.equal(a.example, c.example)
    assert all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    build = TrainStep._build

    def wrong(self: TrainStep, provider: str, device: torch.device, dtype: torch.dtype) -> object:
        training, sites = build(self, provider, device, dtype)
        next(training.model.parameters()).register_hook(lambda g: g * 1.001)
        return training, sites

    for name in ("tensor", "keywords"):
        step = TrainStep("train", f"user_models:{name}")
        step.check("torch-fused", CPU, torch.float32)
        with monkeypatch.context() as patched:
            patched.setattr(TrainStep, "_build", wrong)
            with pytest.raises(AssertionError, match="gradients err"):
                step.check("torch-fused", CPU, torch.float32)


def test_sites_are_those_of_one_forward() -> None:
    assert gains.sites_of("user_models:tensor") == {
        ("gelu", 0.25, (16, 32), torch.float32): 1,
        ("relu", 0.25, (16, 4), torch.float32): 1,
    }
    assert gains.sites_of("user_models:no_dropout") == {}
    names = [w.name for w in gains.workloads("user_models:tensor")]
    assert names[0] == "train, user_models:tensor"
    assert names[2] == "user_models:tensor: gelu + dropout, 16 x 32 fp32, both"


def test_a_model_is_looked_at_where_it_will_run() -> None:
    """There is no GPU here; what stands for it computes shapes and no values."""
    path, elsewhere = "user_models:elsewhere_only", torch.device("meta")
    with pytest.raises(BenchError, match="0 active drivers"):
        gains.workloads(path)
    whole, step, *acts = gains.workloads(path, device=elsewhere)
    assert [a.shape for a in acts] == [(16, 32), (16, 4)]
    assert whole.facts()["tensors"] == step.facts()["tensors"] == 4
    wanted = selection.Wanted(model=path, device="meta")
    assert next(item.workload.name for item in selection.of_model(path, wanted)) == f"train, {path}"


def test_a_model_that_breaks_in_its_parts_has_rows_all_the_same(
    bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise torch.OutOfMemoryError("no room\nat all")

    monkeypatch.setattr(gains, "_phases", breaks)
    path = tmp_path / "run.json"
    which = ("--device", "cpu", "--providers", "fusedtrain-cpu,torch-fused")
    options = ("--rounds", "2", "--seconds", "0.001", "--threads", "1")
    done = bench("run", "--model", "user_models:tensor", *which, *options, "--json", path)
    written = json.loads(path.read_text())
    assert done.exit_code == 1 and written["complete"] and len(written["rows"]) == 4
    assert written["gains"]["why_not"] == "its step raised OutOfMemoryError: no room"
    assert "its step raised OutOfMemoryError: no room" in done.output


def test_options_reach_the_model_and_its_gain(bench: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    options = ("--dtype", "bf16", "--seed", "3", "--rounds", "2", "--seconds", "0.001", "--threads", "1")
    which = ("--device", "cpu", "--providers", "fusedtrain-cpu,torch-fused")
    done = bench("run", "--model", "user_models:tensor", *options, *which, "--json", path)
    assert done.exit_code == 0, done.output
    written = json.loads(path.read_text())
    assert {row["dtype"] for row in written["rows"]} == {"bfloat16"}
    assert "2^1" in done.output or "of the step" in done.output
    assert written["gains"]["share_act"] == 0.0  # torch-eager was not asked for
    assert all(w.seed == 3 for w in gains.workloads("user_models:tensor", seed=3))
    for option in (("--workload", "clip"), ("--mode", "fwd")):
        refused = bench("run", "--model", "user_models:tensor", *option, "--json", tmp_path / "other.json")
        assert refused.exit_code == 2
        assert "--model chooses what is measured" in " ".join(refused.output.split())


def test_gains_add_up(bench: Run, tmp_path: Path) -> None:
    """Rows whose times are known: what they let expect is what they sum to."""
    seconds = {"train": (8e-3, 1e-2), "clip": (1e-3, 2e-3), "gelu": (1e-4, 6e-4), "relu": (2e-4, 2e-4)}
    rows = []
    for workload in gains.workloads("user_models:tensor"):
        ours, theirs = next(pair for word, pair in seconds.items() if word in workload.name.partition("models:")[0]
                            or word in workload.name.rpartition(": ")[2])  # fmt: skip
        providers = {"fusedtrain-cpu": {"seconds": [ours]}, workload.baseline: {"seconds": [theirs]}}
        rows.append({"name": workload.name, "providers": providers})
    found = gains.of_model(TrainStep("train, user_models:tensor", "user_models:tensor"), CPU, rows, rounds=2, limit=1.0)
    step = sum(found["stock"].values())
    assert found["ours"] == "fusedtrain-cpu" and found["sites"] == ["1", "4"]
    assert found["measured"] == pytest.approx(1.25)
    assert found["share_act"] == pytest.approx(8e-4 / step)
    assert found["expected"] == pytest.approx(step / max(step - 1e-3 - 5e-4, 1e-12))
    assert 0 < found["share_update"] < 1
    assert any("clip + optimizer are" in line for line in gains.lines(found))


def test_without_its_step_there_is_no_gain() -> None:
    found = gains.of_model(TrainStep("train", "user_models:tensor"), CPU, [], rounds=2, limit=1.0)
    assert found["why_not"] == "its training step was not measured"
    assert gains.lines(found) == ["user_models:tensor: its training step was not measured"]


@pytest.mark.parametrize("path", [path for path in MODELS.values() if "gpt2" not in path])  # which is encoder, larger
def test_the_models_of_the_suite_have_something_to_fuse(path: str) -> None:
    sites = gains.sites_of(path)
    assert bool(sites) == (path != MODELS["deep and thin net"])
    assert len(train_step.shapes_of(path)) > 8
