# SPDX-License-Identifier: Apache-2.0
"""Attention pooling, one read of the map each way: an online softmax in each program."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from avskernels.core.low_rank_triton import load_matrix, row_products, split
from avskernels.core.triton import device_of
from avskernels.ops.attention_pool.plain import logit_shift

PIXELS = 32  # of one step
ROWS = 16  # the least that a matrix product takes
STEP = 64  # channels of a step of the logits


# computes: the largest logit, the sum of exponentials (or of weights) and the weighted sum of
#   pixels, for up to ROWS rows over one part of an image
# grid: images x groups of rows x parts
# traffic and FLOPs: the map once a group of rows, and once more from cache; 4 ROWS C a pixel
# numerics: float32, products as three of TF32
# limits: C at most BLOCK_C
@triton.jit
def _pool_kernel(
    features,  # [B, C, N]
    queries,  # [B, h, C], scaled
    mask,  # [B, N] or None
    maximum,  # [B, parts, h]
    total,  # [B, parts, h]
    sums,  # [B, parts, h, C]
    channels,
    pixels,
    rows,
    parts,
    part_size,
    SOFTMAX: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEP: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    part = tl.program_id(2)
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)
    real = (row < rows)[:, None] & (channel < channels)[None, :]
    queries += image * rows * channels
    features += image * channels * pixels
    most = tl.full([BLOCK_R], float("-inf"), tl.float32)
    weight_sum = tl.zeros([BLOCK_R], tl.float32)
    pooled = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in range(part * part_size, tl.minimum((part + 1) * part_size, pixels), BLOCK_N):
        pixel = first + tl.arange(0, BLOCK_N)
        inside = pixel < pixels
        weights = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
        weights = row_products(queries, features, row, pixel, rows, channels, pixels, weights, STEP)
        if mask is not None:
            inside = inside & (tl.load(mask + image * pixels + pixel, mask=inside, other=0) != 0)
        if SOFTMAX:
            weights = tl.where(inside[None, :], weights, float("-inf"))
            new_most = tl.maximum(most, tl.max(weights, axis=1))
            base = tl.where(new_most == float("-inf"), 0.0, new_most)
            decay = tl.exp(most - base)
            weights = tl.exp(weights - base[:, None])
            weight_sum = weight_sum * decay
            pooled = pooled * decay[:, None]
            most = new_most
        else:
            weights = tl.where(inside[None, :], weights, 0.0)
        weight_sum += tl.sum(weights, axis=1)
        x = load_matrix(features, channel, pixel, channels, pixels).to(tl.float32)
        pooled = tl.dot(weights, tl.trans(x), pooled, input_precision="tf32x3")
    out = (image * parts + part) * rows + row
    tl.store(maximum + out, most, mask=row < rows)
    tl.store(total + out, weight_sum, mask=row < rows)
    tl.store(sums + out[:, None] * channels + channel[None, :], pooled, mask=real)


def forward(
    features: Tensor, queries: Tensor, mask: Tensor | None, scale: float, softmax: bool
) -> tuple[Tensor, Tensor]:
    """Launch one program per image, group of rows and part; merge the parts in their order."""
    batch, channels = features.shape[:2]
    rows, pixels = queries.shape[1], features[0, 0].numel()
    groups = triton.cdiv(rows, ROWS)
    parts, part_size = split(pixels, PIXELS, batch * groups)
    maximum, total = queries.new_empty(2, batch, parts, rows)
    sums = queries.new_empty(batch, parts, rows, channels)
    with device_of(features):
        _pool_kernel[(batch, groups, parts)](
            features.contiguous(),
            (scale * queries).contiguous(),
            None if mask is None else mask.contiguous().view(torch.uint8),
            maximum,
            total,
            sums,
            channels,
            pixels,
            rows,
            parts,
            part_size,
            SOFTMAX=softmax,
            BLOCK_C=max(16, triton.next_power_of_2(channels)),
            BLOCK_R=ROWS,
            BLOCK_N=PIXELS,
            STEP=STEP,
            num_warps=8,
        )
    if not softmax:
        return sums.sum(1), total.sum(1)
    most = maximum.amax(1)
    base = most.masked_fill(most.isneginf(), 0.0)
    factors = (maximum - base.unsqueeze(1)).exp()
    total = (factors * total).sum(1)
    pooled = (factors.unsqueeze(3) * sums).sum(1)
    pooled /= total.masked_fill(total == 0, 1.0).unsqueeze(2)
    return pooled, base + total.log()


# computes: the gradient of x, scale source + sum_h weight_h grad_h + grad_logit_h q_h with
#   grad_logit = weight (grad_h . x - shift_h), or grad_h . x - shift_h without softmax; for one
#   part of an image the sums of grad_logit x^T and of grad_logit
# grid: images x parts
# traffic and FLOPs: the map (and source) in, the gradient out; 10 BLOCK_R C a pixel
# numerics: float32 throughout, no TF32; the weights are computed again from the normalizer
# limits: at most BLOCK_R rows and BLOCK_C channels
@triton.jit
def _pool_backward_kernel(
    features,  # [B, C, N]
    queries,  # [B, h, C], scaled
    offsets,  # [B, h] or None: what the logits start at
    mask,  # [B, N] or None
    grads,  # [B, h, C], of the pooled rows
    normalizer,  # [B, h]
    shift,  # [B, h]
    source,  # [B, C, N] or None
    scale,  # [B, C], of the source
    grad_features,  # [B, C, N]
    grad_queries,  # [B, parts, h, C]
    grad_offsets,  # [B, parts, h]
    channels,
    pixels,
    rows,
    parts,
    part_size,
    SOFTMAX: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEP: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = tl.arange(0, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)
    present = channel < channels
    real = (row < rows)[:, None] & present[None, :]
    queries += image * rows * channels
    grads += image * rows * channels
    features += image * channels * pixels
    query = load_matrix(queries, row, channel, rows, channels)
    grad = load_matrix(grads, row, channel, rows, channels)
    of_row = image * rows + row
    subtract = tl.load(shift + of_row, mask=row < rows, other=0)
    start = tl.zeros([BLOCK_R], tl.float32)
    if offsets is not None:
        start = tl.load(offsets + of_row, mask=row < rows, other=0)
    base = tl.zeros([BLOCK_R], tl.float32)
    if SOFTMAX:
        base = tl.load(normalizer + of_row, mask=row < rows, other=0)
        base = tl.where(base == float("-inf"), 0.0, base)
    query_sum = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    offset_sum = tl.zeros([BLOCK_R], tl.float32)
    for first in range(part * part_size, tl.minimum((part + 1) * part_size, pixels), BLOCK_N):
        pixel = first + tl.arange(0, BLOCK_N)
        inside = pixel < pixels
        weight = tl.zeros([BLOCK_R, BLOCK_N], tl.float32) + start[:, None]
        weight = row_products(queries, features, row, pixel, rows, channels, pixels, weight, STEP)
        grad_logit = tl.zeros([BLOCK_R, BLOCK_N], tl.float32) - subtract[:, None]
        grad_logit = row_products(
            grads, features, row, pixel, rows, channels, pixels, grad_logit, STEP
        )
        counted = inside
        if mask is not None:
            counted = inside & (tl.load(mask + image * pixels + pixel, mask=inside, other=0) != 0)
        counted = counted[None, :] & (row < rows)[:, None]
        if SOFTMAX:
            weight = tl.where(counted, tl.exp(weight - base[:, None]), 0.0)
            grad_logit = weight * grad_logit
        else:
            weight = tl.where(counted, weight, 0.0)
            grad_logit = tl.where(counted, grad_logit, 0.0)
        grad_x = tl.dot(tl.trans(grad), weight, input_precision="tf32x3")
        grad_x = tl.dot(tl.trans(query), grad_logit, grad_x, input_precision="tf32x3")
        at = (image * channels + channel[:, None]) * pixels + pixel[None, :]
        loaded = present[:, None] & inside[None, :]
        if source is not None:
            factor = tl.load(scale + image * channels + channel, mask=present, other=0)
            grad_x += factor[:, None] * tl.load(source + at, mask=loaded, other=0).to(tl.float32)
        tl.store(grad_features + at, grad_x.to(grad_features.dtype.element_ty), mask=loaded)
        x = load_matrix(features, channel, pixel, channels, pixels).to(tl.float32)
        query_sum = tl.dot(grad_logit, tl.trans(x), query_sum, input_precision="tf32x3")
        offset_sum += tl.sum(grad_logit, axis=1)
    out = (image * parts + part) * rows + row
    tl.store(grad_queries + out[:, None] * channels + channel[None, :], query_sum, mask=real)
    tl.store(grad_offsets + out, offset_sum, mask=row < rows)


def pool_backward(
    features: Tensor,
    queries: Tensor,
    offsets: Tensor | None,
    mask: Tensor | None,
    grads: Tensor,
    normalizer: Tensor,
    shift: Tensor,
    softmax: bool,
    gated: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch one program per image and part; add the parts in their order.

    ``queries`` hold the scale; ``gated`` is None or a pair (source, scale). Returns the gradients
    of the features, of the queries and of the offsets.
    """
    batch, rows, channels = queries.shape
    pixels = features[0, 0].numel() if batch else 0
    parts, part_size = split(pixels, PIXELS, batch)
    grad_features = features.new_empty(features.shape)
    grad_queries = queries.new_empty(batch, parts, rows, channels)
    grad_offsets = queries.new_empty(batch, parts, rows)
    source, scale = (None, None) if gated is None else (tensor.contiguous() for tensor in gated)
    with device_of(features):
        _pool_backward_kernel[(batch, parts)](
            features.contiguous(),
            queries.contiguous(),
            None if offsets is None else offsets.contiguous(),
            None if mask is None else mask.contiguous().view(torch.uint8),
            grads.contiguous(),
            normalizer.contiguous(),
            shift.contiguous(),
            source,
            scale,
            grad_features,
            grad_queries,
            grad_offsets,
            channels,
            pixels,
            rows,
            parts,
            part_size,
            SOFTMAX=softmax,
            BLOCK_C=max(16, triton.next_power_of_2(channels)),
            BLOCK_R=ROWS,
            BLOCK_N=PIXELS,
            STEP=STEP,
            num_warps=8,
        )
    return grad_features, grad_queries.sum(1), grad_offsets.sum(1)


def backward(
    grad_pooled: Tensor,
    features: Tensor,
    queries: Tensor,
    mask: Tensor | None,
    pooled: Tensor,
    normalizer: Tensor,
    scale: float,
    softmax: bool,
) -> tuple[Tensor, Tensor]:
    """Launch the backward kernel."""
    shift = logit_shift(grad_pooled, pooled, None, softmax)
    grad_features, grad_queries, _ = pool_backward(
        features, scale * queries, None, mask, grad_pooled, normalizer, shift, softmax
    )
    return grad_features, scale * grad_queries
