"""What compiles the CUDA kernels, and how: for setup.py, and for scripts/check_cuda.py, so that what is checked is what
is built. Needs neither torch nor a GPU.

FUSEDTRAIN_CUDA_ARCHS  the architectures to build for, as "90" or "80;90;120"; PTX of the newest is always added
NVCC, CUDA_HOME        the compiler, or the toolkit that it lies in; by default the nvcc on PATH, then /usr/local/cuda
"""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = ("80", "90", "100", "120")
# torch's BuildExtension adds these on its own to every CUDA file.
TORCH_NVCC_FLAGS = [
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
    "--expt-relaxed-constexpr",
]
# -lineinfo costs the machine code nothing, and lets compute-sanitizer and the profilers name source lines.
NVCC_FLAGS = ["-std=c++17", "-O3", "-lineinfo", "-Xcompiler", "-fvisibility=hidden,-Wall,-Wextra"]


class CannotBuild(Exception):
    """Why a part cannot be built here, in one sentence."""


class NotNeeded(CannotBuild):
    """Why nothing here would use a part."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit whose nvcc compiles."""

    nvcc: str
    version: str
    home: Path
    includes: tuple
    libraries: tuple
    architectures: tuple

    @property
    def static_runtime(self):
        return any((folder / "libcudart_static.a").exists() for folder in self.libraries)


def run(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotBuild(f"{command[0]} does not run: {error}") from error


def last_line(done):
    return ((done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"])[-1]


def find_nvcc():
    """The path of nvcc, which need not work."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    wanted = os.environ.get("NVCC") or (os.path.join(home, "bin", "nvcc") if home else None)
    path = shutil.which(wanted or "nvcc") or (None if wanted else shutil.which("/usr/local/cuda/bin/nvcc"))
    if path is None:
        where = f"{wanted} is not there" if wanted else "nvcc not found on PATH or in /usr/local/cuda/bin"
        raise CannotBuild(f"no CUDA compiler: {where}; install the CUDA toolkit or set CUDA_HOME")
    return path


def find_toolkit():
    """The toolkit of `find_nvcc`, tried on a small program.

    Raises:
        CannotBuild: there is no nvcc, or none that compiles.
    """
    nvcc = find_nvcc()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "probe.cu")
        program.write_text("__global__ void probe(float* x) { *x = 0; }\n")
        command = [nvcc, "-std=c++17", "-c", str(program), "-o", str(Path(folder, "probe.o"))]
        probe = run(*command)
        plan = run(*command, "--dryrun")
    if probe.returncode:
        raise CannotBuild(
            f"{nvcc} does not compile a trivial CUDA program (exit status {probe.returncode}: {last_line(probe)}); "
            "mend it, or set CUDA_HOME to another toolkit"
        )
    # nvcc on PATH may be a script or a link from elsewhere: only itself knows the folders that it uses.
    settings = dict(re.findall(r"^#\$ (\w+)=(.*)$", plan.stderr, re.MULTILINE))
    folders = {flag: shlex.split(settings.get(flag, "")) for flag in ("INCLUDES", "LIBRARIES")}
    version = re.search(r"V(\d+\.\d+\.\d+)", run(nvcc, "--version").stdout)
    return Toolkit(
        nvcc=nvcc,
        version=version[1] if version else "of an unknown version",
        home=Path(settings.get("TOP") or Path(nvcc).parent.parent).resolve(),
        includes=tuple(Path(flag[2:]).resolve() for flag in folders["INCLUDES"] if flag.startswith("-I")),
        libraries=tuple(Path(flag[2:]).resolve() for flag in folders["LIBRARIES"] if flag.startswith("-L")),
        architectures=tuple(re.findall(r"sm_(\d+)", run(nvcc, "--list-gpu-code").stdout)),
    )


def find_toolkit_for(torch):
    """The toolkit of `find_toolkit`, fit for this torch, and made known to its build command.

    Raises:
        NotNeeded: this torch is not for CUDA.
        CannotBuild: there is no toolkit, or this torch is for another CUDA.
    """
    if torch.version.cuda is None:
        raise NotNeeded(
            f"torch {torch.__version__} is not a build for CUDA, so there are no CUDA tensors to work on; "
            "install a torch that is one"
        )
    toolkit = find_toolkit()
    if toolkit.version.split(".")[0] != torch.version.cuda.split(".")[0]:
        raise CannotBuild(
            f"{toolkit.nvcc} is of CUDA {toolkit.version} and torch {torch.__version__} is for CUDA "
            f"{torch.version.cuda}; set CUDA_HOME to a toolkit of the same major version"
        )
    from torch.utils import cpp_extension

    os.environ["PYTORCH_NVCC"] = toolkit.nvcc
    cpp_extension.CUDA_HOME = str(toolkit.home)
    return toolkit


def present_architectures(torch):
    """Those of the GPUs of this machine, oldest first."""
    capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return [f"{major}{minor}" for major, minor in sorted(capabilities)]


def choose_architectures(toolkit, present=()):
    """Those of FUSEDTRAIN_CUDA_ARCHS; else those `present`, of the GPUs of this machine; else the usual ones.

    Raises:
        CannotBuild: the setting is not a list of architectures that this nvcc compiles for.
    """
    text = os.environ.get("FUSEDTRAIN_CUDA_ARCHS")
    if text is None:
        known = toolkit.architectures
        return [a for a in present if a in known] or [a for a in ARCHITECTURES if a in known]
    wanted = [item.replace(".", "") for item in re.split(r"[;,\s]+", text.strip())]
    unknown = [item for item in wanted if item not in toolkit.architectures]
    if unknown:
        raise CannotBuild(
            f"FUSEDTRAIN_CUDA_ARCHS={text!r}: the nvcc of CUDA {toolkit.version} does not compile for "
            f"{', '.join(map(repr, unknown))}; it does for {', '.join(toolkit.architectures)}"
        )
    return sorted(set(wanted), key=int)


def architecture_flags(architectures):
    """Machine code for each of them, and PTX of the newest, from which a driver compiles for cards newer still."""
    newest = max(architectures, key=int)
    machine_code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    return [*machine_code, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def runtime_libraries(toolkit):
    """What to link for the CUDA runtime. The static one where there is one: the library then runs next to a torch that
    brings another runtime, or a newer one, as long as the driver is new enough."""
    return ["cudart_static", "rt", "dl", "pthread"] if toolkit.static_runtime else ["cudart"]
