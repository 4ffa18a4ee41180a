# SPDX-License-Identifier: Apache-2.0
"""Calls of the launchers for tests/tools/compile_triton.py."""

from torch import randn

from avskernels.ops.vector_quantize import triton


def calls(dtype):
    x, codebook = randn(3000, 256, dtype=dtype), randn(256, 256, dtype=dtype)
    yield triton.forward, x, codebook, 0.25, 0.0, "mean"
    yield triton.nearest, x, codebook
    yield triton.forward, x[:50], codebook, 0.25, 0.0, "mean"
