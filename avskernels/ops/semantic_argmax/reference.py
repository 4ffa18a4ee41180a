# SPDX-License-Identifier: Apache-2.0
"""Semantic inference as query-based segmenters write it: resize, score volume, argmax."""

import torch
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def semantic_argmax(
    class_probs: Tensor,
    mask_logits: Tensor,
    *,
    size: tuple[int, int] | None = None,
    class_threshold: float = 0.0,
    mask_threshold: float = 0.0,
    activation: str = "sigmoid",
    return_scores: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
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
