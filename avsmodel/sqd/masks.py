# SPDX-License-Identifier: Apache-2.0
"""Semantic-guided mask decoding (section 3.4): pyramid, TrD_segm, heads, dynamic masks."""

import itertools
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.special import logit

from avskernels import dynamic_mask_conv
from avsmodel.sqd.config import SQDConfig
from avsmodel.sqd.encoders import flatten_maps, group_norm
from avsmodel.transformer import (
    DecoderLayer,
    DeformableDecoderLayer,
    spatial_positions,
)

MASK_STRIDE = 4


class FeaturePyramid(nn.Module):
    """F_out: a feature pyramid network from stride 32 up to stride 4."""

    def __init__(self, config: SQDConfig, quarter_channels: int):
        super().__init__()
        dim = config.dim
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, dim, 1), group_norm(dim))
            for width in (quarter_channels, dim, dim)
        )
        self.outputs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), group_norm(dim), nn.ReLU())
            for _ in range(3)
        )
        self.projection = nn.Conv2d(dim, config.mask_dim, 3, padding=1)

    def forward(self, quarter: Tensor, maps: list[Tensor]) -> Tensor:
        """Join ``quarter[B, C_4, H/4, W/4]`` and ``maps`` at strides 8, 16, 32, ...

        Returns:
            ``Tensor[B, mask_dim, H/4, W/4]``.
        """
        finer = (quarter, *maps[:2])
        merged = maps[2]
        for level in (2, 1, 0):
            lateral = self.laterals[level](finer[level])
            merged = lateral + F.interpolate(merged, lateral.shape[-2:], mode="nearest")
            merged = self.outputs[level](merged)
        return self.projection(merged)


def two_layers(dim: int, outputs: int) -> nn.Sequential:
    """Build the two fully connected layers of each head."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, outputs))


def _linear(head: nn.Module, index: int) -> nn.Linear:
    return cast(nn.Linear, cast(nn.Sequential, head)[index])


class MaskDecoder(nn.Module):
    """TrD_segm and its heads: class, box and mask of each token in each frame."""

    def __init__(self, config: SQDConfig, num_classes: int, num_levels: int):
        super().__init__()
        dim = config.dim
        self.deformable = config.segm_attention == "deformable"
        self.box_refinement = config.box_refinement
        self.coord_scale = config.coord_scale
        self.conditional = config.mask_head == "conditional"
        self.hidden = tuple(config.mask_hidden) if self.conditional else ()
        self.num_levels = num_levels

        common = (dim, config.num_heads, config.ffn_dim, config.dropout)
        options: dict[str, Any] = {"norm_first": config.norm_first}
        if self.deformable:
            options |= {"num_levels": num_levels, "num_points": config.num_points}
        kind = DeformableDecoderLayer if self.deformable else DecoderLayer
        self.layers = nn.ModuleList(kind(*common, **options) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(dim) if config.norm_first else nn.Identity()

        self.token_positions = nn.Parameter(torch.randn(config.num_tokens, dim))
        self.reference = nn.Linear(dim, 2)
        self.class_head = two_layers(dim, num_classes)
        self.box_heads = nn.ModuleList(two_layers(dim, 4) for _ in self.layers)
        inputs = config.mask_dim + (2 if self.conditional else 0)
        widths = (inputs, *self.hidden, 1)
        parameters = sum(a * b + b for a, b in itertools.pairwise(widths))
        self.filter_head = two_layers(dim, parameters)
        self._initialise(config.class_prior)

    def _initialise(self, class_prior: float) -> None:
        nn.init.constant_(_linear(self.class_head, 2).bias, -math.log(1 / class_prior - 1))
        for head in self.box_heads:
            nn.init.zeros_(_linear(head, 2).weight)
            nn.init.zeros_(_linear(head, 2).bias)
        # The first boxes are an eighth of the frame wide; a bias of 0 would make them half of it.
        nn.init.constant_(_linear(self.box_heads[0], 2).bias[2:], -2.0)
        for layer in (_linear(self.filter_head, 0), _linear(self.filter_head, 2)):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.reference.weight)
        nn.init.zeros_(self.reference.bias)

    def forward(
        self, queries: Tensor, maps: list[Tensor], features: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Decode ``queries[B, N, C]`` of single frames.

        Args:
            queries: ``Tensor[B, N, C]``.
            maps: F_v of the frames, each ``Tensor[B, C, h, w]``.
            features: F_out, ``Tensor[B, C_mask, H/4, W/4]``.

        Returns:
            Class logits ``Tensor[B, N, K]``, boxes ``Tensor[B, N, 4]`` (cxcywh in 0..1) and mask
            logits ``Tensor[B, N, H/4, W/4]`` of every layer, or in eval mode of the last one.
        """
        memory, shapes = flatten_maps(maps)
        if not self.deformable:
            memory_positions = torch.cat(
                [
                    spatial_positions(
                        item.shape[2], item.shape[3], item.shape[1], device=item.device
                    )
                    for item in maps
                ]
            )
        references = self.reference(self.token_positions).sigmoid().expand(len(queries), -1, -1)
        tokens, layers = queries, []
        for layer, box_head in zip(self.layers, self.box_heads, strict=True):
            if self.deformable:
                spread = references[:, :, None].expand(-1, -1, self.num_levels, -1)
                tokens = layer(tokens, memory, self.token_positions, spread, shapes)
            else:
                tokens = layer(tokens, memory, self.token_positions, memory_positions)
            hidden = self.norm(tokens)
            offset = box_head(hidden)
            start = logit(references, eps=1e-5)
            boxes = (offset + F.pad(start, (0, 4 - start.shape[-1]))).sigmoid()
            if self.box_refinement:
                references = boxes.detach()
            if self.training or layer is self.layers[-1]:
                masks = self._masks(hidden, boxes.detach(), features)
                layers.append((self.class_head(hidden), boxes, masks))
        return layers

    def _masks(self, tokens: Tensor, boxes: Tensor, features: Tensor) -> Tensor:
        """Eq. 7: convolve the features with the filters of each token."""
        if not self.conditional:
            return dynamic_mask_conv(features, self.filter_head(tokens), hidden=())
        height, width = features.shape[-2:]
        pixels = boxes.new_tensor([width * MASK_STRIDE, height * MASK_STRIDE])
        return dynamic_mask_conv(
            features,
            self.filter_head(tokens),
            hidden=self.hidden,
            reference_points=boxes[..., :2] * pixels,
            stride=MASK_STRIDE,
            coord_scale=self.coord_scale,
        )
