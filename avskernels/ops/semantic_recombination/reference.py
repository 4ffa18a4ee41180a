# SPDX-License-Identifier: Apache-2.0
"""Semantic recombination as SQD's Eq. 5 writes it: modulate, concatenate, project, add."""

import torch
from torch import Tensor
from torch.nn import functional


def semantic_recombination(
    features: Tensor,
    filters: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: bool = True,
) -> Tensor:
    """Return conv(concat_i(filters_i * features)) (+ features)."""
    if features.dim() == 5:
        frames = features.shape[1]
        filters = filters.repeat_interleave(frames, 0)
        mixed = semantic_recombination(
            features.flatten(0, 1), filters, weight, bias, residual=residual
        )
        return mixed.unflatten(0, features.shape[:2])
    dtype = features.dtype
    modulated = torch.cat([w[:, :, None, None] * features for w in filters.to(dtype).unbind(1)], 1)
    bias = None if bias is None else bias.to(dtype)
    mixed = functional.conv2d(modulated, weight.to(dtype), bias, padding=weight.shape[-1] // 2)
    return mixed + features if residual else mixed
