# SPDX-License-Identifier: Apache-2.0
"""What matching_cost and focal_dice_loss share: the pixel loss and a condition on the batches."""

import torch
from torch import Tensor
from torch.nn import functional

from avskernels.core.specification import fail


def check_divides(op: str, target_images: int, images: int) -> None:
    """Raise unless the targets' batch divides the predictions', as it does for stacked layers."""
    if target_images != images and (target_images == 0 or images % target_images != 0):
        fail(op, f"a number of target images that divides {images}", target_images)


def focal_parts(x: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Return the focal loss of logits x for truth 1 and for truth 0."""
    to_one, to_zero = -functional.logsigmoid(x), -functional.logsigmoid(-x)
    if gamma == 2:
        p = x.sigmoid()
        to_one, to_zero = (1 - p).square() * to_one, p.square() * to_zero
    else:  # (1 - p)^gamma, without rounding 1 - p
        to_one, to_zero = (
            torch.exp(-gamma * to_zero) * to_one,
            torch.exp(-gamma * to_one) * to_zero,
        )
    return (alpha * to_one, (1 - alpha) * to_zero) if alpha >= 0 else (to_one, to_zero)
