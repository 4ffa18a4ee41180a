"""Per-sample recombination of channels: one matrix for all tokens, no concatenation."""

import math

import torch
from torch.nn import functional

from avskernels import reference
from avskernels._backend import use_reference
from avskernels._check import FLOATS, accumulate_dtype, expect
from avskernels._library import autocast_to, define, register_fallback


def semantic_recombination(features, filters, weight, bias=None, *, residual=True, backend=None):
    r"""Modulate the features by every filter, project the concatenation, add the features.

    .. math:: F' = \varphi(w_1 F \oplus \dots \oplus w_N F) + F

    Computed as one product a sample with :math:`\sum_i W_i \mathrm{diag}(w_i)`, where
    :math:`\varphi = (W_1, \dots, W_N)`: N times fewer operations, and no tensor larger than the
    features. Under autocast it runs in autocast's dtype, as a convolution does. On CUDA devices the
    product is torch's batched one: a dense product with a per-sample matrix is what the vendor's
    library is best at.

    Args:
        features: ``Tensor[B, C, H, W]``, or ``Tensor[B, T, C, H, W]`` to use the same filters for T
            frames; float16, bfloat16, float32 or float64; any strides.
        filters: ``Tensor[B, N, C]``, a scale for each token and channel; any floating-point dtype.
        weight: ``Tensor[C_out, N * C, k, k]``, k odd, of the projection; any floating-point dtype.
        bias: ``Tensor[C_out]`` or None.
        residual: whether to add the features, which needs C_out = C.
        backend: see :func:`avskernels.backend`.

    Returns:
        Tensor: the features' shape with C_out channels, and their dtype.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit.

    Source: QDFormer, Eq. 5.

    Example:
        >>> features = torch.ones(1, 2, 1, 1)
        >>> filters = torch.tensor([[[1.0, 0.5]]])
        >>> semantic_recombination(features, filters, torch.eye(2)[:, :, None, None]).flatten()
        tensor([2.0000, 1.5000])
    """
    if use_reference("semantic_recombination", backend, features):
        _check(features, filters, weight, bias, residual)
        small = (None if t is None else t.to(features.dtype) for t in (filters, weight, bias))
        return reference.semantic_recombination(features, *small, residual)
    return torch.ops.avskernels.semantic_recombination.default(
        autocast_to(features), filters, weight, bias, residual
    )


def _check(features, filters, weight, bias, residual):
    op = "semantic_recombination"
    if features.dim() == 5:
        expect(op, "features", features, ["B", "T", "C", "H", "W"], FLOATS)
    else:
        expect(op, "features", features, ["B", "C", "H", "W"], FLOATS)
    batch, channels = features.shape[0], features.shape[-3]
    expect(op, "filters", filters, [batch, "N", channels], FLOATS, features.device)
    projected = filters.shape[1] * channels
    expect(op, "weight", weight, ["C_out", projected, "k", "k"], FLOATS, features.device)
    if weight.shape[2] != weight.shape[3] or weight.shape[2] % 2 == 0:
        raise RuntimeError(
            f"{op}: expected weight [C_out, {projected}, k, k] with odd k, got {list(weight.shape)}"
        )
    if bias is not None:
        expect(op, "bias", bias, [weight.shape[0]], FLOATS, features.device)
    if residual and weight.shape[0] != channels:
        raise RuntimeError(
            f"{op}: expected {channels} output channels to add the residual to, "
            f"got {weight.shape[0]}"
        )


define(
    "semantic_recombination",
    "(Tensor features, Tensor filters, Tensor weight, Tensor? bias, bool residual) -> Tensor",
)
define(
    "_semantic_recombination_backward",
    "(Tensor grad, Tensor features, Tensor filters, Tensor weight, bool residual) "
    "-> (Tensor grad_features, Tensor grad_filters, Tensor grad_weight, Tensor grad_bias)",
)


def _output_shape(features, weight):
    shape = list(features.shape)
    shape[-3] = weight.shape[0]
    return shape


@torch.library.register_fake("avskernels::semantic_recombination")
def _fake(features, filters, weight, bias, residual):
    _check(features, filters, weight, bias, residual)
    return features.new_empty(_output_shape(features, weight))


@torch.library.register_fake("avskernels::_semantic_recombination_backward")
def _backward_fake(grad, features, filters, weight, residual):
    return (
        features.new_empty(features.shape),
        filters.new_empty(filters.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[:1]),
    )


def _setup_context(ctx, inputs, output):
    features, filters, weight, bias, ctx.residual = inputs
    ctx.save_for_backward(features, filters, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx, grad):
    grads = torch.ops.avskernels._semantic_recombination_backward.default(
        grad, *ctx.saved_tensors, ctx.residual
    )
    grad_bias = None if ctx.bias_dtype is None else grads[3].to(ctx.bias_dtype)
    return *grads[:3], grad_bias, None


torch.library.register_autograd(
    "avskernels::semantic_recombination", _backward, setup_context=_setup_context
)


