"""Attention pooling: one read of the map, an online softmax in each program."""

import torch
import triton
import triton.language as tl

from avskernels.attention_pool import _algebra, _check
from avskernels.triton import device_of

PIXELS = 32  # of one step
ROWS = 16  # the least that a matrix product takes
CHANNELS = 512  # at most: a program keeps a sum of pixels for each row and channel
STEP = 64  # channels of a step of the logits
PROGRAMS = 264  # enough for two a multiprocessor


@triton.jit
def _load_pixels(features, channel, pixel, channels, pixels):
    """Load ``[channel, pixel]`` as float32, zero where there are none."""
    at = channel[:, None].to(tl.int64) * pixels + pixel[None, :]
    mask = (channel < channels)[:, None] & (pixel < pixels)[None, :]
    return tl.load(features + at, mask=mask, other=0).to(tl.float32)


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
    queries += (image * rows + row[:, None]) * channels
    features += image * channels * pixels
    most = tl.full([BLOCK_R], float("-inf"), tl.float32)
    weight_sum = tl.zeros([BLOCK_R], tl.float32)
    pooled = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in range(part * part_size, tl.minimum((part + 1) * part_size, pixels), BLOCK_N):
        pixel = first + tl.arange(0, BLOCK_N)
        inside = pixel < pixels
        weights = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
        for start in range(0, channels, STEP):
            part_of = start + tl.arange(0, STEP)
            known = (row < rows)[:, None] & (part_of < channels)[None, :]
            query = tl.load(queries + part_of[None, :], mask=known, other=0)
            x = _load_pixels(features, part_of, pixel, channels, pixels)
            weights = tl.dot(query, x, weights, input_precision="tf32x3")
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
        x = _load_pixels(features, channel, pixel, channels, pixels)
        pooled = tl.dot(weights, tl.trans(x), pooled, input_precision="tf32x3")
    out = (image * parts + part) * rows + row
    tl.store(maximum + out, most, mask=row < rows)
    tl.store(total + out, weight_sum, mask=row < rows)
    tl.store(sums + out[:, None] * channels + channel[None, :], pooled, mask=real)


def attention_pool(features, queries, mask, scale, softmax):
    """Launch one program an image, group of rows and part; merge the parts in their order."""
    batch, channels = features.shape[:2]
    if features.dtype == torch.float64 or channels > CHANNELS or queries.numel() == 0:
        return _algebra(features, queries, mask, scale, softmax)
    _check(features, queries, mask)
    rows, pixels = queries.shape[1], features[0, 0].numel()
    groups = triton.cdiv(rows, ROWS)
    parts = max(1, min(triton.cdiv(pixels, 4 * PIXELS), triton.cdiv(PROGRAMS, batch * groups)))
    part_size = triton.cdiv(triton.cdiv(pixels, parts), PIXELS) * PIXELS
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
