"""What `make cuda-check` says of the CUDA kernels: no warning, no spill, the machine code that is expected. Here it is
shown on small kernels that it would notice; compiling all of ours takes longer than the rest of the suite. Needs nvcc,
but no GPU."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusedtrain import rules

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "setup_cuda.py").exists():
    pytest.skip("needs the source tree", allow_module_level=True)
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import check_cuda  # noqa: E402

import setup_cuda  # noqa: E402


def no_nvcc() -> str:
    try:
        setup_cuda.find_nvcc()
    except setup_cuda.CannotBuild as error:
        return f"it is NOT checked that the kernels compile for GPUs: {error}"
    return ""


needs_nvcc = pytest.mark.skipif(bool(no_nvcc()), reason=no_nvcc())
needs_disassembler = pytest.mark.skipif(
    check_cuda.find_disassembler() is None,
    reason="it is NOT checked what the kernels' main loops cost: no cuobjdump (pip install triton brings one)",
)

TRITON = next((d.version for d in importlib.metadata.distributions(name="triton")), "none")
needs_this_disassembler = pytest.mark.skipif(
    not TRITON.startswith("3.7."),
    reason=f"the machine code is counted as the disassembler of Triton 3.7 prints it; this is {TRITON}",
)


def check(*arguments: str, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts" / "check_cuda.py"), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("source", ["act_dropout", "act_dropout_grad", "gated_act_dropout", "gated_act_dropout_grad"])
def test_every_activation_has_kernels_of_every_type(source: str) -> None:
    wanted = {
        (name.replace("_", ""), dtype) for name in rules.ACTIVATIONS for dtype in ("float", "double", "half", "bf16")
    }
    assert not wanted - rules_and_types(f"{source}.cu: ")


def test_every_update_rule_has_a_kernel() -> None:
    """One, for tensors of all types."""
    found = {name.lower() for key in kernels("optim_step.cu: ") for name in re.findall(r"step_kernel<(\w+)>", key)}
    assert found == {name.replace("_", "") for name in rules.UPDATES}


def kernels(prefix: str) -> list[str]:
    """Those of a file that are expected."""
    expected = json.loads(check_cuda.EXPECTED.read_text())["registers, shared memory"]
    return [key.removeprefix(prefix) for key in expected if key.startswith(prefix)]


def rules_and_types(prefix: str) -> set[tuple[str, str]]:
    """The names, in small letters, that come in one kernel."""
    names = [re.findall(r"\w+", key.lower()) for key in kernels(prefix)]
    return {(rule, dtype) for found in names for rule in found for dtype in found}


SMALL = """
#include <cuda_runtime.h>
namespace ft {
struct alignas(16) Vector { float x[4]; };
__global__ void twice(Vector* x, long n) {
  const long step = long(gridDim.x) * blockDim.x;
  for (long i = long(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    Vector v = x[i];
    BODY
    x[i] = v;
  }
}
}  // namespace ft
"""
PLAIN = "for (int k = 0; k < 4; ++k) v.x[k] *= 2;"
HOT = """
from dataclasses import dataclass
BUDGETS = {"90": 7.75}
LATEST_LOAD = 0.75
@dataclass(frozen=True)
class HotKernel:
    title: str
    source: str
    kernel: str
    loads: int
    stores: int
    doubles: int | None = None
    allowance: int = 0
HOT_KERNELS = [HotKernel("twice", "twice.cu", "twice", 4, 4)]
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A tree with a single small kernel, which is as it is expected to be."""
    for name in ("scripts/check_cuda.py", "scripts/sass.py", "setup_cuda.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "scripts/hot_kernels.py").write_text(HOT)
    (tmp_path / "csrc/cuda").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "csrc/cuda/twice.cu").write_text(SMALL.replace("BODY", PLAIN))
    return tmp_path


def write(root: Path, body: str, *, kernel: str = SMALL) -> None:
    (root / "csrc/cuda/twice.cu").write_text(kernel.replace("BODY", body))


@needs_nvcc
@needs_disassembler
@needs_this_disassembler
def test_a_change_of_the_machine_code_shows(small: Path) -> None:
    done = check("--write", root=small)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = small / "tests/expected/cuda_kernels.json"
    before = json.loads(expected.read_text())
    assert before["main loops"]["twice, sm_90"]["elements"] % 4 == 0
    assert check("90", root=small).returncode == 0

    write(small, PLAIN.replace("2", "2 + v.x[k] * v.x[k]"))
    done = check("90", root=small)
    assert done.returncode == 1
    assert re.search("CHANGED twice, sm_90: .*expected", done.stdout)
    assert "--write" in done.stdout

    expected.write_text(check_cuda.as_text({**before, "nvcc": "1.2.3"}))
    done = check("90", root=small)
    assert done.returncode == 0
    assert "NOT COMPARED" in done.stdout


@needs_nvcc
@pytest.mark.parametrize(
    ("body", "kernel", "message"),
    [
        # Of a call to a function of the host nvcc only warns, so this shows that warnings are errors.
        (
            "v.x[0] = on_host(v.x[0]);",
            SMALL.replace("struct", "inline float on_host(float x) { return x; }\nstruct"),
            "on_host",
        ),
        (
            "float t[64]; for (int k = 0; k < 64; ++k) t[k * n & 63] = v.x[k % 4]; v.x[0] = t[i & 63];",
            SMALL,
            "local memory",
        ),
        (
            "float t[96];\n#pragma unroll\n"
            "for (int k = 0; k < 96; ++k) t[k] = reinterpret_cast<volatile float*>(x)[k];\n"
            "#pragma unroll\nfor (int k = 0; k < 96; ++k) v.x[k % 4] += t[k] * t[95 - k];",
            SMALL.replace("void twice", "void __launch_bounds__(1024, 2) twice"),
            "registers spill",
        ),
        ("for (int k = 0; k < 4; ++k) for (int j = 0; j < 100; ++j) v.x[k] = sqrtf(v.x[k]);", SMALL, "budget of 62.00"),
        (
            "for (int k = 0; k < 4; ++k) v.x[k] = float(i) * sqrtf(float(k + i));\n"
            "const Vector w = x[i]; for (int k = 0; k < 4; ++k) v.x[k] *= w.x[k];",
            SMALL.replace("Vector v = x[i];", "Vector v;"),
            "nothing is loaded ahead",
        ),
        (PLAIN, SMALL.replace("alignas(16)", ""), "by vectors alone"),
        (PLAIN, SMALL.replace("alignas(16)", "alignas(8)"), "no loads or no stores of 128 bits"),
        (PLAIN, SMALL.replace("twice", "thrice"), "there is no kernel twice"),
    ],
)
def test_what_must_not_be_is_noticed(small: Path, body: str, kernel: str, message: str) -> None:
    if check_cuda.find_disassembler() is None and message.startswith(
        ("budget", "by vectors", "no loads", "nothing is", "there is no")
    ):
        pytest.skip("no cuobjdump (pip install triton brings one)")
    write(small, body, kernel=kernel)
    done = check("90", root=small)
    assert done.returncode == 1, done.stdout
    assert message in done.stdout


@needs_nvcc
@pytest.mark.parametrize("program", sorted((ROOT / "benchmarks" / "kernels").glob("*.cu")), ids=lambda path: path.name)
def test_the_programs_that_time_kernels_compile(program: Path, tmp_path: Path) -> None:
    nvcc = setup_cuda.find_nvcc()
    options = ["-arch=sm_90", "-std=c++17", "-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"]
    done = subprocess.run(
        [nvcc, *options, "-I", str(ROOT / "csrc"), "-c", str(program), "-o", str(tmp_path / "program.o")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_without_nvcc_the_check_says_that_it_checked_nothing() -> None:
    done = check(NVCC="/no/such/nvcc")
    assert done.returncode == 2
    assert re.search("NOT CHECKED.*/no/such/nvcc is not there", done.stdout)


def test_names_of_kernels_are_short_and_the_same_wherever_they_are_compiled() -> None:
    mangled = (
        "_ZN2ft10act_kernelINS_47_GLOBAL__N__de75a89a_14_act_dropout_cu_ca82fa1b7ForwardINS_4SiluE13__nv_bfloat16EEEE"
        "vT_NS_4WalkENS_10ColumnPlanE"
    )
    assert check_cuda.readable([mangled]) == ["act_kernel<Forward<Silu, bf16>>"]


def test_what_is_checked_is_compiled_as_torch_compiles_it() -> None:
    from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

    assert setup_cuda.TORCH_NVCC_FLAGS == COMMON_NVCC_FLAGS
