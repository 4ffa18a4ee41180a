# SPDX-License-Identifier: Apache-2.0
"""Attention pooling as attention layers write it: all logits, softmax, weighted sum."""

import torch
from torch import Tensor


def attention_pool(
    features: Tensor,
    queries: Tensor,
    scale: float = 1.0,
    softmax: bool = True,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Return sum_n a_n x_n for each query, a = softmax(scale q.x) or scale q.x."""
    pixels = features.flatten(2)  # [B, C, N]
    weights = torch.einsum("bhc,bcn->bhn", queries.to(features.dtype), pixels) * scale
    if mask is not None:
        allowed = mask.flatten(1).unsqueeze(1)  # [B, 1, N]
        weights = weights.masked_fill(~allowed, float("-inf") if softmax else 0.0)
    if softmax:
        nothing = weights.isneginf().all(-1, keepdim=True)
        weights = weights.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
    return torch.einsum("bhn,bcn->bhc", weights, pixels)
