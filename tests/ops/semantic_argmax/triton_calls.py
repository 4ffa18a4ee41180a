# SPDX-License-Identifier: Apache-2.0
"""Calls of the launcher for tests/tools/compile_triton.py."""

from torch import randn

from avskernels.ops.semantic_argmax import triton


def calls(dtype):
    logits, probs = randn(2, 5, 56, 56, dtype=dtype), randn(2, 5, 71, dtype=dtype).softmax(-1)
    for scored in (False, True):
        yield triton.forward, probs, logits, 224, 224, 0.0, 0.5, True, scored
        yield triton.forward, probs, logits, 56, 56, 0.0, 0.0, False, scored
    logits, probs = randn(1, 100, 56, 56, dtype=dtype), randn(1, 100, 150, dtype=dtype)
    yield triton.forward, probs, logits, 224, 224, 0.0, 0.0, True, False
