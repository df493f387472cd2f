"""The architecture, enforced: who may import whom, and what no file of the package may contain."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fusedtrain

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fusedtrain"
CSRC = ROOT / "csrc"
PYTHON_FILES = sorted(PACKAGE.rglob("*.py"))
C_FILES = sorted(path for path in CSRC.rglob("*") if path.suffix in {".h", ".cuh", ".cpp", ".cu"})
MAX_LINES = 400
LONGER = {"fusedtrain/rules.py": 600}  # the specification is one list, and grows by a function with every rule

# What a module may import from the package, by the longest prefix of its name that has a row. Names without a row
# (env, train, bench, integrations, __main__) are the top: they may import anything.
BASE = {"fusedtrain.layout", "fusedtrain.rules", "fusedtrain.rng", "fusedtrain.schemas"}
NATIVE = {"fusedtrain.backends.libraries", "fusedtrain.backends.step_tables"}  # what several backends build on
USERS = {f"fusedtrain.{name}" for name in ("checks", "functional", "clip", "dispatch", "distributed", "rules")}
MAY_IMPORT = {
    "fusedtrain.layout": set(),
    "fusedtrain.rules": set(),
    "fusedtrain.rng": set(),
    "fusedtrain.schemas": set(),
    "fusedtrain.testing": set(),
    "fusedtrain.backends": {"fusedtrain.backends.Backend", *NATIVE, *BASE},
    "fusedtrain.dispatch": {"fusedtrain.backends.Backend"},  # the modules of the backends only lazily, by importlib
    "fusedtrain.checks": {"fusedtrain.rules"},
    "fusedtrain.functional": {
        "fusedtrain.checks",
        "fusedtrain.backends.Backend",
        "fusedtrain.dispatch",
        "fusedtrain.rng",
        "fusedtrain.rules",
        "fusedtrain.schemas",
    },
    "fusedtrain.clip": {"fusedtrain.dispatch", "fusedtrain.distributed", "fusedtrain.rng", "fusedtrain.rules"},
    "fusedtrain.norms": {"fusedtrain.clip", "fusedtrain.dispatch", "fusedtrain.distributed"},
    "fusedtrain.distributed": set(),  # torch.distributed, for clip and optim
    "fusedtrain.nn": {*USERS, "fusedtrain.nn"},
    "fusedtrain.fuse": {*USERS, "fusedtrain.nn"},
    "fusedtrain.optim": {*USERS, "fusedtrain.layout", "fusedtrain.optim", "fusedtrain._plan"},
}
TRITON = {f"fusedtrain.backends.{path.stem}" for path in (PACKAGE / "backends").glob("triton_*.py")}
"""One backend in several modules, which may import one another."""
NO_TORCH_OPS = ("fusedtrain.nn", "fusedtrain.optim", "fusedtrain.fuse", "fusedtrain.dispatch", "fusedtrain.rules")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def row(module: str) -> set[str] | None:
    """What this module may import, or None if it may import anything."""
    parts = module.split(".")
    if module in TRITON:
        return MAY_IMPORT["fusedtrain.backends"] | TRITON
    for n in range(len(parts), 1, -1):
        allowed = MAY_IMPORT.get(".".join(parts[:n]))
        if allowed is not None:
            return allowed
    return None


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """The absolute dotted names a source imports; for ``from a import b`` the name is ``a.b``."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join([*here[: len(here) - node.level + 1], *([base] if base else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def covers(allowed: str, name: str) -> bool:
    return name == allowed or name.startswith(allowed + ".")


def forbidden_imports(source: str, module: str, is_package: bool = False) -> list[str]:
    found = []
    allowed = row(module)
    stem = module.rpartition(".")[2]
    for name in sorted(imports(source, module, is_package)):
        if covers("triton", name) and not (
            module.startswith("fusedtrain.backends.triton_") or module in ("fusedtrain.env", "fusedtrain.bench.timers")
        ):
            found.append(f"{module} imports {name}: Triton belongs in backends/triton_*.py")
        if covers("fusedtrain", name) and allowed is not None:
            bare = name.removesuffix(".*")
            if name == f"fusedtrain.{stem}" or not any(covers(a, bare) for a in allowed):
                found.append(f"{module} imports {name}; it may import {', '.join(sorted(allowed)) or 'torch alone'}")
    if module.startswith(NO_TORCH_OPS):
        found += [
            f"{module}:{node.lineno} uses torch.ops"
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Attribute)
            and node.attr == "ops"
            and isinstance(node.value, ast.Name)
            and node.value.id == "torch"
        ]
    return found


