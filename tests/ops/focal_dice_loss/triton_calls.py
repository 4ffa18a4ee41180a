# SPDX-License-Identifier: Apache-2.0
"""Calls of the launchers for tests/tools/compile_triton.py."""

import torch
from torch import randint, randn

from avskernels.ops.focal_dice_loss import triton


def calls(dtype):
    masks = randn(2, 3, 5, 56, 56) > 0
    logits = randn(2, 5, 5, 56, 56, dtype=dtype)
    columns, shown = randint(3, (2, 5)), torch.ones(2, 5, dtype=torch.bool)
    for kind in ("focal", "bce"):
        for truth in (masks, masks.float()):
            pairs, settings = (logits, truth, columns, shown), (kind, 0.25, 2.0)
            yield triton.forward, *pairs, *settings
            yield triton.backward, randn(2, 5), randn(2, 5), *pairs, randn(2, 5, 3), *settings
