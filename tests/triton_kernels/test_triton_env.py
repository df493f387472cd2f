"""Where Triton is missing, of another version, or without a GPU: the backend says so, and everything else works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusedtrain as ft
from fusedtrain import dispatch, env, schemas
from fusedtrain.backends import triton_ops

PACKAGE = Path(ft.__file__).parent
SAY = "import fusedtrain as ft; print(ft.backends()['triton'])"


def run(code: str, path: Path | None = None, **environment: str) -> str:
    """What the code prints in a fresh interpreter that does not interpret Triton."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = os.pathsep.join(str(p) for p in (path, PACKAGE.parent) if p is not None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1", **environment},
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def fake(folder: Path, source: str) -> Path:
    (folder / "triton").mkdir()
    (folder / "triton" / "__init__.py").write_text(source)
    return folder


@pytest.mark.parametrize("version", ["3.6.0", "3.7.1", "3.8.0+git1234", "3.9.0"])
def test_known_versions(version: str) -> None:
    assert triton_ops.version_refusal(version) is None


@pytest.mark.parametrize("version", ["2.3.1", "3.5.1", "3.10.0", "4.0.0"])
def test_versions_that_are_not_known_to_work(version: str) -> None:
    refusal = triton_ops.version_refusal(version)
    assert refusal == f"triton {version} is not supported; 3.6 to 3.9 are known to work"


def test_a_version_that_is_none() -> None:
    assert "unknown version" in str(triton_ops.version_refusal("main"))


def test_triton_that_is_not_installed() -> None:
    say = "import sys; sys.modules['triton'] = None\n" + SAY
    assert run(say) == "triton is not installed"


def test_a_folder_that_is_called_triton_is_not_triton(tmp_path: Path) -> None:
    (tmp_path / "triton").mkdir()
    found = run(
        "import torch, sys, types\nfolder = types.ModuleType('triton')\nfolder.__path__ = []\n"
        "sys.modules['triton'] = folder\n" + SAY,
        tmp_path,
    )
    assert found == "triton is not installed"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("__version__ = '2.1.0'", "triton 2.1.0 is not supported; 3.6 to 3.9 are known to work"),
        ("", "triton without a number is of an unknown version; 3.6 to 3.9 are known to work"),
        ("raise OSError('libtriton.so: no such file')", "triton does not work here: libtriton.so: no such file"),
        ("import nonesuch", "triton does not work here: No module named 'nonesuch'"),
        ("__version__ = '3.7.0'", "triton does not work here: module 'triton' has no attribute 'knobs'"),
    ],
    ids=["old", "unnumbered", "broken", "incomplete", "foreign"],
)
def test_a_triton_that_does_not_work_is_named_with_the_reason(tmp_path: Path, source: str, reason: str) -> None:
    folder = fake(tmp_path, source)
    act = "import torch; print(ft.functional.act_dropout(torch.ones(4), 'relu', 0.0).tolist())"
    assert run(f"{SAY}\n{act}", folder).splitlines() == [reason, "[1.0, 1.0, 1.0, 1.0]"]


needs_triton = pytest.mark.skipif(bool(dispatch.load("triton").why_not), reason=str(dispatch.load("triton").why_not))


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_so_and_compiles_nothing() -> None:
    assert run(SAY) == "no GPU (TRITON_INTERPRET=1 runs it on the CPU, for tests)"


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_interpreted_it_serves_by_name_only() -> None:
    backend = dispatch.load("triton")
    assert "interpreted on the CPU" in backend.note
    assert backend.by_name_only
    x = torch.ones(8)
    assert dispatch.resolve("test", x.device, frozenset({x.dtype}), "relu").name != "triton"
    assert dispatch.resolve("test", x.device, frozenset({x.dtype}), "relu", "triton") is backend


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_with_a_gpu_it_takes_no_cpu_tensors() -> None:
    pretend = "import torch; torch.cuda.device_count = lambda: 1\n"
    code = """
import fusedtrain as ft
from fusedtrain import dispatch
backend = dispatch.load("triton")
print(backend.why_not, sorted(backend.device_types), backend.by_name_only)
try:
    ft.functional.act_dropout(torch.ones(4), backend="triton")
except RuntimeError as error:
    print(error)
"""
    first, second = run(pretend + code).splitlines()
    assert first == "None ['cuda'] False"
    assert "triton: runs on cuda tensors only" in second


@needs_triton
def test_every_operator_is_registered_and_reported() -> None:
    backend = dispatch.load("triton")
    key = "CUDA" if torch.cuda.is_available() else "CPU"
    for op in schemas.SCHEMAS:
        assert getattr(backend, op) is getattr(torch.ops.fusedtrain_triton, op).default
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fusedtrain_triton::{op}", key)
        assert env.operators()[op]["triton"] == "available"
