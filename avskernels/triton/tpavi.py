"""The passes of TPAVI over the map, each way: scores and sums; fusion and normalisation."""

import torch
import triton
import triton.language as tl

from avskernels._tpavi_algebra import (
    fuse,
    fuse_backward,
    scores_and_sums,
    scores_and_sums_backward_,
)
from avskernels.triton import device_of
from avskernels.triton.attention_pool import split

POSITIONS = 32  # of one program of the fusion
BACKWARD = 16  # of one step of a backward pass
PIXELS = 64  # of one program of the scores
STEP = 64  # channels of a step of the scores
ROWS = 16  # the least that a matrix product takes; more frames run in plain torch
CHANNELS = 512  # of the fusion


# computes: key . x + offset of PIXELS pixels of one frame, and the sum of these pixels
# grid: clips x frames x blocks of pixels
# traffic and FLOPs: the map once; (2 ROWS + 1) C a pixel
# numerics: float32, products as three of TF32
# limits: at most BLOCK_R rows
@triton.jit
def _scores_kernel(
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
        real = (row < rows)[:, None] & (channel < channels)[None, :]
        at = (clip * rows + row[:, None]) * channels + channel[None, :]
        key = tl.load(keys + at, mask=real, other=0)
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
# traffic and FLOPs: the map in and out; (2 ROWS + 8) C a position
# numerics: float32, products as three of TF32; the variance from centred values
# limits: at most BLOCK_R rows and BLOCK_C channels
@triton.jit
def _fuse_kernel(
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
    weight = tl.load(
        weights + (clip * rows + row[:, None]) * positions + position[None, :],
        mask=(row < rows)[:, None] & inside[None, :],
        other=0,
    )
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


def _too_large(visual, rows):
    sizes = (visual.numel(), rows)
    return visual.dtype == torch.float64 or 0 in sizes or rows > ROWS or visual.shape[1] > CHANNELS


def _tpavi_scores(visual, keys, offsets):
    """Launch one program a clip, frame and block; add the blocks' sums in their order."""
    batch, channels, frames, height, width = visual.shape
    rows, pixels = keys.shape[1], height * width
    if _too_large(visual, rows):
        return scores_and_sums(visual, keys, offsets)
    blocks = triton.cdiv(pixels, PIXELS)
    scores = keys.new_empty(batch, rows, frames * pixels)
    sums = keys.new_empty(batch, frames, blocks, channels)
    with device_of(visual):
        _scores_kernel[(batch, frames, blocks)](
            visual.contiguous(),
            keys.contiguous(),
            None if offsets is None else offsets.contiguous(),
            scores,
            sums,
            channels,
            frames,
            pixels,
            rows,
            blocks,
            BLOCK_C=STEP,
            BLOCK_R=ROWS,
            BLOCK_N=PIXELS,
        )
    return scores, sums.sum(2)


def _tpavi_fuse(visual, weights, values, shift, norm_weight, norm_bias, norm_eps):
    """Launch one program a clip and block of positions."""
    batch, channels = visual.shape[:2]
    rows, positions = weights.shape[1:]
    if _too_large(visual, rows):
        return fuse(visual, weights, values, shift, norm_weight, norm_bias, norm_eps)
    fused = visual.new_empty(visual.shape)
    normalised = 0 if norm_weight is None else positions
    mean, rstd = shift.new_empty(batch, normalised), shift.new_empty(batch, normalised)
    with device_of(visual):
        _fuse_kernel[(batch, triton.cdiv(positions, POSITIONS))](
            visual.contiguous(),
            weights.contiguous(),
            values.contiguous(),
            shift.contiguous(),
            norm_weight,
            norm_bias,
            fused,
            mean,
            rstd,
            norm_eps,
            channels,
            positions,
            rows,
            BLOCK_C=max(16, triton.next_power_of_2(channels)),
            BLOCK_R=ROWS,
            BLOCK_N=POSITIONS,
            num_warps=8,
        )
    return fused, mean, rstd


# computes: grad_x += keys^T grad_scores + grad_sums for one part of a frame, and the part's
#   grad_scores x^T
# grid: clips x frames x parts
# traffic and FLOPs: x read, grad_x read and written; 4 ROWS C a pixel
# numerics: float32, products as three of TF32
# limits: at most BLOCK_R rows and BLOCK_C channels
@triton.jit
def _scores_backward_kernel(
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
    clip = tl.program_id(0).to(tl.int64)
    frame = tl.program_id(1)
    part = tl.program_id(2)
    row = tl.arange(0, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)
    present = channel < channels
    real = (row < rows)[:, None] & present[None, :]
    key = tl.load(
        keys + (clip * rows + row[:, None]) * channels + channel[None, :], mask=real, other=0
    )
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
# traffic and FLOPs: x and grad read, the map's gradient written; (6 ROWS + 20) C a position
# numerics: float32, products as three of TF32
# limits: at most BLOCK_R rows and BLOCK_C channels
@triton.jit
def _fuse_backward_kernel(
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
    clip = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = tl.arange(0, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)
    present = channel < channels
    real = (row < rows)[:, None] & present[None, :]
    value = tl.load(
        values + (clip * rows + row[:, None]) * channels + channel[None, :], mask=real, other=0
    )
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
        of_row = (clip * rows + row[:, None]) * positions + position[None, :]
        counted = (row < rows)[:, None] & inside[None, :]
        weight = tl.load(weights + of_row, mask=counted, other=0)
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


def _tpavi_scores_backward(grad_visual, visual, keys, grad_scores, grad_sums):
    """Launch one program a clip, frame and part; add to ``grad_visual``, return the keys'."""
    batch, channels, frames, height, width = visual.shape
    rows, pixels = keys.shape[1], height * width
    if _too_large(visual, rows):
        return scores_and_sums_backward_(grad_visual, visual, keys, grad_scores, grad_sums)
    parts, part_size = split(pixels, BACKWARD, batch * frames)
    grad_keys = keys.new_empty(batch, frames, parts, rows, channels)
    with device_of(visual):
        _scores_backward_kernel[(batch, frames, parts)](
            grad_visual,
            visual.contiguous(),
            keys.contiguous(),
            grad_scores.contiguous(),
            grad_sums.contiguous(),
            grad_keys,
            channels,
            frames,
            pixels,
            rows,
            parts,
            part_size,
            BLOCK_C=max(16, triton.next_power_of_2(channels)),
            BLOCK_R=ROWS,
            BLOCK_N=BACKWARD,
            num_warps=8,
        )
    return grad_keys.sum((1, 2))


def _tpavi_fuse_backward(grad, visual, weights, values, shift, norm_weight, mean, rstd):
    """Launch one program a clip and part; add the parts in their order."""
    batch, channels = visual.shape[:2]
    rows, positions = weights.shape[1:]
    if _too_large(visual, rows):
        return fuse_backward(grad, visual, weights, values, shift, norm_weight, mean, rstd)
    parts, part_size = split(positions, BACKWARD, batch)
    grad_visual = visual.new_empty(visual.shape)
    grad_weights = weights.new_empty(weights.shape)
    grad_values = values.new_empty(batch, parts, rows, channels)
    grad_channels = values.new_empty(batch, parts, 3, channels)
    with device_of(visual):
        _fuse_backward_kernel[(batch, parts)](
            grad.contiguous(),
            visual.contiguous(),
            weights.contiguous(),
            values.contiguous(),
            shift.contiguous(),
            norm_weight,
            mean,
            rstd,
            grad_visual,
            grad_weights,
            grad_values,
            grad_channels,
            channels,
            positions,
            rows,
            parts,
            part_size,
            BLOCK_C=max(16, triton.next_power_of_2(channels)),
            BLOCK_R=ROWS,
            BLOCK_N=BACKWARD,
            num_warps=8,
        )
    grad_shift, grad_norm_weight, grad_norm_bias = grad_channels.sum((0, 1)).unbind()
    return (
        grad_visual,
        grad_weights,
        grad_values.sum(1),
        grad_shift.clone(),
        grad_norm_weight.clone(),
        grad_norm_bias.clone(),
    )
