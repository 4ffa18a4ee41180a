# SPDX-License-Identifier: Apache-2.0
"""Calls of the launchers for tests/tools/compile_triton.py."""

import torch
from torch import randn

from avskernels.ops.deformable_attention import triton


def calls(dtype):
    shapes = torch.tensor([[28, 28], [14, 14]])
    value = randn(2, 980, 8, 32, dtype=dtype)
    attention = value, shapes, randn(2, 300, 8, 2, 4, 2), randn(2, 300, 8, 2, 4)
    yield triton.forward, *attention
    yield triton.backward, *attention, randn(2, 300, 256, dtype=dtype)
