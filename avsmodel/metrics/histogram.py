# SPDX-License-Identifier: Apache-2.0
"""Every threshold of AVSBench's F-measure from one histogram per frame."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

BETA2 = 0.3
NUM_THRESHOLDS = 255

_HALF = NUM_THRESHOLDS // 2  # number of the threshold 0.5
_BINS = NUM_THRESHOLDS + 1


@lru_cache
def thresholds(device: torch.device | str = "cpu") -> Tensor:
    """Return AVSBench's thresholds, linspace(0, 1 - 1e-10, 255) in float32.

    Always computed on the CPU: other devices round differently.
    """
    return torch.linspace(0, 1 - 1e-10, NUM_THRESHOLDS).to(device)


def threshold_counts(scores: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """Count, for each frame and threshold, the pixels that reach it.

    A pixel's bin is the highest threshold that its score reaches, so that the counts are sums
    over bins. The threshold nearest to a score s is number round(254 s), and only this one can
    be on either side of it: one comparison makes the bin exact. A further edge just above the
    threshold 0.5 counts ``s > 0.5`` in the same pass.

    Args:
        scores: ``Tensor[F, H, W]`` in 0..1, rounded to float32.
        foreground: bool ``Tensor[F, H, W]``.

    Returns:
        reached: int64 ``Tensor[F, 2, 255]``, pixels with score >= threshold, of background and of
            foreground (the first threshold is 0: all of them).
        above_half: int64 ``Tensor[F, 2]``, pixels with score > 0.5, likewise.
    """
    # One frame at a time stays in a CPU's cache; on a GPU one launch takes all frames.
    count = 1 if scores.device.type == "cpu" else max(len(scores), 1)
    groups = zip(scores.split(count), foreground.split(count), strict=True)
    histogram = torch.cat([_histogram(*frames) for frames in groups])
    beyond = histogram.flip(-1).cumsum(-1).flip(-1)  # [..., j]: pixels in bins >= j
    above = _HALF + 1
    return torch.cat([beyond[..., :above], beyond[..., above + 1 :]], -1), beyond[..., above]


def _histogram(scores: Tensor, foreground: Tensor) -> Tensor:
    # int64 [F, 2, bins]
    frames = len(scores)
    scores = scores.to(torch.float32).reshape(-1)
    half = torch.tensor(0.5, device=scores.device)
    bins = torch.add(half, scores, alpha=NUM_THRESHOLDS - 1).to(torch.int32)
    nearest = thresholds(scores.device).index_select(0, bins)
    bins += _minus_one_if_negative(scores - nearest)
    bins -= _minus_one_if_negative(0.5 - scores)
    bins.add_(foreground.reshape(-1), alpha=_BINS)
    if frames > 1:
        first = torch.arange(frames, dtype=torch.int32, device=bins.device) * (2 * _BINS)
        bins.view(frames, -1).add_(first[:, None])
    return torch.bincount(bins, minlength=frames * 2 * _BINS).view(frames, 2, _BINS)


def _minus_one_if_negative(difference: Tensor) -> Tensor:
    # Reads the sign bit of float32, which is much faster than a comparison.
    return difference.view(torch.int32).bitwise_right_shift_(31)


def f_measure(hits: Tensor, predicted: Tensor, positive: Tensor) -> Tensor:
    """Return (1 + b) p r / (b p + r), b = 0.3, of counts, in float64; 0 without a hit.

    With precision p = hits / predicted and recall r = hits / positive this is
    (1 + b) hits / (b positive + predicted): one division of integers.
    """
    # Each operand is converted by itself: torch would promote int64 and a number, and 0-d and n-d
    # tensors, to float32.
    denominator = BETA2 * positive.double() + predicted.double()
    return (1 + BETA2) * hits.double() / denominator.clamp(min=BETA2)
