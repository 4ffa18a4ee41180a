# SPDX-License-Identifier: Apache-2.0
"""Semantic inference: a screen on the tensor cores, float64 for the pixels it does not prove."""

import math

import torch
import triton
from torch import Tensor

from avskernels.core.specification import accumulate_dtype
from avskernels.core.triton import device_of
from avskernels.ops.semantic_argmax.triton_kernels import exact_kernel, screen_kernel

BLOCK_PIXELS = 32
BLOCK_QUERIES = 16
MOST_CLASSES = 256  # of a program's accumulator
EXACT_PROGRAMS = 1024


def _value_threshold(mask_threshold: float, sigmoid: bool) -> tuple[float, float]:
    """Return the threshold before the activation, and what its rounding is off by."""
    if not sigmoid:
        value = mask_threshold
    elif mask_threshold <= 0:
        value = -math.inf
    elif mask_threshold >= 1:
        value = math.inf
    else:
        value = math.log(mask_threshold) - math.log1p(-mask_threshold)
    return value, 1e-6 * (1 + abs(value)) if math.isfinite(value) else 0.0


def forward(
    class_probs: Tensor,
    mask_logits: Tensor,
    height: int,
    width: int,
    class_threshold: float,
    mask_threshold: float,
    sigmoid: bool,
    return_scores: bool,
) -> tuple[Tensor, Tensor]:
    """Launch the screen, then the exact kernel for the pixels that it left; no wait between."""
    batch, queries, classes = class_probs.shape
    labels = mask_logits.new_empty((batch, height, width), dtype=torch.int64)
    scores = mask_logits.new_empty(
        labels.shape if return_scores else (0,), dtype=accumulate_dtype(mask_logits.dtype)
    )
    probs = class_probs.double()
    probs = torch.where(probs > class_threshold, probs, 0.0).contiguous()
    units = probs.abs().amax((1, 2))
    units = torch.where(units > 0, units, 1.0)
    scaled = probs / units[:, None, None]
    # Half precision shows no scores, and no activation bounds other values than the sigmoid's.
    half = sigmoid and not return_scores
    # Otherwise three products of TF32, which leave out 2^-21. Sums of the tensor cores truncate.
    relative = 1.01 * 2.0**-10 if half else 1e-6
    relative += (queries + 8) * 2.0**-22
    floors = torch.where(units.isfinite(), queries * 1e-7 if half else 1e-30, torch.inf)
    if mask_logits.dtype == torch.float64:  # the screen would not see all of the masks' bits
        floors = torch.full_like(floors, torch.inf)
    value_threshold, threshold_error = _value_threshold(mask_threshold, sigmoid)
    pending = labels.new_empty(labels.numel())
    count = labels.new_zeros(1)
    sizes = (queries, classes, *mask_logits.shape[2:], height, width, *mask_logits.stride())
    choices = {
        "SIGMOID": sigmoid,
        "RESIZE": mask_logits.shape[2:] != (height, width),
        "SCORES": return_scores,
        "BLOCK_K": max(16, min(MOST_CLASSES, triton.next_power_of_2(classes))),
    }
    with device_of(mask_logits):
        screen_kernel[(batch * triton.cdiv(height * width, BLOCK_PIXELS),)](
            scaled.to(torch.float16 if half else torch.float32),
            scaled.amin(2).clamp(max=0).mul(-2).float(),
            (probs != 0).any(2).to(torch.int8),
            floors.float(),
            units.float(),
            mask_logits,
            labels,
            scores,
            pending,
            count,
            *sizes,
            value_threshold,
            threshold_error,
            relative,
            **choices,
            BLOCK_N=BLOCK_QUERIES,
            BLOCK_P=BLOCK_PIXELS,
            num_warps=8,
        )
        exact_kernel[(min(EXACT_PROGRAMS, labels.numel()),)](
            probs,
            mask_logits,
            labels,
            scores,
            pending,
            count,
            *sizes,
            probs.new_full((1,), mask_threshold),
            **choices,
        )
    return labels, scores
