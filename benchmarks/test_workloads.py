"""The workloads of `fusedtrain.bench` under pytest-benchmark: ``pytest benchmarks --benchmark-json=FILE``.

For those who follow times with its tools (``--benchmark-compare``, ``--benchmark-histogram``). It times one provider
after the other, not in turn: for ratios, ``python -m fusedtrain bench run``.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fusedtrain.bench import compiling, memory
from fusedtrain.bench.workload import Workload


def test_workload(item: tuple[Workload, str], benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> None:
    """Checked against fp64 first: a wrong result has no time."""
    workload, provider = item
    device = torch.device(request.config.getoption("--device"))
    reason = workload.why_not(provider, device, workload.dtype) or memory.refusal(
        workload.needs(workload.dtype, 1), device
    )
    if reason:
        pytest.skip(reason)
    with compiling.limits():
        accuracy = workload.check(provider, device, workload.dtype)
        call = workload.make(provider, device, workload.dtype)

        def timed() -> None:
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()

        timed()
        benchmark(timed)
    benchmark.group = workload.name
    benchmark.extra_info.update(
        provider=provider, suite=workload.suite, bytes=workload.bytes(workload.dtype), **workload.facts()
    )
    if accuracy is not None:
        benchmark.extra_info.update(max_error=accuracy.error, max_error_of_torch=accuracy.theirs)
