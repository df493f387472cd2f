"""The rules in C++ against the specification: the tables agree, host values are accurate, Philox is bit-identical, and
every compiler that is here takes the headers."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fusedtrain import rng, rules
from fusedtrain.testing import assert_as_accurate

CSRC = Path(__file__).resolve().parent.parent / "csrc"
COMPILERS = [name for name in ("g++", "clang++") if shutil.which(name)]
pytestmark = [
    pytest.mark.skipif(not (CSRC / "rules").is_dir(), reason="the C++ sources are not here: an installed package"),
    pytest.mark.skipif(not COMPILERS, reason="needs a C++ compiler"),
]

PROGRAM = """
#include "rules/activations.h"
#include "rules/philox.h"

namespace {

template <class Rule, class T>
void evaluate(const T* x, T* fwd, T* grad, T* from_output, long n) {
  for (long i = 0; i < n; ++i) {
    fwd[i] = Rule::fwd(x[i]);
    grad[i] = Rule::grad(x[i]);
    if constexpr (Rule::kSaves != ft::Saves::kInput) from_output[i] = Rule::grad_from_output(fwd[i]);
  }
}

template <class T>
int run(const char* name, const T* x, T* fwd, T* grad, T* from_output, long n) {
  int saves = -1;
  try {
    ft::visit(name, ft::Activations{}, [&](auto tag) {
      using Rule = typename decltype(tag)::type;
      evaluate<Rule>(x, fwd, grad, from_output, n);
      saves = int(Rule::kSaves);
    });
  } catch (const std::invalid_argument&) {
  }
  return saves;
}

}  // namespace

extern "C" {
const char* activation_names() {
  static const std::string list = ft::names(ft::Activations{});
  return list.c_str();
}
const char* refusal() {
  static std::string message;
  try {
    ft::visit("nonesuch", ft::Activations{}, [](auto) {});
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  return message.c_str();
}
int run_float(const char* name, const float* x, float* a, float* b, float* c, long n) {
  return run(name, x, a, b, c, n);
}
int run_double(const char* name, const double* x, double* a, double* b, double* c, long n) {
  return run(name, x, a, b, c, n);
}
void lanes(long seed, long offset, long chunk, int* out) {
  const ft::Lanes eight = ft::lanes(seed, offset, chunk);
  for (int lane = 0; lane < 8; ++lane) out[lane] = int(eight[lane]);
}
}
"""

KERNELS = """
#include "rules/activations.h"
#include "rules/philox.h"

template <class Rule, class T>
__global__ void apply(const T* x, T* y, long seed) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = ft::lanes(seed, 0, i >> 3)[i & 7] > 100 ? Rule::fwd(x[i]) * Rule::grad(x[i]) : T(0);
}
template <class... Rules>
void launch(ft::TypeList<Rules...>, float* f, double* d) {
  (apply<Rules><<<1, 32>>>(f, f, 1), ...);
  (apply<Rules><<<1, 32>>>(d, d, 1), ...);
}
void launch_all(float* f, double* d) { launch(ft::Activations{}, f, d); }
"""

Library = ctypes.CDLL


@pytest.fixture(scope="module", params=[(c, isa) for c in COMPILERS for isa in ("", "-march=haswell")], ids=str)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The rules as the host compiles them: with and without fused multiply-add."""
    compiler, isa = request.param
    if isa and (here := torch.backends.cpu.get_cpu_capability()) not in ("AVX2", "AVX512"):
        pytest.skip(f"this CPU ({here}) does not run code for Haswell")
    folder = tmp_path_factory.mktemp("rules")
    (folder / "rules.cpp").write_text(PROGRAM)
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-ffp-contract=fast", f"-I{CSRC}"]
    command = [compiler, *flags, *([isa] if isa else []), "rules.cpp", "-o", "rules.so"]
    subprocess.run(command, cwd=folder, check=True)
    lib = ctypes.CDLL(str(folder / "rules.so"))
    lib.activation_names.restype = lib.refusal.restype = ctypes.c_char_p
    return lib


def evaluate(lib: Library, name: str, x: Tensor) -> tuple[str, Tensor, Tensor, Tensor]:
    """What the rule saves, and fwd(x), grad(x), grad_from_output(fwd(x))."""
    outputs = [torch.full_like(x, float("nan")) for _ in range(3)]
    run = lib.run_double if x.dtype == torch.float64 else lib.run_float
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, *outputs)]
    saves = run(name.encode(), *pointers, ctypes.c_long(x.numel()))
    return ("nothing", "output", "input")[saves], *outputs


