# SPDX-License-Identifier: Apache-2.0
"""Deformable attention in plain torch: the samples of one level at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from avskernels.core.specification import fail

LONGEST_SIDE = 2**24  # up to here float32 counts every pixel


def level_shapes(value: Tensor, spatial_shapes: Tensor) -> list[list[int]]:
    """Read (height, width) of each level.

    Raises:
        RuntimeError: where the areas do not add up to the tokens of ``value``.
    """
    shapes: list[list[int]] = spatial_shapes.tolist()
    covered = sum(height * width for height, width in shapes)
    sides_fit = all(min(shape) >= 1 and max(shape) <= LONGEST_SIDE for shape in shapes)
    if covered != value.shape[1] or not sides_fit:
        fail(
            "deformable_attention",
            f"spatial_shapes of sides from 1 to {LONGEST_SIDE} whose areas add up to the "
            f"{value.shape[1]} tokens of value",
            shapes,
        )
    return shapes


def _levels(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor
) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """Yield for each level: its index, slice of tokens, maps [B * heads, D, H, W] and grid."""
    # Everything beyond [-1, 2] is off every map: infinity becomes so without becoming NaN.
    grids = (2 * sampling_locations.clamp(-1, 2) - 1).transpose(1, 2).flatten(0, 1)
    maps = value.to(grids.dtype).permute(0, 2, 3, 1).flatten(0, 1)  # [B * heads, D, S]
    start = 0
    for level, (height, width) in enumerate(level_shapes(value, spatial_shapes)):
        tokens = slice(start, start + height * width)
        yield level, tokens, maps[..., tokens].unflatten(-1, (height, width)), grids[:, :, level]
        start = tokens.stop


def forward(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Compute ``avskernels::deformable_attention``."""
    batch, _, heads, dim = value.shape
    queries = sampling_locations.shape[1]
    weights = attention_weights.transpose(1, 2).flatten(0, 1)  # [B * heads, Q, L, P]
    output = weights.new_zeros(batch * heads, dim, queries)
    for level, _, maps, grid in _levels(value, spatial_shapes, sampling_locations):
        samples = functional.grid_sample(maps, grid, align_corners=False)
        output += samples.mul_(weights[:, None, :, level]).sum(-1)
    output = output.view(batch, heads * dim, queries).transpose(1, 2)
    return output.to(value.dtype).contiguous()


def backward(
    value: Tensor,
    spatial_shapes: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``avskernels::_deformable_attention_backward``."""
    batch, tokens, heads, dim = value.shape
    weights = attention_weights.transpose(1, 2).flatten(0, 1)  # [B * heads, Q, L, P]
    grad = grad_output.to(weights.dtype).unflatten(-1, (heads, dim))
    grad = grad.permute(0, 2, 3, 1).flatten(0, 1).unsqueeze(-1)  # [B * heads, D, Q, 1]
    grad_maps = weights.new_empty(batch * heads, dim, tokens)
    grad_grids = weights.new_empty(*weights.shape, 2)
    grad_weights = torch.empty_like(weights)
    for level, of_level, maps, grid in _levels(value, spatial_shapes, sampling_locations):
        samples = functional.grid_sample(maps, grid, align_corners=False)
        grad_weights[:, :, level] = (samples * grad).sum(1)
        grad_map, grad_grids[:, :, level] = torch.ops.aten.grid_sampler_2d_backward(
            grad * weights[:, None, :, level], maps, grid, 0, 0, False, (True, True)
        )
        grad_maps[..., of_level] = grad_map.flatten(-2)

    def per_image(tensor: Tensor) -> Tensor:  # [B * heads, Q, ...] -> [B, Q, heads, ...]
        return tensor.unflatten(0, (batch, heads)).transpose(1, 2).contiguous()

    grad_value = grad_maps.unflatten(0, (batch, heads)).permute(0, 3, 1, 2)
    return (
        grad_value.to(value.dtype).contiguous(),
        per_image(2 * grad_grids),
        per_image(grad_weights),
    )
