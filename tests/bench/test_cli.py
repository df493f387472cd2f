"""``python -m fusedtrain bench`` as it is typed."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fusedtrain.bench import (
    act_dropout,
    cli,
    clip_norm,
    measure,
    optim_step,
    run,
    selection,
    tables,
    train_step,
    workloads,
)

from .conftest import Run, results, timings, write

ROOT = Path(__file__).resolve().parent.parent.parent

MODEL = "fusedtrain.bench.models:mlp"
ONE = "clip + AdamW, 148 tensors of 1"
FAST = ("--rounds", "2", "--seconds", "0.001", "--threads", "1")

BAD = [
    (["run", "optm"], ["SUITE optm", "no such suite", "Did you mean 'optim'?"]),
    (["list", "acts"], ["SUITE acts", "Did you mean 'act'?"]),
    (["run", "--workload", "clip + AdamW, ResNet-5O"], ["no such workload", "Did you mean 'clip + AdamW, ResNet-50'?"]),
    (["run", "--providers", "torch-fusd"], ["no such provider", "Did you mean 'torch-fused'?"]),
    (["run", "--dtype", "fp31"], ["--dtype fp31", "Did you mean 'fp32'?"]),
    (["run", "act", "--mode", "forward"], ["--mode forward", "no such mode", "fwd"]),
    (["run", "--device", "abacus"], ["--device abacus", "cpu, cuda"]),
    (["run", "clip", "--providers", "liger"], ["--providers liger", "no chosen workload has any of them"]),
    (["run", "--providers", "torch-fused", "--fail-under", "1"], ["--fail-under 1.0", "beside its baseline"]),
    (["run", "--model", "optim"], ["--model optim", "it names no factory", "package.module:factory"]),
    (["run", "optim", "--model", "a.b:c"], ["--model a.b:c", "measured as a whole"]),
    (["run", "--threads", "0"], ["--threads"]),
    (["run", "optim", "--mode", "fwd"], ["--mode fwd", "no activation is among"]),
]


@pytest.mark.parametrize(("arguments", "told"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_clear_line(bench: Run, tmp_path: Path, arguments: list[str], told: list[str]) -> None:
    out = ["--json", str(tmp_path / "run.json")] if arguments[0] == "run" else []
    done = bench(*arguments, *out)
    shown = " ".join(done.output.split())
    assert done.exit_code == 2
    assert all(words in shown for words in told), shown
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_and_its_graphs_are_refused(bench: Run) -> None:
    assert "torch sees no GPU" in bench("run", "--device", "cuda").output
    assert "no CUDA graphs on cpu" in bench("run", "--cudagraph").output


def test_a_record_does_not_tell_where_files_were(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["bench", "run", "act", "--json", "/home/me/a.json", "--csv=/home/me/b.csv", "--md", "c.md"]
    monkeypatch.setattr(sys, "argv", ["fusedtrain", *arguments])
    assert cli._arguments() == ["run", "act", "--json", "a.json", "--csv=b.csv", "--md", "c.md"]


def test_a_run_writes_json_csv_and_markdown(bench: Run, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.json"
    outputs = ("--json", path, "--csv", tmp_path / "run.csv", "--md", tmp_path / "run.md")
    providers = "fusedtrain-reference,torch-fused,torch-foreach,apex"
    names = ("--workload", ONE, "--workload", "clip, 1000 tensors of 100")
    done = bench("run", *names, "--providers", providers, *FAST, *outputs, "--seed", "3")
    assert done.exit_code == 0, done.output
    written = json.loads(path.read_text())
    assert list(path.parent.iterdir()) == [path]
    assert {"commit", "versions", "machine", "copy_bandwidth", "command", "options", "backends"} <= set(written)
    assert written["complete"] is True
    assert written["options"]["seed"] == 3 and written["options"]["threads"] == 1
    one, clip = written["rows"]
    assert (one["name"], clip["suite"]) == (ONE, "clip")
    assert list(one["providers"]) == ["fusedtrain-reference", "torch-foreach", "torch-fused", "apex"]
    for provider in ("fusedtrain-reference", "torch-fused"):
        found = one["providers"][provider]
        assert len(found["seconds"]) == 2
        assert 0 <= found["max_error"] <= 2 * found["max_error_of_torch"]
        assert found["host_seconds"] > 0 and found["peak_bytes"] >= 0
    assert "runs on cuda only" in one["providers"]["apex"]["why_not"] or torch.cuda.is_available()
    lines = list(csv.DictReader(io.StringIO((tmp_path / "run.csv").read_text())))
    assert [line["provider"] for line in lines if line["workload"] == ONE] == list(one["providers"])
    assert all((line["seconds"] == "") == (line["reason"] != "") for line in lines)
    markdown = (tmp_path / "run.md").read_text()
    assert "### optim" in markdown and "### clip" in markdown and "- apex" in markdown
    assert "fusedtrain-reference" in done.output


def test_modes_and_dtypes_replace_those_of_the_workloads(bench: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    names = ("--workload", "gelu + dropout, 1024 x 2048")
    done = bench("run", *names, "--providers", "torch-eager", "--mode", "fwd", "--dtype", "fp16", *FAST, "--json", path)
    assert done.exit_code == 0, done.output
    (row,) = json.loads(path.read_text())["rows"]
    assert row["name"] == "gelu + dropout, 1024 x 2048 fp16, forward"
    assert (row["dtype"], row["mode"]) == ("float16", "forward")
    assert row["bytes"] == 2 * 1024 * 2048 * 2


def test_a_name_does_not_tell_another_dtype_than_the_rows() -> None:
    wanted = selection.Wanted(workloads=["AdamW, GPT-2 small"])
    plain, half = (item.workload for item in selection.items(wanted))
    assert (plain.name, half.name) == ("clip + AdamW, GPT-2 small", "clip + AdamW, GPT-2 small bf16")
    (one,) = (i.workload for i in selection.items(dataclasses.replace(wanted, dtype="fp16")))
    assert (one.name, one.dtype) == ("clip + AdamW, GPT-2 small", torch.float16)


def test_names_are_shown_as_they_were_written(bench: Run, tmp_path: Path) -> None:
    done = bench("run", "act", "--model", "modules:ok", "--json", tmp_path / "run.json")
    assert done.exit_code == 2 and "modules:ok" in done.output  # and no picture


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1"])
def test_what_is_no_ratio_is_refused(bench: Run, tmp_path: Path, value: str) -> None:
    done = bench("run", "--quick", f"--fail-under={value}", "--json", tmp_path / "run.json")
    assert done.exit_code == 2 and "it is no ratio" in done.output


def test_list_shows_suites_workloads_and_reasons(bench: Run) -> None:
    shown = bench("list", "--device", "cpu").output
    for words in ("optim: clipping", "scaling: cost", ONE, "[quick]", "[GPU, or by name]", "providers on cpu"):
        assert words in shown
    apex = next(line for line in shown.splitlines() if line.strip().startswith("apex"))
    assert apex.split() == ["apex", "runs", "on", "cuda", "only"]
    only = bench("list", "clip").output
    assert "clip, ResNet-50" in only and ONE not in only


def failing(*args: object) -> object:
    raise RuntimeError("no kernel today\nlong story")


def wrong(*args: object) -> object:
    return lambda: None


@pytest.mark.parametrize(
    ("make", "told"), [(failing, "failed: RuntimeError: no kernel today"), (wrong, "WRONG: error")]
)
def test_a_failure_of_ours_stops_the_run_unless_told_to_go_on(
    bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: object, told: str
) -> None:
    monkeypatch.setitem(optim_step.PROVIDERS, "fusedtrain-reference", make)
    path = tmp_path / "run.json"
    names = ("--workload", ONE, "--workload", "clip, 1000 tensors of 100")
    common = (*names, "--providers", "fusedtrain-reference,torch-fused", *FAST, "--json", path)
    stopped = bench("run", *common)
    written = json.loads(path.read_text())
    assert stopped.exit_code == 1
    assert told in stopped.output and "--keep-going" in stopped.output
    assert [row["name"] for row in written["rows"]] == [ONE]
    assert written["complete"] is False
    found = written["rows"][0]["providers"]
    assert not found["fusedtrain-reference"].get("seconds")
    assert found["torch-fused"]["seconds"]
    going = bench("run", *common, "--keep-going")
    assert going.exit_code == 1
    assert len(json.loads(path.read_text())["rows"]) == 2


def test_fail_under_looks_at_the_whole_interval(bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_step(provider: str) -> object:
        make = optim_step.PROVIDERS[provider]

        def slow(groups: object, settings: object) -> object:
            call = make(groups, settings)
            return lambda: (call(), time.sleep(0.02))

        return slow

    monkeypatch.setitem(optim_step.PROVIDERS, "fusedtrain-cpu", slow_step("torch-loop"))
    monkeypatch.setattr(optim_step.availability, "backend_refusal", lambda *args: None)
    few = ("--workload", ONE, "--providers", "fusedtrain-cpu,torch-fused", *FAST, "--json", tmp_path / "run.json")
    common = (*few, "--rounds", "9")
    assert bench("run", *common).exit_code == 0
    done = bench("run", *common, "--fail-under", "1.0")
    assert done.exit_code == 1
    assert "below 1: clip + AdamW, 148 tensors of 1, fusedtrain-cpu" in " ".join(done.output.split())
    assert bench("run", *common, "--fail-under", "0.0001").exit_code == 0
    done = bench("run", *few, "--fail-under", "0.0001")
    assert done.exit_code == 1
    told = "cannot tell: fewer than three visits, more --rounds: clip + AdamW, 148 tensors of 1, fusedtrain-cpu"
    assert told in " ".join(done.output.split())
    assert "x (-)" in done.output


def test_fail_under_does_not_pass_what_was_not_measured(
    bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim_step.availability, "backend_refusal", lambda *args: "was not built")
    common = ("--workload", ONE, "--providers", "fusedtrain-cpu,torch-fused", *FAST, "--json", tmp_path / "run.json")
    assert bench("run", *common).exit_code == 0
    done = bench("run", *common, "--fail-under", "1.0")
    assert done.exit_code == 1
    assert "nothing of ours was measured" in " ".join(done.output.split())


def test_an_interrupted_run_keeps_its_finished_rows(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    names = ["--workload", ONE, "--workload", "clip, ResNet-50", "--providers", "fusedtrain-reference,torch-foreach"]
    options = ["--quick", "--rounds", "400", "--seconds", "0.01", "--limit", "0.5", "--json", str(path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "fusedtrain", "bench", "run", *names, *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and not (path.exists() and json.loads(path.read_text())["rows"]):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, shown
    assert "interrupted; the rows that were finished are in the file" in shown
    written = json.loads(path.read_text())
    assert [row["name"] for row in written["rows"]] == [ONE]
    assert written["complete"] is False


def test_both_ways_to_call_it_and_help_without_its_parts() -> None:
    for module in (["fusedtrain", "bench"], ["fusedtrain.bench"]):
        done = subprocess.run(
            [sys.executable, "-m", *module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert all(command in done.stdout for command in ("run", "list", "compare", "report"))


def test_a_package_that_is_missing_is_named(bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write(tmp_path / "run.json", results(**timings(0, 2.0)))
    for name in [n for n in sys.modules if n.startswith("fusedtrain.bench.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = bench("report", run)
    assert done.exit_code == 2
    assert "needs jinja2" in " ".join(done.output.split()) and "pip install 'fusedtrain[bench]'" in done.output


@pytest.mark.parametrize("reason", ["OSError: [/usr/lib/x.so]: no such file", "[bold]x[/red]"])
def test_reasons_are_text_and_no_markup(reason: str) -> None:
    run_ = results(**timings(0, 2.0))
    run_["rows"][0]["providers"]["fusedtrain-cuda"] = {"failed": reason}
    run_["rows"][0]["name"] = "[/gelu]"
    console = run.Console(file=io.StringIO(), width=200)
    console.print(tables.table(run_))
    assert reason in console.file.getvalue() and "[/gelu]" in console.file.getvalue()


def test_scaling_adds_its_suite(bench: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr(run, "run", lambda plan, console: seen.append(plan) or 0)
    path = tmp_path / "run.json"
    for arguments in (["--scaling"], ["--scaling", "clip"], ["scaling"]):
        assert bench("run", "--quick", *arguments, "--json", path).exit_code == 0
    suites = [list(dict.fromkeys(item.workload.suite for item in plan.items)) for plan in seen]
    assert suites == [["optim", "clip", "act", "model", "scaling"], ["clip", "scaling"], ["scaling"]]


def test_the_cpu_has_no_number(bench: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr(run, "run", lambda plan, console: seen.append(plan) or 0)
    for device in ("cpu", "cpu:0"):
        assert bench("run", "--device", device, "--json", tmp_path / "run.json").exit_code == 0
    names = [[item.workload.name for item in plan.items] for plan in seen]
    assert names[0] == names[1]
    assert {str(plan.device) for plan in seen} == {plan.options["device"] for plan in seen} == {"cpu"}


def test_a_run_on_a_gpu_with_a_number_is_on_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it can be seen without one."""
    order = []
    monkeypatch.setattr(torch.cuda, "set_device", order.append)

    def stop(plan: run.Plan) -> float:
        order.append("copied")
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_copy_bandwidth", stop)
    device = torch.device("cuda", 1)
    plan = run.Plan([], device, tmp_path / "run.json", "", {}, threads=torch.get_num_threads())
    with pytest.raises(KeyboardInterrupt):
        run.run(plan, run.Console(file=io.StringIO()))
    assert order == [device, "copied"]


