"""Importing the package does nothing but import it, and a library that does not load does not take it down."""

from __future__ import annotations

import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusedtrain

PACKAGE = Path(fusedtrain.__file__).parent
# Command-line applications and kernels in Triton are loaded on demand and may need more than torch.
ON_DEMAND = re.compile(r"fusedtrain\.(train|bench|gpu_check|__main__|env|backends\.triton_)")
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages([str(PACKAGE)], "fusedtrain.")
    if not ON_DEMAND.match(name) and not name.rpartition(".")[2].startswith("_")
)
IMPORT_ALL = "".join(f"import {name}\n" for name in ["fusedtrain", *MODULES])
STEP = """
import torch, fusedtrain as ft
w = torch.nn.Parameter(torch.randn(16, 16))
ft.functional.act_dropout(torch.randn(8, 16) @ w, "gelu", p=0.5).square().sum().backward()
ft.optim.AdamW([w], lr=0.1, max_norm=1.0).step()
"""


def run(code: str, *, package: Path = PACKAGE, **environment: str | None) -> str:
    """What the code prints in a fresh interpreter with the package; a variable that is None is not set there."""
    settings = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={name: value for name, value in settings.items() if value is not None},
        cwd=package.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_every_module_is_covered() -> None:
    assert {"fusedtrain.rules", "fusedtrain.dispatch", "fusedtrain.backends.native"} <= set(MODULES)


def test_F2_import_does_not_touch_cuda() -> None:
    """A forked child must still be able to start CUDA: TransformerEngine#872, xformers#1030, peft#1877."""
    run(
        """
import torch
def refuse(*args, **kwargs):
    raise RuntimeError("import fusedtrain called torch.cuda")
for module in (torch.cuda, torch._C):
    for name in dir(module):
        thing = getattr(module, name)
        on_cuda = module is torch.cuda or name.startswith("_cuda")
        if on_cuda and callable(thing) and not isinstance(thing, type) and not name.startswith("__"):
            setattr(module, name, refuse)
try:
    torch.cuda.is_available()
except RuntimeError:
    pass
else:
    raise SystemExit("torch.cuda was not patched")
"""
        + IMPORT_ALL
    )


def test_F1_import_compiles_nothing_and_loads_no_compiler() -> None:
    """No JIT at import, and so no lock file of a killed build to wait for: pytorch#189245."""
    run(
        """
import os, subprocess, sys, torch
before = set(sys.modules)
def refuse(*args, **kwargs):
    raise RuntimeError("import fusedtrain started a process")
subprocess.Popen.__init__ = os.system = os.fork = os.posix_spawn = refuse
"""
        + IMPORT_ALL
        + """
tools = {name.partition(".")[0] for name in set(sys.modules) - before}
unwanted = tools & {"triton", "typer", "rich", "matplotlib", "sklearn", "setuptools"}
assert not unwanted, unwanted
slow = {"torch._dynamo", "torch._inductor", "torch.utils.cpp_extension"} & (set(sys.modules) - before)
assert not slow, slow
"""
    )


needs_cpu = pytest.mark.skipif(
    not fusedtrain.backends()["cpu"].startswith("available"), reason="the CPU library is not built"
)


@needs_cpu
def test_operators_run_right_after_the_import() -> None:
    output = run(
        "import torch, fusedtrain\n"
        "print(torch.ops.fusedtrain.act_dropout(torch.tensor([-1.0, 2.0]), None, None, None, 0, 'relu').tolist())"
    )
    assert output.strip() == "[0.0, 2.0]"


