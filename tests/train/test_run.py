"""The job as a whole, in this process: what a run leaves, and that it continues to the bit however it was ended."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
from contextlib import suppress

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from fusedtrain.train import checkpoint, job, metrics, progress, settings
from fusedtrain.train.errors import TrainError

from .conftest import SMALL, assert_same_run

FOLDER = {
    "settings.json",
    "summary.json",
    "metrics.csv",
    "metrics.jsonl",
    "checkpoint.safetensors",
    "weights-stock.safetensors",
    "weights-fused.safetensors",
    "loss.png",
    "gradient-norm.png",
    "step-time.png",
}


@pytest.mark.parametrize("kind", SMALL)
def test_a_run_leaves_a_whole_folder(kind, small, train):
    run = train(small(kind, dropout=0.0), report=True)
    steps = SMALL[kind]["steps"]
    assert run.status == 0
    assert set(os.listdir(run.folder)) == FOLDER
    assert [row["step"] for row in run.rows] == list(range(1, steps + 1))
    assert {row["first"] for row in run.rows} == {"stock", "fused"}
    for plot in run.folder.glob("*.png"):
        assert plot.read_bytes().startswith(b"\x89PNG")
    for side in ("stock", "fused"):
        best = min((row for row in run.rows if f"{side}_val_loss" in row), key=lambda row: row[f"{side}_val_loss"])
        figures = run.summary["sides"][side]
        assert figures["best_step"] == best["step"]
        assert figures["val"] == [best[f"{side}_val_loss"], best[f"{side}_val_metric"]]
        assert f"{figures['best_step']}" in run.printed
        for name, w in load_file(run.folder / f"weights-{side}.safetensors").items():
            assert torch.equal(w, run.state[f"{side}/best/{name}"])
    assert run.rows[0]["stock_loss"] == pytest.approx(run.rows[0]["fused_loss"], rel=1e-5)  # the same initial weights


@pytest.mark.parametrize("kind", SMALL)
def test_both_sides_compute_the_same_function(kind, small, train):
    """Without dropout the two sides differ by rounding alone. The bound is what the precision itself does: in fp64 they
    must agree better than the stock side in fp32 agrees with the stock side in fp64."""
    options = small(kind, dropout=0.0, l1=1e-2, max_norm=0.5, clip_value=0.05, weight_decay=0.3)
    double, single = train({**options, "dtype": "float64"}, "double"), train(options, "single")
    for column in ("loss", "grad_norm", "grad_norm_clipped"):
        rounding = (single.column(f"stock_{column}") - double.column(f"stock_{column}")).abs().max()
        between = (double.column(f"fused_{column}") - double.column(f"stock_{column}")).abs().max()
        assert between < rounding
    assert (double.column("stock_clip_coef") < 1).any()
    assert double.column("stock_grad_norm_clipped").max() <= 0.5


@pytest.mark.parametrize("kind", SMALL)
def test_resume_continues_to_the_bit(kind, small, train):
    options = small(kind, schedule="constant")
    whole = train(options, "whole")
    half = options["eval_every"] * 2
    train({**options, "steps": half}, "parts")
    resumed = train({"steps": options["steps"]}, "parts", resume=True)
    assert_same_run(resumed, whole)
    assert resumed.summary["sides"] == whole.summary["sides"]
    for side in ("stock", "fused"):
        name = f"weights-{side}.safetensors"
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", SMALL)
def test_resume_continues_to_the_bit_on_a_gpu(kind, small, train):
    options = small(kind, schedule="constant", device="cuda")
    whole = train(options, "whole", report=True)
    train({**options, "steps": options["eval_every"] * 2}, "parts")
    assert_same_run(train({"steps": options["steps"]}, "parts", resume=True), whole)
    for side in ("stock", "fused"):
        assert whole.summary["memory_bytes"][side]["peak"] > whole.summary["memory_bytes"][side]["saved"] > 0
        assert whole.summary["seconds"]["step"][side]["median"] > 0


class Interrupting(progress.Silent):
    """Raises a signal in this process as a step is reported."""

    def __init__(self, step: int, number: int) -> None:
        self.at, self.number = step, number

    def step(self, row):
        if row["step"] == self.at:
            signal.raise_signal(self.number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_run_that_continues_to_the_bit(number, status, small, train, monkeypatch):
    options = small("mlp")
    whole = train(options, "whole")
    with monkeypatch.context() as patch:
        patch.setattr(progress, "new", lambda *_: Interrupting(8, number))
        handler = signal.getsignal(number)
        interrupted = train(options, "parts")
        assert signal.getsignal(number) is handler
    assert interrupted.status == status
    assert "--resume" in interrupted.printed
    assert 8 <= len(interrupted.rows) <= 9
    assert_same_run(train({}, "parts", resume=True), whole)


def test_time_limit_ends_a_run_with_its_report_and_it_continues(small, train):
    options = small("mlp")
    stopped = train(options, "parts", max_seconds=1e-6)
    assert stopped.status == 0
    assert stopped.summary["ended"] == "time"
    assert len(stopped.rows) == 1
    assert "--max-seconds" in stopped.printed
    assert_same_run(train({}, "parts", resume=True), train(options, "whole"))


def test_early_stopping_ends_the_run_and_restores_the_best(small, train):
    run = train(
        small("mlp", lr=3.0, max_norm=float("inf"), clip_value=float("inf"), patience=1, eval_every=2, steps=200)
    )
    assert run.summary["ended"] == "patience"
    assert len(run.rows) < 200
    for side in ("stock", "fused"):
        figures = run.summary["sides"][side]
        evaluated = [row for row in run.rows if f"{side}_val_loss" in row]
        assert figures["stopped_early_at"] == evaluated[-1]["step"]
        assert figures["val"][0] == min(row[f"{side}_val_loss"] for row in evaluated)
        assert figures["best_step"] < figures["stopped_early_at"]
    again = train({}, resume=True)  # a finished run reports again and trains no further
    assert len(again.rows) == len(run.rows)
    assert again.summary["sides"] == run.summary["sides"]


def test_full_disk_at_a_checkpoint_leaves_the_previous_one(small, train, monkeypatch):
    options = small("mlp")
    whole = train(options, "whole")
    replace, calls = os.replace, []

    def full_at_third(source, target):
        if str(target).endswith(checkpoint.FILE):
            calls.append(target)
            if len(calls) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_at_third)
        with pytest.raises(TrainError, match=r"writing .*checkpoint.*No space left on device"):
            train(options, "parts")
    folder = whole.folder.parent / "parts"
    assert not list(folder.glob(".*"))
    with_previous = load_file(folder / checkpoint.FILE)
    assert with_previous.keys() == whole.state.keys()
    assert_same_run(train({}, "parts", resume=True), whole)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_under_the_metrics(tmp_path):
    (tmp_path / metrics.CSV).symlink_to("/dev/full")
    log = metrics.Log(None)
    log._files = [(tmp_path / metrics.CSV).open("a")] * 2
    log.append({"step": 1})
    with pytest.raises(TrainError, match=r"writing .*metrics\.csv: No space left on device"):
        log.flush()


def test_resume_refuses_other_data(small, train, tmp_path):
    train(small("text"))
    (tmp_path / "corpus.txt").write_text("something else entirely\n" * 1000)
    with pytest.raises(TrainError, match="the data are not those"):
        train({}, resume=True)


@pytest.mark.parametrize("damage", ["cut", "noise", "other model"])
def test_resume_refuses_a_damaged_checkpoint(damage, small, train, tmp_path):
    train(small("mlp"))
    path = tmp_path / "run" / checkpoint.FILE
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "noise":
        path.write_bytes(os.urandom(1000))
    else:
        file = tmp_path / "run" / settings.FILE
        file.write_text(file.read_text().replace('"width": 32', '"width": 48'))
    with pytest.raises(TrainError, match="not a whole checkpoint of this run"):
        train({}, resume=True)


def test_resume_refuses_damaged_metrics(small, train, tmp_path):
    train(small("mlp"))
    path = tmp_path / "run" / metrics.JSONL
    path.write_text(path.read_text()[:200])
    with pytest.raises(TrainError, match=r"metrics\.jsonl: it does not hold the 24 steps of the checkpoint"):
        train({}, resume=True)


def test_no_tensor_of_a_checkpoint_shares_its_memory(small, train, monkeypatch):
    """Small states are views of one block of memory, and safetensors has refused tensors that share some."""
    shared = []

    def save_file(tensors, *args, **kwargs):
        places = [t.untyped_storage().data_ptr() for t in tensors.values() if t.numel()]
        shared.append(len(places) - len(set(places)))
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in tensors.values())
        return safetensors.torch.save_file(tensors, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    whole = train(small("mlp"))
    assert any(name.startswith("fused/optimizer/") for name in whole.state)
    assert len(shared) >= 5
    assert not any(shared)


def test_a_run_killed_before_its_first_checkpoint_starts_over(small, train, tmp_path):
    whole = train(small("mlp"), "whole")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / settings.FILE).write_text((whole.folder / settings.FILE).read_text())
    assert_same_run(train({}, "parts", resume=True), whole)


def test_options_of_a_run_are_checked_before_its_folder_is_made(small, train, tmp_path):
    for bad in ({"lr": -1.0}, {"task": "text", "text": str(tmp_path / "nowhere")}):
        with pytest.raises(TrainError):
            train(bad)
    with pytest.raises(TrainError, match="--max-seconds 0"):
        train({}, max_seconds=0.0)
    assert os.listdir(tmp_path) == []


def test_summary_is_json_without_nan(small, train):
    run = train(small("mlp", steps=1, eval_every=1), report=True)
    json.loads((run.folder / job.SUMMARY).read_text(), parse_constant=lambda name: pytest.fail(name))


def test_a_run_on_a_gpu_leaves_torch_as_it_was(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which is to be set once and for all
    chosen = dataclasses.replace(settings.new({"device": "cpu", **SMALL["mlp"]}), device="cuda")

    def now():
        enabled = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        return *enabled, torch.utils.deterministic.fill_uninitialized_memory

    before = now()
    with suppress(KeyboardInterrupt), job._deterministic(chosen):
        assert now() == (True, True, False) != before
        raise KeyboardInterrupt
    assert now() == before
