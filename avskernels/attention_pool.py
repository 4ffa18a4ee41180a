"""Attention pooling of a map by a few queries, in one read of the map."""

import torch

from avskernels import reference
from avskernels._backend import use_reference
from avskernels._check import FLOATS, accumulate_dtype, expect
from avskernels._library import register_fallback, register_triton


def attention_pool(features, queries, scale=1.0, softmax=True, *, mask=None, backend=None):
    r"""Pool the pixels of a map with one attention row a query.

    .. math::
        p_h = \sum_n a_{hn} x_n, \quad
        a_h = \mathrm{softmax}_n(s\, q_h \cdot x_n)
        \;\text{or}\; a_{hn} = s\, q_h \cdot x_n

    Keys and values are the map itself: a projection of either is folded into the query or applied
    to the result (:math:`q \cdot W x = W^\top q \cdot x`). Sums and the softmax are float32
    (float64 for float64) whatever the map's dtype, also under autocast. A query that no pixel takes
    part in, because of the mask or with logits of -inf alone, gives 0; a logit of NaN or +inf gives
    NaN. The gradients are deterministic.

    Args:
        features: ``Tensor[B, C, *]``, any number of spatial dimensions; float16, bfloat16, float32
            or float64; any strides (a map that is not contiguous is copied first).
        queries: ``Tensor[B, h, C]``, any floating-point dtype.
        scale: s, a number.
        softmax: whether to normalise over the pixels.
        mask: bool ``Tensor[B, *]``, True where a pixel takes part; None for all.
        backend: see :func:`avskernels.backend`.

    Returns:
        Tensor: ``[B, h, C]``, of the features' dtype.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit.

    Source: Vaswani et al. 2017, Eq. 1, with the map as keys and values.

    Example:
        >>> features = torch.tensor([[[0.0, 4.0], [2.0, 2.0]]])  # two channels, two pixels
        >>> attention_pool(features, torch.zeros(1, 1, 2))
        tensor([[[2., 2.]]])
    """
    _check(features, queries, mask)
    if use_reference("attention_pool", backend, features):
        return reference.attention_pool(features, queries.to(features.dtype), scale, softmax, mask)
    pooled, _ = torch.ops.avskernels.attention_pool.default(
        features, queries.to(accumulate_dtype(features.dtype)), mask, scale, softmax
    )
    return pooled.to(features.dtype)


def _check(features, queries, mask):
    op = "attention_pool"
    expect(op, "features", features, ["B", "C", "..."], FLOATS)
    batch, channels, *space = features.shape
    expect(op, "queries", queries, [batch, "h", channels], FLOATS, features.device)
    if mask is not None:
        expect(op, "mask", mask, [batch, *space], [torch.bool], features.device)


@torch.library.register_fake("avskernels::attention_pool")
def _fake(features, queries, mask, scale, softmax):
    _check(features, queries, mask)
    return queries.new_empty(queries.shape), queries.new_empty(queries.shape[:2])


@torch.library.register_fake("avskernels::_attention_pool_backward")
def _backward_fake(grad_pooled, features, queries, mask, pooled, normalizer, scale, softmax):
    return features.new_empty(features.shape), queries.new_empty(queries.shape)


def _setup_context(ctx, inputs, output):
    features, queries, mask, ctx.scale, ctx.softmax = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(features, queries, mask, *output)


def _backward(ctx, grad_pooled, _):
    grads = torch.ops.avskernels._attention_pool_backward.default(
        grad_pooled, *ctx.saved_tensors, ctx.scale, ctx.softmax
    )
    return *grads, None, None, None


torch.library.register_autograd(
    "avskernels::attention_pool", _backward, setup_context=_setup_context
)


def pool_pixels(pixels, queries, offsets, allowed, softmax):
    """Pool ``pixels[B, C, N]`` by ``queries[B, h, C]`` that hold the scale.

    Returns pooled, normalizer and weights, of logits that start at ``offsets[B, h]`` and count
    where ``allowed[B, 1, N]`` (both may be None).
    """
    weights = torch.bmm(queries, pixels)
    if offsets is not None:
        weights += offsets.unsqueeze(-1)
    if allowed is not None:
        weights.masked_fill_(~allowed, float("-inf") if softmax else 0.0)
    if softmax:
        normalizer = weights.logsumexp(-1)
        # With a normalizer of -inf nothing takes part, and the weights are to be 0, not NaN.
        weights -= normalizer.masked_fill(normalizer.isneginf(), 0.0).unsqueeze(-1)
        weights.exp_()
    else:
        normalizer = weights.sum(-1)
    return torch.bmm(weights, pixels.mT), normalizer, weights


def logit_shift(grad_pooled, pooled, grad_total, softmax):
    """Return what a pixel's product with ``grad_pooled`` exceeds the logit's gradient by, [B, h].

    ``grad_total[B, h]``, or None, is the gradient of the sum of the weights.
    """
    shift = (grad_pooled * pooled).sum(-1) if softmax else pooled.new_zeros(pooled.shape[:2])
    return shift if grad_total is None else shift - grad_total


def pool_pixels_backward(grad_pooled, shift, pixels, queries, allowed, weights, softmax):
    """Return the gradients of the pixels, and of the logits ``[B, h, N]``."""
    grad_logits = torch.bmm(grad_pooled, pixels).sub_(shift.unsqueeze(-1))
    if softmax:
        grad_logits *= weights
    elif allowed is not None:
        grad_logits *= allowed
    grad_pixels = torch.bmm(grad_pooled.mT, weights).baddbmm_(queries.mT, grad_logits)
    return grad_pixels, grad_logits


def _prepared(features, queries, mask, scale):
    allowed = None if mask is None else mask.flatten(1).unsqueeze(1)
    return features.contiguous().flatten(2).to(queries.dtype), scale * queries, allowed


def _algebra(features, queries, mask, scale, softmax):
    _check(features, queries, mask)
    pixels, queries, allowed = _prepared(features, queries, mask, scale)
    return pool_pixels(pixels, queries, None, allowed, softmax)[:2]


def _backward_algebra(grad_pooled, features, queries, mask, pooled, normalizer, scale, softmax):
    pixels, queries, allowed = _prepared(features, queries, mask, scale)
    weights = pool_pixels(pixels, queries, None, allowed, softmax)[2]
    shift = logit_shift(grad_pooled, pooled, None, softmax)
    grad_pixels, grad_logits = pool_pixels_backward(
        grad_pooled, shift, pixels, queries, allowed, weights, softmax
    )
    grad_features = features.new_empty(features.shape)
    grad_features.flatten(2).copy_(grad_pixels)
    return grad_features, scale * torch.bmm(grad_logits, pixels.mT)


register_fallback("attention_pool", _algebra)
register_fallback("_attention_pool_backward", _backward_algebra)
register_triton("attention_pool", "attention_pool")
register_triton("_attention_pool_backward", "attention_pool")
