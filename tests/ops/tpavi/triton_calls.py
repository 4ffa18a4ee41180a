# SPDX-License-Identifier: Apache-2.0
"""Calls of the launchers for tests/tools/compile_triton.py."""

from torch import randn

from avskernels.ops.tpavi import triton


def calls(dtype):
    visual = randn(1, 256, 5, 14, 14, dtype=dtype)
    scores, positions = randn(1, 5, 980), randn(1, 5, 256)
    yield triton.scores, visual, positions, randn(1, 5)
    norm = randn(256), randn(256)
    yield triton.fuse, visual, scores, positions, randn(256), *norm, 1e-5
    yield triton.fuse, visual, scores, positions, randn(256), None, None, 0.0
    moments = randn(1, 980), randn(1, 980)
    fused = visual, visual, scores, positions, randn(256)
    yield triton.fuse_backward, *fused, randn(256), *moments
    yield triton.fuse_backward, *fused, None, None, None
    sums = randn(1, 5, 256)
    yield triton.scores_backward, visual, visual, positions, scores, sums
