"""Compile every Triton kernel to machine code for one GPU, on a machine that needs to have none.

    python tests/tools/compile_triton.py [compute capability: 90 unless told]

The interpreter accepts programs that the compiler does not. Here the launchers are called on CPU
tensors while a driver without a device takes the place of Triton's: their kernels are compiled
and not run. Prints registers, stack (where spilled registers go) and shared memory, a kernel a
line.
"""

import functools
import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests")]
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class NoDevice:
    """What Triton asks of a driver before it runs anything."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_all(calls):
    """Call the launchers; return what was compiled: {(module, kernel): [CompiledKernel]}."""
    compiled, run = {}, JITFunction.run

    @functools.wraps(run)
    def compile_only(self, *args, grid, warmup, **kwargs):
        name = self.__module__, self.__name__
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        versions = compiled.setdefault(name, [])
        if kernel not in versions:
            versions.append(kernel)

    JITFunction.run = compile_only
    try:
        for launcher, *args in calls:
            launcher(*args)
    finally:
        JITFunction.run = run
    return compiled


def all_kernels():
    """Yield (module, name) of every kernel: a name that ends so is one that is launched."""
    for path in sorted(ROOT.glob("avskernels/ops/*/triton*.py")):
        module = importlib.import_module(f"avskernels.ops.{path.parent.name}.{path.stem}")
        for name, value in vars(module).items():
            own = isinstance(value, JITFunction) and value.__module__ == module.__name__
            if own and name.endswith("_kernel"):
                yield module.__name__, name


def sized_calls():
    """Take the rooms' calls of the papers' sizes, in the precisions that differ."""
    for path in sorted(ROOT.glob("tests/ops/*/triton_calls.py")):
        calls = importlib.import_module(f"ops.{path.parent.name}.triton_calls").calls
        for dtype in (torch.float32, torch.bfloat16):
            yield from calls(dtype)


def resources(kernel):
    """Return what cuobjdump says of a compiled kernel: ``REG:40 STACK:0 SHARED:1024``."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return " ".join(f"{key}:{value}" for key, value in found.items()) + (
        f" SHARED:{kernel.metadata.shared}"
    )


def main():
    capability = int(sys.argv[1]) if len(sys.argv) > 1 else 90
    driver.set_active(NoDevice(capability))
    compiled = compile_all(sized_calls())
    for (module, name), kernels in compiled.items():
        for kernel in kernels:
            sys.stdout.write(f"{module} {name} {resources(kernel)}\n")
    missing = set(all_kernels()) - set(compiled)
    if missing:
        sys.exit(f"compile_triton: expected a call of every kernel, got none of {sorted(missing)}")


if __name__ == "__main__":
    main()
