"""Channel attention: one audio query a head pools the map, the result gates its channels."""

import torch

from avskernels import reference
from avskernels._backend import use_reference
from avskernels._channel_attention_mixer_algebra import (
    algebra,
    backward_algebra,
    check,
    pooled_values,
    weight_sums,
)
from avskernels._check import accumulate_dtype
from avskernels._library import register_fallback, register_triton

GATES = ("sigmoid", "residual")


def channel_attention_mixer(
    features,
    query,
    k_weight,
    v_weight,
    out_weight,
    out_bias,
    *,
    k_bias=None,
    v_bias=None,
    mask=None,
    num_heads=8,
    softmax=True,
    gate="sigmoid",
    backend=None,
):
    r"""Scale each channel of a map by what an audio query attends to in it.

    .. math::
        a_h = \mathrm{softmax}_n\frac{q_h \cdot (W_k x_n)_h}{\sqrt{C / \mathrm{heads}}}, \quad
        g = W_o \, \mathrm{concat}_h \sum_n a_{hn} (W_v x_n)_h + b_o, \quad
        F' = F \odot \sigma(g)

    With ``gate="residual"`` the result is :math:`F + F \odot g`; without ``softmax`` the logits
    themselves are the weights. AVSegFormer's released code is the default; its paper is
    ``softmax=False, gate="residual"`` with all weights None.

    One query a head makes the projections of the map unnecessary:
    :math:`q \cdot W_k x_n = W_k^\top q \cdot x_n` and
    :math:`\sum_n a_n W_v x_n = W_v \sum_n a_n x_n`. Sums and softmax are float32 (float64 for
    float64) whatever the map's dtype, also under autocast. Where no pixel takes part, because of
    the mask or with logits of -inf alone, a head pools 0; a fully masked map has gate 0.

    Args:
        features: ``Tensor[B, C, H, W]``; float16, bfloat16, float32 or float64; any strides
            (a map that is not contiguous, channels_last included, is copied first).
        query: ``Tensor[B, C]``, already projected; it and all weights of any floating-point dtype.
        k_weight: ``Tensor[C, C]``, or None for the identity; likewise ``v_weight`` and
            ``out_weight``.
        v_weight: see above.
        out_weight: see above.
        out_bias: ``Tensor[C]`` or None; likewise ``k_bias``, which cancels in the softmax, and
            ``v_bias``.
        k_bias: see above.
        v_bias: see above.
        mask: bool ``Tensor[B, H, W]``, True where a pixel takes part; None for all.
        num_heads: heads, a divisor of C.
        softmax: whether to normalise over the pixels.
        gate: ``"sigmoid"`` or ``"residual"``.
        backend: see :func:`avskernels.backend`.

    Returns:
        Tensor: ``[B, C, H, W]``, of the features' dtype.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit.
        ValueError: for an unknown gate.

    Source: AVSegFormer, Eq. 2, and its released channel-attention mixer.

    Example:
        >>> features = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
        >>> paper = dict(softmax=False, gate="residual", num_heads=2)
        >>> channel_attention_mixer(features, torch.ones(1, 2), None, None, None, None, **paper)
        tensor([[[[ 2.]],
        <BLANKLINE>
                 [[30.]]]])
    """
    if gate not in GATES:
        raise ValueError(
            f"channel_attention_mixer: expected gate to be one of {GATES}, got {gate!r}"
        )
    parameters = (k_weight, v_weight, out_weight, out_bias, k_bias, v_bias)
    check(features, query, parameters, mask, num_heads)
    if use_reference("channel_attention_mixer", backend, features):
        query, *parameters = _cast((query, *parameters), features.dtype)
        return reference.channel_attention_mixer(
            features, query, *parameters, mask, num_heads, softmax, gate
        )
    query, *parameters = _cast((query, *parameters), accumulate_dtype(features.dtype))
    weights = [
        torch.eye(query.shape[1], dtype=query.dtype, device=query.device) if w is None else w
        for w in parameters[:3]
    ]
    return torch.ops.avskernels.channel_attention_mixer.default(
        features, query, *weights, *parameters[3:], mask, num_heads, softmax, gate
    )[0]


def _cast(tensors, dtype):
    return [t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors]


@torch.library.register_fake("avskernels::channel_attention_mixer")
def _fake(features, query, *arguments):
    *parameters, mask, num_heads, _, _ = arguments
    check(features, query, parameters, mask, num_heads)
    batch, channels = query.shape
    return (
        features.new_empty(features.shape),
        query.new_empty(batch, num_heads, channels),
        query.new_empty(batch, num_heads),
        query.new_empty(batch, channels),
    )


@torch.library.register_fake("avskernels::_channel_attention_mixer_backward")
def _backward_fake(grad, features, query, *arguments):
    pooled, normalizer = arguments[6:8]  # behind weights, biases and mask
    return (
        features.new_empty(features.shape),
        pooled.new_empty(pooled.shape),
        normalizer.new_empty(normalizer.shape),
        query.new_empty(query.shape),
        query.new_empty(query.shape),
    )


def _setup_context(ctx, inputs, output):
    features, query, k_weight, v_weight, out_weight, out_bias, k_bias, v_bias, mask = inputs[:9]
    ctx.options = inputs[9:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(
        features, query, k_weight, v_weight, out_weight, k_bias, v_bias, mask, *output[1:]
    )
    ctx.has_out_bias = out_bias is not None


def _backward(ctx, grad, *_):
    _, query, k_weight, v_weight, _, k_bias, v_bias, _, pooled, normalizer, _ = ctx.saved_tensors
    num_heads, softmax, _ = ctx.options
    grad_features, grad_queries, grad_offsets, grad_gate, grad_values = (
        torch.ops.avskernels._channel_attention_mixer_backward.default(
            grad, *ctx.saved_tensors, *ctx.options
        )
    )
    total = weight_sums(normalizer, softmax)
    values = pooled_values(pooled, total, v_weight, v_bias)
    grad_value_heads = grad_values.unflatten(1, (num_heads, -1))  # [B, heads, C / heads]
    query_heads = query.unflatten(1, (num_heads, -1))
    scale = query_heads.shape[2] ** -0.5
    k_heads = k_weight.unflatten(0, (num_heads, -1))
    grad_query = torch.einsum("hdc,bhc->bhd", k_heads, grad_queries)
    grad_k_bias = None
    if k_bias is not None:
        grad_query = grad_query + grad_offsets.unsqueeze(-1) * k_bias.unflatten(0, (num_heads, -1))
        grad_k_bias = scale * torch.einsum("bhd,bh->hd", query_heads, grad_offsets).flatten()
    return (
        grad_features,
        scale * grad_query.flatten(1),
        scale * torch.einsum("bhd,bhc->hdc", query_heads, grad_queries).flatten(0, 1),
        torch.einsum("bhd,bhc->hdc", grad_value_heads, pooled).flatten(0, 1),
        grad_gate.T @ values,
        grad_gate.sum(0) if ctx.has_out_bias else None,
        grad_k_bias,
        None if v_bias is None else torch.einsum("bhd,bh->hd", grad_value_heads, total).flatten(),
        *[None] * 4,
    )


torch.library.register_autograd(
    "avskernels::channel_attention_mixer", _backward, setup_context=_setup_context
)


register_fallback("channel_attention_mixer", algebra, "CUDA")
register_fallback("_channel_attention_mixer_backward", backward_algebra)
register_triton("_channel_attention_mixer_backward", "channel_attention_mixer")
