"""Which workloads and providers a run takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from fusedtrain.bench import act_providers, clip_norm, gains, peers, scaling, step_providers, train_step
from fusedtrain.bench.act_dropout import SHORT, ActDropout, named
from fusedtrain.bench.errors import BenchError, unknown
from fusedtrain.bench.optim_step import OptimStep
from fusedtrain.bench.ranks import PROVIDERS as PROVIDERS_OF_RANKS
from fusedtrain.bench.ranks import Ranks
from fusedtrain.bench.scaling import Point
from fusedtrain.bench.train_step import TrainStep
from fusedtrain.bench.workload import SUITES, Workload
from fusedtrain.bench.workloads import FOR_GPU, LEFT_OUT, QUICK, WORKLOADS

OURS = list(step_providers.OURS)
PEERS = [*peers.PEERS, *act_providers.PEERS]
PROVIDERS = list(
    dict.fromkeys([*step_providers.PROVIDERS, *clip_norm.PROVIDERS, *act_providers.PROVIDERS, *train_step.PROVIDERS])
)
SETS = {"fusedtrain": OURS, "torch": [p for p in PROVIDERS if p.startswith("torch-")], "peers": PEERS}
"""Names that stand for several providers."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
MODES = {"fwd": "forward", "bwd": "backward", "full": "both"}


@dataclass(frozen=True)
class Item:
    """One row to be."""

    workload: Workload
    providers: list[str]
    point: Point | None = None
    """Where on an axis it lies, of the suite `scaling`."""


@dataclass(frozen=True)
class Wanted:
    """What the options ask for; each as the user wrote it."""

    suites: Sequence[str] = ()
    workloads: Sequence[str] = ()
    providers: str = ""
    dtype: str | None = None
    mode: str | None = None
    model: str | None = None
    device: str = "cpu"
    seed: int = 0
    quick: bool = False
    cudagraph: bool = False


def providers(text: str) -> list[str] | None:
    """The providers of a comma-separated list, or None for all.

    Raises:
        BenchError: one that does not exist.
    """
    chosen: list[str] = []
    for name in (part.strip() for part in text.split(",")):
        if name in SETS:
            chosen += SETS[name]
        elif name in PROVIDERS:
            chosen.append(name)
        elif name:
            raise unknown("--providers", name, "provider", [*PROVIDERS, *SETS])
    return list(dict.fromkeys(chosen)) or None


def items(wanted: Wanted) -> list[Item]:
    """The rows of a run, in order.

    Raises:
        BenchError: an unknown suite, workload, provider, dtype or mode, or nothing left to measure.
    """
    for suite in wanted.suites:
        if suite not in SUITES:
            raise unknown("SUITE", suite, "suite", SUITES)
    _check_options(wanted)
    only = providers(wanted.providers)
    chosen = [_with_options(w, wanted) for w in _workloads(wanted)]
    if wanted.mode is not None and not any(isinstance(w, ActDropout) for w in chosen):
        raise BenchError("--mode", wanted.mode, "no activation is among what is chosen", "Add the suite act")
    # With one mode for all, forward, backward and both become one and the same.
    listed = list({w.name: w for w in chosen}.values())
    found = [Item(w, of_workload(w, only, wanted.quick)) for w in listed]
    if "scaling" in wanted.suites:
        found += [
            Item(
                _with_options(point.workload, wanted),
                of_workload(point.workload, only or scaling.PROVIDERS, False),
                point,
            )
            for point in _points(wanted)
            if _matches(point.workload.name, wanted.workloads)
        ]
    found = [item for item in found if item.providers]
    if not found and not ranks(wanted):
        raise BenchError(
            "--providers", wanted.providers, "no chosen workload has any of them", "bench list tells who has which"
        )
    return found


