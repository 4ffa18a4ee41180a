# SPDX-License-Identifier: Apache-2.0
"""Nearest codewords: screening in float16 with a certificate, exact measurement, full scans."""

import torch
import triton
from torch import Tensor

from avskernels.core.triton import device_of
from avskernels.ops.vector_quantize.plain import reduced
from avskernels.ops.vector_quantize.triton_kernels import scan_kernel, screen_kernel

BLOCK_ROWS = 64
BLOCK_CODEWORDS = 64
BLOCK_DIM = 64  # more dimensions are taken in parts of this size
SCAN_ROWS = 16  # rows that a program of the scan looks after
SMALL = 2**24  # M K D up to which a single launch, the scan, is all there is
ULP = 2.0**-20  # bounds the rounding of a few float32 operations
LARGEST_SQUARE = 1e30  # above, float32 scores could overflow


def _pack(codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre a ``codebook[G, K, D]``, round it to float16 and measure what that leaves out."""
    books = codebook.float()
    finite = books.isfinite().all(-1, keepdim=True)
    books = torch.where(finite, books, 0)
    centre = books.sum(1, keepdim=True) / finite.sum(1, keepdim=True).clamp(min=1)
    books = torch.where(finite, books - centre, 0)
    scale = books.abs().amax((1, 2), keepdim=True)
    scale = torch.where(scale > 1e-30, scale, 1)
    half = (books / scale).half()
    dim = codebook.shape[-1]
    square = books.square().sum(-1)
    norm = (square + dim * 1e-37).sqrt() * (1 + dim * ULP)
    residual = (books - half.float() * scale).norm(dim=-1) * (1 + dim * ULP)
    residual = residual + (ULP + dim * 2.0**-22) * norm  # tensor cores truncate sums
    terms = [
        torch.where(finite[..., 0], square, torch.inf),
        2 * norm,
        2 * residual,
        norm.square() * dim * ULP + dim * 1e-36,
    ]
    # Where squares could overflow, nothing is certified: the bound is infinite.
    terms[3] = torch.where(square < LARGEST_SQUARE, terms[3], torch.inf)
    return half, torch.stack(terms, dim=1), scale.flatten(), centre.squeeze(1)


def _strides(tensor: Tensor, grouped: bool) -> tuple[int, ...] | None:
    """Split the rows of ``tensor[..., (G,) D]`` in two: (inner size, outer, inner, group, D)."""
    *leading, last = tensor.stride()
    sizes = list(tensor.shape[:-1])
    group = leading.pop() if grouped else 0
    if grouped:
        sizes.pop()
    merged: list[list[int]] = []
    for size, stride in zip(reversed(sizes), reversed(leading), strict=True):  # innermost first
        if size == 1:
            continue
        if merged and stride == merged[-1][0] * merged[-1][1]:
            merged[-1][0] *= size
        else:
            merged.append([size, stride])
    if len(merged) > 2:
        return None
    (inner, inner_stride), (_, outer_stride) = (*merged, [1, 0], [1, 0])[:2]
    return inner, outer_stride, inner_stride, group, last


def _launch(x: Tensor, codebook: Tensor, quantized: Tensor | None) -> tuple[Tensor, Tensor]:
    """Fill ``quantized`` unless it is None; return indices and squared distances."""
    grouped = codebook.dim() == 3
    strides = _strides(x, grouped)
    target = None if quantized is None else _strides(quantized, grouped)
    if strides is None or (target is not None and target[0] != strides[0]):
        x = x.contiguous()
        strides = _strides(x, grouped)
    assert strides is not None  # the rows of a contiguous tensor are one run
    inner, *x_strides = strides
    q_strides = (target or strides)[1:]
    store = quantized is not None
    books = codebook.contiguous().view(-1, *codebook.shape[-2:])
    groups, codewords, dim = books.shape
    rows = x.numel() // (groups * dim)
    indices = x.new_empty(x.shape[:-1], dtype=torch.int64)
    precise = x.dtype == torch.float64
    distances = x.new_empty(x.shape[:-1], dtype=torch.float64 if precise else torch.float32)
    if rows == 0:
        return indices, distances
    layout = (rows, codewords, dim, inner, *x_strides, *q_strides)
    block_dim = min(max(triton.next_power_of_2(dim), 16), BLOCK_DIM)
    scan_all = precise or rows * codewords * dim <= SMALL
    with device_of(x):
        if not scan_all:
            screen_kernel[(triton.cdiv(rows, BLOCK_ROWS), groups)](
                x,
                books,
                *_pack(books),
                x if quantized is None else quantized,
                indices,
                distances,
                *layout,
                LARGEST_SQUARE,
                ULP,
                store,
                BLOCK_ROWS,
                BLOCK_CODEWORDS,
                block_dim,
                num_warps=8,
            )
        scan_rows = 1 if scan_all else SCAN_ROWS
        scan_kernel[(triton.cdiv(rows, scan_rows), groups)](
            x,
            books,
            x if quantized is None else quantized,
            indices,
            distances,
            *layout,
            store,
            scan_all,
            scan_rows,
            32,
            min(block_dim, 64),
        )
    return indices, distances


def nearest(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``avskernels::nearest_codeword``."""
    return _launch(x, codebook, None)


def forward(
    x: Tensor, codebook: Tensor, commitment_weight: float, codebook_weight: float, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``avskernels::vector_quantize``."""
    quantized = torch.empty_like(x)
    if _strides(quantized, codebook.dim() == 3) is None:
        quantized = x.new_empty(x.shape)
    indices, distances = _launch(x, codebook, quantized)
    loss = reduced(distances, commitment_weight + codebook_weight, x.numel(), reduction)
    return quantized, indices, loss
