"""Build, test and measure on this machine's CUDA device.

    python tests/tools/gpu.py [build] [test] [bench]      all three unless told

Everything runs in place under the Python that runs this: nothing is downloaded or installed. What
was said and found goes to build/gpu, or to the folder that the variable OUT names: build.log,
tests.log, tests.xml (an outcome a test), bench.log, bench.json and bench.html (benchmarks/report.py
has the figures' meaning). Each step keeps going after failures, and the exit status tells of them.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUTPUT = Path(os.environ.get("OUT") or ROOT / "build" / "gpu").resolve()
OLDEST_SETUPTOOLS = 77
MODULES = {
    "setuptools": f"setuptools >= {OLDEST_SETUPTOOLS}",
    "torch": "torch",
    "triton": "triton",
    "ninja": "ninja",
    "pybind11": "pybind11",
    "pytest": "pytest",
    "xdist": "pytest-xdist",
    "pytest_timeout": "pytest-timeout",
    "pytest_benchmark": "pytest-benchmark",
    "hypothesis": "hypothesis",
    "scipy": "scipy",
}
TEST_SECONDS = 420
BENCH_SECONDS = 300
START_SECONDS = 10  # of a process, until its first cell


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", help="of build, test and bench: all unless told")
    parser.add_argument(
        "--bench-seconds", type=float, default=BENCH_SECONDS, help="time of all benchmarks (300)"
    )
    arguments = parser.parse_args()
    steps = arguments.steps or ["build", "test", "bench"]
    if unknown := set(steps) - {"build", "test", "bench"}:
        parser.error(f"expected steps of build, test and bench, got {sorted(unknown)}")
    if missing := missing_here():
        sys.exit(
            "gpu: expected a CUDA device that torch sees, nvcc, and the Python packages "
            f"{', '.join(MODULES.values())}; missing here: {', '.join(missing)}"
        )
    OUTPUT.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in steps:
        began = time.monotonic()
        ok = {"build": build, "test": test}.get(name, lambda: bench(arguments.bench_seconds))()
        say(f"{name}: {'done' if ok else 'failed'} after {time.monotonic() - began:.0f} s")
        failed += [] if ok else [name]
        if name in failed and name == "build":
            break
    sys.exit(1 if failed else 0)


def missing_here():
    missing = [name for module, name in MODULES.items() if not is_installed(module)]
    if "torch" in missing:
        return missing
    import torch

    if not torch.cuda.is_available():
        missing.insert(0, "a CUDA device")
    if cuda_home() is None:
        missing.insert(0, "nvcc")
    return missing


def is_installed(module):
    if importlib.util.find_spec(module) is None:
        return False
    if module == "setuptools":
        return int(importlib.metadata.version(module).split(".")[0]) >= OLDEST_SETUPTOOLS
    return True


def cuda_home():
    """Return the folder of the CUDA toolkit, or None: CUDA_HOME's, PATH's, or the usual one."""
    given = os.environ.get("CUDA_HOME")
    folders = [f"{given}/bin"] if given else [os.environ["PATH"], "/usr/local/cuda/bin"]
    nvcc = next(filter(None, (shutil.which("nvcc", path=folder) for folder in folders)), None)
    return nvcc and str(Path(nvcc).parent.parent)


def build():
    """Compile for the present device's architecture alone."""
    import torch

    architecture = ".".join(map(str, torch.cuda.get_device_capability()))
    say(f"{torch.cuda.get_device_name()}, {architecture}, torch {torch.__version__}")
    return run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        "build.log",
        AVSKERNELS_CUDA="1",
        CUDA_HOME=cuda_home(),
        TORCH_CUDA_ARCH_LIST=architecture,
    )


def test():
    """Run what is marked cuda or triton, in processes of which none outlives a kernel's fault."""
    marked = re.compile(r"pytest\.mark\.(cuda|triton)\b")
    files = [
        path for path in (ROOT / "tests").rglob("test_*.py") if marked.search(path.read_text())
    ]
    files.sort(key=lambda path: ("triton" in path.name, path))
    options = (
        *("-q", "-m", "cuda or triton", "-W", "default"),
        *("--numprocesses", str(min(8, os.cpu_count())), "--max-worker-restart", "100"),
        *("--timeout", "120", "--timeout-method", "thread"),
        f"--junitxml={OUTPUT / 'tests.xml'}",
    )
    return run([*pytest(TEST_SECONDS), *options, *files], "tests.log")


def bench(seconds):
    """Measure file by file, each in its share of the time; draw the tables anew after each."""
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    import report

    measured = ROOT / "build" / "benchmarks"
    measured.mkdir(parents=True, exist_ok=True)
    ends, ok = time.monotonic() + seconds, True
    files = list((ROOT / "benchmarks").glob("bench_*.py"))
    # First those whose kernels in CUDA C++ wait for figures.
    files.sort(key=lambda path: ("in_cuda(" not in path.read_text(), path))
    for position, path in enumerate(files):
        share = (ends - time.monotonic()) / (len(files) - position)
        if share < START_SECONDS:
            say(f"{path.stem}: left out, the time is spent")
            continue
        result = measured / f"{path.stem}.json"
        result.unlink(missing_ok=True)
        options = (
            *("-q", "-W", "default", "--benchmark-only", "--benchmark-columns=median,rounds"),
            *("--device", "cuda", "--budget", str(share - START_SECONDS)),
            f"--benchmark-json={result}",
        )
        ok &= run([*pytest(2 * share + 60), *options, path], "bench.log")
        if found := sorted(measured.glob("*.json")):
            report.write_tables(found, OUTPUT / "bench.html", OUTPUT / "bench.json")
    return ok


def pytest(seconds):
    """Return the command of a pytest that is interrupted, then killed, after some time."""
    return ["timeout", "--signal=INT", "--kill-after=20", str(seconds), sys.executable, "-mpytest"]


def run(command, log, **environment):
    """Run a command; show and keep what it says; tell whether it ended well."""
    with (
        open(OUTPUT / log, "a") as file,
        subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout:
            file.write(line)
            file.flush()
            sys.stdout.write(line)
            sys.stdout.flush()
    return process.returncode == 0


def say(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
