"""Real installations by pip, in every condition that an install may meet: it installs, imports, works and says why."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SITE = Path(sysconfig.get_paths()["purelib"])
BUILD_TOOLS = ("setuptools", "_distutils_hack", "pybind11", "ninja", "wheel", "packaging", "pip")

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree"),
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("setuptools", "pybind11", "pip")),
        reason="an install without build isolation needs setuptools and pybind11: pip install 'fusedtrain[dev]'",
    ),
]

# A step of each kind of thing that the package does, on whatever backend there is.
WORKS = """
import torch, fusedtrain as ft
w = torch.nn.Parameter(torch.randn(16, 16))
y = ft.functional.act_dropout(torch.randn(8, 16) @ w, "gelu", p=0.5)
y.square().sum().backward()
optimizer = ft.optim.AdamW([w], lr=0.1, max_norm=1.0)
before = w.detach().clone()
optimizer.step()
assert not torch.equal(before, w) and 0 < float(optimizer.clip_coef) <= 1
print("worked", ft.__file__)
"""

# Sources of a library and a module as small as they can be, so that a build is a matter of seconds.
SMALL_LIBRARY = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
using torch::stable::Tensor;
static Tensor small(Tensor x) { return x; }
STABLE_TORCH_LIBRARY(fusedtrain_small, m) { m.def("small(Tensor(a) x) -> Tensor(a)"); }
STABLE_TORCH_LIBRARY_IMPL(fusedtrain_small, CPU, m) { m.impl("small", TORCH_BOX(&small)); }
"""
SMALL_MODULE = """
#include <Python.h>
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_plan"};
PyMODINIT_FUNC PyInit__plan() {
  PyObject* m = PyModule_Create(&definition);
  PyModule_AddIntConstant(m, "answer", 42);
  return m;
}
"""


@pytest.fixture(autouse=True)
def _no_setting_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test says itself how it builds, also where the suite runs with a setting of its own."""
    monkeypatch.delenv("FUSEDTRAIN_BUILD", raising=False)


@dataclass
class Installed:
    """What an installation left behind, and how to run Python with it."""

    folder: Path
    output: str

    @property
    def info(self) -> dict:
        return json.loads((self.folder / "fusedtrain" / "_build_info.json").read_text())

    def reason(self, part: str) -> str:
        assert not self.info["parts"][part]["built"]
        return self.info["parts"][part]["reason"]

    @property
    def native(self) -> set[str]:
        return {path.name.split(".")[0] for path in self.folder.glob("fusedtrain/*.so")}

    @property
    def tag(self) -> str:
        wheel = next(self.folder.glob("fusedtrain-*.dist-info")) / "WHEEL"
        return re.findall(r"^Tag: (.*)$", wheel.read_text(), re.MULTILINE)[0]

    def run(self, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONSAFEPATH": "1"}
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def works(self) -> str:
        """What `env` reports, in a process in which the package has worked before."""
        output = self.run("-W", "ignore", "-c", f"{WORKS}\nfrom fusedtrain.__main__ import main; main(['env'])")
        assert f"worked {self.folder}" in output
        return output


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what an sdist holds, with small sources in the place of csrc."""
    copy = tmp_path / "source"
    for name in ("setup.py", "setup_cuda.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md"):
        if (ROOT / name).exists():
            copy.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    shutil.copytree(
        ROOT / "fusedtrain",
        copy / "fusedtrain",
        ignore=shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json"),
    )
    for name, text in {"bind/cpu.cpp": SMALL_LIBRARY, "plan/plan.cpp": SMALL_MODULE}.items():
        (copy / "csrc" / name).parent.mkdir(parents=True)
        (copy / "csrc" / name).write_text(text)
    return copy