def test_the_tables_agree(library: Library) -> None:
    assert library.activation_names().decode().split(", ") == list(rules.ACTIVATIONS)
    for name, rule in rules.ACTIVATIONS.items():
        assert evaluate(library, name, torch.zeros(1))[0] == rule.saves
    assert library.refusal().decode() == f"unknown rule 'nonesuch'; there are: {', '.join(rules.ACTIVATIONS)}"


def every_magnitude() -> Tensor:
    """Floats of both signs, spread over the logarithm of their size, and evenly where the rules bend."""
    sizes = torch.logspace(-30, 4, 20_000, dtype=torch.float64).float()
    return torch.cat([sizes, -sizes, torch.linspace(-20, 20, 100_001, dtype=torch.float64).float()])


def units(actual: Tensor, x: Tensor, rule: rules.Activation) -> float:
    """The largest error of fwd(x) in units of the value, or of what half a unit of x changes, if that is more."""
    x64 = x.double()
    truth = rule.fwd(x64)
    unit = (x64 * rule.grad(x64)).abs().maximum(truth.abs()) * torch.finfo(x.dtype).eps + torch.finfo(x.dtype).tiny
    return float(((actual.double() - truth).abs() / unit).max())


@pytest.mark.parametrize("name", rules.ACTIVATIONS)
def test_float_is_as_accurate_as_torch(library: Library, name: str) -> None:
    """In units of the value, so also in tails, where the value is tiny; slopes, which cross zero, absolutely."""
    x, rule = every_magnitude(), rules.ACTIVATIONS[name]
    _, fwd, grad, from_output = evaluate(library, name, x)
    assert units(fwd, x, rule) <= 2 * max(units(rule.fwd(x), x, rule), 1.0)
    assert_as_accurate(grad, rule.grad(x), rule.grad(x.double()))
    if rule.grad_from_output is not None:
        assert_as_accurate(from_output, rule.grad_from_output(fwd), rule.grad_from_output(fwd.double()))
    else:
        assert from_output.isnan().all()


@pytest.mark.parametrize("name", rules.ACTIVATIONS)
def test_double_is_accurate(library: Library, name: str) -> None:
    """Against the specification in the same precision, which errs too: in all three times what it does in fp32."""
    x, rule = torch.linspace(-20, 20, 20_001).double(), rules.ACTIVATIONS[name]
    _, fwd, grad, from_output = evaluate(library, name, x)
    checks = [(rule.fwd, x, fwd), (rule.grad, x, grad)]
    if rule.grad_from_output is not None:
        checks.append((rule.grad_from_output, fwd, from_output))
    single, double = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))
    for f, at, ours in checks:
        spec = f(at)
        in_single = max(float((f(at.float()).double() - spec).abs().max()), single * float(spec.abs().max()))
        assert float((ours - spec).abs().max()) <= 3 * in_single * double / single


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", rules.ACTIVATIONS)
def test_not_a_number_stays_so(library: Library, name: str, dtype: torch.dtype) -> None:
    x = torch.full((4,), float("nan"), dtype=dtype)
    _, fwd, grad, _ = evaluate(library, name, x)
    assert fwd.isnan().all()
    assert torch.equal(grad.isnan(), rules.ACTIVATIONS[name].grad(x).isnan())


@pytest.mark.parametrize("start", [0, 8, 2**31, 2**35 - 8, 2**35, 2**40 + 16])
@pytest.mark.parametrize("state", [(0, 0), (-1, -1), (2**63 - 1, 4), (-(2**62) + 5, 2**33 + 12)])
def test_philox_is_that_of_the_contract(library: Library, state: tuple[int, int], start: int) -> None:
    ours = (ctypes.c_int * 8)()
    library.lanes(ctypes.c_long(state[0]), ctypes.c_long(state[1]), ctypes.c_long(start >> 3), ours)
    assert list(ours) == rng.lanes(torch.tensor(state), 8, start).tolist()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_the_cuda_compiler_takes_every_rule(tmp_path: Path) -> None:
    (tmp_path / "rules.cu").write_text(KERNELS)
    command = ["nvcc", "-std=c++17", "-arch=sm_90", "-Werror", "all-warnings", "-Xcompiler", "-Wall", f"-I{CSRC}"]
    subprocess.run([*command, "-c", "rules.cu", "-o", "rules.o"], cwd=tmp_path, check=True)
