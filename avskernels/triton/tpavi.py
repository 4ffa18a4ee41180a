"""The passes of TPAVI over the map: scores and sums; fusion and normalisation."""

import torch
import triton
import triton.language as tl

from avskernels._tpavi_passes import fuse, scores_and_sums
from avskernels.triton import device_of
from avskernels.triton.low_rank import load_matrix

POSITIONS = 32  # of one program of the fusion
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


def too_large(visual, rows):
    """Tell what the kernels leave to plain torch: too much for a program, float64, nothing."""
    sizes = (visual.numel(), rows)
    return visual.dtype == torch.float64 or 0 in sizes or rows > ROWS or visual.shape[1] > CHANNELS


def _tpavi_scores(visual, keys, offsets):
    """Launch one program a clip, frame and block; add the blocks' sums in their order."""
    batch, channels, frames, height, width = visual.shape
    rows, pixels = keys.shape[1], height * width
    if too_large(visual, rows):
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
    if too_large(visual, rows):
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
