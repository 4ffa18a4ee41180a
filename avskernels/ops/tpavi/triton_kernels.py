# SPDX-License-Identifier: Apache-2.0
"""The kernels of TPAVI's passes over the map, and of their gradients."""

import triton
import triton.language as tl

from avskernels.core.low_rank_triton import load_matrix


# computes: key . x + offset of PIXELS pixels of one frame, and the sum of these pixels
# grid: clips x frames x blocks of pixels
# traffic and FLOPs: the map once; (2 ROWS + 1) C per pixel
# numerics: float32, products as three of TF32
# limits: at most BLOCK_R rows
@triton.jit
def scores_kernel(
    visual,  # [B, C, T, P]
    keys,  # [B, R, C]
    offsets,  # [B, R] or None
    scores,  # [B, R, T * P]
    sums,  # [B, T, blocks, C]
    channels,
    frames,
    pixels,
    rows,
    blocks,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute the scores and one block of the sums."""
    clip = tl.program_id(0).to(tl.int64)
    frame = tl.program_id(1)
    block = tl.program_id(2)
    row = tl.arange(0, BLOCK_R)
    pixel = block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = pixel < pixels
    position = frame * pixels + pixel
    sums += ((clip * frames + frame) * blocks + block) * channels
    score = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for first in range(0, channels, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        key = load_matrix(keys + clip * rows * channels, row, channel, rows, channels)
        at = (clip * channels + channel[:, None]) * (frames * pixels) + position[None, :]
        x = tl.load(visual + at, mask=(channel < channels)[:, None] & inside[None, :], other=0)
        x = x.to(tl.float32)
        score = tl.dot(key, x, score, input_precision="tf32x3")
        tl.store(sums + channel, tl.sum(x, axis=1), mask=channel < channels)
    if offsets is not None:
        score += tl.load(offsets + clip * rows + row, mask=row < rows, other=0)[:, None]
    at = (clip * rows + row[:, None]) * (frames * pixels) + position[None, :]
    tl.store(scores + at, score, mask=(row < rows)[:, None] & inside[None, :])


# computes: x + values^T weights + shift for POSITIONS positions, normalised over the channels
# grid: clips x blocks of positions
# traffic and FLOPs: the map in and out; (2 ROWS + 8) C per position
# numerics: float32, products as three of TF32; the variance from centred values
# limits: at most BLOCK_R rows and BLOCK_C channels
@triton.jit
def fuse_kernel(
    visual,  # [B, C, P]
    weights,  # [B, R, P]
    values,  # [B, R, C]
    shift,  # [C]
    norm_weight,  # [C] or None
    norm_bias,  # [C] or None
    fused,  # [B, C, P]
    mean,  # [B, P]
    rstd,  # [B, P]
    eps,
    channels,
    positions,
    rows,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Fuse and normalise one block of positions."""
    clip = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)
    position = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = position < positions
    present = channel < channels
    real = present[:, None] & inside[None, :]
    value = tl.load(
        values + (clip * rows + row[None, :]) * channels + channel[:, None],
        mask=present[:, None] & (row < rows)[None, :],
        other=0,
    )
    weight = load_matrix(weights + clip * rows * positions, row, position, rows, positions)
    at = (clip * channels + channel[:, None]) * positions + position[None, :]
    mixed = tl.load(visual + at, mask=real, other=0).to(tl.float32)
    mixed += tl.dot(value, weight, input_precision="tf32x3")
    mixed += tl.load(shift + channel, mask=present, other=0)[:, None]
    if norm_weight is not None:
        average = tl.sum(mixed, axis=0) / channels
        mixed = tl.where(real, mixed - average[None, :], 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(mixed * mixed, axis=0) / channels + eps)
        mixed = mixed * inverse[None, :]
        mixed = mixed * tl.load(norm_weight + channel, mask=present, other=0)[:, None]
        mixed += tl.load(norm_bias + channel, mask=present, other=0)[:, None]
        tl.store(mean + clip * positions + position, average, mask=inside)
        tl.store(rstd + clip * positions + position, inverse, mask=inside)
    tl.store(fused + at, mixed.to(fused.dtype.element_ty), mask=real)


