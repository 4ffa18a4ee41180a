"""Semantic inference as query-based segmenters write it: resize, score volume, argmax."""

import torch
from torch.nn import functional


def semantic_argmax(
    class_probs,
    mask_logits,
    size=None,
    class_threshold=0.0,
    mask_threshold=0.0,
    activation="sigmoid",
    return_scores=False,
):
    """Return the best class of every pixel from the [B, K, H, W] volume of scores."""
    if size is not None:
        mask_logits = functional.interpolate(
            mask_logits, size=size, mode="bilinear", align_corners=False
        )
    masks = mask_logits.sigmoid() if activation == "sigmoid" else mask_logits
    probs = torch.where(class_probs > class_threshold, class_probs, 0)
    masks = torch.where(masks > mask_threshold, masks, 0)
    volume = torch.einsum("bnk,bnhw->bkhw", probs, masks)
    labels = volume.argmax(dim=1)
    return (labels, volume.amax(dim=1)) if return_scores else labels
