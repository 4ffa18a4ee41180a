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
    """Return the intersection over union of masks, 1 if both are empty.

    Args:
        predicted, truth: bool ``Tensor[F, H, W]``.

    Returns:
        float64 ``Tensor[F]``.
    """
    intersection = (predicted & truth).sum((-2, -1)).double()
    union = (predicted | truth).sum((-2, -1))
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def boundary(mask: Tensor) -> Tensor:
    """Return the boundary of masks, bool ``Tensor[F, H, W]`` like them.

    A pixel belongs to it if it differs from its right, lower or lower right neighbour; beyond
    the last row and column the mask continues unchanged.
    """
    padded = torch.cat([mask, mask[:, -1:]], 1)
    padded = torch.cat([padded, padded[:, :, -1:]], 2)
    right, below, diagonal = padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ diagonal)


def boundary_accuracy(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the F-measure of two masks' boundaries.

    Precision is the share of the predicted boundary within ceil(0.008 * diagonal) pixels of the
    true one, recall the reverse, F their harmonic mean. F is 1 if both boundaries are empty
    and 0 if one is.

    Args:
        predicted, truth: bool ``Tensor[F, H, W]``.

    Returns:
        float64 ``Tensor[F]``.
    """
    height, width = predicted.shape[-2:]
    radius = math.ceil(TOLERANCE * math.hypot(height, width))
    edge, true_edge = boundary(predicted), boundary(truth)
    precision = _share(edge, _dilate(true_edge, radius))
    recall = _share(true_edge, _dilate(edge, radius))
    no_edge, no_true_edge = ~edge.any(-1).any(-1), ~true_edge.any(-1).any(-1)
    f = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(no_edge | no_true_edge, (no_edge & no_true_edge).double(), f)


def _share(part: Tensor, region: Tensor) -> Tensor:
    inside = (part & region).sum((-2, -1)).double()
    return inside / part.sum((-2, -1)).clamp(min=1)


def _dilate(mask: Tensor, radius: int) -> Tensor:
    # Every pixel within `radius` of the mask: the mask shifted by each offset of a disc, united.
    height, width = mask.shape[-2:]
    padded = F.pad(mask, [radius] * 4)
    reached = torch.zeros_like(mask)
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            if (dy - radius) ** 2 + (dx - radius) ** 2 <= radius**2:
                reached |= padded[:, dy : dy + height, dx : dx + width]
    return reached
