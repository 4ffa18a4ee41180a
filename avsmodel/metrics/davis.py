# SPDX-License-Identifier: Apache-2.0
"""Region similarity J and boundary accuracy F of the DAVIS benchmark.

Source: Perazzi et al., A benchmark dataset and evaluation methodology for video object
segmentation, CVPR 2016; boundary tolerance as in its evaluation code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

TOLERANCE = 0.008  # of the image diagonal


def region_similarity(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the intersection over union of bool masks [F, H, W], float64 [F]; 1 if both empty."""
    intersection = (predicted & truth).sum((-2, -1)).double()
    union = (predicted | truth).sum((-2, -1))
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def boundary(mask: Tensor) -> Tensor:
    """Return the boundary of bool masks [F, H, W].

    A pixel belongs to it if it differs from its right, lower or lower right neighbour; beyond
    the last row and column the mask continues unchanged.
    """
    padded = torch.cat([mask, mask[:, -1:]], 1)
    padded = torch.cat([padded, padded[:, :, -1:]], 2)
    right, below, diagonal = padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ diagonal)


def boundary_accuracy(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the F-measure of two masks' boundaries, float64 [F].

    Precision is the share of the predicted boundary within ceil(0.008 * diagonal) pixels of the
    true one, recall the reverse, F their harmonic mean. Two empty boundaries score 1; if one is
    empty, so does the side that has nothing to miss, and F is 0.

    Args:
        predicted, truth: bool [F, H, W].
    """
    height, width = predicted.shape[-2:]
    radius = math.ceil(TOLERANCE * math.hypot(height, width))
    ours, theirs = boundary(predicted), boundary(truth)
    precision = _share(ours, _dilate(theirs, radius))
    recall = _share(theirs, _dilate(ours, radius))
    no_ours, no_theirs = ~ours.any(-1).any(-1), ~theirs.any(-1).any(-1)
    f = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(no_ours | no_theirs, (no_ours & no_theirs).double(), f)


def _share(part: Tensor, region: Tensor) -> Tensor:
    inside = (part & region).sum((-2, -1)).double()
    return inside / part.sum((-2, -1)).clamp(min=1)


def _dilate(mask: Tensor, radius: int) -> Tensor:
    # Every pixel within `radius` of the mask: the mask moved by each offset of a disk, united.
    height, width = mask.shape[-2:]
    padded = F.pad(mask, [radius] * 4)
    reached = torch.zeros_like(mask)
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            if (dy - radius) ** 2 + (dx - radius) ** 2 <= radius**2:
                reached |= padded[:, dy : dy + height, dx : dx + width]
    return reached
