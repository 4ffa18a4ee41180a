"""The mask losses of matched pairs as DETR codes write them: gather the pairs, then losses."""

import torch

from avskernels.reference.matching_cost import mask_term


def focal_dice_loss(
    mask_logits, target_masks, columns, labelled=None, mask_loss="focal", alpha=0.25, gamma=2.0
):
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
        pixels = mask_term(logits, truth, mask_loss, alpha, gamma)
        p = logits.sigmoid()
        overlap = (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
        pair = torch.stack([pixels.sum() / max(1, pixels.numel()), 1 - overlap])
        losses = losses.index_put((torch.tensor(b), torch.tensor(n)), pair.to(losses))
    return losses[..., 0], losses[..., 1]