def forbidden_statements(source: str, module: str) -> list[str]:
    """Assertions (users' errors need a message that survives -O) and everything that unpickles or evaluates text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            found.append(f"{module}:{node.lineno} asserts")
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            weights_only = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if call == "torch.load" and not weights_only:
                found.append(f"{module}:{node.lineno} calls torch.load without weights_only=True")
            if call in {"eval", "exec", "torch.save", "tl.device_assert"}:
                found.append(f"{module}:{node.lineno} calls {call}")
    unsafe = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    found += [f"{module} imports {n}" for n in imports(source, module) if n.partition(".")[0] in unsafe]
    words = r"\b(TODO|FIXME|XXX|NotImplementedError)\b"
    return found + [f"{module}: {word}" for word in re.findall(words, source)]


def unsafe_program_ids(source: str) -> list[str]:
    """Calls of ``tl.program_id`` whose result is not widened at once: 32-bit offsets wrap beyond 2**31 elements."""
    widened = r"tl\.program_id\([^()]*\)\.to\(tl\.int64\)|tl\.cast\(tl\.program_id\([^()]*\),\s*tl\.int64\)"
    return re.findall(r"tl\.program_id\([^()]*\)", re.sub(widened, "", source))


def forbidden_in_kernels(source: str) -> list[str]:
    """Random numbers of Triton's library, whose results change between its versions, and tuning, which runs kernels
    that write several times."""
    return re.findall(r"\btl\.(?:rand\w*|philox\w*)|\btriton\.(?:autotune|heuristics)\b", source)


STANDARD = re.compile(r"[a-z_0-9]+|(stdint|stddef|math|string|stdlib)\.h")
STABLE = r"torch/(csrc/stable|headeronly)/.*|torch/csrc/inductor/aoti_torch/(c/shim|generated/.*)\.h"
INCLUDES = {  # folder: the other headers it may include, as a pattern
    "rules": r"$^",
    "args": STABLE,
    "cpu": rf"{STABLE}|immintrin\.h|cpuid\.h|sys/mman\.h",
    "cuda": r"cuda_(runtime|bf16|fp16)\.h|cub/.*",
    "bind": rf"{STABLE}|cuda_runtime\.h|dlfcn\.h",
    "plan": r"pybind11/.*|ATen/dlpack\.h",
}
NEIGHBOURS = {  # folder: the folders of csrc whose headers it may include
    "rules": {"rules"},
    "plan": {"plan"},
    "args": {"args", "rules", "plan"},
    "cpu": {"cpu", "args", "rules", "plan"},
    "cuda": {"cuda", "rules", "plan"},
    "bind": {"bind", "args", "cpu", "cuda", "rules", "plan"},
}


def forbidden_includes(source: str, path: Path) -> list[str]:
    folder, found = path.relative_to(CSRC).parts[0], []
    for header in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', source, re.M):
        ours = next((p.resolve() for p in (path.parent / header, CSRC / header) if p.exists()), None)
        if ours is not None:
            allowed = ours.is_relative_to(CSRC) and ours.relative_to(CSRC).parts[0] in NEIGHBOURS[folder]
        else:
            allowed = bool(STANDARD.fullmatch(header) or re.fullmatch(INCLUDES[folder], header))
        if not allowed:
            found.append(f"{path.relative_to(CSRC)} includes {header}")
    return found


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_table(path: Path) -> None:
    assert forbidden_imports(path.read_text("utf-8"), module_name(path), path.name == "__init__.py") == []


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_asserts_no_unpickling_nothing_left_to_do(path: Path) -> None:
    assert forbidden_statements(path.read_text("utf-8"), module_name(path)) == []


@pytest.mark.parametrize("path", C_FILES, ids=lambda p: str(p.relative_to(CSRC)))
def test_includes_follow_the_table(path: Path) -> None:
    assert forbidden_includes(path.read_text("utf-8"), path) == []


def test_files_are_one_thing_each() -> None:
    files = [*PYTHON_FILES, *C_FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in files}
    assert {name: n for name, n in lengths.items() if n > LONGER.get(name, MAX_LINES)} == {}


def test_program_ids_are_widened() -> None:
    """A4 (Liger!251, Liger!804): new kernel files miss the cast again, so every file is looked at."""
    found = {str(p): ids for p in PYTHON_FILES if (ids := unsafe_program_ids(p.read_text("utf-8")))}
    assert found == {}


def test_kernels_draw_their_own_numbers_and_are_not_tuned() -> None:
    found = {str(p): names for p in PYTHON_FILES if (names := forbidden_in_kernels(p.read_text("utf-8")))}
    assert found == {}


def test_sources_of_cpp_are_free_of_fast_math_and_narrow_sizes() -> None:
    text = "\n".join(path.read_text("utf-8") for path in C_FILES) + (ROOT / "setup.py").read_text("utf-8")
    assert re.findall(r"[\"']-f(?:fast-math|unsafe-math-optimizations|finite-math-only)", text) == []
    assert re.findall(r"\bint\s+(?:numel|n_elements|size)\b", text) == []


# ---- the checks themselves can fail


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fusedtrain.rules", "from fusedtrain import rng"),
        ("fusedtrain.rules", "from . import rng"),
        ("fusedtrain.rng", "import fusedtrain.dispatch"),
        ("fusedtrain.backends.native", "from fusedtrain.backends import reference"),
        ("fusedtrain.backends.native", "from fusedtrain import functional"),
        ("fusedtrain.backends.native", "import triton"),
        ("fusedtrain.backends.native", "from fusedtrain.backends import triton_rules"),
        ("fusedtrain.backends.triton_act", "from fusedtrain.backends import native"),
        ("fusedtrain.backends.step_tables", "from fusedtrain.backends import native"),
        ("fusedtrain.dispatch", "from fusedtrain.backends import native"),
        ("fusedtrain.dispatch", "from fusedtrain import optim"),
        ("fusedtrain.functional", "from fusedtrain.backends import reference"),
        ("fusedtrain.functional", "def f():\n    import fusedtrain.backends.native"),
        ("fusedtrain.nn", "import triton.language as tl"),
        ("fusedtrain.nn", "import torch\ny = torch.ops.fusedtrain.act_dropout"),
        ("fusedtrain.optim.adamw", "from fusedtrain import nn"),
    ],
)
def test_the_import_check_sees_violations(module: str, source: str) -> None:
    assert forbidden_imports(source, module)


@pytest.mark.parametrize(
    "source",
    ["assert x", "import pickle", "torch.load(f)", "torch.load(f, weights_only=False)", "eval(s)", "# TODO later"],
)
def test_the_statement_check_sees_violations(source: str) -> None:
    assert forbidden_statements(source, "fusedtrain.nn")


@pytest.mark.parametrize(
    ("folder", "header"),
    [
        ("rules", "<torch/csrc/stable/tensor.h>"),
        ("rules", "<cuda_runtime.h>"),
        ("rules", '"../plan/step_table.h"'),
        ("plan", '"../rules/platform.h"'),
        ("args", '"cpu/isa.h"'),
        ("cuda", '"args/args.h"'),
        ("cpu", "<torch/extension.h>"),
        ("cpu", "<ATen/ATen.h>"),
        ("cuda", "<torch/csrc/stable/tensor.h>"),
        ("plan", "<torch/csrc/stable/tensor.h>"),
    ],
)
def test_the_include_check_sees_violations(folder: str, header: str) -> None:
    assert forbidden_includes(f"#include {header}\n", CSRC / folder / "new.cpp")


def test_the_program_id_check_sees_violations() -> None:
    assert unsafe_program_ids("pid = tl.program_id(0)\n") == ["tl.program_id(0)"]
    assert unsafe_program_ids("pid = tl.program_id(axis=1).to(tl.int32)") == ["tl.program_id(axis=1)"]
    assert unsafe_program_ids("pid = tl.program_id(0).to(tl.int64)") == []


def test_the_check_of_kernels_sees_violations() -> None:
    assert forbidden_in_kernels("x = tl.rand(seed, i)\ny = tl.philox(s, a, b, c, d)") == ["tl.rand", "tl.philox"]
    assert forbidden_in_kernels("@triton.autotune(configs)\ndef kernel(x): ...") == ["triton.autotune"]


def test_the_package_under_test_is_this_one() -> None:
    """Otherwise the checks above would read one tree while the suite runs another."""
    installed = Path(fusedtrain.__file__).resolve().parent
    names = {str(p.relative_to(PACKAGE)): p.read_bytes() for p in PYTHON_FILES}
    assert {n for n, text in names.items() if (installed / n).read_bytes() != text} == set()
