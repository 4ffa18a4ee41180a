# SPDX-License-Identifier: Apache-2.0
"""The mixer in plain torch: the algebra before each pass over the map, and the passes.

``a`` holds the operator's arguments, and what earlier steps returned.
"""

import torch
from torch import Tensor

from avskernels.core.composite import Known
from avskernels.core.specification import accumulate_dtype
from avskernels.ops.attention_pool.plain import (
    allowed_pixels,
    logit_shift,
    pool_pixels,
    pool_pixels_backward,
)


def fold(a: Known) -> dict[str, Tensor | None]:
    """Fold the keys' projection into the query: :math:`q \\cdot W_k x = W_k^\\top q \\cdot x`.

    Returns queries ``[B, heads, C]`` of the map itself, and the offsets ``[B, heads]`` at which
    their logits start, or None.
    """
    channels, width = a.query.shape[1], a.query.shape[1] // a.num_heads
    heads = (a.query * width**-0.5).view(len(a.query), a.num_heads, width)
    weight = a.k_weight.view(a.num_heads, width, channels)
    queries = torch.bmm(heads.transpose(0, 1), weight).transpose(0, 1)
    offsets = None
    if a.k_bias is not None:
        offsets = torch.einsum("bhd,hd->bh", heads, a.k_bias.view(a.num_heads, width))
    return {"queries": queries, "offsets": offsets}


def gate(a: Known) -> dict[str, Tensor]:
    """Project the pooled rows ``[B, heads, C]`` to the gate and the channels' factors, [B, C]."""
    channels = a.pooled.shape[2]
    weight = a.v_weight.view(a.num_heads, channels // a.num_heads, channels)
    values = torch.bmm(a.pooled.transpose(0, 1), weight.mT).transpose(0, 1)
    if a.v_bias is not None:
        total = a.normalizer  # the sum of each head's weights
        if a.softmax:
            total = (~total.isneginf()).to(total.dtype)
        values = values + total.unsqueeze(2) * a.v_bias.view(a.num_heads, -1)
    value = values.flatten(1) @ a.out_weight.T
    if a.out_bias is not None:
        value = value + a.out_bias
    if a.gate == "sigmoid":
        value = value.sigmoid()
    if a.mask is not None:
        value = value * a.mask.flatten(1).any(1, keepdim=True)
    return {"gate_value": value, "factor": value if a.gate == "sigmoid" else 1 + value}


def pool(a: Known) -> dict[str, Tensor]:
    """Pool the map with the folded queries."""
    pixels = a.features.contiguous().flatten(2).to(a.queries.dtype)
    # In a softmax offsets cancel; its normalizer starts at them.
    offsets = None if a.softmax else a.offsets
    pooled, normalizer, _ = pool_pixels(
        pixels, a.queries, offsets, allowed_pixels(a.mask), a.softmax
    )
    if a.softmax and a.offsets is not None:
        normalizer = normalizer + a.offsets
    return {"pooled": pooled, "normalizer": normalizer}


def pool_backward(a: Known) -> dict[str, Tensor]:
    """Return the gradients of the map, gated and pooled, of the queries and of the offsets."""
    allowed = allowed_pixels(a.mask)
    pixels, grads = (
        t.contiguous().flatten(2).to(a.queries.dtype) for t in (a.features, a.grad_mixed)
    )
    weights = pool_pixels(pixels, a.queries, a.offsets, allowed, a.softmax)[2]
    grad_pixels, grad_logits = pool_pixels_backward(
        a.grad_pooled, pooled_shift(a), pixels, a.queries, allowed, weights, a.softmax
    )
    grad_features = a.features.new_empty(a.features.shape)
    grad_features.flatten(2).copy_(grad_pixels.addcmul_(grads, a.factor.unsqueeze(2)))
    return {
        "grad_features": grad_features,
        "grad_queries": torch.bmm(grad_logits, pixels.mT),
        "grad_offsets": grad_logits.sum(2),
    }


def pooled_shift(a: Known) -> Tensor:
    """Return what is subtracted from a pixel's product with ``grad_pooled``, [B, heads]."""
    return logit_shift(a.grad_pooled, a.pooled, getattr(a, "grad_normalizer", None), a.softmax)


def scale(a: Known) -> dict[str, Tensor]:
    """Multiply every channel by its factor: one read and one write, also in plain torch."""
    mixed = a.features.new_empty(a.features.shape)
    torch.mul(a.features, a.factor[:, :, None, None], out=mixed)
    return {"mixed": mixed}


def scale_backward(a: Known) -> dict[str, Tensor]:
    """Return the gradient of the factors; that of the map is begun by ``pool_backward``."""
    dtype = accumulate_dtype(a.features.dtype)
    return {
        "grad_factor": (a.grad_mixed.flatten(2).to(dtype) * a.features.flatten(2).to(dtype)).sum(2)
    }
