"""The gradients of TPAVI's passes over the map: the fusion's, and those of scores and sums."""

import triton
import triton.language as tl

from avskernels._tpavi_passes import fuse_backward, scores_and_sums_backward_
from avskernels.triton import device_of
from avskernels.triton.low_rank import load_matrix, split
from avskernels.triton.tpavi import ROWS, too_large

PIXELS = 16  # of one step


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


def _tpavi_scores_backward(grad_visual, visual, keys, grad_scores, grad_sums):
    """Launch one program a clip, frame and part; add to ``grad_visual``, return the keys'."""
    batch, channels, frames, height, width = visual.shape
    rows, pixels = keys.shape[1], height * width
    if too_large(visual, rows):
        return scores_and_sums_backward_(grad_visual, visual, keys, grad_scores, grad_sums)
    parts, part_size = split(pixels, PIXELS, batch * frames)
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
            BLOCK_N=PIXELS,
            num_warps=8,
        )
    return grad_keys.sum((1, 2))


def _tpavi_fuse_backward(grad, visual, weights, values, shift, norm_weight, mean, rstd):
    """Launch one program a clip and part; add the parts in their order."""
    batch, channels = visual.shape[:2]
    rows, positions = weights.shape[1:]
    if too_large(visual, rows):
        return fuse_backward(grad, visual, weights, values, shift, norm_weight, mean, rstd)
    parts, part_size = split(positions, PIXELS, batch)
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
            BLOCK_N=PIXELS,
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
