"""Triton kernels compiled for a GPU that is not there. `scripts/check_triton_aot.py` compiles all; here a few."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def run(*command: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)


def test_kernels_compile_and_every_kernel_is_among_the_cases(tmp_path: Path) -> None:
    only = r"^(scale_kernel\[fp32\]|act_dropout_kernel\[(relu|gelu), bf16\]|.*\[relu, .*, no .*\])$"
    done = run(str(SCRIPTS / "check_triton_aot.py"), "90", "--only", only, cache=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 compiled" in done.stdout
    assert done.stdout.count("instructions an element") == 2, done.stdout


def test_kernels_compile_for_amd(tmp_path: Path) -> None:
    only = r"^act_dropout_kernel\[identity, bf16\]|^step_kernel\[sgd, fp32, fp32\]"
    done = run(str(SCRIPTS / "check_triton_aot.py"), "gfx942", "--only", only, cache=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 compiled" in done.stdout
    assert re.search(r"sgd.* [1-9]\d* registers .* [1-9]\d*/\d+ +vectors", done.stdout), done.stdout


SCRATCH = """
import sys
sys.path.insert(0, {scripts!r})
import check_triton_aot as check
from types import SimpleNamespace

text = ".group_segment_fixed_size: 512\\n.private_segment_fixed_size: 24\\n.vgpr_count: 128\\n"
text += "global_load_dwordx4 global_store_short buffer_load_dword"
found = check.found_by_amd("x", "gfx942", SimpleNamespace(asm={{"amdgcn": text}}))
print(found.wrong, found.shared, found.registers, found.vectors, found.accesses)
"""


def test_what_amds_compiler_says_is_read(tmp_path: Path) -> None:
    script = tmp_path / "scratch.py"
    script.write_text(SCRATCH.format(scripts=str(SCRIPTS)))
    done = run(str(script), cache=tmp_path)
    assert "24 bytes of private memory for each thread 512 128 1 3" in done.stdout, done.stdout + done.stderr


SPILLING = """
import sys
sys.path.insert(0, {scripts!r})
import check_triton_aot as check
import triton, triton.language as tl
from types import SimpleNamespace


@triton.jit
def kernel(x_ptr):
    i = tl.arange(0, 2048)
    x = tl.load(x_ptr + i)
    tl.store(x_ptr + i, x * tl.sum(x, 0))  # all of x is needed until the sum is known


case = SimpleNamespace(name="x", kernel=kernel, signature={{"x_ptr": "*fp32"}}, constants={{}},
                       options={{"num_warps": 1, "maxnreg": 32}})
print(check.compile_case(case, "90").wrong)
"""


def test_registers_that_spill_are_seen(tmp_path: Path) -> None:
    script = tmp_path / "spilling.py"
    script.write_text(SPILLING.format(scripts=str(SCRIPTS)))
    done = run(str(script), cache=tmp_path)
    assert "registers spill" in done.stdout, done.stdout + done.stderr


BUDGET = """
import sys
from dataclasses import replace
sys.path.insert(0, {scripts!r})
import check_triton_aot as check

name = "act_dropout_kernel[relu, bf16, no bias, residual]"
check.HOT_TRITON_KERNELS[name] = replace(check.HOT_TRITON_KERNELS[name], instructions=8)
for case in check.all_cases():
    if case.name == name:
        print(check.compile_case(case, "90").wrong)
"""


def test_instructions_beyond_the_budget_are_seen(tmp_path: Path) -> None:
    script = tmp_path / "budget.py"
    script.write_text(BUDGET.format(scripts=str(SCRIPTS)))
    done = run(str(script), cache=tmp_path)
    assert "instructions an element, of a budget of 8" in done.stdout, done.stdout + done.stderr
