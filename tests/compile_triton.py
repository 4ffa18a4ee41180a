"""Compile every Triton kernel to machine code for one GPU, on a machine that needs to have none.

    python tests/compile_triton.py [compute capability: 90 unless told]

The interpreter accepts programs that the compiler does not. Here the launchers are called on CPU
tensors while a driver without a device takes the place of Triton's: their kernels are compiled
and not run. Prints registers, stack (where spilled registers go) and shared memory, a kernel a
line.
"""

import functools
import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from torch import randint, randn
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

import avskernels.triton

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
    """Call the launchers; return what was compiled: {(file, kernel): [CompiledKernel]}."""
    compiled, run = {}, JITFunction.run

    @functools.wraps(run)
    def compile_only(self, *args, grid, warmup, **kwargs):
        name = self.__module__.rpartition(".")[2], self.__name__
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        versions = compiled.setdefault(name, [])
        if kernel not in versions:
            versions.append(kernel)

    JITFunction.run = compile_only
    try:
        for file, name, *args in calls:
            getattr(importlib.import_module(f"avskernels.triton.{file}"), name)(*args)
    finally:
        JITFunction.run = run
    return compiled


def all_kernels():
    """Yield (file, name) of every kernel there is: a name that ends so is one that is launched."""
    for file in pkgutil.iter_modules(avskernels.triton.__path__):
        module = importlib.import_module(f"avskernels.triton.{file.name}")
        for name, value in vars(module).items():
            own = isinstance(value, JITFunction) and value.__module__ == module.__name__
            if own and name.endswith("_kernel"):
                yield file.name, name


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


def sized_calls():
    """Name launchers and give arguments of the papers' sizes, in the precisions that differ."""
    for dtype in (torch.float32, torch.bfloat16):
        x, codebook = randn(3000, 256, dtype=dtype), randn(256, 256, dtype=dtype)
        yield "vector_quantize", "vector_quantize", x, codebook, 0.25, 0.0, "mean"
        yield "vector_quantize", "nearest_codeword", x, codebook
        yield "vector_quantize", "vector_quantize", x[:50], codebook, 0.25, 0.0, "mean"

        features = randn(2, 256, 28, 28, dtype=dtype)
        yield "attention_pool", "attention_pool", features, randn(2, 8, 256), None, 0.1, True
        mask = torch.ones(2, 28, 28, dtype=torch.bool)
        rows = randn(2, 8, 256)
        yield "attention_pool", "attention_pool", features, rows, mask, 0.1, False
        saved = rows, randn(2, 8), randn(2, 8)
        yield "attention_pool", "pool_backward", features, rows, None, None, *saved, True
        masked, gated = (features, rows, randn(2, 8), mask), (features, randn(2, 256))
        yield "attention_pool", "pool_backward", *masked, *saved, True, gated
        yield "channel_attention_mixer", "_launch_dots", features, features

        visual = randn(1, 256, 5, 14, 14, dtype=dtype)
        scores, positions = randn(1, 5, 980), randn(1, 5, 256)
        yield "tpavi", "_tpavi_scores", visual, positions, randn(1, 5)
        norm = randn(256), randn(256)
        yield "tpavi", "_tpavi_fuse", visual, scores, positions, randn(256), *norm, 1e-5
        yield "tpavi", "_tpavi_fuse", visual, scores, positions, randn(256), None, None, 0.0
        moments = randn(1, 980), randn(1, 980)
        fused = visual, visual, scores, positions, randn(256)
        yield "tpavi_backward", "_tpavi_fuse_backward", *fused, randn(256), *moments
        yield "tpavi_backward", "_tpavi_fuse_backward", *fused, None, *moments
        sums = randn(1, 5, 256)
        yield "tpavi_backward", "_tpavi_scores_backward", visual, visual, positions, scores, sums

        params = randn(2, 5, 169, dtype=dtype)
        points = randn(2, 5, 2)
        yield (
            *("dynamic_mask_conv", "dynamic_mask_conv", randn(2, 8, 56, 56, dtype=dtype), params),
            *(points, None, None, (8, 8), 4, False),
        )

        shapes = torch.tensor([[28, 28], [14, 14]])
        value = randn(2, 980, 8, 32, dtype=dtype)
        location, weight = randn(2, 300, 8, 2, 4, 2), randn(2, 300, 8, 2, 4)
        attention = value, shapes, location, weight
        yield "deformable_attention", "deformable_attention", *attention
        gradient = randn(2, 300, 256, dtype=dtype)
        yield "deformable_attention", "_deformable_attention_backward", gradient, *attention

        logits, probs = randn(2, 5, 56, 56, dtype=dtype), randn(2, 5, 71, dtype=dtype).softmax(-1)
        for scored in (False, True):
            sizes = 224, 224, 0.0, 0.5
            yield "semantic_argmax", "semantic_argmax", probs, logits, *sizes, True, scored
            sizes = 56, 56, 0.0, 0.0
            yield "semantic_argmax", "semantic_argmax", probs, logits, *sizes, False, scored
        logits, probs = randn(1, 100, 56, 56, dtype=dtype), randn(1, 100, 150, dtype=dtype)
        yield "semantic_argmax", "semantic_argmax", probs, logits, 224, 224, 0.0, 0.0, True, False

        masks = randn(2, 3, 5, 56, 56) > 0
        logits = randn(2, 5, 5, 56, 56, dtype=dtype)
        columns, shown = randint(3, (2, 5)), torch.ones(2, 5, dtype=torch.bool)
        for kind in ("focal", "bce"):
            for truth in (masks, masks.float()):
                settings = kind, 0.25, 2.0
                pairs = logits, truth, columns, shown
                yield "focal_dice_loss", "focal_dice_loss", *pairs, *settings
                grads = randn(2, 5), randn(2, 5)
                sums = randn(2, 5, 3)
                backward = "_focal_dice_loss_backward"
                yield "focal_dice_loss", backward, *grads, *pairs, sums, *settings
                terms = logits[None], truth, shown, 5.0, 2.0, *settings
                yield "matching_cost", "_mask_terms", *terms


def main():
    capability = int(sys.argv[1]) if len(sys.argv) > 1 else 90
    driver.set_active(NoDevice(capability))
    compiled = compile_all(sized_calls())
    for (file, name), kernels in compiled.items():
        for kernel in kernels:
            sys.stdout.write(f"{file} {name} {resources(kernel)}\n")
    missing = set(all_kernels()) - set(compiled)
    if missing:
        sys.exit(f"compile_triton: expected a call of every kernel, got none of {sorted(missing)}")


if __name__ == "__main__":
    main()
