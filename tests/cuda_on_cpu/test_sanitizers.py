"""The CUDA kernels run on the CPU under sanitizers, and bugs planted in them, which must be found."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cuda_on_cpu import build

OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}


def run(part: str, sanitizer: str, csrc: Path = build.CSRC) -> tuple[bool, str]:
    """Whether a driver finds all well, and what it says. The thread sanitizer gets few cases: it is slow, and only what
    threads do together concerns it."""
    try:
        program = build.driver(part, sanitizer, csrc)
    except build.CannotBuild as error:
        pytest.fail(str(error))
    command = [str(program), *(["few"] if sanitizer == "thread" else [])]
    done = subprocess.run(command, env=OPTIONS, capture_output=True, text=True, timeout=900, check=False)
    return done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("part", build.PARTS)
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_kernels_are_clean(part: str, sanitizer: str) -> None:
    well, said = run(part, sanitizer)
    assert well, said[-4000:]
    assert re.search(r"^[1-9]\d* cases, 0 wrong$", said, re.M), said[-4000:]


def test_every_kernel_is_in_a_part() -> None:
    named = {name for names in build.PARTS.values() for name in names}
    assert {path.name for path in build.kernels(build.CSRC)} == named


PLANTED = {  # what: file, sources, replaced by, part, sanitizer that sees it, what is said
    "a missing barrier": (
        "block.cuh", "  __syncthreads();\n  T total", "  T total", "norm", "thread", "data race",
    ),
    "out of bounds by one vector": (
        "step.cuh", "i < end; i += kThreads", "i <= end; i += kThreads", "step", "address", "heap-buffer-overflow",
    ),
    "out of bounds by one element": (
        "norm.cuh", "v[j] = i + j < n ?", "v[j] = i + j <= n ?", "norm", "address", "heap-buffer-overflow",
    ),
    "a wrong tail": (
        "step.cuh", "if (t < n - (end - head))", "if (t < n - (end - head) - 1)", "step", "none", "WRONG",
    ),
    "chunks of a thread in other columns": (
        "act_walk.cuh", "gcd(walk.width, kFlatNear)", "gcd(walk.width, 2 * kFlatNear)", "act", "none", "WRONG",
    ),
    "a bias that is not aligned": (
        "act_dropout.cu", "is_aligned(call.bias.data)", "true", "act", "address", "misaligned address",
    ),
    "a table overwritten that another stream has yet to read": (
        "device_plan.cu", "nullptr && stream == stream_)", "nullptr)", "plan", "none", "WRONG",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_found(bug: str, tmp_path: Path) -> None:
    file, old, new, part, sanitizer, says = PLANTED[bug]
    csrc = Path(shutil.copytree(build.CSRC, tmp_path / "csrc"))
    path = csrc / "cuda" / file
    text = path.read_text("utf-8")
    assert text.count(old) == 1, f"{file} has no {old!r} any more: plant {bug} elsewhere"
    path.write_text(text.replace(old, new), "utf-8")
    well, said = run(part, sanitizer, csrc)
    assert not well
    assert says in said, said[-4000:]
