"""Semantic recombination as SQD's Eq. 5 writes it: modulate, concatenate, project, add."""

import torch
from torch.nn import functional


def semantic_recombination(features, filters, weight, bias=None, residual=True):
    """Return conv(concat_i(filters_i * features)) (+ features)."""
    if features.dim() == 5:
        frames = features.shape[1]
        mixed = semantic_recombination(
            features.flatten(0, 1), filters.repeat_interleave(frames, 0), weight, bias, residual
        )
        return mixed.unflatten(0, features.shape[:2])
    modulated = torch.cat([w[:, :, None, None] * features for w in filters.unbind(1)], dim=1)
    mixed = functional.conv2d(modulated, weight, bias, padding=weight.shape[-1] // 2)
    return mixed + features if residual else mixed
