# SPDX-License-Identifier: Apache-2.0
"""Mask losses of matched pairs: sums over chunks of pixels forward, one pass backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from avskernels.core.mask_loss_triton import KINDS, pixel_gradients, pixel_terms, read_mask
from avskernels.core.triton import device_of

BLOCK, STEPS = 1024, 8  # pixels of a step, and steps of a program


@triton.jit
def _counted(at, pixels, frames, labelled, target_image, LABELLED: tl.constexpr):
    """Tell which pixels of a clip exist and count."""
    exists = at < frames * pixels
    if LABELLED:
        frame = at // tl.maximum(pixels, 1)
        shown = tl.load(labelled + target_image * frames + frame, mask=exists, other=0)
        return exists & (shown != 0)
    else:
        return exists


# computes: partial sums of pixel loss, p t, p and t of one pair
# grid: predictions x chunks of STEPS blocks of pixels; those of unmatched predictions end at once
# traffic and FLOPs: each logit and mask pixel of a pair once; about 60 operations per pixel
# numerics: float32; the chunks are added in order
# limits: none
@triton.jit
def _sums_kernel(
    logits,  # [B, N, T, pixels]
    masks,  # [target_images, J, T, pixels]
    columns,  # [B, N]
    labelled,  # [target_images, T]
    sums,  # [B, N, chunks, 4] float32, zeros
    queries,
    targets,
    target_images,
    frames,
    pixels,
    inside,
    outside,
    gamma,
    KIND: tl.constexpr,
    BINARY: tl.constexpr,
    LABELLED: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.load(columns + row)
    target_image = row // queries % target_images
    if (column >= 0) & (column < targets):
        logits += row * frames * pixels
        masks += (target_image * targets + column) * frames * pixels
        loss = tl.zeros([BLOCK], tl.float32)
        overlap = tl.zeros([BLOCK], tl.float32)
        probability = tl.zeros([BLOCK], tl.float32)
        area = tl.zeros([BLOCK], tl.float32)
        for step in range(STEPS):
            at = (tl.program_id(1) * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
            counted = _counted(at, pixels, frames, labelled, target_image, LABELLED)
            x = tl.load(logits + at, mask=counted, other=0).to(tl.float32)
            slope, zero, p = pixel_terms(x, inside, outside, gamma, KIND)
            truth = read_mask(masks + at, counted, BINARY)
            loss += tl.where(counted, zero + slope * truth, 0.0)
            overlap += tl.where(counted, p * truth, 0.0)
            probability += tl.where(counted, p, 0.0)
            area += truth
        sums += (row * tl.num_programs(1) + tl.program_id(1)) * 4
        tl.store(sums, tl.sum(loss))
        tl.store(sums + 1, tl.sum(overlap))
        tl.store(sums + 2, tl.sum(probability))
        tl.store(sums + 3, tl.sum(area))


# computes: the gradient of the logits of one prediction, zeros where unmatched or not counted
# grid: predictions x blocks of pixels
# traffic and FLOPs: each logit and mask pixel of a pair once, each gradient once; about 60
#   operations per pixel
# numerics: float32
# limits: none
@triton.jit
def _gradient_kernel(
    logits,
    masks,
    columns,
    labelled,
    factors,  # [B, N, 3] float32: of the pixel loss, of p t, of p
    grad,
    queries,
    targets,
    target_images,
    frames,
    pixels,
    inside,
    outside,
    gamma,
    KIND: tl.constexpr,
    BINARY: tl.constexpr,
    LABELLED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.load(columns + row)
    target_image = row // queries % target_images
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    counted = _counted(at, pixels, frames, labelled, target_image, LABELLED)
    columns_of_pixels = column + tl.zeros([BLOCK], tl.int64)
    counted = counted & (columns_of_pixels >= 0) & (columns_of_pixels < targets)
    x = tl.load(logits + row * frames * pixels + at, mask=counted, other=0).to(tl.float32)
    slope, zero, derivative = pixel_gradients(x, inside, outside, gamma, KIND)
    masks += (target_image * targets + column) * frames * pixels
    truth = read_mask(masks + at, counted, BINARY)
    of_loss = tl.load(factors + row * 3)
    of_overlap = tl.load(factors + row * 3 + 1)
    of_probability = tl.load(factors + row * 3 + 2)
    value = of_loss * (zero + slope * truth) + (of_overlap * truth + of_probability) * derivative
    value = tl.where(counted, value, 0.0)
    tl.store(grad + row * frames * pixels + at, value, mask=at < frames * pixels)


class _Pairs:
    """The arguments as the kernels take them."""

    def __init__(
        self,
        mask_logits: Tensor,
        target_masks: Tensor,
        columns: Tensor,
        labelled: Tensor | None,
        mask_loss: str,
        alpha: float,
        gamma: float,
    ) -> None:
        self.logits, masks = mask_logits.contiguous(), target_masks.contiguous()
        binary = not masks.is_floating_point()
        self.columns = columns.contiguous()
        images, queries, frames, *size = mask_logits.shape
        pixels = torch.Size(size).numel()
        self.pixels, self.rows = frames * pixels, images * queries
        target_images, targets = masks.shape[:2]
        shown = masks if labelled is None else labelled.contiguous()
        self.tensors = (
            self.logits,
            masks.view(torch.uint8) if binary else masks,
            self.columns,
            shown.view(torch.uint8) if binary or labelled is not None else shown,
        )
        weights = (1.0, 1.0) if alpha < 0 else (alpha, 1.0 - alpha)
        self.numbers = (queries, targets, max(1, target_images), frames, pixels, *weights, gamma)
        self.constants = {
            "KIND": KINDS[mask_loss],
            "BINARY": binary,
            "LABELLED": labelled is not None,
            "BLOCK": BLOCK,
        }
        if labelled is None:
            counts = torch.full((images, 1), self.pixels, device=columns.device)
        else:
            counts = labelled.sum(1, keepdim=True) * pixels
            counts = counts.repeat(images // max(1, target_images), 1)
        self.counts = counts.clamp(min=1)  # [B, 1], of the pixels that count
        self.unknown = columns >= targets


def forward(
    mask_logits: Tensor,
    target_masks: Tensor,
    columns: Tensor,
    labelled: Tensor | None,
    mask_loss: str,
    alpha: float,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel of the sums; the losses follow from them."""
    pairs = _Pairs(mask_logits, target_masks, columns, labelled, mask_loss, alpha, gamma)
    chunks = triton.cdiv(pairs.pixels, BLOCK * STEPS)
    shape = (*pairs.columns.shape, chunks, 4)
    partial = torch.zeros(shape, dtype=torch.float32, device=mask_logits.device)
    with device_of(mask_logits):
        _sums_kernel[(pairs.rows, chunks)](
            *pairs.tensors, partial, *pairs.numbers, **pairs.constants, STEPS=STEPS
        )
    loss, *parts = partial.sum(2).unbind(-1)
    overlap, probability, area = parts
    # Waiting for the device to raise would cost more than the losses: NaN says it.
    loss = (loss / pairs.counts).masked_fill(pairs.unknown, torch.nan)
    dice = (probability + area - 2 * overlap) / (probability + area + 1)
    return loss, dice.masked_fill(pairs.unknown, torch.nan), torch.stack(parts, dim=-1)


def backward(
    grad_mask_loss: Tensor,
    grad_dice_loss: Tensor,
    mask_logits: Tensor,
    target_masks: Tensor,
    columns: Tensor,
    labelled: Tensor | None,
    sums: Tensor,
    mask_loss: str,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Launch the kernel of the gradient."""
    pairs = _Pairs(mask_logits, target_masks, columns, labelled, mask_loss, alpha, gamma)
    overlap, probability, area = sums.unbind(-1)
    size = probability + area + 1
    factors = [
        grad_mask_loss / pairs.counts,
        -2 * grad_dice_loss / size,
        grad_dice_loss * (2 * overlap + 1) / (size * size),
    ]
    grad = mask_logits.new_empty(mask_logits.shape)
    with device_of(mask_logits):
        _gradient_kernel[(pairs.rows, triton.cdiv(pairs.pixels, BLOCK))](
            *pairs.tensors,
            torch.stack(factors, dim=-1).contiguous(),
            grad,
            *pairs.numbers,
            **pairs.constants,
        )
    return grad
