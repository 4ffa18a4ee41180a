# SPDX-License-Identifier: Apache-2.0
"""AVSBench's temporal pixel-wise audio-visual interaction."""

from typing import Any

from torch import Tensor, nn

from avskernels.core.specification import check_choice
from avskernels.ops.tpavi.operator import MODES, tpavi


class TPAVI(nn.Module):
    """Let every pixel of a clip attend to the clip's audio, or to all its pixels.

    The parameters have the names and shapes of AVSBench's TPAVIModule (align_channel, norm_layer,
    g, theta, phi, W_z, W_f), so that its checkpoints load, and the outputs are those of its code.

    Args:
        in_channels: C.
        inter_channels: C', by default half of C.
        mode: ``"dot"``, ``"embedded"``, ``"gaussian"`` or ``"concatenate"``.
        bn_layer: whether a BatchNorm, zero at first, follows the output projection.
        audio_dim: width of the audio features.

    Raises:
        ValueError: for an unknown mode.

    Source: Zhou et al. 2022 (AVSBench), Eq. 1, and its released code.

    Example:
        >>> import torch
        >>> module = TPAVI(16)
        >>> fused, audio = module(torch.randn(2, 16, 5, 7, 7), torch.randn(2, 5, 128))
        >>> fused.shape, audio.shape
        (torch.Size([2, 16, 5, 7, 7]), torch.Size([2, 5, 16]))
    """

    def __init__(
        self,
        in_channels: int,
        inter_channels: int | None = None,
        mode: str = "dot",
        bn_layer: bool = True,
        *,
        audio_dim: int = 128,
    ) -> None:
        super().__init__()
        check_choice("TPAVI", "mode", mode, MODES)
        inner = inter_channels or max(in_channels // 2, 1)
        self.mode = mode
        self.align_channel = nn.Linear(audio_dim, in_channels)
        self.norm_layer = nn.LayerNorm(in_channels)
        self.g = nn.Conv3d(in_channels, inner, 1)
        self.W_z: nn.Module = nn.Conv3d(inner, in_channels, 1)
        starts_at_zero: Any = self.W_z
        if bn_layer:
            starts_at_zero = nn.BatchNorm3d(in_channels)
            self.W_z = nn.Sequential(self.W_z, starts_at_zero)
        nn.init.zeros_(starts_at_zero.weight)
        nn.init.zeros_(starts_at_zero.bias)
        if mode != "gaussian":
            self.theta = nn.Conv3d(in_channels, inner, 1)
            self.phi = nn.Conv3d(in_channels, inner, 1)
        if mode == "concatenate":
            self.W_f = nn.Sequential(nn.Conv2d(2 * inner, 1, 1), nn.ReLU())

    def forward(self, visual: Tensor, audio: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Fuse audio into the map of a clip.

        Args:
            visual: ``Tensor[B, C, T, H, W]``.
            audio: ``Tensor[B, T, audio_dim]``, or None to attend to the map itself.

        Returns:
            tuple[Tensor, Tensor]: fused ``[B, C, T, H, W]``, and the audio ``[B, T, C]`` as aligned
            to the map (None without audio).

        Raises:
            RuntimeError: for shapes, dtypes or devices that do not fit.
        """
        out: Any = self.W_z
        norm: Any = None
        if isinstance(self.W_z, nn.Sequential):
            out, norm = self.W_z
        concat: Any = self.W_f[0] if self.mode == "concatenate" else None
        batch_norm = {}
        if norm is not None:
            if norm.training and norm.track_running_stats:
                norm.num_batches_tracked.add_(1)
            momentum = norm.momentum
            if momentum is None and norm.track_running_stats:  # a cumulative average
                momentum = 1 / max(1, int(norm.num_batches_tracked))
            batch_norm = {
                "bn_weight": norm.weight,
                "bn_bias": norm.bias,
                "running_mean": norm.running_mean,
                "running_var": norm.running_var,
                "training": norm.training,
                "momentum": momentum,
                "bn_eps": norm.eps,
            }
        return tpavi(
            visual,
            audio,
            *self._projection("theta"),
            *self._projection("phi"),
            *self._projection("g"),
            out.weight.flatten(1),
            out.bias,
            align_weight=self.align_channel.weight,
            align_bias=self.align_channel.bias,
            concat_weight=None if concat is None else concat.weight.flatten(1),
            concat_bias=None if concat is None else concat.bias,
            norm_weight=self.norm_layer.weight,
            norm_bias=self.norm_layer.bias,
            norm_eps=self.norm_layer.eps,
            mode=self.mode,
            **batch_norm,
        )

    def _projection(self, name: str) -> tuple[Any, Any]:
        convolution = getattr(self, name, None)
        if convolution is None:
            return None, None
        return convolution.weight.flatten(1), convolution.bias
