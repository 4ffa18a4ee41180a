# SPDX-License-Identifier: Apache-2.0
"""Vector quantization as VQ-VAE codes write it: all distances, argmin, lookup, straight-through."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class VectorQuantized(NamedTuple):
    """Result of :func:`vector_quantize`: ``quantized``, ``indices`` and ``loss``."""

    quantized: Tensor
    indices: Tensor
    loss: Tensor


def nearest_codeword(x: Tensor, codebook: Tensor, *, metric: str = "l2") -> tuple[Tensor, Tensor]:
    """Return the index and squared distance of each row's nearest codeword."""
    x, codebook = x.detach(), codebook.detach()
    if metric == "cosine":
        x, codebook = functional.normalize(x, dim=-1), functional.normalize(codebook, dim=-1)
    grouped = codebook.dim() == 3
    columns = x.movedim(-2, 0) if grouped else x.unsqueeze(0)  # [G, ..., D]
    books = codebook if grouped else codebook.unsqueeze(0)  # [G, K, D]
    rows = columns.flatten(1, -2) if columns.dim() > 2 else columns.unsqueeze(1)  # [G, M, D]
    wide = torch.promote_types(x.dtype, torch.float32)  # half precision would merge codewords
    distances = torch.cdist(rows.to(wide), books.to(wide)).square()  # [G, M, K]
    squared_distance, indices = distances.nan_to_num(nan=torch.inf).min(-1)
    squared_distance = squared_distance.masked_fill(squared_distance.isinf(), torch.nan)
    shape = columns.shape[:-1]
    indices, squared_distance = indices.view(shape), squared_distance.view(shape)
    if grouped:
        return indices.movedim(0, -1), squared_distance.movedim(0, -1)
    return indices[0], squared_distance[0]


def vector_quantize(
    x: Tensor,
    codebook: Tensor,
    *,
    commitment_weight: float = 0.25,
    codebook_weight: float = 1.0,
    reduction: str = "mean",
    metric: str = "l2",
) -> VectorQuantized:
    """Return quantized rows (straight-through), indices and the quantization loss."""
    if metric == "cosine":
        x, codebook = functional.normalize(x, dim=-1), functional.normalize(codebook, dim=-1)
    indices, _ = nearest_codeword(x, codebook)
    if codebook.dim() == 3:
        group = torch.arange(codebook.shape[0], device=x.device)
        chosen = codebook[group, indices]
    else:
        chosen = codebook[indices]
    valid = x.detach().isfinite().all(-1, keepdim=True)
    error = (chosen - x.detach()).square() * codebook_weight
    error = error + (x - chosen.detach()).square() * commitment_weight
    error = torch.where(valid, error, torch.nan)
    loss = {
        "mean": lambda: error.mean(),
        "sum": lambda: error.sum(),
        "none": lambda: error.sum(-1),
    }[reduction]()
    return VectorQuantized(x + (chosen - x).detach(), indices, loss)
