"""Build of the two compiled parts: avskernels._C (CPU) and avskernels._cuda (CUDA, where nvcc is).

Both use only the stable ABI of libtorch, so one build serves every torch from the target version
on, and it may be made against any such torch, a CPU-only one included.
Environment: AVSKERNELS_CUDA=0|1 leaves out or demands the CUDA part; TORCH_CUDA_ARCH_LIST
("9.0;10.0+PTX") chooses its architectures; MAX_JOBS limits the parallel compilations.
"""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import ninja
import pybind11
import torch
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
TORCH_TARGET = (2, 11)
DEFAULT_CUDA_ARCHS = "8.0;9.0;10.0;12.0+PTX"


def find_nvcc():
    """Return the path of nvcc, or None where the CUDA part is not to be built."""
    wanted = os.environ.get("AVSKERNELS_CUDA")
    if wanted not in (None, "0", "1"):
        raise SystemExit(f"setup.py: expected AVSKERNELS_CUDA to be 0 or 1, got {wanted!r}")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if nvcc is None and wanted == "1":
        raise SystemExit("setup.py: expected nvcc on PATH or in CUDA_HOME, got none")
    return nvcc


def cuda_archs():
    return os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_CUDA_ARCHS


def gencode_flags(archs):
    """Translate "8.0;9.0+PTX" into nvcc's -gencode flags."""
    flags = []
    for arch in archs.replace(" ", ";").split(";"):
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


class NinjaBuildExt(build_ext):
    """Compile and link the extensions with one generated ninja file (incremental, parallel)."""

    def build_extensions(self):
        major, minor = (int(part) for part in torch.__version__.split(".")[:2])
        if (major, minor) < TORCH_TARGET:
            raise SystemExit(
                f"setup.py: expected torch >= {TORCH_TARGET[0]}.{TORCH_TARGET[1]}, "
                f"got {torch.__version__}"
            )
        # Not in build_temp, which is a new folder for each editable install: objects are kept.
        build = ROOT / "build" / "objects"
        build.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text(self.ninja_file())
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
        command = [Path(ninja.BIN_DIR) / "ninja", "-C", str(build), "-j", jobs]
        if subprocess.run(command).returncode != 0:
            raise SystemExit("setup.py: the compilation failed, see the messages above")

    def ninja_file(self):
        torch_root = Path(torch.__file__).parent
        nvcc = find_nvcc()
        target = f"0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000"
        defines = (
            f"-DTORCH_TARGET_VERSION={target} -DPYTORCH_TARGET={TORCH_TARGET[0]}.{TORCH_TARGET[1]}"
        )
        cuda = f"{cuda_version(nvcc)} ({cuda_archs().replace(';', ' ')})" if nvcc else "none"
        include = " ".join(
            f"-I{path}"
            for path in (
                ROOT / "csrc",
                pybind11.get_include(),  # before torch's copy, which older ones forbid to include
                torch_root / "include",
                sysconfig.get_paths()["include"],
            )
        )
        warnings = "-Wall -Wextra -Wno-unknown-pragmas -Wno-psabi"
        lines = [
            "ninja_required_version = 1.5",
            f"cxx = {os.environ.get('CXX', 'c++')}",
            f"nvcc = {nvcc}",
            f"cxxflags = -std=c++20 -O3 -fPIC -fvisibility=hidden -fno-math-errno {warnings} "
            f"{defines} {include}",
            "cudaflags = -std=c++20 -O3 -Xcompiler -fPIC,-fvisibility=hidden "
            f"--expt-relaxed-constexpr --expt-extended-lambda -DUSE_CUDA {defines} {include} "
            + " ".join(gencode_flags(cuda_archs())),
            f"torchlibs = -L{torch_root / 'lib'} -ltorch -ltorch_cpu -lc10",
            "rule cxx",
            "  description = compile $in",
            "  command = $cxx $cxxflags $extra -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule nvcc",
            "  description = compile $in",
            "  command = $nvcc $cudaflags -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link_cxx",
            "  description = link $out",
            "  command = $cxx -shared $in -Wl,--no-as-needed $torchlibs -o $out",
            "rule link_nvcc",
            "  description = link $out",
            "  command = $nvcc -shared $in -Xlinker --no-as-needed $torchlibs -o $out",
        ]
        for source in sorted({source for each in self.extensions for source in each.sources}):
            compiler = "nvcc" if source.endswith(".cu") else "cxx"
            lines.append(f"build {source}.o: {compiler} {ROOT / source}")
            if source.endswith("module.cpp"):
                lines.append(f"""  extra = '-DAVSKERNELS_CUDA="{cuda}"'""")
        for extension in self.extensions:
            linker = "link_nvcc" if extension.name == "avskernels._cuda" else "link_cxx"
            objects = [f"{source}.o" for source in extension.sources]
            output = Path(self.get_ext_fullpath(extension.name)).resolve()
            output.parent.mkdir(parents=True, exist_ok=True)
            lines.append(f"build {output}: {linker} {' '.join(objects)}")
        return "\n".join(lines) + "\n"


def cuda_version(nvcc):
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return text.split("release ")[1].split(",")[0]


def sources(pattern):
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


extensions = [
    Extension("avskernels._C", sources("*.cpp") + sources("*/*.cpp")),
]
if find_nvcc() and sources("*/*.cu"):
    checks = ["csrc/common/operator.cpp", "csrc/common/specification.cpp"]  # both libraries need
    extensions.append(Extension("avskernels._cuda", checks + sources("*/*.cu")))

setup(ext_modules=extensions, cmdclass={"build_ext": NinjaBuildExt})
