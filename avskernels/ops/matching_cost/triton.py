# SPDX-License-Identifier: Apache-2.0
"""Matching cost: the mask and dice terms as two products whose operands are made in registers."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from avskernels.core.mask_loss_triton import KINDS, pixel_terms, read_mask
from avskernels.core.triton import device_of
from avskernels.ops.matching_cost import plain

BLOCK_N, BLOCK_J, BLOCK_P = 32, 64, 32


@triton.jit
def _product(values, truth, total):
    """Add values @ truth^T, on the tensor cores as precise as float32."""
    return tl.dot(values, tl.trans(truth), total, input_precision="tf32x3")


# computes: mask and dice terms [BLOCK_N, BLOCK_J] of one image
# grid: images x blocks of predictions x blocks of targets
# traffic and FLOPs: each logit once per block of targets, each mask pixel once per block of
#   predictions (from L2); about 60 operations per logit and 2 x 2 J for the products
# numerics: float32, products as three of TF32
# limits: none
@triton.jit
def _mask_terms_kernel(
    logits,  # [B, N, T, pixels]
    masks,  # [target_images, J, T, pixels]
    labelled,  # [target_images, T]
    cost,  # [B, N, J] float32
    queries,
    targets,
    target_images,
    frames,
    pixels,
    mask_weight,
    dice_weight,
    inside,
    outside,
    gamma,
    KIND: tl.constexpr,
    BINARY: tl.constexpr,
    LABELLED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    blocks = tl.cdiv(queries, BLOCK_N)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    target_image = image % target_images
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    rows = (image * queries + n) * frames * pixels
    columns = (target_image * targets + j) * frames * pixels
    mask_total = tl.zeros([BLOCK_N, BLOCK_J], tl.float32)
    overlap = tl.zeros([BLOCK_N, BLOCK_J], tl.float32)
    offset = tl.zeros([BLOCK_N], tl.float32)
    probability = tl.zeros([BLOCK_N], tl.float32)
    area = tl.zeros([BLOCK_J], tl.float32)
    counted = 0
    for frame in range(frames):
        shown = tl.full([], 1, tl.int32)
        if LABELLED:
            shown = tl.load(labelled + target_image * frames + frame).to(tl.int32)
        if shown != 0:
            counted += 1
            for first in range(0, pixels, BLOCK_P):
                at = first + tl.arange(0, BLOCK_P)
                valid = (n < queries)[:, None] & (at < pixels)[None, :]
                place = frame * pixels + at
                x = tl.load(logits + rows[:, None] + place[None, :], mask=valid, other=0)
                slope, zero, p = pixel_terms(x.to(tl.float32), inside, outside, gamma, KIND)
                valid_mask = (j < targets)[:, None] & (at < pixels)[None, :]
                truth = read_mask(masks + columns[:, None] + place[None, :], valid_mask, BINARY)
                mask_total = _product(tl.where(valid, slope, 0.0), truth, mask_total)
                overlap = _product(tl.where(valid, p, 0.0), truth, overlap)
                offset += tl.sum(tl.where(valid, zero, 0.0), axis=1)
                probability += tl.sum(tl.where(valid, p, 0.0), axis=1)
                area += tl.sum(truth, axis=1)
    count = tl.maximum(counted * pixels, 1).to(tl.float32)
    total = mask_weight * (mask_total + offset[:, None]) / count
    dice = 1 - (2 * overlap + 1) / (probability[:, None] + area[None, :] + 1)
    total += dice_weight * dice
    at = (image * queries + n)[:, None] * targets + j[None, :]
    tl.store(cost + at, total, mask=(n < queries)[:, None] & (j < targets)[None, :])


def mask_terms(
    logits: Tensor,  # [L, B, N, T, ...]
    target_masks: Tensor,  # [B, J, T, ...]
    labelled: Tensor | None,  # [B, T]
    mask: float,
    dice: float,
    mask_cost: str,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Return the mask and dice terms [L, B, N, J], for L layers that share their targets."""
    layers, target_images, queries, frames = logits.shape[:4]
    targets = target_masks.shape[1]
    x, t = logits.contiguous(), target_masks.contiguous()
    binary = not t.is_floating_point()
    cost = torch.empty(
        layers, target_images, queries, targets, dtype=torch.float32, device=x.device
    )
    grid = (
        layers * target_images * triton.cdiv(queries, BLOCK_N),
        triton.cdiv(targets, BLOCK_J),
    )
    shown = t if labelled is None else labelled.contiguous().view(torch.uint8)
    with device_of(x):
        _mask_terms_kernel[grid](
            x,
            t.view(torch.uint8) if binary else t,
            shown.view(torch.uint8) if binary else shown,
            cost,
            queries,
            targets,
            target_images,
            frames,
            x.shape[4:].numel(),
            mask,
            dice,
            1.0 if alpha < 0 else alpha,
            1.0 if alpha < 0 else 1.0 - alpha,
            gamma,
            KIND=KINDS[mask_cost] if mask != 0 else KINDS["bce"],
            BINARY=binary,
            LABELLED=labelled is not None,
            BLOCK_N=BLOCK_N,
            BLOCK_J=BLOCK_J,
            BLOCK_P=BLOCK_P,
            num_warps=8,
        )
    return cost


def forward(*args: Any) -> Tensor:
    """Launch on the operator's arguments; the small class and box terms are left to torch."""
    return plain.forward(*args, mask_terms=mask_terms)
