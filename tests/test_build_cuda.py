"""Which toolkit compiles for CUDA, for which architectures, and the reason where nothing does. What it builds is looked
at in test_cuda_library.py."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "setup_cuda.py").exists():
    pytest.skip("needs the source tree", allow_module_level=True)
sys.path.insert(0, str(ROOT))

import setup_cuda  # noqa: E402
from setup_cuda import CannotBuild  # noqa: E402

TOOLKIT = setup_cuda.Toolkit("nvcc", "13.0.88", Path("/cuda"), (), (), ("75", "80", "86", "90", "100", "120"))
# A compiler that compiles nothing, and answers as nvcc does. It is said to lie elsewhere than it does.
NVCC = """#!/bin/sh
case "$*" in
  *--dryrun*) echo '#$ TOP=/opt/cuda/bin/..' >&2
              echo '#$ INCLUDES="-I/opt/cuda/bin/../targets/include"  ' >&2
              echo '#$ LIBRARIES=  "-L/opt/cuda/bin/../lib/stubs" "-L/opt/cuda/bin/../lib"' >&2 ;;
  --version) echo 'Cuda compilation tools, release 13.0, V13.0.88' ;;
  --list-gpu-code) printf 'sm_80\\nsm_90\\n' ;;
esac
"""


@pytest.fixture(autouse=True)
def _no_setting_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NVCC", "CUDA_HOME", "CUDA_PATH", "FUSEDTRAIN_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake_nvcc(tmp_path: Path) -> Path:
    path = tmp_path / "cuda" / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(NVCC)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def torch_for(cuda: str | None) -> SimpleNamespace:
    return SimpleNamespace(__version__="2.11.0+test", version=SimpleNamespace(cuda=cuda))


@pytest.mark.parametrize("setting", ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH"])
def test_the_toolkit_is_where_its_compiler_says(fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    home = fake_nvcc.parents[1]
    monkeypatch.setenv(
        setting, {"NVCC": str(fake_nvcc), "PATH": f"{fake_nvcc.parent}:/usr/bin:/bin"}.get(setting, str(home))
    )
    found = setup_cuda.find_toolkit()
    assert found.nvcc == str(fake_nvcc)
    assert (found.version, found.home, found.architectures) == ("13.0.88", Path("/opt/cuda"), ("80", "90"))
    assert found.includes == (Path("/opt/cuda/targets/include"),)
    assert found.libraries == (Path("/opt/cuda/lib/stubs"), Path("/opt/cuda/lib"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"NVCC": "/no/such/nvcc"},
            "no CUDA compiler: /no/such/nvcc is not there; install the CUDA toolkit or set CUDA_HOME",
        ),
        ({"CUDA_HOME": "/no/such"}, "no CUDA compiler: /no/such/bin/nvcc is not there"),
        ({"NVCC": "false"}, r"false does not compile a trivial CUDA program \(exit status 1: no message\)"),
    ],
)
def test_a_compiler_that_does_not_compile_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], reason: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CannotBuild, match=reason):
        setup_cuda.find_toolkit()


def test_a_torch_without_cuda_is_a_reason() -> None:
    with pytest.raises(
        CannotBuild, match=r"torch 2.11.0\+test is not a build for CUDA, .*; install a torch that is one"
    ):
        setup_cuda.find_toolkit_for(torch_for(None))


def test_a_toolkit_of_another_major_version_is_a_reason(fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", str(fake_nvcc))
    with pytest.raises(CannotBuild, match=r"is of CUDA 13\.0\.88 and torch .* is for CUDA 12.6; set CUDA_HOME"):
        setup_cuda.find_toolkit_for(torch_for("12.6"))


@pytest.mark.parametrize(
    ("setting", "present", "chosen"),
    [
        (None, [], ["80", "90", "100", "120"]),
        (None, ["86"], ["86"]),
        (None, ["110"], ["80", "90", "100", "120"]),  # a card that this nvcc does not know: PTX serves it
        ("90", ["86"], ["90"]),
        ("9.0;8.0", [], ["80", "90"]),
        ("120, 90 90", [], ["90", "120"]),
    ],
)
def test_the_architectures(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, present: list[str], chosen: list[str]
) -> None:
    if setting is not None:
        monkeypatch.setenv("FUSEDTRAIN_CUDA_ARCHS", setting)
    assert setup_cuda.choose_architectures(TOOLKIT, present) == chosen


@pytest.mark.parametrize("setting", ["", "sm_90", "91", "90;hopper"])
def test_an_architecture_that_nvcc_does_not_know_is_a_reason(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv("FUSEDTRAIN_CUDA_ARCHS", setting)
    with pytest.raises(
        CannotBuild, match=f"FUSEDTRAIN_CUDA_ARCHS='{setting}': .* it does for 75, 80, 86, 90, 100, 120"
    ):
        setup_cuda.choose_architectures(TOOLKIT)


def test_the_newest_architecture_also_comes_as_ptx() -> None:
    assert setup_cuda.architecture_flags(["90", "100"]) == [
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]


def test_the_runtime_is_linked_statically_where_it_can_be(tmp_path: Path) -> None:
    toolkit = setup_cuda.Toolkit("nvcc", "13.0.88", tmp_path, (), (tmp_path,), ())
    assert setup_cuda.runtime_libraries(toolkit) == ["cudart"]
    (tmp_path / "libcudart_static.a").touch()
    assert setup_cuda.runtime_libraries(toolkit)[0] == "cudart_static"
