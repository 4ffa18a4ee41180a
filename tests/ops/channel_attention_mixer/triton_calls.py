# SPDX-License-Identifier: Apache-2.0
"""Calls of the launchers for tests/tools/compile_triton.py."""

from torch import randn

from avskernels.ops.channel_attention_mixer import triton


def calls(dtype):
    features = randn(2, 256, 28, 28, dtype=dtype)
    yield triton.dots, features, features
