"""From the options of ``bench run`` to a plan, with everything checked before anything is measured."""

from __future__ import annotations

import dataclasses
import datetime
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from fusedtrain.bench import selection
from fusedtrain.bench.errors import BenchError, unknown
from fusedtrain.bench.results import check_writable
from fusedtrain.bench.run import Plan
from fusedtrain.bench.selection import Item, Wanted
from fusedtrain.bench.train_step import TrainStep


@dataclass(frozen=True)
class Timing:
    """None is the default, which ``--quick`` lowers."""

    rounds: int | None = None
    seconds: float | None = None
    limit: float | None = None
    threads: int | None = None
    cudagraph: bool = False


@dataclass(frozen=True)
class Outputs:
    json: Path | None = None
    csv: Path | None = None
    markdown: Path | None = None
    fail_under: float | None = None
    keep_going: bool = False


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_of(name: str) -> torch.device:
    """The device, the CPU without a number. Raises BenchError unless workloads can be run there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise unknown("--device", name, "device to measure on", ["cpu", "cuda"])
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BenchError("--device", name, "torch sees no GPU", "Choose --device cpu")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise BenchError("--device", name, f"there are {torch.cuda.device_count()} GPUs", "Count from 0")
    return torch.device("cpu") if device.type == "cpu" else device


def make(wanted: Wanted, timing: Timing, outputs: Outputs, command: str) -> Plan:
    """The plan.

    Raises:
        BenchError: whatever of it cannot be.
    """
    device = device_of(wanted.device)
    if timing.cudagraph and device.type != "cuda":
        raise BenchError("--cudagraph", None, f"there are no CUDA graphs on {device}", "Choose --device cuda")
    wanted = dataclasses.replace(wanted, device=str(device), cudagraph=timing.cudagraph)
    items = selection.items(wanted) if wanted.model is None else selection.of_model(wanted.model, wanted)
    ranks = selection.ranks(wanted)
    if outputs.fail_under is not None and not 0 < outputs.fail_under < math.inf:
        raise BenchError("--fail-under", outputs.fail_under, "it is no ratio", "Choose a number above 0")
    if outputs.fail_under is not None and not any(_comparable(item) for item in items):
        reason = "no row has one of ours beside its baseline"
        raise BenchError("--fail-under", outputs.fail_under, reason, "Leave --providers out, or add the baselines")
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = outputs.json or Path("runs", f"bench-{now}.json")
    for option, out in (("--json", path), ("--csv", outputs.csv), ("--md", outputs.markdown)):
        if out is not None:
            check_writable(option, out)
    quick = wanted.quick
    # Where other programs run, two threads wait for each other longer than they work; the quick look is to be steady.
    threads = timing.threads or (1 if quick else torch.get_num_threads())
    options = {
        "suites": list(wanted.suites),
        "device": wanted.device,
        "threads": threads,
        "dtype": wanted.dtype,
        "mode": wanted.mode,
        "model": wanted.model,
        "seed": wanted.seed,
        "quick": quick,
        "cudagraph": timing.cudagraph,
    }
    return Plan(
        items,
        device,
        path,
        command,
        options,
        rounds=timing.rounds or (16 if quick else 20),
        seconds=timing.seconds or (0.02 if quick else 0.1),
        threads=threads,
        limit=timing.limit if timing.limit is not None else (1.5 if quick else 60.0),
        deadline=46.0 if quick else math.inf,
        copy_bytes=2**27 if quick and device.type == "cpu" else None,
        cudagraph=timing.cudagraph,
        keep_going=outputs.keep_going,
        model=_whole(items) if wanted.model is not None else None,
        ranks=ranks,
        csv=outputs.csv,
        markdown=outputs.markdown,
        fail_under=outputs.fail_under,
    )


def _whole(items: list[Item]) -> TrainStep | None:
    """The training step of the user's model, if any of the chosen providers has one."""
    return next((item.workload for item in items if isinstance(item.workload, TrainStep)), None)


def _comparable(item: Item) -> bool:
    return item.workload.baseline in item.providers and any(p in selection.OURS for p in item.providers)
