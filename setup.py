"""Builds the native parts of fusedtrain. Nothing here needs torch to be in the isolated build environment.

FUSEDTRAIN_BUILD  auto (default): build what can be built; what cannot is skipped loudly, with the reason recorded
                  0: nothing native      1, cpu: the CPU parts, or fail      cuda: the CPU parts and CUDA, or fail
CXX, MAX_JOBS     the compiler and the number of parallel compile jobs, as for every torch extension
For CUDA there are FUSEDTRAIN_CUDA_ARCHS, NVCC and CUDA_HOME: see setup_cuda.py.
"""

import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # where a build by pip does not look

import setup_cuda  # noqa: E402
from setup_cuda import CannotBuild, NotNeeded  # noqa: E402

MODES = ("auto", "0", "1", "cpu", "cuda")
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
TORCH_FLOOR = (2, 11)
TORCH_TARGET_VERSION = "0x020b000000000000"
# Errno and trap semantics of libm are given up (so loops vectorise); the value of every result is not: no -ffast-math.
CXX_FLAGS = [
    "-O3",
    "-g0",
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-maybe-uninitialized",  # gcc 12 sees one in its own AVX-512 intrinsics (GCC bug 105593)
]
STABLE_ABI_FLAGS = ["-DTORCH_STABLE_ONLY", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
# A message from a header or a source names the file as it is in the repository, wherever it was built.
PATH_FLAGS = [f"-fmacro-prefix-map={ROOT}/="]


def say(text):
    print(f"[fusedtrain] {text}", file=sys.stderr, flush=True)


def sources(*patterns):
    return sorted(path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern))


@dataclass
class Part:
    """One native file of the package, how it is built, and the modes that insist on it."""

    name: str
    sources: list
    where: str
    required_by: tuple
    flags: list = field(default_factory=list)
    architectures: list = field(default_factory=list)

    @property
    def module(self):
        return f"fusedtrain.{self.name}"


PARTS = [
    Part(
        name="_C",
        sources=sources("csrc/args/*.cpp", "csrc/cpu/*.cpp", "csrc/bind/cpu.cpp"),
        where="csrc/args/*.cpp, csrc/cpu/*.cpp, csrc/bind/cpu.cpp",
        required_by=("1", "cpu", "cuda"),
        flags=CXX_FLAGS + STABLE_ABI_FLAGS,
    ),
    Part(
        name="_plan",
        sources=sources("csrc/plan/*.cpp"),
        where="csrc/plan/*.cpp",
        required_by=("1", "cpu", "cuda"),
        flags=CXX_FLAGS,
    ),
    Part(
        name="_C_cuda",
        sources=sources("csrc/cuda/*.cu", "csrc/cuda/*.cpp", "csrc/bind/cuda*.cpp", "csrc/args/*.cpp"),
        where="csrc/cuda/*.cu, csrc/cuda/*.cpp, csrc/bind/cuda*.cpp, csrc/args/*.cpp",
        required_by=("cuda",),
        flags=[*CXX_FLAGS, *STABLE_ABI_FLAGS, "-DUSE_CUDA"],
    ),
]


def torch_folder():
    """The folder of the torch that the package will run with. Under build isolation that torch is not importable,
    but pip keeps the prefix of the interpreter it installs for, and sysconfig leads there."""
    spec = importlib.util.find_spec("torch")
    if spec is None:
        for key in ("purelib", "platlib"):
            site = sysconfig.get_paths()[key]
            if os.path.isdir(os.path.join(site, "torch")) and site not in sys.path:
                sys.path.append(site)
                spec = importlib.util.find_spec("torch")
                break
    if spec is None or not spec.submodule_search_locations:
        raise CannotBuild(
            f"torch is not importable at build time (looked in sys.path and in {sysconfig.get_paths()['purelib']}); "
            "install torch first, or use pip install --no-build-isolation"
        )
    return Path(spec.submodule_search_locations[0])


def import_torch():
    torch_folder()
    try:
        import torch
    except Exception as error:
        raise CannotBuild(f"torch does not import at build time: {type(error).__name__}: {error}") from error
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < TORCH_FLOOR:
        raise CannotBuild(f"torch {torch.__version__} is older than {'.'.join(map(str, TORCH_FLOOR))}")
    return torch


