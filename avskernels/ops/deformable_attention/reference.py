# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention as published codes write it: grid_sample, level by level."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def deformable_attention(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Return the attention-weighted sum of bilinear samples of every query and head."""
    batch, _, heads, dim = value.shape
    queries = sampling_locations.shape[1]
    shapes = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    exact = torch.promote_types(value.dtype, torch.float32)
    levels = value.split([height * width for height, width in shapes], dim=1)
    grids = (2 * sampling_locations.to(exact) - 1).to(value.dtype)
    samples = []
    for level, (height, width) in enumerate(shapes):
        maps = levels[level].permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # [B * heads, Q, P, 2]
        samples.append(
            functional.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)
        )
    weights = attention_weights.to(exact).flatten(3).transpose(1, 2).flatten(0, 1).unsqueeze(1)
    output = (torch.cat(samples, dim=-1) * weights).sum(-1)  # [B * heads, D, Q]
    return output.view(batch, heads * dim, queries).transpose(1, 2).to(value.dtype)
