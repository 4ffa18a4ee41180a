# SPDX-License-Identifier: Apache-2.0
"""Semantic inference in plain torch: a product per image and run of pixels, in float64."""

import torch
from torch import Tensor
from torch.nn import functional

from avskernels.core.specification import accumulate_dtype

CHUNK = 2**22  # scores held at a time


def forward(
    class_probs: Tensor,
    mask_logits: Tensor,
    height: int,
    width: int,
    class_threshold: float,
    mask_threshold: float,
    sigmoid: bool,
    return_scores: bool,
) -> tuple[Tensor, Tensor]:
    """Compute ``avskernels::semantic_argmax``."""
    batch, queries, classes = class_probs.shape
    labels = mask_logits.new_empty((batch, height * width), dtype=torch.int64)
    dtype = accumulate_dtype(mask_logits.dtype)
    scores = mask_logits.new_empty((batch, height * width) if return_scores else (0,), dtype=dtype)
    for image in range(batch if height * width else 0):
        probs = class_probs[image].double()
        probs = torch.where(probs > class_threshold, probs, 0).T  # [K, N]
        masks = mask_logits[image : image + 1].double()
        if masks.shape[2:] != (height, width) and queries:
            masks = _resize(masks, (height, width))
        masks = masks[0].reshape(queries, height * width)
        step = max(1, CHUNK // classes)
        for begin in range(0, height * width, step):
            part = masks[:, begin : begin + step]
            part = part.sigmoid() if sigmoid else part
            volume = probs @ torch.where(part > mask_threshold, part, 0)
            labels[image, begin : begin + step] = volume.argmax(0)
            if return_scores:
                scores[image, begin : begin + step] = volume.amax(0)
    shape = (batch, height, width)
    return labels.view(shape), scores.view(shape) if return_scores else scores


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize as torch does, but for pixels without a share: there 0 * infinity is NaN."""

    def interpolate(values: Tensor) -> Tensor:
        return functional.interpolate(values, size=size, mode="bilinear", align_corners=False)

    resized = interpolate(masks.where(masks.isfinite(), 0))
    for value, there in (
        (torch.inf, masks.isposinf()),
        (-torch.inf, masks.isneginf()),
        (torch.nan, masks.isnan()),
    ):
        resized = resized + torch.where(interpolate(there.to(masks.dtype)) > 0, value, 0.0)
    return resized