def test_what_no_cuda_graph_can_say_is_a_row_with_the_reason(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    plan = run.Plan([], torch.device("cpu"), tmp_path / "run.json", "", {}, cudagraph=True, threads=threads)
    item = run.Item(workloads.WORKLOADS["clip, 1000 tensors of 100"], ["torch-foreach"])
    measurement = run._checked(plan, item, 1.0, run.Watch(run.Console(file=io.StringIO()), 1))
    measurement.visit(2)
    assert measurement.row["providers"] == {} and "one bound for ever" in measurement.row["why_not"]


def test_options_of_a_cuda_graph_reach_the_steps() -> None:
    wanted = selection.Wanted(cudagraph=True, quick=True)
    found = [item.workload for item in selection.items(wanted) + selection.of_model(MODEL, wanted)]
    steps = [w for w in found if isinstance(w, (optim_step.OptimStep, train_step.TrainStep))]
    assert len(steps) >= 6 and all(step.capturable for step in steps)


def test_quick_leaves_out_what_compiles_unless_it_is_named() -> None:
    wanted = selection.Wanted(workloads=[ONE], quick=True)
    (item,) = selection.items(wanted)
    assert not set(item.providers) & {"torch-compiled", "torchao", "heavyball", "deepspeed-cpu"}
    (named,) = selection.items(dataclasses.replace(wanted, providers="heavyball,torchao"))
    assert named.providers == ["torchao", "heavyball"]


def test_what_stops_a_run_is_told_although_the_disk_is_full(
    bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json, full = run.write_json, []

    def writing(path: Path, value: object) -> None:
        if full:
            raise run.BenchError("writing", path, "No space left on device", "Make room")
        write_json(path, value)

    def stop(*args: object) -> None:
        full.append(True)
        raise RuntimeError("the real reason")

    monkeypatch.setattr(run, "write_json", writing)
    monkeypatch.setattr(run.Measurement, "visit", stop)
    monkeypatch.setattr(run.fits, "of_rows", lambda rows: 1 / 0)
    done = bench("run", "--workload", ONE, "--providers", "torch-fused", *FAST, "--json", tmp_path / "run.json")
    assert isinstance(done.exception, RuntimeError) and str(done.exception) == "the real reason"


def test_a_run_of_few_rounds_warns_that_it_cannot_be_compared(bench: Run, tmp_path: Path) -> None:
    common = ("--workload", ONE, "--providers", "torch-fused", *FAST, "--json", tmp_path / "run.json")
    told = f"fewer than 3 visits of {ONE}: no interval, and nothing for bench compare"
    assert told in " ".join(bench("run", *common).output.split())
    assert "fewer than 3 visits" not in bench("run", *common, "--rounds", "6").output


def test_quick_takes_small_workloads_of_every_suite() -> None:
    suites = {workloads.WORKLOADS[name].suite for name in workloads.QUICK}
    assert suites == {"optim", "clip", "act", "model"}
    for name in workloads.QUICK:
        workload = workloads.WORKLOADS[name]
        assert workload.needs(workload.dtype, 3) < 2**30
        assert not isinstance(workload, (optim_step.OptimStep, clip_norm.ClipNorm, act_dropout.ActDropout)) or (
            workload.facts()["elements"] < 2**23
        )


def test_rows_that_a_deadline_has_no_time_for_say_so(
    bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = run.Plan(
        [], torch.device("cpu"), tmp_path / "run.json", "", {}, deadline=45.0, threads=torch.get_num_threads()
    )
    item = run.Item(workloads.WORKLOADS[ONE], ["torch-fused"])
    row = run._checked(plan, item, -1.0, run.Watch(run.Console(file=io.StringIO()), 1)).row
    assert "45 s of the run were over" in row["why_not"]
    assert row["providers"] == {}
    assert not measure.timed(row, "torch-fused")
