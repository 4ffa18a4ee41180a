# SPDX-License-Identifier: Apache-2.0
"""The mask losses of matched pairs as DETR codes write them: gather the pairs, then losses."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class MaskLosses(NamedTuple):
    """Result of :func:`avskernels.focal_dice_loss`: ``mask_loss`` and ``dice_loss``, ``[B, N]``."""

    mask_loss: Tensor
    dice_loss: Tensor


def focal_dice_loss(
    mask_logits: Tensor,
    target_masks: Tensor,
    columns: Tensor,
    *,
    labelled: Tensor | None = None,
    mask_loss: str = "focal",
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> MaskLosses:
    """Return the mask loss and the dice loss [B, N] of each matched prediction, 0 elsewhere."""
    images, queries = columns.shape
    losses = mask_logits.new_zeros(images, queries, 2)
    losses = losses.double() if mask_logits.dtype == torch.float64 else losses.float()
    for b, n in (columns >= 0).nonzero().tolist():
        k = b % target_masks.shape[0]
        logits, truth = mask_logits[b, n], target_masks[k, columns[b, n]]
        if labelled is not None:
            logits, truth = logits[labelled[k]], truth[labelled[k]]
        truth = (truth if truth.is_floating_point() else truth != 0).to(logits)
        pixels = _pixel_loss(logits, truth, mask_loss, alpha, gamma)
        p = logits.sigmoid()
        overlap = (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
        pair = torch.stack([pixels.sum() / max(1, pixels.numel()), 1 - overlap])
        losses = losses.index_put((torch.tensor(b), torch.tensor(n)), pair.to(losses))
    return MaskLosses(losses[..., 0], losses[..., 1])


def _pixel_loss(logits: Tensor, truth: Tensor, kind: str, alpha: float, gamma: float) -> Tensor:
    """Return the focal loss or binary cross entropy of every pixel."""
    to_one, to_zero = -functional.logsigmoid(logits), -functional.logsigmoid(-logits)
    if kind == "focal":
        p = logits.sigmoid()
        to_one = (alpha if alpha >= 0 else 1) * (1 - p) ** gamma * to_one
        to_zero = (1 - alpha if alpha >= 0 else 1) * p**gamma * to_zero
    return truth * to_one + (1 - truth) * to_zero