def _fold(features, filters, weight):
    """Return the projection of each sample, [B, C_out, C, k, k], in the precision of sums."""
    dtype = accumulate_dtype(features.dtype)
    taps = weight.to(dtype).unflatten(1, filters.shape[1:]).unbind(1)  # N of [C_out, C, k, k]
    scales = filters.to(dtype)[:, :, None, :, None, None].unbind(1)  # N of [B, 1, C, 1, 1]
    # Token by token: torch's einsum would make C products of C_out x N and N x B matrices of it,
    # and take ten times as long.
    shape = (len(filters), len(weight), filters.shape[2], *weight.shape[2:])
    folded = weight.new_zeros(shape, dtype=dtype)
    for tap, scale in zip(taps, scales, strict=True):
        folded.addcmul_(tap, scale)
    return folded


def _fold_backward(grad_folded, filters, weight):
    """Return the gradients of filters and weight from that of the projections."""
    taps = weight.to(grad_folded.dtype).unflatten(1, filters.shape[1:]).unbind(1)
    scales = filters.to(grad_folded.dtype)[:, :, None, :, None, None].unbind(1)
    grad_filters = grad_folded.new_empty(filters.shape)
    grad_weight = grad_folded.new_empty(len(weight), *filters.shape[1:], *weight.shape[2:])
    for n, (tap, scale) in enumerate(zip(taps, scales, strict=True)):
        torch.sum(grad_folded * tap, (1, 3, 4), out=grad_filters[:, n])
        torch.sum(grad_folded * scale, 0, out=grad_weight[:, n])
    return grad_filters, grad_weight.flatten(1, 2)


def _by_frame(tensor, samples):
    """Shape [B, C, H, W] or [B, T, C, H, W] as [B, T, C, H, W]."""
    return tensor.reshape(samples, math.prod(tensor.shape[1:-3]), *tensor.shape[-3:])


def _product_algebra(matrices, frames, bias, residual):
    product = torch.matmul(matrices.to(frames.dtype).unsqueeze(1), frames)
    if bias is not None:
        product.add_(bias.to(frames.dtype).unsqueeze(1))
    return product.add_(frames) if residual else product


def _recombine(
    features,
    filters,
    weight,
    bias,
    residual,
    product=torch.ops.avskernels._semantic_recombination_product.default,
):
    _check(features, filters, weight, bias, residual)
    folded = _fold(features, filters, weight)
    bias = None if bias is None else bias.to(folded.dtype)
    shape = _output_shape(features, weight)
    if 0 in features.shape:
        return features.new_zeros(shape)
    frames = _by_frame(features, len(filters))
    if weight.shape[2] == 1:
        return product(folded[..., 0, 0], frames.flatten(3), bias, residual).view(shape)
    mixed = features.new_empty(shape)
    kernels = _convolutions(folded, features.dtype, residual)
    shift = None if bias is None else bias.to(features.dtype)
    for sample, kernel, result in zip(frames, kernels, _by_frame(mixed, len(filters)), strict=True):
        result.copy_(functional.conv2d(sample, kernel, shift, padding=kernel.shape[-1] // 2))
    return mixed


def _convolutions(folded, dtype, residual):
    """Return the projections with the residual's identity in their centre."""
    if residual:
        centre = folded.shape[-1] // 2
        folded[..., centre, centre].diagonal(dim1=1, dim2=2).add_(1)
    return folded.to(dtype)


def _algebra(features, filters, weight, bias, residual):
    return _recombine(features, filters, weight, bias, residual, _product_algebra)


def _recombine_backward(grad, features, filters, weight, residual):
    samples = len(filters)
    folded = _fold(features, filters, weight)
    grad_features = features.new_empty(features.shape)
    grad_folded = torch.zeros_like(folded)
    frames, grads = (_by_frame(tensor, samples) for tensor in (features, grad))
    if features.numel() == 0:
        pass
    elif weight.shape[2] == 1:
        grad_features = torch.ops.avskernels._semantic_recombination_product.default(
            folded[..., 0, 0].mT, grads.flatten(3), None, residual
        ).view(features.shape)
        products = torch.matmul(grads.flatten(3), frames.flatten(3).mT)
        torch.sum(products, 1, dtype=folded.dtype, out=grad_folded[..., 0, 0])
    else:
        padding = weight.shape[2] // 2
        out = _by_frame(grad_features, samples)
        for b, kernel in enumerate(_convolutions(folded, features.dtype, residual)):
            out[b] = torch.nn.grad.conv2d_input(frames[b].shape, kernel, grads[b], padding=padding)
            grad_folded[b] = torch.nn.grad.conv2d_weight(
                frames[b], kernel.shape, grads[b], padding=padding
            )
    grad_filters, grad_weight = _fold_backward(grad_folded, filters, weight)
    grad_bias = grad.sum([d for d in range(grad.dim()) if d != grad.dim() - 3], dtype=folded.dtype)
    return (
        grad_features,
        grad_filters.to(filters.dtype),
        grad_weight.to(weight.dtype),
        grad_bias.to(weight.dtype),
    )


register_fallback("_semantic_recombination_product", _product_algebra)
register_fallback("semantic_recombination", _recombine, "CPU", "CUDA")
register_fallback("_semantic_recombination_backward", _recombine_backward)
