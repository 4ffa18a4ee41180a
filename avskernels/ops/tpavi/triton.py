# SPDX-License-Identifier: Apache-2.0
"""TPAVI's passes over the map, and their gradients."""

import triton
from torch import Tensor

from avskernels.core.low_rank_triton import split
from avskernels.core.triton import device_of
from avskernels.ops.tpavi.triton_kernels import (
    fuse_backward_kernel,
    fuse_kernel,
    scores_backward_kernel,
    scores_kernel,
)

POSITIONS = 32  # of one program of the fusion
SCORE_PIXELS = 64  # of one program of the scores
PIXELS = 16  # of one step of the gradients
STEP = 64  # channels of a step of the scores
ROWS = 16  # the least that a matrix product takes


def scores(visual: Tensor, keys: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Launch one program per clip, frame and block; add the blocks' sums in their order."""
    batch, channels, frames, height, width = visual.shape
    rows, pixels = keys.shape[1], height * width
    blocks = triton.cdiv(pixels, SCORE_PIXELS)
    scores = keys.new_empty(batch, rows, frames * pixels)
    sums = keys.new_empty(batch, frames, blocks, channels)
    with device_of(visual):
        scores_kernel[(batch, frames, blocks)](
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
            BLOCK_N=SCORE_PIXELS,
        )
    return scores, sums.sum(2)


def fuse(
    visual: Tensor,
    weights: Tensor,
    values: Tensor,
    shift: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch one program per clip and block of positions."""
    batch, channels = visual.shape[:2]
    rows, positions = weights.shape[1:]
    fused = visual.new_empty(visual.shape)
    statistics = (0,) if norm_weight is None else (batch, positions)
    mean, rstd = shift.new_empty(statistics), shift.new_empty(statistics)
    with device_of(visual):
        fuse_kernel[(batch, triton.cdiv(positions, POSITIONS))](
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


def scores_backward(
    grad_visual: Tensor, visual: Tensor, keys: Tensor, grad_scores: Tensor, grad_sums: Tensor
) -> Tensor:
    """Launch one program per clip, frame and part; add to ``grad_visual``, return the keys'."""
    batch, channels, frames, height, width = visual.shape
    rows, pixels = keys.shape[1], height * width
    parts, part_size = split(pixels, PIXELS, batch * frames)
    grad_keys = keys.new_empty(batch, frames, parts, rows, channels)
    with device_of(visual):
        scores_backward_kernel[(batch, frames, parts)](
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


def fuse_backward(
    grad_fused: Tensor,
    visual: Tensor,
    weights: Tensor,
    values: Tensor,
    shift: Tensor,
    norm_weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
) -> tuple[Tensor, ...]:
    """Launch one program per clip and part; add the parts in their order."""
    batch, channels = visual.shape[:2]
    rows, positions = weights.shape[1:]
    parts, part_size = split(positions, PIXELS, batch)
    grad_visual = visual.new_empty(visual.shape)
    grad_weights = weights.new_empty(weights.shape)
    grad_values = values.new_empty(batch, parts, rows, channels)
    grad_channels = values.new_empty(batch, parts, 3, channels)
    with device_of(visual):
        fuse_backward_kernel[(batch, parts)](
            grad_fused.contiguous(),
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