def find_compiler():
    """The C++ compiler, checked on a small program, and its version line."""
    wanted = os.environ.get("CXX")
    candidates = [wanted] if wanted else [sysconfig.get_config_var("CXX") or "c++", "c++", "g++", "clang++"]
    for command in candidates:
        argv = shlex.split(command)
        if argv and shutil.which(argv[0]):
            break
    else:
        raise CannotBuild(
            f"no C++ compiler: {' / '.join(dict.fromkeys(candidates))} not found on PATH; install g++ or set CXX"
        )
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "probe.cpp")
        program.write_text("#include <vector>\nint main() { return std::vector<int>(1)[0]; }\n")
        output = str(Path(folder, "probe.o"))
        probe = subprocess.run(
            [*argv, "-std=c++17", "-c", str(program), "-o", output], capture_output=True, text=True, check=False
        )
        if probe.returncode or not os.path.exists(output):
            tail = (probe.stderr.strip().splitlines() or ["no message"])[-1]
            raise CannotBuild(
                f"the C++ compiler {command!r} does not compile a trivial C++17 program "
                f"(exit status {probe.returncode}: {tail}); mend or unset CXX"
            )
    version = subprocess.run([*argv, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    # distutils and torch each have their own idea of the compiler: tell both the one that was tried.
    os.environ["CXX"] = command
    return command, version[0] if version else "unknown"


class Build(build_ext):
    """Builds each part with a command of its own, so that one that fails leaves the others alone."""

    def run(self):
        mode = os.environ.get("FUSEDTRAIN_BUILD", "auto")
        if mode not in MODES:
            raise SystemExit(f"fusedtrain: FUSEDTRAIN_BUILD={mode!r} is none of {', '.join(MODES)}")
        self.info = {
            "mode": mode,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "torch": None,
            "torch_target_version": TORCH_TARGET_VERSION,
            "compiler": None,
            "compiler_version": None,
            "nvcc": None,
            "parts": {},
        }
        self.built = []
        for part in PARTS:
            if mode in part.required_by and not part.sources:
                raise SystemExit(
                    f"fusedtrain: FUSEDTRAIN_BUILD={mode} asks for {part.name}, but it has no sources ({part.where})"
                )
        for part in PARTS:
            try:
                self.check_wanted(part, mode)
                ext, command = getattr(self, f"make{part.name}")(part)
                self.build_part(ext, command)
            except CannotBuild as error:
                self.skip(part, mode, str(error), error)
            except Exception as error:
                self.skip(
                    part,
                    mode,
                    f"the build failed: {type(error).__name__}: {error} (pip install -v . shows the output)",
                    error,
                )
            else:
                self.built.append(ext)
                self.info["parts"][part.name] = {
                    "built": True,
                    "flags": part.flags,
                    "sources": part.sources,
                    "isa": [f"sm_{a}" for a in part.architectures] or self.instruction_sets(ext),
                }
                say(f"built {part.name}")
        self.write_info()

    def check_wanted(self, part, mode):
        if mode == "0":
            raise CannotBuild("FUSEDTRAIN_BUILD=0")
        if mode == "cpu" and part.name == "_C_cuda":
            raise CannotBuild("FUSEDTRAIN_BUILD=cpu")
        if not part.sources:
            raise CannotBuild(f"no sources ({part.where})")

    def compiler_command(self):
        if self.info["compiler"] is None:
            self.info["compiler"], self.info["compiler_version"] = find_compiler()

    def operator_library(self, part, compile_args, **link):
        """An extension that is a library of operators, and the command that builds it."""
        with suppress(ImportError):  # torch runs `ninja` from PATH, where an environment that is not active lacks it
            import ninja

            os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), ninja.BIN_DIR])
        from torch.utils.cpp_extension import BuildExtension, CppExtension

        class StableLibrary(BuildExtension.with_options(no_python_abi_suffix=True)):
            def get_export_symbols(self, ext):
                return []  # a library of ops, not a Python module: there is no PyInit to export

        ext = CppExtension(part.module, part.sources, py_limited_api=True, extra_compile_args=compile_args, **link)
        # As system headers, torch's warnings stay out of ours.
        compile_args["cxx"] += [f"-isystem{folder}" for folder in ext.include_dirs]
        ext.include_dirs = [str(ROOT / "csrc")]  # absolute: ninja runs in another folder
        return ext, StableLibrary

    def make_C(self, part):  # noqa: N802
        self.compiler_command()
        self.info["torch"] = import_torch().__version__
        return self.operator_library(part, {"cxx": part.flags + PATH_FLAGS})

    def make_plan(self, part):
        self.compiler_command()
        try:
            import pybind11
        except ImportError as error:
            raise CannotBuild("pybind11 is not importable at build time; pip install pybind11") from error
        # torch is there for one plain C header, ATen/dlpack.h; nothing of torch is linked.
        ext = Extension(
            part.module,
            part.sources,
            language="c++",
            depends=[*sources("csrc/plan/*.h", "csrc/rules/*.h"), "setup.py"],
            include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
            extra_compile_args=[*part.flags, *PATH_FLAGS, f"-isystem{torch_folder() / 'include'}"],
        )
        return ext, build_ext

    def make_C_cuda(self, part):  # noqa: N802
        self.compiler_command()
        torch = import_torch()
        toolkit = setup_cuda.find_toolkit_for(torch)
        part.architectures = setup_cuda.choose_architectures(toolkit, setup_cuda.present_architectures(torch))
        nvcc_flags = [*setup_cuda.NVCC_FLAGS, *setup_cuda.architecture_flags(part.architectures)]
        say(f"compiling for {', '.join(part.architectures)} with {toolkit.nvcc} of CUDA {toolkit.version}")
        ext, command = self.operator_library(
            part,
            {
                "cxx": [*part.flags, *PATH_FLAGS, *(f"-isystem{folder}" for folder in toolkit.includes)],
                "nvcc": [*nvcc_flags, "-Xcompiler", ",".join(PATH_FLAGS)],
            },
            libraries=["torch_cuda", *setup_cuda.runtime_libraries(toolkit)],
            library_dirs=[str(folder) for folder in toolkit.libraries],
            # The runtime's symbols are for this library alone: torch has loaded a runtime of its own.
            extra_link_args=["-Wl,--exclude-libs,ALL"],
        )
        part.flags = part.flags + nvcc_flags
        self.info["nvcc"] = toolkit.version
        return ext, command

    @contextmanager
    def only(self, ext):
        """The distribution as if `ext` were its only extension: a build command takes what it builds from there."""
        every = self.distribution.ext_modules
        self.distribution.ext_modules = [ext]
        try:
            yield
        finally:
            self.distribution.ext_modules = every

    def build_part(self, ext, command):
        with self.only(ext):
            build = command(self.distribution)
            build.build_lib, build.build_temp = self.build_lib, os.path.join(self.build_temp, ext.name)
            build.debug, build.parallel, build.inplace = self.debug, self.parallel, self.inplace
            build.ensure_finalized()
            build.run()
        ext._file_name = build.get_ext_filename(build.get_ext_fullname(ext.name))

    def instruction_sets(self, ext):
        """Those that the library has kernels for: csrc/cpu puts each into a namespace of its own, isa_*."""
        library = Path(self.build_lib, ext._file_name).read_bytes()
        return [name for name in INSTRUCTION_SETS if f"isa_{name}".encode() in library]

    def skip(self, part, mode, reason, error=None):
        if mode in part.required_by:
            raise SystemExit(f"fusedtrain: FUSEDTRAIN_BUILD={mode} asks for {part.name}, but {reason}") from error
        self.remove_stale(part)
        self.info["parts"][part.name] = {"built": False, "reason": reason}
        if mode == "auto" and part.sources and not isinstance(error, NotNeeded):
            say("*" * 100)
            say(f"WARNING: installing without {part.name}: {reason}")
            say("fusedtrain will work on its slower backends; `python -m fusedtrain env` repeats this reason")
            say("*" * 100)
        else:
            say(f"without {part.name}: {reason}")

    def package_folders(self):
        folders = [Path(self.build_lib, "fusedtrain")]
        if self.inplace:
            folders.append(Path(self.get_finalized_command("build_py").get_package_dir("fusedtrain")))
        return folders

    def remove_stale(self, part):
        """An earlier build's file would be packed into this wheel, or loaded, as if it were of these sources."""
        for folder in self.package_folders():
            for suffix in (".so", ".*.so", ".*.pyd"):
                for path in folder.glob(part.name + suffix):
                    path.unlink()

    def write_info(self):
        text = json.dumps(self.info, indent=1, sort_keys=True) + "\n"
        for folder in self.package_folders():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "_build_info.json").write_text(text, encoding="utf-8")

    def get_outputs(self):
        return sorted(self.get_output_mapping()) if self.inplace else self.regular_outputs()

    def regular_outputs(self):
        names = [ext._file_name for ext in getattr(self, "built", [])]
        return [os.path.join(self.build_lib, name) for name in [*names, os.path.join("fusedtrain", "_build_info.json")]]

    def get_output_mapping(self):
        if not self.inplace:
            return {}
        source = self.package_folders()[-1]
        return {path: str(source / os.path.basename(path)) for path in self.regular_outputs()}


class Wheel(bdist_wheel):
    """Tagged by what was really built: nothing native runs anywhere, the op libraries know no Python version, and
    _plan is bound to one CPython."""

    def run(self):
        self.run_command("build")
        self.built = {ext.name.rpartition(".")[2] for ext in self.get_finalized_command("build_ext").built}
        self.root_is_pure = not self.built
        super().run()

    def get_tag(self):
        built = getattr(self, "built", None)
        python, abi, system = super().get_tag()
        if built is None or "_plan" in built:
            return python, abi, system
        return ("py3", "none", system) if built else ("py3", "none", "any")


class PackagePython(build_py):
    """Python files only: libraries that an in-place build left in the source tree are not this build's."""

    def find_data_files(self, package, src_dir):
        return [name for name in super().find_data_files(package, src_dir) if not name.endswith((".so", ".pyd"))]


setup(
    ext_modules=[Extension(part.module, part.sources) for part in PARTS],
    cmdclass={"build_ext": Build, "build_py": PackagePython, "bdist_wheel": Wheel},
)
