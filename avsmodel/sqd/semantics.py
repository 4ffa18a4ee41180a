# SPDX-License-Identifier: Apache-2.0
"""Decomposition of sound into quantized single-source tokens (sections 3.3 and 3.4)."""

import torch
from torch import Tensor, nn

from avskernels import VectorQuantized
from avskernels.nn import VectorQuantizer
from avsmodel.sqd.config import SQDConfig
from avsmodel.transformer import (
    Attention,
    DecoderLayer,
    Residual,
    feed_forward,
    spatial_positions,
    temporal_positions,
)


class AudioVisualFusion(nn.Module):
    """Eq. 3: ``h = LN(MCA(F_a, F_v) + F_a)``, ``F'_a = LN(FFN(h) + h)``."""

    def __init__(self, config: SQDConfig):
        super().__init__()
        dim = config.dim
        self.attention = Attention(dim, config.num_heads, config.dropout)
        self.ffn = feed_forward(dim, config.ffn_dim, config.dropout)
        self.residuals = nn.ModuleList(
            Residual(dim, config.dropout, config.norm_first) for _ in range(2)
        )

    def forward(self, audio: Tensor, visual: Tensor, real: Tensor | None = None) -> Tensor:
        """Let each frame's ``audio[B, T, C]`` attend to all pixels of ``visual[B, T, C, h, w]``.

        Args:
            audio: ``Tensor[B, T, C]``.
            visual: ``Tensor[B, T, C, h, w]``.
            real: bool ``Tensor[B, T]``, frames that exist and may be attended to.

        Returns:
            ``Tensor[B, T, C]``.
        """
        T, C, height, width = visual.shape[1:]
        time = temporal_positions(T, C, device=visual.device)
        space = spatial_positions(height, width, C, device=visual.device)
        positions = (time[:, None] + space).flatten(0, 1)
        memory = visual.flatten(3).transpose(2, 3).flatten(1, 2)  # [B, T*h*w, C]
        mask = None if real is None else real.repeat_interleave(height * width, dim=1)
        fused = self.residuals[0](
            audio, lambda x: self.attention(x + time, memory + positions, memory, mask)
        )
        return self.residuals[1](fused, self.ffn)


class SemanticDecoder(nn.Module):
    """TrD_global of Eq. 4 and TrD_local of Eq. 6: N learned prototypes query a sound.

    Args:
        one_token: whether the sound is that of one frame.
    """

    def __init__(self, config: SQDConfig, *, one_token: bool = False):
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(config.num_tokens, config.dim))
        self.layers = nn.ModuleList(
            DecoderLayer(
                config.dim,
                config.num_heads,
                config.ffn_dim,
                config.dropout,
                norm_first=config.norm_first,
                one_token=one_token,
            )
            for _ in range(config.decoder_layers)
        )

    def forward(self, audio: Tensor, real: Tensor | None = None) -> Tensor:
        """Decompose ``audio[B, T, C]`` into tokens ``[B, N, C]``, of sounds where ``real``."""
        positions = temporal_positions(*audio.shape[1:], device=audio.device)
        tokens = self.prototypes.expand(len(audio), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, audio, 0.0, positions, real)
        return tokens


class SemanticCodebook(VectorQuantizer):
    """A codebook of single-source semantics, with the terms of Eq. 9 that its tokens give.

    Global tokens move their codewords and commit to them. Local tokens that share the codebook only
    commit (``commit_only``).

    Attributes:
        steps: int64 scalar, training steps so far.
    """

    steps: Tensor

    def __init__(self, config: SQDConfig):
        super().__init__(
            config.num_codewords,
            config.dim,
            update=config.codebook_update,
            init=config.codebook_init,
            restart_after=config.codebook_restart,
            commitment_weight=config.commitment,
            reduction="none",
        )
        self.mean = config.quantization_reduction == "mean"
        self.quantize_after = config.quantize_after
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(
        self, tokens: Tensor, real: Tensor | None = None, *, commit_only: bool = False
    ) -> VectorQuantized:
        """Quantize ``tokens[B, ..., N, C]``.

        Args:
            tokens: ``Tensor[B, ..., N, C]``.
            real: bool ``Tensor[B, ...]``, the frames whose tokens count in the loss.
            commit_only: leave the codebook as it is.

        Returns:
            VectorQuantized: codewords ``[B, ..., N, C]``, indices ``[B, ..., N]``, scalar loss.
        """
        if self.training and not commit_only:
            self.steps += 1
        # Only training waits: whatever is evaluated, saved or shown is quantized.
        waiting = self.training and 0 < self.quantize_after >= int(self.steps)
        seen = tokens.detach() if waiting else tokens  # the codebook learns from the first step on
        quantized, indices, squares = super().forward(seen, commit_only=commit_only)
        rows: int | Tensor = squares.numel()
        if real is not None:
            squares = squares * real[..., None]
            rows = real.sum().clamp(min=1) * tokens.shape[-2]
        count = rows * tokens.shape[-1] if self.mean else len(tokens)
        return VectorQuantized(tokens if waiting else quantized, indices, squares.sum() / count)
