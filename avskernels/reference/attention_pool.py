"""Attention pooling as attention layers write it: all logits, softmax, weighted sum."""

import torch


def attention_pool(features, queries, scale=1.0, softmax=True, mask=None):
    """Return sum_n a_n x_n for each query, a = softmax(scale q.x) or scale q.x."""
    pixels = features.flatten(2)  # [B, C, N]
    weights = torch.einsum("bhc,bcn->bhn", queries, pixels) * scale
    if mask is not None:
        allowed = mask.flatten(1).unsqueeze(1)  # [B, 1, N]
        weights = weights.masked_fill(~allowed, float("-inf") if softmax else 0.0)
    if softmax:
        nothing = weights.isneginf().all(-1, keepdim=True)
        weights = weights.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
    return torch.einsum("bhn,bcn->bhc", weights, pixels)
