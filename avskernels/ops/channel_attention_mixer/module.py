# SPDX-License-Identifier: Apache-2.0
"""AVSegFormer's channel-attention mixer."""

from torch import Tensor, nn

from avskernels.core.specification import check_choice
from avskernels.ops.channel_attention_mixer.operator import channel_attention_mixer

FORMULAS = ("released", "paper")


class ChannelAttentionMixer(nn.Module):
    """Scale a map's channels by what an audio query attends to in it.

    With ``formula="released"`` the parameters have the names and shapes of AVSegFormer's module
    (q_proj, kv_proj, proj), so that its checkpoints load, and the outputs are those of its code.
    ``"paper"`` is Eq. 2 of its paper: no softmax, no projections (and so no parameters), the gated
    map added to the map.

    Args:
        dim: channels, a multiple of num_heads.
        num_heads: attention heads.
        qkv_bias: whether q_proj and kv_proj have a bias.
        formula: ``"released"`` or ``"paper"``.

    Raises:
        ValueError: where num_heads does not divide dim, or for an unknown formula.

    Source: AVSegFormer, Eq. 2 and its released code.

    Example:
        >>> import torch
        >>> mixer = ChannelAttentionMixer(16, num_heads=4)
        >>> mixer(torch.randn(2, 16, 7, 7), torch.randn(2, 1, 16)).shape
        torch.Size([2, 16, 7, 7])
    """

    def __init__(
        self,
        dim: int = 256,
        num_heads: int = 8,
        *,
        qkv_bias: bool = False,
        formula: str = "released",
    ) -> None:
        super().__init__()
        if dim % num_heads != 0:
            raise ValueError(
                f"ChannelAttentionMixer: expected dim to be a multiple of {num_heads} heads, "
                f"got {dim}"
            )
        check_choice("ChannelAttentionMixer", "formula", formula, FORMULAS)
        self.num_heads, self.formula = num_heads, formula
        if formula == "released":
            self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
            self.kv_proj = nn.Linear(dim, 2 * dim, bias=qkv_bias)
            self.proj = nn.Linear(dim, dim)

    def forward(self, features: Tensor, audio: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix audio into a map.

        Args:
            features: ``Tensor[B, C, H, W]``.
            audio: ``Tensor[B, 1, C]`` or ``[B, C]``.
            mask: bool ``Tensor[B, H, W]``, True where a pixel takes part; None for all.

        Returns:
            Tensor: ``[B, C, H, W]``.

        Raises:
            RuntimeError: for shapes, dtypes or devices that do not fit.
        """
        audio = audio.flatten(1)
        if self.formula == "paper":
            return channel_attention_mixer(
                features,
                audio,
                None,
                None,
                None,
                None,
                mask=mask,
                num_heads=self.num_heads,
                softmax=False,
                gate="residual",
            )
        k_weight, v_weight = self.kv_proj.weight.chunk(2)
        k_bias, v_bias = (None, None) if self.kv_proj.bias is None else self.kv_proj.bias.chunk(2)
        return channel_attention_mixer(
            features,
            self.q_proj(audio),
            k_weight,
            v_weight,
            self.proj.weight,
            self.proj.bias,
            k_bias=k_bias,
            v_bias=v_bias,
            mask=mask,
            num_heads=self.num_heads,
        )
