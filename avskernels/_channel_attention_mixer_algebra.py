"""What channel_attention_mixer computes beside its kernels: its checks, and plain torch."""

import torch

from avskernels._check import FLOATS, accumulate_dtype, expect
from avskernels.attention_pool import logit_shift, pool_pixels, pool_pixels_backward


def check(features, query, parameters, mask, num_heads):
    op = "channel_attention_mixer"
    expect(op, "features", features, ["B", "C", "H", "W"], FLOATS)
    batch, channels, height, width = features.shape
    expect(op, "query", query, [batch, channels], FLOATS, features.device)
    names = ("k_weight", "v_weight", "out_weight", "out_bias", "k_bias", "v_bias")
    for name, tensor in zip(names, parameters, strict=True):
        shape = [channels, channels] if name.endswith("weight") else [channels]
        if tensor is not None:
            expect(op, name, tensor, shape, FLOATS, features.device)
    if mask is not None:
        expect(op, "mask", mask, [batch, height, width], [torch.bool], features.device)
    if num_heads < 1 or channels % num_heads != 0:
        raise RuntimeError(
            f"{op}: expected num_heads to divide {channels} channels, got {num_heads}"
        )


def fold_queries(query, k_weight, k_bias, num_heads):
    """Return the queries of the map itself, and what their logits start at."""
    heads = query.unflatten(1, (num_heads, -1)) * (query.shape[1] // num_heads) ** -0.5
    queries = torch.einsum("bhd,hdc->bhc", heads, k_weight.unflatten(0, (num_heads, -1)))
    if k_bias is None:
        return queries, None
    return queries, torch.einsum("bhd,hd->bh", heads, k_bias.unflatten(0, (num_heads, -1)))


def weight_sums(normalizer, softmax):
    """Return the sum of each head's weights, [B, heads]."""
    return (~normalizer.isneginf()).to(normalizer.dtype) if softmax else normalizer


def pooled_values(pooled, total, v_weight, v_bias):
    """Return the pooled values of all heads, [B, C]."""
    num_heads = pooled.shape[1]
    values = torch.einsum("bhc,hdc->bhd", pooled, v_weight.unflatten(0, (num_heads, -1)))
    if v_bias is not None:
        values = values + total.unsqueeze(-1) * v_bias.unflatten(0, (num_heads, -1))
    return values.flatten(1)


def algebra(features, query, *arguments):
    *parameters, mask, num_heads, softmax, gate = arguments
    check(features, query, parameters, mask, num_heads)
    k_weight, v_weight, out_weight, out_bias, k_bias, v_bias = parameters
    queries, offsets = fold_queries(query, k_weight, k_bias, num_heads)
    allowed = None if mask is None else mask.flatten(1).unsqueeze(1)
    if offsets is None or softmax:  # where they cancel; a kernel where the device has one
        pooled, normalizer = torch.ops.avskernels.attention_pool.default(
            features, queries, mask, 1.0, softmax
        )
        if offsets is not None:
            normalizer = normalizer + offsets
    else:
        pixels = features.contiguous().flatten(2).to(query.dtype)
        pooled, normalizer, _ = pool_pixels(pixels, queries, offsets, allowed, softmax)
    value = pooled_values(pooled, weight_sums(normalizer, softmax), v_weight, v_bias) @ out_weight.T
    if out_bias is not None:
        value += out_bias
    if gate == "sigmoid":
        value = value.sigmoid()
    if mask is not None:
        value *= allowed.any(2)
    mixed = features.new_empty(features.shape)
    factor = value if gate == "sigmoid" else 1 + value
    torch.mul(features, factor[:, :, None, None], out=mixed)
    return mixed, pooled, normalizer, value


def backward_algebra(*arguments):
    return backward_over(channel_dots, pass_backward, *arguments)


def channel_dots(grad, features):
    """Return the sum over the pixels of grad * features, [B, C], in the precision of sums."""
    dtype = accumulate_dtype(features.dtype)
    return (grad.flatten(2).to(dtype) * features.flatten(2).to(dtype)).sum(2)


def pass_backward(
    grad, features, factor, queries, offsets, mask, grad_pooled, normalizer, shift, softmax
):
    """Return the gradients of the map, the folded queries and the logits' offsets."""
    allowed = None if mask is None else mask.flatten(1).unsqueeze(1)
    pixels, grads = (t.contiguous().flatten(2).to(queries.dtype) for t in (features, grad))
    weights = pool_pixels(pixels, queries, offsets, allowed, softmax)[2]
    grad_pixels, grad_logits = pool_pixels_backward(
        grad_pooled, shift, pixels, queries, allowed, weights, softmax
    )
    grad_features = features.new_empty(features.shape)
    grad_features.flatten(2).copy_(grad_pixels.addcmul_(grads, factor.unsqueeze(2)))
    return grad_features, torch.bmm(grad_logits, pixels.mT), grad_logits.sum(2)


def backward_over(
    dots,
    pass_backward,
    grad,
    features,
    query,
    k_weight,
    v_weight,
    out_weight,
    k_bias,
    v_bias,
    mask,
    pooled,
    normalizer,
    gate_value,
    num_heads,
    softmax,
    gate,
):
    """Do what lies between the two passes over the maps, which are the first two arguments."""
    queries, offsets = fold_queries(query, k_weight, k_bias, num_heads)
    grad_gate = dots(grad, features)
    if gate == "sigmoid":
        grad_gate *= gate_value * (1 - gate_value)
    elif mask is not None:
        grad_gate *= mask.flatten(1).any(1, keepdim=True)
    grad_values = grad_gate @ out_weight
    grad_value_heads = grad_values.unflatten(1, (num_heads, -1))
    grad_pooled = torch.einsum(
        "bhd,hdc->bhc", grad_value_heads, v_weight.unflatten(0, (num_heads, -1))
    )
    grad_total = None
    if v_bias is not None and not softmax:
        grad_total = torch.einsum(
            "bhd,hd->bh", grad_value_heads, v_bias.unflatten(0, (num_heads, -1))
        )
    shift = logit_shift(grad_pooled, pooled, grad_total, softmax)
    factor = gate_value if gate == "sigmoid" else 1 + gate_value
    return (
        *pass_backward(
            grad, features, factor, queries, offsets, mask, grad_pooled, normalizer, shift, softmax
        ),
        grad_gate,
        grad_values,
    )
