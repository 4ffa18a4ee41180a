"""The pixel losses of masks in plain torch, which costs and losses share."""

import torch
from torch.nn import functional

from avskernels._check import FLOATS, accumulate_dtype

MASK_DTYPES = (torch.bool, torch.uint8, *FLOATS)


def focal_parts(x, alpha, gamma):
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


def plain_mask_terms(logits, target_masks, labelled, mask, dice, mask_cost, alpha, gamma):
    """Return the mask and dice terms [L, B, N, J] of logits [L, B, N, T, ...] in plain torch."""
    # BCE(x, t) = softplus(x) - x t and focal(x, t) = zero + (one - zero) t: a GEMM and a row sum.
    x = logits.to(accumulate_dtype(logits.dtype)).flatten(4)  # [L, B, N, T, HW]
    t = target_masks if target_masks.is_floating_point() else target_masks != 0
    t = t.to(x.dtype).flatten(3)  # [B, J, T, HW]
    counts = x.new_full((t.shape[0], 1, 1), t.shape[2] * t.shape[3])  # pixels of an image
    if labelled is not None:
        t = t * labelled[:, None, :, None]
        counts = labelled.sum(1).to(x.dtype).view(-1, 1, 1) * t.shape[3]

    def frames_summed(values):  # [L, B, N, T, HW] -> [L, B, N, T HW], nothing of unlabelled frames
        if labelled is not None:
            values = values.where(labelled[:, None, :, None], 0)
        return values.flatten(3)

    t = t.flatten(2)
    result = 0
    if mask != 0:
        if mask_cost == "bce":
            slope, offset = -x, -functional.logsigmoid(-x)
        else:
            to_one, offset = focal_parts(x, alpha, gamma)
            slope = to_one - offset
        total = frames_summed(slope) @ t.mT + frames_summed(offset).sum(-1, keepdim=True)
        result = mask * total / counts.clamp(min=1)
    if dice != 0:
        p = frames_summed(x.sigmoid())
        size = p.sum(-1, keepdim=True) + t.sum(-1).unsqueeze(1)
        result = result + dice * (1 - (2 * (p @ t.mT) + 1) / (size + 1))
    return result
