# SPDX-License-Identifier: Apache-2.0
"""The mask losses of matched pairs in plain torch: the pairs are gathered first."""

import torch
from torch import Tensor

from avskernels.core.mask_loss import focal_parts
from avskernels.core.specification import accumulate_dtype, fail


def _pairs(
    mask_logits: Tensor, target_masks: Tensor, columns: Tensor, labelled: Tensor | None
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, Tensor]:
    """Return the matched pairs: where they are, their logits and truths [M, T, P], what counts."""
    dtype = accumulate_dtype(mask_logits.dtype)
    count = target_masks.shape[1]
    image, query = (columns >= 0).nonzero(as_tuple=True)
    column = columns[image, query]
    if (column >= count).any():
        fail("focal_dice_loss", f"columns below {count}", column.max().item())
    target_image = image % max(1, target_masks.shape[0])
    logits = mask_logits[image, query].to(dtype).flatten(2)
    masks = target_masks if target_masks.is_floating_point() else target_masks != 0
    truth = masks[target_image, column].to(dtype).flatten(2)
    counted = torch.ones_like(logits[..., :1], dtype=torch.bool)
    if labelled is not None:
        counted = labelled[target_image].unsqueeze(-1)
    return (image, query), logits, truth, counted


def forward(
    mask_logits: Tensor,
    target_masks: Tensor,
    columns: Tensor,
    labelled: Tensor | None,
    mask_loss: str,
    alpha: float,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``avskernels::focal_dice_loss``."""
    where, x, t, counted = _pairs(mask_logits, target_masks, columns, labelled)
    to_one, to_zero = (
        focal_parts(x, alpha, gamma) if mask_loss == "focal" else focal_parts(x, -1, 0)
    )
    pixels = (t * to_one + (1 - t) * to_zero).where(counted, 0).sum((1, 2))
    count = counted.sum((1, 2)) * x.shape[2]
    p, t = x.sigmoid().where(counted, 0), t.where(counted, 0)
    sums = torch.stack([(p * t).sum((1, 2)), p.sum((1, 2)), t.sum((1, 2))], dim=-1)
    dice = 1 - (2 * sums[:, 0] + 1) / (sums[:, 1] + sums[:, 2] + 1)

    def scatter(values: Tensor) -> Tensor:
        full = values.new_zeros(*columns.shape, *values.shape[1:])
        full[where] = values
        return full

    return scatter(pixels / count.clamp(min=1)), scatter(dice), scatter(sums)


def backward(
    grad_mask_loss: Tensor,
    grad_dice_loss: Tensor,
    mask_logits: Tensor,
    target_masks: Tensor,
    columns: Tensor,
    labelled: Tensor | None,
    sums: Tensor,
    mask_loss: str,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Compute ``avskernels::_focal_dice_loss_backward``."""
    where, x, t, counted = _pairs(mask_logits, target_masks, columns, labelled)
    p, q = x.sigmoid(), (-x).sigmoid()  # q = 1 - p, unrounded
    if mask_loss == "bce":
        slope = p - t
    else:
        to_one, to_zero = focal_parts(x, -1, 0)  # -log p, -log q
        # d/dx (q^g -log p) = -q^g (q + g p -log p), and its mirror image
        slope_one = -torch.exp(-gamma * to_zero) * (q + gamma * p * to_one)
        slope_zero = torch.exp(-gamma * to_one) * (p + gamma * q * to_zero)
        inside, outside = (alpha, 1 - alpha) if alpha >= 0 else (1, 1)
        slope = inside * t * slope_one + outside * (1 - t) * slope_zero
    count = (counted.sum((1, 2)) * x.shape[2]).clamp(min=1)
    intersection, *sizes = sums[where].unbind(-1)
    size = sizes[0] + sizes[1] + 1
    grad_mask, grad_dice = grad_mask_loss[where] / count, grad_dice_loss[where] / size

    def per_pair(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1)

    # d dice / dp = ((2 I + 1) / size - 2 t) / size
    grad = per_pair(grad_mask) * slope
    grad += per_pair(grad_dice) * (per_pair((2 * intersection + 1) / size) - 2 * t) * p * q
    full = mask_logits.new_zeros(mask_logits.shape)
    grad = grad.where(counted, 0).to(mask_logits.dtype)
    full[where] = grad.view(grad.shape[0], *mask_logits.shape[2:])
    return full