@needs_cpu
def test_an_exported_program_runs_in_a_fresh_process(tmp_path: Path) -> None:
    """Nothing but the import leads to the kernels that it calls."""
    x = torch.randn(4, 8)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), fusedtrain.nn.ActDropout("gelu", 0.5)).eval()
    program = torch.export.export(model, (x,))
    assert "fusedtrain.act_dropout" in str(program.graph)
    torch.export.save(program, tmp_path / "model.pt2")
    torch.save({"x": x, "y": model(x).detach()}, tmp_path / "expected.pt")
    output = run(
        "import sys, torch, fusedtrain\n"
        f"expected = torch.load({str(tmp_path / 'expected.pt')!r}, weights_only=True)\n"
        f"y = torch.export.load({str(tmp_path / 'model.pt2')!r}).module()(expected['x'])\n"
        "torch.testing.assert_close(y.detach(), expected['y'])\n"
        "print('same')"
    )
    assert "same" in output.splitlines()  # torch 2.11 has a warning to add


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": None, "TMPDIR": None},
        {"HOME": "/proc", "TMPDIR": "/proc", "XDG_CACHE_HOME": "/proc"},  # /proc takes no files, not even from root
        {"HOME": "/no/such/folder", "TMPDIR": "/no/such/folder"},
    ],
    ids=["unset", "read-only", "missing"],
)
def test_F6_works_without_home_or_temporary_folder(environment: dict[str, str | None]) -> None:
    """No fixed path in /tmp or in the home: torchdynamo#2004, pytorch#121122, spikingjelly!662."""
    run(STEP, **environment)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PACKAGE, tmp_path / "fusedtrain", ignore=shutil.ignore_patterns("__pycache__", "*.so")))


@pytest.mark.parametrize(
    "contents",
    [b"", b"not a library", b"\x7fELF\x02\x01\x01" + bytes(64)],
    ids=["empty", "garbage", "truncated"],
)
def test_a_library_that_does_not_load_is_skipped_with_the_reason(copy: Path, contents: bytes) -> None:
    (copy / "_C.so").write_bytes(contents)
    (copy / "_plan.so").write_bytes(contents)
    report = "\nfrom fusedtrain.__main__ import main; main(['env'])"
    output = run("import fusedtrain as ft; print(ft.backends()['cpu'])" + STEP + report, package=copy)
    why = "(file too short|invalid ELF header|ELF file version)"
    reason = rf"_C\.so.*{why}"
    assert re.search(reason, output)
    assert re.search(rf"UserWarning: .*reference.*{reason}", output), "the fallback names its reason"
    assert re.search(rf"_C .*{reason}", output)
    assert re.search(rf"_plan .*does not import: .*{why}", output)


def test_F3_a_library_of_another_torch_is_one_warning_with_both_versions(copy: Path) -> None:
    """An undefined symbol alone names no cause: flash-attention#1644, pytorch#152790, apex#212, fvdb#295."""
    (copy / "_C.so").write_bytes(b"of another torch")
    (copy / "_build_info.json").write_text('{"torch": "2.11.0+cu128"}')
    output = run(STEP + STEP, package=copy)
    warned = re.findall(r"UserWarning: .*", output)
    assert len(warned) == 1
    assert f"built with torch 2.11.0+cu128, and this is torch {torch.__version__}" in warned[0]
    assert "reference" in warned[0]


def test_a_record_of_the_build_that_is_not_json_is_named(copy: Path) -> None:
    (copy / "_build_info.json").write_text("{")
    report = run("from fusedtrain.__main__ import main; main(['env'])", package=copy)
    assert "_build_info.json is not readable" in report


def test_env_as_json_holds_the_whole_table_and_needs_nothing_but_torch() -> None:
    output = run(
        "import sys; sys.modules['typer'] = sys.modules['rich'] = sys.modules['numpy'] = None\n"
        "import json, io, contextlib; from fusedtrain import dispatch, schemas; from fusedtrain.__main__ import main\n"
        "text = io.StringIO()\n"
        "with contextlib.redirect_stdout(text): main(['env', '--json'])\n"
        "found = json.loads(text.getvalue())\n"
        "assert {'versions', 'machine', 'build', 'libraries', 'backends', 'operators'} <= set(found)\n"
        "assert set(found['operators']) == set(schemas.SCHEMAS)\n"
        "for states in found['operators'].values():\n"
        "    assert list(states) == list(dispatch.ORDER) and all(states.values())\n"
        "    assert states['reference'] == 'available'\n"
        "print('complete')"
    )
    assert "complete" in output


def test_train_without_its_extra_names_the_extra() -> None:
    code = "import sys; sys.modules['typer'] = None; from fusedtrain.__main__ import main\n"
    code += "try: main(['train'])\nexcept SystemExit as stop: print(stop.code)"
    assert "needs typer: pip install 'fusedtrain[train]'" in run(code)
