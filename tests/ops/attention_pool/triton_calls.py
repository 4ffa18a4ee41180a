# SPDX-License-Identifier: Apache-2.0
"""Calls of the launchers for tests/tools/compile_triton.py."""

import torch
from torch import randn

from avskernels.ops.attention_pool import triton


def calls(dtype):
    features = randn(2, 256, 28, 28, dtype=dtype)
    yield triton.forward, features, randn(2, 8, 256), None, 0.1, True
    mask = torch.ones(2, 28, 28, dtype=torch.bool)
    rows = randn(2, 8, 256)
    yield triton.forward, features, rows, mask, 0.1, False
    saved = rows, randn(2, 8), randn(2, 8)
    yield triton.pool_backward, features, rows, None, None, *saved, True
    masked, gated = (features, rows, randn(2, 8), mask), (features, randn(2, 256))
    yield triton.pool_backward, *masked, *saved, True, gated
