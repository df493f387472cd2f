"""One library for every x86-64 CPU: each instruction set gives the same masks and as good values, or refuses to run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedtrain
from fusedtrain import dispatch, rng, rules
from fusedtrain.backends import libraries, reference
from fusedtrain.testing import assert_as_accurate

pytestmark = pytest.mark.skipif(bool(dispatch.load("cpu").why_not), reason=str(dispatch.load("cpu").why_not))

PACKAGE = Path(fusedtrain.__file__).parent
ISAS = ("baseline", "avx2", "avx512")
N, THRESHOLD, STATE = 1003, 32768, (-(2**60) - 7, 2**44 + 4)

# Everything the loops of one instruction set compute, on inputs made the same way in every process.
PROGRAM = f"""
import json, sys
import torch
from fusedtrain import rules
from fusedtrain.backends import libraries
assert libraries.load_library("cpu") is None
ops, state, results = torch.ops.fusedtrain, torch.tensor({STATE}), {{}}
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    x = torch.linspace(-9, 9, {N}, dtype=torch.float64).to(dtype)
    dy = torch.linspace(1, 2, {N}, dtype=torch.float64).to(dtype)
    up = torch.cat([x, dy])
    for name in rules.ACTIVATIONS:
        y = ops.act_dropout(x, None, None, state, {THRESHOLD}, name)
        dx, dbias = ops.act_dropout_grad(dy, x, None, state, {THRESHOLD}, name, False, True)
        gated = ops.gated_act_dropout(up, None, state, {THRESHOLD}, name)
        dup, _ = ops.gated_act_dropout_grad(dy, up, None, state, {THRESHOLD}, name, False)
        results[f"{{dtype}} {{name}}"] = [t.double().tolist() for t in (y, dx, dbias, gated, dup)]
json.dump({{"isa": libraries.cpu_isa()[0], "results": results}}, sys.stdout)
"""


def run(isa: str, program: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "FUSEDTRAIN_CPU_ISA": isa, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)


def here() -> list[str]:
    """The instruction sets of this CPU, as the library tells them."""
    return re.search(r"has (.*?)\)?$", libraries.cpu_isa()[0]).group(1).split(", ")  # type: ignore[union-attr]


def expected(dtype: torch.dtype, compute: torch.dtype, name: str) -> list[Tensor]:
    """What PROGRAM computes for inputs of `dtype`, by the reference and in another dtype."""
    state = torch.tensor(STATE)
    x = torch.linspace(-9, 9, N, dtype=torch.float64).to(dtype).to(compute)
    dy = torch.linspace(1, 2, N, dtype=torch.float64).to(dtype).to(compute)
    up = torch.cat([x, dy])
    return [
        reference.act_dropout(x, None, None, state, THRESHOLD, name),
        *reference.act_dropout_grad(dy, x, None, state, THRESHOLD, name, False, True),
        reference.gated_act_dropout(up, None, state, THRESHOLD, name),
        reference.gated_act_dropout_grad(dy, up, None, state, THRESHOLD, name, False)[0],
    ]


@pytest.mark.parametrize("isa", ISAS)
def test_each_instruction_set_computes_the_contract(isa: str) -> None:
    process = run(isa)
    if isa not in here():
        # Refused with an error, not killed by SIGILL.
        assert process.returncode == 1
        assert f"FUSEDTRAIN_CPU_ISA='{isa}' cannot be followed: this CPU does not have it" in process.stderr
        pytest.skip(f"this CPU has no {isa}: its kernels were compiled, and refused, but not run")
    assert process.returncode == 0, process.stderr
    answer: dict[str, Any] = json.loads(process.stdout)
    assert answer["isa"].startswith(f"{isa} (this CPU has ")
    keep = rng.keep_mask(torch.tensor(STATE), THRESHOLD, (N,))
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for name in rules.ACTIVATIONS:
            ours = [torch.tensor(v, dtype=torch.float64) for v in answer["results"][f"{dtype} {name}"]]
            assert not ours[0][~keep].any()
            if name == "identity":
                assert torch.equal(ours[1] != 0, keep)
            # Of fp64 there is no better truth: it must be at least as good as fp32.
            same = expected(dtype, torch.float32 if dtype == torch.float64 else dtype, name)
            for y, theirs, exact in zip(ours, same, expected(dtype, torch.float64, name), strict=True):
                assert_as_accurate(y.to(theirs.dtype), theirs, exact)


def test_an_unknown_instruction_set_is_refused_at_the_first_call() -> None:
    process = run("sse9")
    assert process.returncode == 1
    message = (
        r"FUSEDTRAIN_CPU_ISA='sse9' cannot be followed: there is no such instruction set; .* choose one of baseline"
    )
    assert re.search(message, process.stderr), process.stderr


def test_the_report_of_a_refused_choice_says_so() -> None:
    process = run("sse9", "import fusedtrain; print(fusedtrain.backends()['cpu'])")
    assert "FUSEDTRAIN_CPU_ISA='sse9' cannot be followed" in process.stdout, process.stderr


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
def test_code_for_newer_cpus_stays_in_its_namespace() -> None:
    """An inline function compiled for AVX2 outside of it would be shared with, and crash, the code for other CPUs."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(PACKAGE / "_C.so")], capture_output=True, text=True, check=True
    ).stdout
    strangers, seen, function = set(), set(), ""
    for line in listing.splitlines():
        if line.endswith(">:"):
            function = line[line.index("<") + 1 : -2]
        elif re.search(r"%[yz]mm|\t\s*v[a-z]", line):
            isa = re.search(r"isa_avx(2|512)", function)
            seen.add(isa.group(0) if isa else function)
            if isa is None:
                strangers.add(function)
    if "isa_avx2" not in seen:
        pytest.skip("the library is not for x86-64, or was stripped of its symbols")
    assert "isa_avx512" in seen
    assert not strangers
