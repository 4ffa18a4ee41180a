# SPDX-License-Identifier: Apache-2.0
"""Recombination in plain torch: the matrices that the tokens fold into, and the pass over the map.

``a`` holds the operator's arguments, and what earlier steps returned.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from avskernels.core.composite import Known
from avskernels.core.specification import accumulate_dtype


def fold(a: Known) -> dict[str, Tensor | None]:
    """Return the projection of each sample, [B, C_out, C, k, k], and the bias, as sums are."""
    dtype = accumulate_dtype(a.features.dtype)
    taps = a.weight.to(dtype).unflatten(1, a.filters.shape[1:]).unbind(1)  # N of [C_out, C, k, k]
    scales = a.filters.to(dtype)[:, :, None, :, None, None].unbind(1)  # N of [B, 1, C, 1, 1]
    # Token by token: torch's einsum would make C products of C_out x N and N x B matrices of it,
    # and take ten times as long.
    shape = (len(a.filters), len(a.weight), a.filters.shape[2], *a.weight.shape[2:])
    matrices = a.weight.new_zeros(shape, dtype=dtype)
    for tap, scale in zip(taps, scales, strict=True):
        matrices.addcmul_(tap, scale)
    return {"matrices": matrices, "shift": None if a.bias is None else a.bias.to(dtype)}


def by_frame(tensor: Tensor, samples: int) -> Tensor:
    """Shape [B, C, H, W] or [B, T, C, H, W] as [B, T, C, H, W]."""
    return tensor.reshape(samples, math.prod(tensor.shape[1:-3]), *tensor.shape[-3:])


def output_shape(features: Tensor, weight: Tensor) -> list[int]:
    """Return the features' shape with the output channels."""
    shape = list(features.shape)
    shape[-3] = weight.shape[0]
    return shape


def product(matrices: Tensor, features: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    """Multiply the pixels [B, T, C, P] of each sample by its matrix."""
    product = torch.matmul(matrices.to(features.dtype).unsqueeze(1), features)
    if bias is not None:
        product.add_(bias.to(features.dtype).unsqueeze(1))
    return product.add_(features) if residual else product


def _convolutions(matrices: Tensor, dtype: torch.dtype, residual: bool) -> Tensor:
    """Return the projections with the residual's identity in their centre."""
    matrices = matrices.clone()
    if residual:
        centre = matrices.shape[-1] // 2
        matrices[..., centre, centre].diagonal(dim1=1, dim2=2).add_(1)
    return matrices.to(dtype)


def multiply_or_convolve(a: Known) -> dict[str, Tensor]:
    """Apply each sample's projection to its frames."""
    frames, size = by_frame(a.features, len(a.filters)), a.weight.shape[-1]
    shape = output_shape(a.features, a.weight)
    if size == 1:
        pixels = product(a.matrices[..., 0, 0], frames.flatten(3), a.shift, a.residual)
        return {"mixed": pixels.view(shape)}
    if a.features.numel() == 0:  # torch has no convolution of an empty map
        return {"mixed": a.features.new_zeros(shape)}
    mixed = a.features.new_empty(shape)
    kernels = _convolutions(a.matrices, a.features.dtype, a.residual)
    shift = None if a.shift is None else a.shift.to(a.features.dtype)
    results = by_frame(mixed, len(a.filters))
    for sample, kernel, result in zip(frames, kernels, results, strict=True):
        result.copy_(functional.conv2d(sample, kernel, shift, padding=size // 2))
    return {"mixed": mixed}


def matrices_backward(grad_mixed: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of 1 x 1 matrices, [B, C_out, C, 1, 1], and of the shift, [C_out]."""
    dtype, samples = accumulate_dtype(features.dtype), len(features)
    frames, grads = (by_frame(x, samples).flatten(3) for x in (features, grad_mixed))
    grad_matrices = torch.matmul(grads, frames.mT).sum(1, dtype=dtype)
    return grad_matrices[..., None, None], _shift_backward(grad_mixed, dtype)


def _shift_backward(grad_mixed: Tensor, dtype: torch.dtype) -> Tensor:
    channel = grad_mixed.dim() - 3
    return grad_mixed.sum([d for d in range(grad_mixed.dim()) if d != channel], dtype=dtype)


def backward(
    grad_mixed: Tensor, features: Tensor, matrices: Tensor, residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the features, of the matrices and of the shift."""
    samples, size = len(matrices), matrices.shape[-1]
    if size == 1:
        grads = by_frame(grad_mixed, samples).flatten(3)
        grad_features = product(matrices[..., 0, 0].mT, grads, None, residual)
        return grad_features.view(features.shape), *matrices_backward(grad_mixed, features)
    grad_features = features.new_zeros(features.shape)
    grad_matrices = torch.zeros_like(matrices)
    frames, grads, results = (by_frame(x, samples) for x in (features, grad_mixed, grad_features))
    if features.numel() > 0:
        kernels = _convolutions(matrices, features.dtype, residual)
        for b, kernel in enumerate(kernels):
            shape, padding = frames[b].shape, size // 2
            results[b] = conv2d_input(shape, kernel, grads[b], padding=padding)
            grad_matrices[b] = conv2d_weight(frames[b], kernel.shape, grads[b], padding=padding)
    return grad_features, grad_matrices, _shift_backward(grad_mixed, matrices.dtype)
