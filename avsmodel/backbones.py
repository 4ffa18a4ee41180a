# SPDX-License-Identifier: Apache-2.0
"""Image and video backbones from timm and torchvision, with one interface."""

from typing import Any

import timm
import torchvision
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)


class ImageBackbone(nn.Module):
    """A timm network, applied to each frame: maps at strides 4, 8, 16 and 32.

    Attributes:
        channels: of the four maps.
    """

    def __init__(self, name: str, *, pretrained: bool = False, **options: Any):
        super().__init__()
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name}*")[:5]) or "none"
            raise ValueError(
                f"ImageBackbone: expected the name of a timm model, got {name} "
                f"(similar names: {near})"
            )
        if "swin" in name:
            options.setdefault("strict_img_size", False)
        self.network = timm.create_model(name, pretrained=pretrained, features_only=True, **options)
        info: Any = self.network.feature_info
        reductions = info.reduction()
        missing = set(STRIDES) - set(reductions)
        if missing:
            raise ValueError(
                f"ImageBackbone: expected feature maps at strides {STRIDES}, got {reductions}"
            )
        # Of several stages with the same stride the last one counts.
        last = {reduction: index for index, reduction in enumerate(reductions)}
        self.indices = [last[stride] for stride in STRIDES]
        channels = info.channels()
        self.channels = tuple(channels[index] for index in self.indices)
        self.channels_last = str(getattr(self.network, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Map ``frames[B, T, 3, H, W]`` to four maps ``[B * T, C, H / s, W / s]``."""
        features = self.network(frames.flatten(0, 1))
        features = [features[index] for index in self.indices]
        if self.channels_last:
            features = [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        return features


class VideoSwin(nn.Module):
    """torchvision's Video Swin, applied to whole clips with temporal stride 1.

    The patch embedding of the published network merges pairs of frames. Here its kernel is summed
    over time, so that every frame keeps its own map; this equals the published network on a clip
    that shows each frame twice.

    Attributes:
        channels: of the four maps.
    """

    def __init__(self, name: str, *, pretrained: bool = False, **options: Any):
        super().__init__()
        network = torchvision.models.get_model(
            name, weights="DEFAULT" if pretrained else None, **options
        )
        pairs = network.patch_embed.proj
        patch = (1, *pairs.kernel_size[1:])
        single = nn.Conv3d(pairs.in_channels, pairs.out_channels, patch, patch)
        single.load_state_dict({"weight": pairs.weight.sum(2, keepdim=True), "bias": pairs.bias})
        network.patch_embed.proj = single
        network.patch_embed.tuple_patch_size = patch
        self.patch_embed = network.patch_embed
        self.stages = network.features
        self.channels = tuple(pairs.out_channels * scale for scale in (1, 2, 4, 8))

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Map ``frames[B, T, 3, H, W]`` to four maps ``[B * T, C, H / s, W / s]``."""
        x = self.patch_embed(frames.transpose(1, 2))  # [B, T, h, w, C]
        features = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index % 2 == 0:  # odd entries merge patches
                features.append(x.flatten(0, 1).permute(0, 3, 1, 2).contiguous())
        return features


def build_backbone(
    name: str, *, pretrained: bool = False, freeze_batchnorm: bool = False, **options: Any
) -> ImageBackbone | VideoSwin:
    """Build a backbone with ``channels`` and ``forward(frames[B, T, 3, H, W]) -> 4 maps``.

    Args:
        name: a torchvision Video Swin (``swin3d_t``, ``swin3d_s``, ``swin3d_b``) or a timm model.
        pretrained: whether timm or torchvision load their weights.
        freeze_batchnorm: whether BatchNorm uses its stored statistics and is not trained.
        options: passed on to timm or torchvision.

    Raises:
        ValueError: for an unknown model, or one without maps at strides 4, 8, 16 and 32.
    """
    kind: type[ImageBackbone | VideoSwin]
    kind = VideoSwin if name.startswith("swin3d") else ImageBackbone
    backbone = kind(name, pretrained=pretrained, **options)
    return freeze_batch_norm_2d(backbone) if freeze_batchnorm else backbone
