"""The channel-attention mixer as AVSegFormer writes it: key and value maps, one audio query."""

import torch
from torch.nn import functional


def channel_attention_mixer(
    features,
    query,
    k_weight,
    v_weight,
    out_weight,
    out_bias,
    k_bias=None,
    v_bias=None,
    mask=None,
    num_heads=8,
    softmax=True,
    gate="sigmoid",
):
    """Return features * gate, or features + features * gate, of the pooled values."""

    def by_head(tokens):  # [B, N, C] -> [B, heads, N, C / heads]
        return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)

    def project(tokens, weight, bias):
        return tokens if weight is None else functional.linear(tokens, weight, bias)

    tokens = features.flatten(2).transpose(1, 2)
    keys = by_head(project(tokens, k_weight, k_bias))
    values = by_head(project(tokens, v_weight, v_bias))
    weights = by_head(query.unsqueeze(1)) @ keys.mT * keys.shape[-1] ** -0.5  # [B, heads, 1, N]
    if mask is not None:
        allowed = mask.flatten(1)[:, None, None, :]
        weights = weights.masked_fill(~allowed, float("-inf") if softmax else 0.0)
    nothing = weights.isneginf().all(-1, keepdim=True) if softmax else torch.tensor(False)
    if softmax:
        weights = weights.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
    pooled = (weights @ values).transpose(1, 2).flatten(1)  # [B, C]
    scale = project(pooled, out_weight, out_bias)
    scale = scale.sigmoid() if gate == "sigmoid" else scale
    if mask is not None:
        scale = scale * mask.flatten(1).any(1, keepdim=True)
    scaled = features * scale[:, :, None, None]
    return scaled if gate == "sigmoid" else features + scaled
