"""The rules are shared with the GPU: each compiles there, without a warning or a spill. Needs nvcc, but no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusedtrain import rules

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "check_cuda_rules.py"
needs_nvcc = pytest.mark.skipif(
    not (os.environ.get("NVCC") or shutil.which("nvcc")),
    reason="no nvcc on PATH: it is NOT checked that the rules compile for the GPU",
)


def check(*architectures: str, csrc: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    script = SCRIPT
    if csrc is not None:
        script = csrc.parent / "scripts" / SCRIPT.name
        shutil.copytree(SCRIPT.parent, script.parent)
    command = [sys.executable, str(script), *architectures]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@needs_nvcc
def test_every_rule_compiles_for_every_architecture() -> None:
    done = check()
    assert done.returncode == 0, done.stdout
    counts = dict(re.findall(r"^sm_(\d+): (\d+) kernels", done.stdout, re.MULTILINE))
    expected = 2 * (len(rules.ACTIVATIONS) + len(rules.UPDATES))  # for float and for double
    assert counts == dict.fromkeys(("80", "90", "100", "120"), str(expected))


@needs_nvcc
def test_a_rule_that_only_the_host_can_run_is_noticed(tmp_path: Path) -> None:
    csrc = Path(shutil.copytree(ROOT / "csrc", tmp_path / "csrc"))
    header = csrc / "rules" / "activations.h"
    before = header.read_text()
    # A function without FT_HD: of a call to it nvcc only warns, so this shows that warnings are errors.
    broken = before.replace("namespace ft {", "namespace ft {\ninline float on_host(float x) { return x; }", 1)
    broken = re.sub(r"(T fwd\(T x\) \{\s*return )", r"\1T(on_host(float(x))) + ", broken, count=1)
    assert "+ " in broken and broken.count("on_host") == 2
    header.write_text(broken)
    done = check("90", csrc=csrc)
    assert done.returncode == 1
    assert "on_host" in done.stdout


def test_without_nvcc_the_check_says_that_it_checked_nothing(tmp_path: Path) -> None:
    done = check(PATH=str(tmp_path), NVCC="")
    assert done.returncode == 2
    assert "NOT CHECKED" in done.stdout
