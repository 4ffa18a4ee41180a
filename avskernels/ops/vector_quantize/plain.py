# SPDX-License-Identifier: Apache-2.0
"""Vector quantization in plain torch: one product per slice of rows for all distances."""

import torch
from torch import Tensor
from torch.nn import functional

from avskernels.core.specification import accumulate_dtype

SLICE = 2**22  # distances, or codeword indicators, that are in memory at a time


def in_metric(x: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Scale rows and codewords to unit length for ``"cosine"``: the nearest is that by angle."""
    if metric == "cosine":
        return functional.normalize(x, dim=-1), functional.normalize(codebook, dim=-1)
    return x, codebook


def flat_codes(codebook: Tensor, indices: Tensor) -> Tensor:
    """Number the codewords over all groups: ``[M * G]``."""
    if codebook.dim() == 3:
        groups, codewords, _ = codebook.shape
        indices = indices + torch.arange(groups, device=indices.device) * codewords
    return indices.flatten()


def _chosen(codebook: Tensor, indices: Tensor) -> Tensor:
    if codebook.dim() == 3:
        return codebook[torch.arange(codebook.shape[0], device=codebook.device), indices]
    return codebook[indices]


def reduced(distance: Tensor, weight: float, count: int, reduction: str) -> Tensor:
    """Return the loss from squared distances; ``count`` is the number of elements of x."""
    loss = distance * weight
    if reduction == "mean":
        loss = loss.sum() / count
    elif reduction == "sum":
        loss = loss.sum()
    return loss


def nearest(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``avskernels::nearest_codeword``.

    Screens with |c|^2 - 2 x.c in slices of bounded memory, then measures in difference form.
    """
    dtype = accumulate_dtype(x.dtype)
    books = codebook.to(dtype).view(-1, *codebook.shape[-2:])  # [G, K, D]
    groups, codewords, dim = books.shape
    centre = books.nan_to_num(0.0, 0.0, 0.0).mean(1, keepdim=True)  # [G, 1, D]
    books = books - centre
    bias = books.square().sum(-1).unsqueeze(1)  # [G, 1, K]
    bias = torch.where(bias.isfinite(), bias, torch.inf)
    books = books.nan_to_num(0.0, 0.0, 0.0)
    rows = x.reshape(-1, groups, dim)
    indices = torch.cat(
        [
            torch.baddbmm(bias, part.to(dtype).transpose(0, 1) - centre, books.mT, alpha=-2).argmin(
                -1
            )
            for part in rows.split(max(1, SLICE // (groups * codewords)))
        ],
        dim=1,
    ).T  # [M, G]
    indices = indices.reshape(x.shape[:-1])
    indices = torch.where(x.isfinite().all(-1), indices, 0)
    distance = (x.to(dtype) - _chosen(codebook, indices).to(dtype)).square().sum(-1)
    return indices, torch.where(distance.isfinite(), distance, torch.nan)


def forward(
    x: Tensor, codebook: Tensor, commitment_weight: float, codebook_weight: float, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``avskernels::vector_quantize``."""
    indices, distance = nearest(x, codebook)
    loss = reduced(distance, commitment_weight + codebook_weight, x.numel(), reduction)
    quantized = torch.empty_like(x).copy_(_chosen(codebook, indices))
    return quantized, indices, loss


def backward(
    grad_quantized: Tensor | None,
    grad_loss: Tensor,
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    commitment_weight: float,
    codebook_weight: float,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Compute ``avskernels::_vector_quantize_backward``."""
    grad_x = x.new_zeros(x.shape)
    if grad_quantized is not None:
        grad_x += grad_quantized
    grad_codebook = codebook.new_zeros(codebook.shape)
    scale = 2 * grad_loss / (x.numel() if reduction == "mean" else 1)
    dtype = accumulate_dtype(x.dtype)
    difference = (x.to(dtype) - _chosen(codebook, indices).to(dtype)) * scale.to(dtype).unsqueeze(
        -1
    )
    grad_x += (commitment_weight * difference).to(x.dtype)
    if codebook_weight != 0:
        total = codebook.new_zeros(codebook[..., 0].numel(), codebook.shape[-1], dtype=dtype)
        rows = max(1, SLICE // len(total))
        flat = flat_codes(codebook, indices).split(rows)
        # Products, because index_add_ is not deterministic on CUDA.
        for codewords, values in zip(flat, difference.flatten(0, -2).split(rows), strict=True):
            total += functional.one_hot(codewords, len(total)).to(dtype).T @ values
        grad_codebook = (-codebook_weight * total).view(codebook.shape).to(codebook.dtype)
    return grad_x, grad_codebook
