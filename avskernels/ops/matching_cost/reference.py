# SPDX-License-Identifier: Apache-2.0
"""The matching cost as DETR and ReferFormer write it: image by image, every pair broadcast."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class MatchingWeights(NamedTuple):
    """Weights of the five terms of :func:`avskernels.matching_cost`.

    One for the class, two for the boxes, two for the masks. A term of weight 0 is not computed.
    """

    cls: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    mask: float = 5.0
    dice: float = 2.0


@torch.no_grad()
def matching_cost(
    class_logits: Tensor | None,
    boxes: Tensor | None,
    mask_logits: Tensor | None,
    target_labels: Tensor | None,
    target_boxes: Tensor | None,
    target_masks: Tensor | None,
    *,
    num_targets: Tensor | None = None,
    valid: Tensor | None = None,
    labelled: Tensor | None = None,
    weights: Iterable[float] = MatchingWeights(),
    class_cost: str = "focal",
    mask_cost: str = "focal",
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Return the cost [B, N, J] of every prediction for every target of its image."""
    weights = MatchingWeights(*weights)
    predictions = [x for x in (class_logits, boxes, mask_logits) if x is not None]
    given = predictions[0]
    images, queries, frames = given.shape[:3]
    targets = next(x for x in (target_labels, target_boxes, target_masks) if x is not None)
    cost = []
    for b in range(images):
        k = b % targets.shape[0]
        shown = given.new_ones(frames) if labelled is None else labelled[k].to(given)  # [T]
        counted = shown.expand(targets.shape[1], -1)  # [J, T]
        if valid is not None:
            counted = counted * valid[k].to(given)
        share = (counted / counted.sum(1, keepdim=True).clamp(min=1)).T  # [T, J]
        total = given.new_zeros(queries, targets.shape[1])
        if class_logits is not None and target_labels is not None and weights.cls != 0:
            term = _class_term(class_logits[b], class_cost, alpha, gamma)[..., target_labels[k]]
            total = total + weights.cls * (term * share).sum(1)
        if boxes is not None and target_boxes is not None and any(weights[1:3]):
            pairs = boxes[b].unsqueeze(2), target_boxes[k].transpose(0, 1)  # [N, T, 1|J, 4]
            total = total + weights.l1 * ((pairs[0] - pairs[1]).abs().sum(-1) * share).sum(1)
            total = total - weights.giou * (_generalized_iou(*pairs) * share).sum(1)
        if mask_logits is not None and target_masks is not None and any(weights[3:]):
            x = mask_logits[b][:, shown.bool()].flatten(1).unsqueeze(1)  # [N, 1, P]
            t = target_masks[k][:, shown.bool()].flatten(1)
            t = (t if t.is_floating_point() else t != 0).to(x)  # [J, P]
            pixels = _pixel_loss(x, t, mask_cost, alpha, gamma)
            total = total + weights.mask * pixels.sum(-1) / max(1, t.shape[1])
            overlap = (2 * (x.sigmoid() * t).sum(-1) + 1) / (x.sigmoid().sum(-1) + t.sum(-1) + 1)
            total = total + weights.dice * (1 - overlap)
        if num_targets is not None:
            total[:, num_targets[k] :] = torch.inf
        cost.append(total)
    stacked = torch.stack(cost) if cost else given.new_zeros(0, queries, targets.shape[1])
    double = any(x.dtype == torch.float64 for x in predictions)
    return stacked.double() if double else stacked.float()


def _class_term(logits: Tensor, class_cost: str, alpha: float, gamma: float) -> Tensor:
    if class_cost == "softmax":
        return -logits.softmax(-1)
    ones = torch.ones_like(logits)
    return _pixel_loss(logits, ones, "focal", alpha, gamma) - _pixel_loss(
        logits, 0 * ones, "focal", alpha, gamma
    )


def _pixel_loss(logits: Tensor, truth: Tensor, kind: str, alpha: float, gamma: float) -> Tensor:
    """Return the focal loss or binary cross entropy of every (logit, truth) pair."""
    logits, truth = torch.broadcast_tensors(logits, truth)
    to_one, to_zero = -functional.logsigmoid(logits), -functional.logsigmoid(-logits)
    if kind == "focal":
        p = logits.sigmoid()
        to_one = (alpha if alpha >= 0 else 1) * (1 - p) ** gamma * to_one
        to_zero = (1 - alpha if alpha >= 0 else 1) * p**gamma * to_zero
    return truth * to_one + (1 - truth) * to_zero


def _generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the generalized IoU of broadcast boxes (cx, cy, w, h)."""

    def corners(box: Tensor) -> tuple[Tensor, Tensor]:
        size = box[..., 2:].clamp(min=0)
        return box[..., :2] - size / 2, box[..., :2] + size / 2

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(-1)

    (low, high), (other_low, other_high) = corners(boxes), corners(others)
    inside = area(torch.maximum(low, other_low), torch.minimum(high, other_high))
    union = area(low, high) + area(other_low, other_high) - inside
    hull = area(torch.minimum(low, other_low), torch.maximum(high, other_high))
    # A box without area has overlap 0 with everything, and no hull to lose against.
    return inside / union.where(union != 0, 1) - (hull - union) / hull.where(hull != 0, 1)
