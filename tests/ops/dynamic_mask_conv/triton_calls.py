# SPDX-License-Identifier: Apache-2.0
"""Calls of the launchers for tests/tools/compile_triton.py."""

from torch import randn

from avskernels.ops.dynamic_mask_conv import triton


def calls(dtype):
    features, params = randn(2, 8, 56, 56, dtype=dtype), randn(2, 5, 169, dtype=dtype)
    yield triton.forward, features, params, randn(2, 5, 2), None, None, (8, 8), 4, False
