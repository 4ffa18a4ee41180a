# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention with its projections."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avskernels.ops.deformable_attention.operator import deformable_attention


class DeformableAttention(nn.Module):
    """Attend to a few learned locations of a feature pyramid around each query's reference.

    The parameters have the names and shapes of Deformable DETR's MSDeformAttn (sampling_offsets,
    attention_weights, value_proj, output_proj), so that its checkpoints load.

    Args:
        dim: width of queries and features, a multiple of num_heads.
        num_heads: attention heads.
        num_levels: maps in the pyramid.
        num_points: samples that a head takes from each map.

    Raises:
        ValueError: where num_heads does not divide dim.

    Source: Zhu et al. 2021, Deformable DETR, Eq. 3 and appendix A.4.

    Example:
        >>> attention = DeformableAttention(16, num_heads=2, num_levels=1)
        >>> features = torch.randn(1, 3 * 4, 16)
        >>> attention(torch.randn(1, 5, 16), torch.rand(1, 5, 1, 2), features, [(3, 4)]).shape
        torch.Size([1, 5, 16])
    """

    def __init__(
        self, dim: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 4
    ) -> None:
        super().__init__()
        if dim % num_heads != 0:
            raise ValueError(
                f"DeformableAttention: expected dim to be a multiple of {num_heads} heads, "
                f"got {dim}"
            )
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, samples * 2)
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from equal weights and offsets that point outwards, one direction per head."""
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(linear.bias)
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)  # on the unit square
        distance = torch.arange(1, self.num_points + 1).view(-1, 1)
        offsets = (direction[:, None, None] * distance).expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Tensor | Sequence[Sequence[int]],
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the attended features of every query.

        Args:
            query: ``Tensor[B, Q, dim]``.
            reference_points: ``Tensor[B, Q, L, 2]``, points (x, y) in 0..1 (offsets count in
                pixels of the level), or ``Tensor[B, Q, L, 4]``, boxes (x, y, width, height)
                (offsets count in half box sizes over num_points).
            value: ``Tensor[B, S, dim]``, the maps of all levels, flattened and concatenated.
            spatial_shapes: (height, width) of each level, ``Tensor[L, 2]`` int64 or pairs.
            padding_mask: ``Tensor[B, S]`` bool, True where value is padding and counts as zero.

        Returns:
            Tensor: ``Tensor[B, Q, dim]``.

        Raises:
            RuntimeError: for shapes, dtypes or devices that do not fit.
        """
        if not isinstance(spatial_shapes, Tensor):
            spatial_shapes = torch.tensor(spatial_shapes, dtype=torch.int64)
        if reference_points.dim() != 4 or reference_points.shape[-1] not in (2, 4):
            raise RuntimeError(
                "DeformableAttention: expected reference_points [B, Q, L, 2] or [B, Q, L, 4], got "
                f"{list(reference_points.shape)}"
            )
        value = self.value_proj(value)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask.unsqueeze(-1), 0)
        per_head = (self.num_heads, self.num_levels, self.num_points)
        # Locations in float32 at least: bfloat16 resolves a third of a pixel in the middle of a
        # map that is 167 wide.
        dtype = torch.promote_types(value.dtype, torch.float32)
        offsets = self.sampling_offsets(query).to(dtype).unflatten(-1, (*per_head, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1))
        weights = weights.softmax(-1, dtype=dtype).unflatten(-1, per_head[1:])
        reference = reference_points[:, :, None, :, None].to(dtype)  # [B, Q, 1, L, 1, 2 or 4]
        if reference_points.shape[-1] == 2:
            sizes = spatial_shapes.flip(-1)[:, None].to(offsets)  # [L, 1, 2], (width, height)
            locations = reference + offsets / sizes
        else:
            locations = reference[..., :2] + offsets * reference[..., 2:] * (0.5 / self.num_points)
        output = deformable_attention(
            value.unflatten(-1, (self.num_heads, -1)), spatial_shapes, locations, weights
        )
        projected: Tensor = self.output_proj(output)
        return projected


class MultiScaleDeformableAttention(nn.Module):
    """Stands in for the module of this name in Hugging Face's Deformable DETR and its relatives.

    It has no parameters. Replace ``attn`` of a layer, or the name in the model's module before the
    model is made.
    """

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: Sequence[Sequence[int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Call :func:`avskernels.deformable_attention`.

        Args:
            value: ``Tensor[B, S, heads, D]``.
            value_spatial_shapes: not needed beside the list.
            value_spatial_shapes_list: (height, width) of each level.
            level_start_index: not needed, since it follows from the shapes.
            sampling_locations: ``Tensor[B, Q, heads, L, P, 2]``.
            attention_weights: ``Tensor[B, Q, heads, L, P]``.
            im2col_step: not needed.

        Returns:
            Tensor: ``Tensor[B, Q, heads * D]``.
        """
        return deformable_attention(
            value, value_spatial_shapes_list, sampling_locations, attention_weights
        )
