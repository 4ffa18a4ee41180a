# SPDX-License-Identifier: Apache-2.0
"""Recombination in plain torch: the matrices that the tokens fold into, and the pass over the map.

``a`` holds the operator's arguments, and what earlier steps returned.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from avskernels.core.composite import Known
from avskernels.core.specification import accumulate_dtype


def _fold(filters: Tensor, weight: Tensor) -> Tensor:
    """Return the projection of each sample, [B, C_out, C, k, k]."""
    taps = weight.unflatten(1, filters.shape[1:]).unbind(1)  # N of [C_out, C, k, k]
    scales = filters[:, :, None, :, None, None].unbind(1)  # N of [B, 1, C, 1, 1]
    # Token by token: torch's einsum would make C products of C_out x N and N x B matrices of it,
    # and take ten times as long.
    matrices = weight.new_zeros(len(filters), len(weight), filters.shape[2], *weight.shape[2:])
    for tap, scale in zip(taps, scales, strict=True):
        matrices.addcmul_(tap, scale)
    return matrices


def fold(a: Known) -> dict[str, Tensor]:
    """Return the matrices ``[B, C_out, C]`` of a 1 x 1 projection."""
    return {"matrices": _fold(a.filters, a.weight)[..., 0, 0]}


def by_frame(tensor: Tensor, samples: int) -> Tensor:
    """Shape [B, C, H, W] or [B, T, C, H, W] as [B, T, C, H, W]."""
    return tensor.reshape(samples, math.prod(tensor.shape[1:-3]), *tensor.shape[-3:])


def _output_shape(a: Any) -> list[int]:
    shape = list(a.features.shape)
    shape[-3] = a.weight.shape[0]
    return shape


def product(matrices: Tensor, features: Tensor, residual: bool) -> Tensor:
    """Multiply the pixels [B, T, C, P] of each sample by its matrix."""
    product = torch.matmul(matrices.to(features.dtype).unsqueeze(1), features)
    return product.add_(features) if residual else product


def multiply(a: Known) -> dict[str, Tensor]:
    """Apply each sample's matrix to its frames."""
    frames = by_frame(a.features, len(a.filters)).flatten(3)
    mixed = product(a.matrices, frames, a.residual)
    if a.bias is not None:
        mixed.add_(a.bias.to(mixed.dtype).unsqueeze(1))
    return {"mixed": mixed.view(_output_shape(a))}


def multiply_backward(a: Known) -> dict[str, Tensor]:
    """Return the gradients of the matrices and of the bias."""
    dtype, samples = accumulate_dtype(a.features.dtype), len(a.features)
    frames, grads = (by_frame(x, samples).flatten(3) for x in (a.features, a.grad_mixed))
    return {
        "grad_matrices": torch.matmul(grads, frames.mT).sum(1, dtype=dtype),
        "grad_bias": grads.sum((0, 1, 3), dtype=dtype),
    }


def convolve(a: Any) -> Tensor:
    """Do the whole operator with a k x k projection, differentiable by autograd."""
    matrices, dtype = _fold(a.filters, a.weight), a.features.dtype
    around = a.weight.shape[-1] // 2
    if a.residual:
        identity = torch.eye(a.features.shape[-3], dtype=matrices.dtype, device=matrices.device)
        matrices = matrices + functional.pad(identity[:, :, None, None], [around] * 4)
    bias = None if a.bias is None else a.bias.to(dtype)
    if a.features.numel() == 0:  # torch has no convolution of an empty map
        nothing = a.features.sum() + matrices.flatten()[:0].sum().to(dtype)
        start = nothing if bias is None else nothing + bias[:, None, None]
        return start.expand(_output_shape(a)).clone()
    frames = by_frame(a.features, len(a.filters))
    mixed = [
        functional.conv2d(sample, kernel, bias, padding=around)
        for sample, kernel in zip(frames, matrices.to(dtype), strict=True)
    ]
    return torch.stack(mixed).view(_output_shape(a))
