"""The command as it is typed: in a terminal, in a pipe, interrupted, under torchrun."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import fusedtrain
from fusedtrain.train import cli, job, progress, settings, tasks

from .conftest import Finished, assert_same_run

ROOT = Path(fusedtrain.__file__).parents[1]
MODULE = ["-m", "fusedtrain", "train"]
TINY = ["--width", "16", "--batch", "32", "--eval-every", "5", "--warmup", "5", "--device", "cpu"]


def start(arguments: list[str], out: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments, *(("--out", str(out)) if "--resume" not in arguments else ())],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], folder: Path) -> tuple[Finished, str]:
    try:
        printed, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    return Finished(folder, process.returncode, printed), errors


BAD = [
    (["--lr", "nan"], "--lr nan"),
    (["--backend", "vulkan"], "--backend vulkan"),
    (["--device", "abacus"], "--device abacus"),
    (["--activation", "swish"], "--activation swish"),
    (["--task", "text", "--text", "nowhere.txt"], "nowhere.txt"),
    (["--resume", "nowhere"], "--resume nowhere"),
    (["--max-seconds", "-1"], "--max-seconds -1"),
    (["--out", "/proc/nowhere/run"], "--out /proc/nowhere/run"),
    (["--steps", "many"], "--steps"),
]


@pytest.mark.parametrize(("arguments", "names"), BAD, ids=[names for _, names in BAD])
def test_bad_input_exits_2_and_writes_nothing(arguments, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 2
    assert names in done.output
    assert "Traceback" not in done.output
    assert os.listdir(tmp_path) == []


def test_help_names_every_setting_with_its_default():
    shown = " ".join(CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200"}).output.split())
    for task in settings.DEFAULTS.values():
        for name in task:
            assert settings.option(name) in shown
    assert "[digits: 0.2, text: 0.1]" in shown


def test_a_terminal_gets_a_bar_and_a_pipe_plain_lines():
    task = tasks.load(settings.new({"device": "cpu"}))
    row = {"step": 5, "stock_loss": 0.5, "fused_loss": 0.25, "stock_val_metric": 0.9, "fused_val_metric": 0.8}
    shown = {}
    for kind in (True, False):
        file = io.StringIO()
        bar = progress.new(Console(file=file, force_terminal=kind, width=100), task, total=10, done=0)
        bar.step(row)
        bar.close()
        shown[kind] = file.getvalue()
    assert "\x1b[" in shown[True]
    assert "5/10" in shown[True]
    line = "step 5/10  train loss: stock 0.5000  fused 0.2500  val accuracy: stock 90.00%  fused 80.00%\n"
    assert shown[False] == line


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(width, small, train, monkeypatch):
    whole = train(small("mlp"))
    file = io.StringIO()
    job.report.table(whole.summary, Console(file=file, width=width))
    lines = file.getvalue().splitlines()
    assert max(len(line) for line in lines) <= width
    assert not any("…" in line for line in lines)
    for title in ("val accuracy", "forward", "backward", "clip + step", "saved for backward", "steps clipped"):
        assert any(title in line for line in lines)


def test_ctrl_c_exits_130_and_the_run_continues(tmp_path):
    folder = tmp_path / "run"
    process = start([*MODULE, "--steps", "100000", *TINY], folder)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 5/"):
            break
    process.send_signal(signal.SIGINT)
    run, errors = finish(process, folder)
    assert run.status == 130
    assert "Traceback" not in errors
    assert "--resume" in run.printed
    assert "\x1b" not in run.printed
    steps = len(run.rows)
    assert steps >= 5
    resumed = CliRunner().invoke(cli.app, ["--resume", str(folder), "--max-seconds", "0.5"])
    assert resumed.exit_code == 0, resumed.output
    assert f"from step {steps}" in resumed.output
    assert json.loads((folder / job.SUMMARY).read_text())["steps"] > steps


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_two_processes_train_as_one_and_stop_together(tmp_path, train):
    """Gradients averaged over two halves of a batch are those of the batch: in fp64 the losses agree with a single
    process's better than that one's agree with itself in fp32. A process that went on when the other had stopped would
    wait for it until the time limit."""
    given = {"dropout": 0.0, "lr": 0.05, "patience": 1, "steps": 400, "width": 16, "eval_every": 5, "warmup": 5}
    given["device"] = "cpu"
    options = [word for name, value in given.items() for word in (settings.option(name), str(value))]
    process = start([*TORCHRUN, *MODULE, *options, "--dtype", "float64"], tmp_path / "pair")
    pair, errors = finish(process, tmp_path / "pair")
    assert pair.status == 0, errors
    one = train({**given, "dtype": "float64"}, "one")
    single = train(given, "single")
    assert pair.summary["ended"] == "patience"
    assert pair.summary["environment"]["processes"] == 2
    for side in ("stock", "fused"):
        assert pair.summary["sides"][side]["stopped_early_at"] == one.summary["sides"][side]["stopped_early_at"]
        losses = [
            torch.tensor([row[f"{side}_loss"] for row in run.rows[:20]], dtype=torch.float64)
            for run in (pair, one, single)
        ]
        assert (losses[0] - losses[1]).abs().max() < (losses[2] - losses[1]).abs().max()
        assert not torch.equal(*(pair.state[f"{side}/rng/{rank}"] for rank in (0, 1)))
    assert pair.printed.count("Run folder") == 2  # one process prints: as it starts and as it ends


CONTINUING = """
import sys
from pathlib import Path
import torch.distributed as dist
from rich.console import Console
from fusedtrain.train import job
from fusedtrain.train.world import world
folder = Path(sys.argv[2])  # after --out
given = {"width": 16, "batch": 32, "eval_every": 5, "warmup": 5, "dropout": 0.3, "schedule": "constant"}
given["device"] = "cpu"
with world("cpu"):
    job.run({**given, "steps": 20}, folder / "whole", None, None, Console())
    job.run({**given, "steps": 10}, folder / "parts", None, None, Console())
    dist.barrier()
    job.run({"steps": 20}, None, folder / "parts", None, Console())
"""


def test_two_processes_continue_to_the_bit(tmp_path):
    """Each with random numbers of its own, which only one of them writes down."""
    (tmp_path / "continuing.py").write_text(CONTINUING)
    whole, errors = finish(start([*TORCHRUN, str(tmp_path / "continuing.py")], tmp_path), tmp_path / "whole")
    assert whole.status == 0, errors
    parts = Finished(tmp_path / "parts", 0, "")
    assert len(parts.rows) == 20
    assert_same_run(parts, whole)
    for side in ("stock", "fused"):
        assert not torch.equal(whole.state[f"{side}/rng/0"], whole.state[f"{side}/rng/1"])
