# SPDX-License-Identifier: Apache-2.0
"""The channel-attention mixer as AVSegFormer writes it: key and value maps, one audio query."""

from torch import Tensor
from torch.nn import functional


def channel_attention_mixer(
    features: Tensor,
    query: Tensor,
    k_weight: Tensor | None,
    v_weight: Tensor | None,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    *,
    k_bias: Tensor | None = None,
    v_bias: Tensor | None = None,
    mask: Tensor | None = None,
    num_heads: int = 8,
    softmax: bool = True,
    gate: str = "sigmoid",
) -> Tensor:
    """Return features * gate, or features + features * gate, of the pooled values."""

    def by_head(tokens: Tensor) -> Tensor:  # [B, N, C] -> [B, heads, N, C / heads]
        return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)

    def project(tokens: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if weight is None:
            return tokens if bias is None else tokens + bias.to(tokens.dtype)
        bias = None if bias is None else bias.to(tokens.dtype)
        return functional.linear(tokens, weight.to(tokens.dtype), bias)

    tokens = features.flatten(2).transpose(1, 2)
    keys = by_head(project(tokens, k_weight, k_bias))
    values = by_head(project(tokens, v_weight, v_bias))
    queries = by_head(query.to(features.dtype).unsqueeze(1))
    weights = queries @ keys.mT * keys.shape[-1] ** -0.5  # [B, heads, 1, N]
    if mask is not None:
        allowed = mask.flatten(1)[:, None, None, :]
        weights = weights.masked_fill(~allowed, float("-inf") if softmax else 0.0)
    if softmax:
        nothing = weights.isneginf().all(-1, keepdim=True)
        weights = weights.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
    pooled = (weights @ values).transpose(1, 2).flatten(1)  # [B, C]
    scale = project(pooled, out_weight, out_bias)
    scale = scale.sigmoid() if gate == "sigmoid" else scale
    if mask is not None:
        scale = scale * mask.flatten(1).any(1, keepdim=True)
    scaled = features * scale[:, :, None, None]
    return scaled if gate == "sigmoid" else features + scaled
