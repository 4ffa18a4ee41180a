# SPDX-License-Identifier: Apache-2.0
"""Image and video backbones from timm and torchvision, behind one call."""

import timm
import torch
import torchvision
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)


class ImageBackbone(nn.Module):
    """A timm network, applied to each frame: maps at strides 4, 8, 16 and 32."""

    def __init__(self, name: str, *, pretrained: bool = False, **options):
        super().__init__()
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name}*")[:5]) or "none with such a name"
            raise ValueError(
                f"ImageBackbone: expected the name of a timm model, got {name} ({near})"
            )
        if "swin" in name:
            options.setdefault("strict_img_size", False)
        self.network = timm.create_model(name, pretrained=pretrained, features_only=True, **options)
        reductions = self.network.feature_info.reduction()
        missing = set(STRIDES) - set(reductions)
        if missing:
            raise ValueError(
                f"ImageBackbone: expected feature maps at strides {STRIDES}, got {reductions}"
            )
        # A stage that keeps the stride of the one before it replaces it.
        last = {reduction: index for index, reduction in enumerate(reductions)}
        self.indices = [last[stride] for stride in STRIDES]
        channels = self.network.feature_info.channels()
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

    The published network merges pairs of frames in its patch embedding. Here its kernel is summed
    over time, which is the same network on a clip whose frames are each shown twice, so that every
    frame keeps its own map.
    """

    def __init__(self, name: str, *, pretrained: bool = False, **options):
        super().__init__()
        network = torchvision.models.get_model(
            name, weights="DEFAULT" if pretrained else None, **options
        )
        pairs = network.patch_embed.proj
        patch = (1, *pairs.kernel_size[1:])
        single = nn.Conv3d(pairs.in_channels, pairs.out_channels, patch, patch)
        with torch.no_grad():
            single.weight.copy_(pairs.weight.sum(2, keepdim=True))
            single.bias.copy_(pairs.bias)
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
    name: str, *, pretrained: bool = False, freeze_batchnorm: bool = False, **options
) -> nn.Module:
    """Build a backbone with ``channels`` and ``forward(frames[B, T, 3, H, W]) -> 4 maps``.

    Args:
        name: a torchvision Video Swin (``swin3d_t``, ``swin3d_s``, ``swin3d_b``) or a timm model.
        pretrained: let timm or torchvision fetch their weights.
        freeze_batchnorm: BatchNorm uses its stored statistics and is not trained.
        options: passed on to timm or torchvision.

    Raises:
        ValueError: no such model, or one without maps at strides 4, 8, 16 and 32.
    """
    kind = VideoSwin if name.startswith("swin3d") else ImageBackbone
    backbone = kind(name, pretrained=pretrained, **options)
    return freeze_batch_norm_2d(backbone) if freeze_batchnorm else backbone
