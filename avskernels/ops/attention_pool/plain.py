# SPDX-License-Identifier: Apache-2.0
"""Attention pooling in plain torch: one product for the logits, one for the pooled pixels."""

import torch
from torch import Tensor


def pool_pixels(
    pixels: Tensor,  # [B, C, N]
    queries: Tensor,  # [B, h, C], scaled
    offsets: Tensor | None,  # [B, h], where the logits start
    allowed: Tensor | None,  # [B, 1, N], bool
    softmax: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return pooled ``[B, h, C]``, normalizer ``[B, h]`` and weights ``[B, h, N]``."""
    weights = torch.bmm(queries, pixels)
    if offsets is not None:
        weights += offsets.unsqueeze(-1)
    if allowed is not None:
        weights.masked_fill_(~allowed, float("-inf") if softmax else 0.0)
    if softmax:
        normalizer = weights.logsumexp(-1)
        # With a normalizer of -inf nothing takes part, and the weights are to be 0, not NaN.
        weights -= normalizer.masked_fill(normalizer.isneginf(), 0.0).unsqueeze(-1)
        weights.exp_()
    else:
        normalizer = weights.sum(-1)
    return torch.bmm(weights, pixels.mT), normalizer, weights


def logit_shift(
    grad_pooled: Tensor, pooled: Tensor, grad_total: Tensor | None, softmax: bool
) -> Tensor:
    """Return what a pixel's product with ``grad_pooled`` exceeds the logit's gradient by, [B, h].

    ``grad_total[B, h]``, or None, is the gradient of the sum of the weights.
    """
    shift = (grad_pooled * pooled).sum(-1) if softmax else pooled.new_zeros(pooled.shape[:2])
    return shift if grad_total is None else shift - grad_total


def pool_pixels_backward(
    grad_pooled: Tensor,  # [B, h, C]
    shift: Tensor,  # [B, h]
    pixels: Tensor,  # [B, C, N]
    queries: Tensor,  # [B, h, C], scaled
    allowed: Tensor | None,  # [B, 1, N]
    weights: Tensor,  # [B, h, N]
    softmax: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the pixels, and of the logits ``[B, h, N]``."""
    grad_logits = torch.bmm(grad_pooled, pixels).sub_(shift.unsqueeze(-1))
    if softmax:
        grad_logits *= weights
    elif allowed is not None:
        grad_logits *= allowed
    grad_pixels = torch.bmm(grad_pooled.mT, weights).baddbmm_(queries.mT, grad_logits)
    return grad_pixels, grad_logits


def allowed_pixels(mask: Tensor | None) -> Tensor | None:
    """Shape a mask [B, *] as [B, 1, N]."""
    return None if mask is None else mask.flatten(1).unsqueeze(1)


def forward(
    features: Tensor, queries: Tensor, mask: Tensor | None, scale: float, softmax: bool
) -> tuple[Tensor, Tensor]:
    """Compute ``avskernels::attention_pool``."""
    pixels = features.contiguous().flatten(2).to(queries.dtype)
    return pool_pixels(pixels, scale * queries, None, allowed_pixels(mask), softmax)[:2]


def backward(
    grad_pooled: Tensor,
    features: Tensor,
    queries: Tensor,
    mask: Tensor | None,
    pooled: Tensor,
    normalizer: Tensor,
    scale: float,
    softmax: bool,
) -> tuple[Tensor, Tensor]:
    """Compute ``avskernels::_attention_pool_backward``; the weights are computed again."""
    pixels = features.contiguous().flatten(2).to(queries.dtype)
    allowed, queries = allowed_pixels(mask), scale * queries
    weights = pool_pixels(pixels, queries, None, allowed, softmax)[2]
    shift = logit_shift(grad_pooled, pooled, None, softmax)
    grad_pixels, grad_logits = pool_pixels_backward(
        grad_pooled, shift, pixels, queries, allowed, weights, softmax
    )
    grad_features = features.new_empty(features.shape)
    grad_features.flatten(2).copy_(grad_pixels)
    return grad_features, scale * torch.bmm(grad_logits, pixels.mT)
