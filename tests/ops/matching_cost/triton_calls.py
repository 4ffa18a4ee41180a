# SPDX-License-Identifier: Apache-2.0
"""Calls of the launchers for tests/tools/compile_triton.py."""

import torch
from torch import randn

from avskernels.ops.matching_cost import triton


def calls(dtype):
    masks = randn(2, 3, 5, 56, 56) > 0
    logits, shown = randn(1, 2, 5, 5, 56, 56, dtype=dtype), torch.ones(2, 5, dtype=torch.bool)
    for kind in ("focal", "bce"):
        for truth in (masks, masks.float()):
            yield triton.mask_terms, logits, truth, shown, 5.0, 2.0, kind, 0.25, 2.0
