# SPDX-License-Identifier: Apache-2.0
"""Feature encoding: F_v from the frames, F_a from the sound."""

import math

import torch
from torch import Tensor, nn

from avsmodel.backbones import build_backbone
from avsmodel.sqd.config import SQDConfig
from avsmodel.transformer import DeformableEncoderLayer, pixel_centres, spatial_positions
from avsmodel.vggish import VGGish


def norm_groups(channels: int) -> int:
    """Return the number of groups: 32, or fewer, so that a group holds at least 2 channels."""
    return math.gcd(32, max(1, channels // 2))


def group_norm(channels: int) -> nn.GroupNorm:
    """Build GroupNorm with :func:`norm_groups` groups."""
    return nn.GroupNorm(norm_groups(channels), channels)


def flatten_maps(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Join maps ``[B, C, h, w]`` to a memory ``[B, sum(h * w), C]`` and their ``shapes[L, 2]``."""
    memory = torch.cat([item.flatten(2).transpose(1, 2) for item in maps], dim=1)
    shapes = torch.tensor([item.shape[-2:] for item in maps], device=memory.device)
    return memory, shapes


class VisualEncoder(nn.Module):
    """Backbone, projection to one width, deformable transformer encoder over the levels.

    Attributes:
        channels: of the stride-4 map, which comes from the backbone as it is.
        num_levels: maps of F_v.
    """

    def __init__(self, config: SQDConfig):
        super().__init__()
        self.backbone = build_backbone(
            config.backbone,
            pretrained=config.pretrained,
            freeze_batchnorm=config.freeze_batchnorm,
            **config.backbone_options,
        )
        self.channels, *channels = self.backbone.channels
        dim = config.dim
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, dim, 1), group_norm(dim)) for width in channels
        )
        inputs = [channels[-1]] + [dim] * config.extra_levels
        self.reductions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, dim, 3, stride=2, padding=1), group_norm(dim))
            for width in inputs[: config.extra_levels]
        )
        self.num_levels = len(channels) + config.extra_levels
        if config.encoder_layers:
            self.level_embedding = nn.Parameter(torch.randn(self.num_levels, dim))
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(
                dim,
                config.num_heads,
                config.ffn_dim,
                config.dropout,
                num_levels=self.num_levels,
                num_points=config.num_points,
                norm_first=config.norm_first,
            )
            for _ in range(config.encoder_layers)
        )

    def forward(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode ``frames[B, T, 3, H, W]``.

        Returns:
            The backbone's map ``[B * T, C_4, H/4, W/4]``, and F_v: maps ``[B * T, C, h, w]`` at
            strides 8, 16, 32 and the extra levels.
        """
        quarter, *features = self.backbone(frames)
        maps = [
            project(feature) for project, feature in zip(self.projections, features, strict=True)
        ]
        coarse = features[-1]
        for reduce in self.reductions:
            coarse = reduce(coarse)
            maps.append(coarse)
        return quarter, self._encode(maps) if self.layers else maps

    def _encode(self, maps: list[Tensor]) -> list[Tensor]:
        memory, shapes = flatten_maps(maps)
        sizes = [(item.shape[-2], item.shape[-1]) for item in maps]
        positions = torch.cat(
            [
                spatial_positions(*size, memory.shape[-1], device=memory.device) + embedding
                for size, embedding in zip(sizes, self.level_embedding, strict=True)
            ]
        )
        references = pixel_centres(sizes, device=memory.device)[None, :, None].expand(
            len(memory), -1, self.num_levels, -1
        )
        for layer in self.layers:
            memory = layer(memory, positions, references, shapes)
        chunks = memory.split([height * width for height, width in sizes], dim=1)
        return [
            chunk.transpose(1, 2).unflatten(2, size)
            for chunk, size in zip(chunks, sizes, strict=True)
        ]


class AudioEncoder(nn.Module):
    """VGGish, then a linear layer, LayerNorm and dropout: F_a."""

    def __init__(self, config: SQDConfig):
        super().__init__()
        self.vggish = VGGish(width=config.vggish_width, frozen=config.freeze_vggish)
        if config.vggish_weights:
            self.vggish.load_published(config.vggish_weights)
        self.projection = nn.Sequential(
            nn.Linear(128, config.dim), nn.LayerNorm(config.dim), nn.Dropout(config.dropout)
        )

    def forward(self, log_mel: Tensor) -> Tensor:
        """Encode ``log_mel[B, T, 1, 96, 64]`` to ``F_a[B, T, C]``."""
        return self.projection(self.vggish(log_mel))