def of_model(path: str, wanted: Wanted) -> list[Item]:
    """The rows for a user's model, by the name of its factory.

    Raises:
        BenchError: options that it does not go with, or a factory that does not give a model that can be trained.
    """
    for name in wanted.suites:
        if name != "model":
            raise BenchError("--model", path, f"it is measured as a whole, not for {name}", "Leave SUITE out")
    for option, value in (("--workload", ", ".join(wanted.workloads)), ("--mode", wanted.mode)):
        if value:
            raise BenchError(option, value, "--model chooses what is measured", f"Leave {option} out")
    _check_options(wanted)
    only = providers(wanted.providers)
    rows = gains.workloads(path, DTYPES[wanted.dtype or "fp32"], wanted.seed, torch.device(wanted.device))
    chosen = [_capturable(w, wanted) for w in rows]
    found = [Item(w, of_workload(w, only, quick=True)) for w in chosen]
    return [item for item in found if item.providers]


def ranks(wanted: Wanted) -> list[Ranks]:
    """The processes of the suite `scaling`, which are of the CPU."""
    only = providers(wanted.providers)
    kept = tuple(name for name in PROVIDERS_OF_RANKS if only is None or name in only)
    if "scaling" not in wanted.suites or wanted.device != "cpu" or not kept:
        return []
    dtype = DTYPES[wanted.dtype or "fp32"]
    return [
        dataclasses.replace(one, providers=kept, dtype=dtype, seed=wanted.seed)
        for one in scaling.ranks(wanted.quick)
        if _matches(one.name, wanted.workloads)
    ]


def _points(wanted: Wanted) -> list[Point]:
    return scaling.points(wanted.quick, threaded=wanted.device == "cpu")


def _workloads(wanted: Wanted) -> list[Workload]:
    names = list(WORKLOADS)
    if wanted.workloads:
        names = _by_name(wanted)
    elif wanted.quick:
        names = [name for name in names if name in QUICK]
    elif wanted.device == "cpu":
        names = [name for name in names if name not in FOR_GPU]
    suites = wanted.suites or list(SUITES)
    return [WORKLOADS[name] for name in names if WORKLOADS[name].suite in suites]


def _by_name(wanted: Wanted) -> list[str]:
    """Each is a whole name, or a part of some."""
    found: list[str] = []
    points: list[str] = []
    if "scaling" in wanted.suites:
        points = [*(p.workload.name for p in _points(wanted)), *(r.name for r in scaling.ranks(wanted.quick))]
    for name in wanted.workloads:
        near = [name] if name in WORKLOADS else [n for n in WORKLOADS if name.lower() in n.lower()]
        if not near and not any(name.lower() in point.lower() for point in points):
            raise unknown("--workload", name, "workload", WORKLOADS, "bench list shows them all")
        found += near
    return list(dict.fromkeys(found))


def _matches(name: str, parts: Iterable[str]) -> bool:
    return not parts or any(part.lower() in name.lower() for part in parts)


def _check_options(wanted: Wanted) -> None:
    if wanted.dtype is not None and wanted.dtype not in DTYPES:
        raise unknown("--dtype", wanted.dtype, "dtype", DTYPES)
    if wanted.mode is not None and wanted.mode not in MODES:
        raise unknown("--mode", wanted.mode, "mode", MODES)


def _with_options(workload: Workload, wanted: Wanted) -> Workload:
    changes: dict[str, object] = {"seed": wanted.seed} if wanted.seed else {}
    if wanted.dtype is not None:
        changes["dtype"] = DTYPES[wanted.dtype]
        changes["name"] = workload.name.removesuffix(f" {SHORT[workload.dtype]}")  # which would not be true any more
    if isinstance(workload, ActDropout):
        if wanted.mode is not None:
            changes["mode"] = MODES[wanted.mode]
        return named(dataclasses.replace(workload, **changes))  # type: ignore[arg-type]
    return _capturable(dataclasses.replace(workload, **changes), wanted)  # type: ignore[type-var]


def _capturable(workload: Workload, wanted: Wanted) -> Workload:
    steps = wanted.cudagraph and isinstance(workload, (OptimStep, TrainStep))
    return dataclasses.replace(workload, capturable=True) if steps else workload  # type: ignore[type-var]


def of_workload(workload: Workload, only: list[str] | None, quick: bool) -> list[str]:
    """Those of its providers that are wanted."""
    names = workload.providers()
    if only is not None:
        return [name for name in names if name in only]
    return [name for name in names if not quick or name == workload.baseline or name not in LEFT_OUT]