# computes: grad_x += keys^T grad_scores + grad_sums for one part of a frame, and the part's
#   grad_scores x^T
# grid: clips x frames x parts
# traffic and FLOPs: x read, grad_x read and written; 4 ROWS C per pixel
# numerics: float32, products as three of TF32
# limits: at most BLOCK_R rows and BLOCK_C channels
@triton.jit
def scores_backward_kernel(
    grad_visual,  # [B, C, T, P]
    visual,  # [B, C, T, P]
    keys,  # [B, R, C]
    grad_scores,  # [B, R, T * P]
    grad_sums,  # [B, T, C]
    grad_keys,  # [B, T, parts, R, C]
    channels,
    frames,
    pixels,
    rows,
    parts,
    part_size,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add to the map's gradient what goes through scores and sums."""
    clip = tl.program_id(0).to(tl.int64)
    frame = tl.program_id(1)
    part = tl.program_id(2)
    row = tl.arange(0, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)
    present = channel < channels
    real = (row < rows)[:, None] & present[None, :]
    key = load_matrix(keys + clip * rows * channels, row, channel, rows, channels)
    through_sum = tl.load(
        grad_sums + (clip * frames + frame) * channels + channel, mask=present, other=0
    )
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in range(part * part_size, tl.minimum((part + 1) * part_size, pixels), BLOCK_N):
        pixel = first + tl.arange(0, BLOCK_N)
        inside = pixel < pixels
        position = frame * pixels + pixel
        loaded = present[:, None] & inside[None, :]
        at = (clip * channels + channel[:, None]) * (frames * pixels) + position[None, :]
        x = tl.load(visual + at, mask=loaded, other=0).to(tl.float32)
        grad_score = tl.load(
            grad_scores + (clip * rows + row[:, None]) * (frames * pixels) + position[None, :],
            mask=(row < rows)[:, None] & inside[None, :],
            other=0,
        )
        grad_x = tl.load(grad_visual + at, mask=loaded, other=0).to(tl.float32)
        grad_x += through_sum[:, None]
        grad_x = tl.dot(tl.trans(key), grad_score, grad_x, input_precision="tf32x3")
        tl.store(grad_visual + at, grad_x.to(grad_visual.dtype.element_ty), mask=loaded)
        total = tl.dot(grad_score, tl.trans(x), total, input_precision="tf32x3")
    out = ((clip * frames + frame) * parts + part) * rows + row[:, None]
    tl.store(grad_keys + out * channels + channel[None, :], total, mask=real)


# computes: for one part of a clip, the gradients of the fusion: of the map as far as it passes the
#   addition, of the weights, and the part's sums for values, shift, norm_weight and norm_bias
# grid: clips x parts
# traffic and FLOPs: x and grad read, the map's gradient written; (6 ROWS + 20) C per position
# numerics: float32, products as three of TF32
# limits: at most BLOCK_R rows and BLOCK_C channels
@triton.jit
def fuse_backward_kernel(
    grad,  # [B, C, P]
    visual,  # [B, C, P]
    weights,  # [B, R, P]
    values,  # [B, R, C]
    shift,  # [C]
    norm_weight,  # [C] or None
    mean,  # [B, P]
    rstd,  # [B, P]
    grad_visual,  # [B, C, P]
    grad_weights,  # [B, R, P]
    grad_values,  # [B, parts, R, C]
    grad_channels,  # [B, parts, 3, C]: of shift, norm_weight and norm_bias
    channels,
    positions,
    rows,
    parts,
    part_size,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Differentiate the fusion of one part of a clip."""
    clip = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = tl.arange(0, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)
    present = channel < channels
    real = (row < rows)[:, None] & present[None, :]
    value = load_matrix(values + clip * rows * channels, row, channel, rows, channels)
    start = tl.load(shift + channel, mask=present, other=0)
    value_sum = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    shift_sum = tl.zeros([BLOCK_C], tl.float32)
    product_sum = tl.zeros([BLOCK_C], tl.float32)
    arriving_sum = tl.zeros([BLOCK_C], tl.float32)
    for first in range(part * part_size, tl.minimum((part + 1) * part_size, positions), BLOCK_N):
        position = first + tl.arange(0, BLOCK_N)
        inside = position < positions
        loaded = present[:, None] & inside[None, :]
        at = (clip * channels + channel[:, None]) * positions + position[None, :]
        weight = load_matrix(weights + clip * rows * positions, row, position, rows, positions)
        passing = tl.load(grad + at, mask=loaded, other=0).to(tl.float32)
        if norm_weight is not None:
            average = tl.load(mean + clip * positions + position, mask=inside, other=0)
            inverse = tl.load(rstd + clip * positions + position, mask=inside, other=0)
            unit = tl.load(visual + at, mask=loaded, other=0).to(tl.float32) + start[:, None]
            unit += tl.dot(tl.trans(value), weight, input_precision="tf32x3")
            unit = tl.where(loaded, (unit - average[None, :]) * inverse[None, :], 0.0)
            product_sum += tl.sum(passing * unit, axis=1)
            arriving_sum += tl.sum(passing, axis=1)
            passing = passing * tl.load(norm_weight + channel, mask=present, other=0)[:, None]
            along = tl.sum(passing * unit, axis=0) / channels
            plain = tl.sum(passing, axis=0) / channels
            passing = (passing - plain[None, :] - unit * along[None, :]) * inverse[None, :]
        tl.store(grad_visual + at, passing.to(grad_visual.dtype.element_ty), mask=loaded)
        value_sum = tl.dot(weight, tl.trans(passing), value_sum, input_precision="tf32x3")
        shift_sum += tl.sum(passing, axis=1)
        # A product over all channels would keep whole operands in registers.
        for r in range(rows):
            one = tl.load(values + (clip * rows + r) * channels + channel, mask=present, other=0)
            through = tl.sum(one[:, None] * passing, axis=0)
            tl.store(grad_weights + (clip * rows + r) * positions + position, through, mask=inside)
    out = clip * parts + part
    at = (out * rows + row[:, None]) * channels + channel[None, :]
    tl.store(grad_values + at, value_sum, mask=real)
    at = out * 3 * channels + channel
    tl.store(grad_channels + at, shift_sum, mask=present)
    tl.store(grad_channels + at + channels, product_sum, mask=present)
    tl.store(grad_channels + at + 2 * channels, arriving_sum, mask=present)
