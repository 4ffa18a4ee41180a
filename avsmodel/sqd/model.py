# SPDX-License-Identifier: Apache-2.0
"""The model, in the order of the paper."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avskernels import VectorQuantized
from avskernels.nn import SemanticRecombination
from avsmodel.sqd.config import SQDConfig
from avsmodel.sqd.encoders import AudioEncoder, VisualEncoder, norm_groups
from avsmodel.sqd.masks import MASK_STRIDE, FeaturePyramid, MaskDecoder
from avsmodel.sqd.output import Segmentation, SQDOutput, segment
from avsmodel.sqd.semantics import (
    AudioVisualFusion,
    SemanticCodebook,
    SemanticDecoder,
)

COARSEST_STRIDE = 32
TOP = 2  # index of the stride-32 map in F_v


class SQD(nn.Module):
    """Semantically quantized and decomposed audiovisual segmentation (QDFormer).

    Args:
        config: the architecture.
        num_classes: background included; 2 for binary sets.

    Raises:
        ValueError: for choices that contradict each other, or fewer than 2 classes.

    Source: Li et al., "QDFormer: Towards Robust Audiovisual Segmentation in Complex Environments
    with Quantization-based Semantic Decomposition", CVPR 2024.
    """

    def __init__(self, config: SQDConfig, num_classes: int):
        super().__init__()
        config.validate()
        if num_classes < 2:
            raise ValueError(f"SQD: expected at least 2 classes with background, got {num_classes}")
        self.config = config
        self.visual_encoder = VisualEncoder(config)
        self.audio_encoder = AudioEncoder(config)
        if config.gsd:
            if config.fusion:
                self.fusion = AudioVisualFusion(config)
            self.global_decoder = SemanticDecoder(config)
            self.codebook = SemanticCodebook(config)
        if config.avsr:
            self.recombination = SemanticRecombination(
                config.dim,
                config.num_tokens,
                norm=config.recombination_norm,
                num_groups=norm_groups(config.dim),
            )
        if config.lsd and not config.shared_decoder:
            self.local_decoder = SemanticDecoder(config, one_token=True)
        if config.lsd and not config.shared_codebook:
            self.local_codebook = SemanticCodebook(config)
        if not config.gsd and not config.lsd:
            self.prototypes = nn.Parameter(torch.randn(config.num_tokens, config.dim))
        self.pyramid = FeaturePyramid(config, self.visual_encoder.channels)
        self.mask_decoder = MaskDecoder(config, num_classes - 1, self.visual_encoder.num_levels)

    def forward(self, frames: Tensor, log_mel: Tensor, real: Tensor | None = None) -> SQDOutput:
        """Predict the sounding objects of B clips of T frames.

        Args:
            frames: ``Tensor[B, T, 3, H, W]``, ImageNet-normalised, of any size.
            log_mel: ``Tensor[B, T, 1, 96, 64]``.
            real: bool ``Tensor[B, T]``, the frames that exist; all by default.

        Raises:
            ValueError: for shapes that do not agree.
        """
        config = self.config
        _check(frames, log_mel, real)
        B, T = frames.shape[:2]
        frame_size = (frames.shape[-2], frames.shape[-1])
        frames = _pad(frames)
        quarter, visual = self.visual_encoder(frames)  # F_v
        audio = self.audio_encoder(log_mel)  # F_a [B, T, C]
        top = visual[TOP].unflatten(0, (B, T))
        global_tokens = local_tokens = None

        if config.gsd:
            fused = self.fusion(audio, top, real) if config.fusion else audio  # Eq. 3
            global_tokens = self.codebook(self.global_decoder(fused, real))  # Eq. 4
            queries = global_tokens.quantized[:, None].expand(-1, T, -1, -1)
            if config.avsr:
                mixed = self.recombination(top, global_tokens.quantized)  # Eq. 5
                visual[TOP] = mixed.flatten(0, 1)
        if config.lsd:
            local_tokens = self._decompose_frames(audio, real)  # Eq. 6
            queries = local_tokens.quantized
        if not config.gsd and not config.lsd:
            queries = self.prototypes + audio[:, :, None]

        features = self.pyramid(quarter, visual)  # F_out
        layers = self.mask_decoder(queries.flatten(0, 1), visual, features)  # Eq. 7
        *auxiliary, last = (_by_clip(layer, B, T, frame_size, frames) for layer in layers)
        return SQDOutput(
            *last,
            quantization_loss=sum(
                (tokens.loss for tokens in (global_tokens, local_tokens) if tokens is not None),
                frames.new_zeros(()),
            ),
            global_indices=None if global_tokens is None else global_tokens.indices,
            local_indices=None if local_tokens is None else local_tokens.indices.transpose(1, 2),
            frame_size=frame_size,
            auxiliary=auxiliary,
        )

    def _decompose_frames(self, audio: Tensor, real: Tensor | None) -> VectorQuantized:
        """Decompose and quantize the sound of each frame of ``audio[B, T, C]``."""
        shared = self.config.shared_codebook
        decoder = self.global_decoder if self.config.shared_decoder else self.local_decoder
        tokens = decoder(audio.flatten(0, 1)[:, None]).unflatten(0, audio.shape[:2])
        codebook = self.codebook if shared else self.local_codebook
        return codebook(tokens, real, commit_only=shared)

    def segment(self, output: SQDOutput, size: tuple[int, int] | None = None) -> Segmentation:
        """Apply the inference rule with the configured thresholds (see :func:`segment`)."""
        return segment(
            output,
            size,
            class_threshold=self.config.class_threshold,
            mask_threshold=self.config.mask_threshold,
        )

    def parameter_groups(
        self, lr: float, backbone_multiplier: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Group the trained parameters for an optimizer: the visual backbone, and the rest."""
        groups: dict[str, list[nn.Parameter]] = {"backbone": [], "rest": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                backbone = name.startswith("visual_encoder.backbone.")
                groups["backbone" if backbone else "rest"].append(parameter)
        rates = {"backbone": lr * backbone_multiplier, "rest": lr}
        return [
            {"name": name, "params": params, "lr": rates[name], "weight_decay": weight_decay}
            for name, params in groups.items()
            if params
        ]


def build_model(config: SQDConfig, num_classes: int) -> SQD:
    """Build the model of a configuration for ``num_classes`` classes, background included."""
    return SQD(config, num_classes)


def _check(frames: Tensor, log_mel: Tensor, real: Tensor | None) -> None:
    if frames.ndim != 5 or frames.shape[2] != 3:
        raise ValueError(f"SQD: expected frames [B, T, 3, H, W], got {list(frames.shape)}")
    clips = list(frames.shape[:2])
    if list(log_mel.shape) != [*clips, 1, 96, 64]:
        raise ValueError(
            f"SQD: expected log_mel {[*clips, 1, 96, 64]} for {clips[0]} clips of {clips[1]} "
            f"frames, got {list(log_mel.shape)}"
        )
    if real is not None and (list(real.shape) != clips or real.dtype != torch.bool):
        raise ValueError(f"SQD: expected real bool {clips}, got {real.dtype} {list(real.shape)}")


def _pad(frames: Tensor) -> Tensor:
    """Pad on the right and below to a multiple of the coarsest stride."""
    height, width = frames.shape[-2:]
    return F.pad(frames, (0, -width % COARSEST_STRIDE, 0, -height % COARSEST_STRIDE))


def _by_clip(
    layer: tuple[Tensor, Tensor, Tensor],
    B: int,
    T: int,
    frame_size: tuple[int, int],
    padded: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Move tokens before frames, and undo the padding of boxes and masks."""
    class_logits, boxes, mask_logits = (item.unflatten(0, (B, T)).transpose(1, 2) for item in layer)
    height, width = frame_size
    scale = boxes.new_tensor([padded.shape[-1] / width, padded.shape[-2] / height])
    cells = [-(-pixels // MASK_STRIDE) for pixels in frame_size]
    return class_logits, boxes * scale.repeat(2), mask_logits[..., : cells[0], : cells[1]]