def pip_install(source: Path, *, path: list[Path] | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs pip without isolation, which would need a network, into the folder `installed` next to the source."""
    environment = {**os.environ, **settings}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--verbose"]
    return subprocess.run(
        [*command, "--target", str(source.parent / "installed"), str(source)],
        env=environment,
        cwd=source.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def install(source: Path, *, path: list[Path] | None = None, **settings: str) -> Installed:
    done = pip_install(source, path=path, **settings)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return Installed(source.parent / "installed", output)


def overlay(folder: Path, *, purelib: str | None) -> list[Path]:
    """A PYTHONPATH on which the interpreter sees the build tools but not its own site-packages, as pip's isolation
    makes it. `purelib` replaces the folder where sysconfig looks for what is installed."""
    folder.mkdir()
    for name in BUILD_TOOLS:
        for path in [SITE / name, *SITE.glob(f"{name}-*.dist-info")]:
            if path.exists():
                (folder / path.name).symlink_to(path)
    moved = (
        "" if purelib is None else f"sysconfig.get_paths = lambda *a, **k: dict.fromkeys(real(*a, **k), {purelib!r})"
    )
    (folder / "sitecustomize.py").write_text(
        "import sys, sysconfig\n"
        f"sys.path[:] = [path for path in sys.path if path != {str(SITE)!r} and 'site-packages' not in path]\n"
        f"real = sysconfig.get_paths\n{moved}\n"
    )
    return [folder]


def assert_degraded(installed: Installed, reason: str) -> None:
    """It is a pure package that works and repeats the reason, having been loud about it."""
    assert installed.native == set()
    assert installed.tag == "py3-none-any"
    assert re.search(reason, installed.reason("_C"))
    assert re.search(reason, installed.reason("_plan"))
    report = installed.works()
    assert len(re.findall(reason, report)) >= 2, report


def test_everything_builds_and_the_wheel_is_bound_to_this_python(source: Path) -> None:
    installed = install(source, FUSEDTRAIN_BUILD="1")
    assert installed.native == {"_C", "_plan"}
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert installed.tag.startswith(f"{python}-{python}-")
    info = installed.info
    assert info["torch"] == torch.__version__
    assert info["compiler_version"]
    assert info["torch_target_version"] == "0x020b000000000000"
    assert "-DTORCH_STABLE_ONLY" in info["parts"]["_C"]["flags"]
    assert "-ffast-math" not in info["parts"]["_C"]["flags"]
    load = "import torch, pathlib, fusedtrain as f; torch.ops.load_library(pathlib.Path(f.__file__).parent / '_C.so')"
    call = "assert torch.ops.fusedtrain_small.small(torch.ones(2)).sum() == 2; from fusedtrain import _plan"
    assert installed.run("-c", f"{load}; {call}; print(_plan.answer)").strip() == "42"


def test_isolated_build_finds_the_installed_torch(source: Path, tmp_path: Path) -> None:
    shutil.rmtree(source / "csrc" / "plan")
    installed = install(source, path=overlay(tmp_path / "isolated", purelib=None))
    assert installed.native == {"_C"}, installed.output
    assert "no sources" in installed.reason("_plan")
    assert re.fullmatch(r"py3-none-(?!any).*", installed.tag), "without _plan the wheel serves every Python 3"


def test_no_torch_in_the_build_environment(source: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    installed = install(source, path=overlay(tmp_path / "isolated", purelib=str(empty)))
    assert_degraded(installed, "torch is not importable at build time.*install torch first")
    assert "WARNING: installing without _C" in installed.output


def test_no_compiler_on_path(source: Path, tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    installed = install(source, PATH=str(empty), CXX="")
    assert_degraded(installed, "no C[+][+] compiler: .* not found on PATH; install g[+][+] or set CXX")
    assert "WARNING: installing without _C" in installed.output


def test_broken_compiler(source: Path) -> None:
    installed = install(source, CXX="/bin/false")
    assert_degraded(installed, "'/bin/false' does not compile a trivial C[+][+]17 program")
    assert "WARNING: installing without _C" in installed.output


def test_build_0_builds_nothing_and_is_not_loud_about_it(source: Path) -> None:
    installed = install(source, FUSEDTRAIN_BUILD="0")
    assert_degraded(installed, "FUSEDTRAIN_BUILD=0")
    assert "WARNING: installing without" not in installed.output


def test_one_part_that_does_not_compile_leaves_the_other(source: Path) -> None:
    (source / "csrc/bind/cpu.cpp").write_text("#error this source is broken\n")
    installed = install(source)
    assert installed.native == {"_plan"}
    assert re.search("the build failed: .*pip install -v . shows the output", installed.reason("_C"))
    assert "this source is broken" in installed.output
    report = installed.run("-m", "fusedtrain", "env")
    assert re.search("_C +not built: the build failed", report)
    assert re.search("_plan +loaded", report)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"FUSEDTRAIN_BUILD": "1", "CXX": "/bin/false"}, "FUSEDTRAIN_BUILD=1 asks for _C, but the C[+][+] compiler"),
        ({"FUSEDTRAIN_BUILD": "cpu", "CXX": "/no/such"}, "FUSEDTRAIN_BUILD=cpu asks for _C, but no C[+][+] compiler"),
        ({"FUSEDTRAIN_BUILD": "cuda"}, r"FUSEDTRAIN_BUILD=cuda asks for _C_cuda, but it has no sources \(csrc/cuda"),
        ({"FUSEDTRAIN_BUILD": "yes"}, "FUSEDTRAIN_BUILD='yes' is none of auto, 0, 1, cpu, cuda"),
    ],
)
def test_what_is_asked_for_and_cannot_be_built_fails(source: Path, settings: dict[str, str], message: str) -> None:
    done = pip_install(source, **settings)
    assert done.returncode != 0
    assert re.search(message, done.stdout + done.stderr)
    assert not (source.parent / "installed").exists()


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a build for CUDA")
def test_a_torch_without_cuda_gets_no_library_for_it(source: Path) -> None:
    (source / "csrc/bind/cuda.cpp").write_text("#error not compiled\n")
    installed = install(source)
    assert installed.native == {"_C", "_plan"}
    assert re.search("torch .* is not a build for CUDA", installed.reason("_C_cuda"))
    assert "WARNING: installing without" not in installed.output
    assert re.search("_C_cuda +not built: torch .* is not a build for CUDA", installed.run("-m", "fusedtrain", "env"))


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a build for CUDA")
def test_a_library_for_cuda_that_is_asked_for_must_be_built(source: Path) -> None:
    (source / "csrc/bind/cuda.cpp").write_text("#error not compiled\n")
    done = pip_install(source, FUSEDTRAIN_BUILD="cuda")
    assert done.returncode != 0
    assert re.search("FUSEDTRAIN_BUILD=cuda asks for _C_cuda, but torch .* is not a build", done.stdout + done.stderr)


@pytest.fixture
def stale(source: Path) -> Iterator[Path]:
    """A source tree in which an earlier build, in place and for a wheel, has left its libraries."""
    name = f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/fusedtrain"
    for folder in (source / "fusedtrain", source / name):
        folder.mkdir(parents=True, exist_ok=True)
        for library in ("_C.so", f"_plan{sysconfig.get_config_var('EXT_SUFFIX')}"):
            (folder / library).write_bytes(b"of an earlier build")
    return source


def test_a_library_of_an_earlier_build_is_not_packed(stale: Path) -> None:
    assert install(stale, FUSEDTRAIN_BUILD="0").native == set()


def test_an_editable_install_drops_the_libraries_that_it_does_not_build(stale: Path) -> None:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=stale, env={**os.environ, "FUSEDTRAIN_BUILD": "0"}, check=True, capture_output=True)
    assert not list(stale.glob("fusedtrain/*.so"))
    assert json.loads((stale / "fusedtrain/_build_info.json").read_text())["mode"] == "0"


def test_what_is_recorded_of_a_build_does_not_change_from_build_to_build(source: Path) -> None:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    records = []
    for _ in range(2):
        subprocess.run(command, cwd=source, env={**os.environ, "CXX": "/bin/false"}, check=True, capture_output=True)
        records.append((source / "fusedtrain/_build_info.json").read_bytes())
    assert records[0] == records[1]
    assert str(source).encode() not in records[0]


def test_pre_commit_runs_the_tools_of_make_lint() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements/dev.txt").read_text(), re.MULTILINE))
    hooks = re.findall(
        r"repo: \S+/(ruff|mirrors-clang-format)\S*\s+rev: v(\S+)", (ROOT / ".pre-commit-config.yaml").read_text()
    )
    assert len(hooks) == 2
    for name, version in hooks:
        assert pinned[name.removeprefix("mirrors-")] == version
