# SPDX-License-Identifier: Apache-2.0
"""The matching cost in plain torch: a product per mask term, no mask of a pair."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from avskernels.core.mask_loss import focal_parts
from avskernels.core.specification import accumulate_dtype, fail


def cost_dtype(*predictions: Tensor | None) -> torch.dtype:
    """Return the dtype of the cost: float64 where a prediction is float64, else float32."""
    double = any(x is not None and x.dtype == torch.float64 for x in predictions)
    return torch.float64 if double else torch.float32


def first_given(*tensors: Tensor | None) -> Tensor:
    """Return the first tensor that is not None."""
    return next(x for x in tensors if x is not None)


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
    # BCE(x, t) = softplus(x) - x t and focal(x, t) = zero + (one - zero) t: a GEMM and a row sum.
    x = logits.to(accumulate_dtype(logits.dtype)).flatten(4)  # [L, B, N, T, HW]
    t = target_masks if target_masks.is_floating_point() else target_masks != 0
    t = t.to(x.dtype).flatten(3)  # [B, J, T, HW]
    counts = x.new_full((t.shape[0], 1, 1), t.shape[2] * t.shape[3])  # pixels of an image
    if labelled is not None:
        t = t * labelled[:, None, :, None]
        counts = labelled.sum(1).to(x.dtype).view(-1, 1, 1) * t.shape[3]

    def frames_summed(values: Tensor) -> Tensor:
        # [L, B, N, T, HW] -> [L, B, N, T HW], nothing of unlabelled frames
        if labelled is not None:
            values = values.where(labelled[:, None, :, None], 0)
        return values.flatten(3)

    t = t.flatten(2)
    result = x.new_zeros(())
    if mask != 0:
        if mask_cost == "bce":
            slope, offset = -x, -functional.logsigmoid(-x)
        else:
            to_one, offset = focal_parts(x, alpha, gamma)
            slope = to_one - offset
        total = frames_summed(slope) @ t.mT + frames_summed(offset).sum(-1, keepdim=True)
        result = mask * total / counts.clamp(min=1)
    if dice != 0:
        p = frames_summed(x.sigmoid())
        size = p.sum(-1, keepdim=True) + t.sum(-1).unsqueeze(1)
        result = result + dice * (1 - (2 * (p @ t.mT) + 1) / (size + 1))
    return result


def generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the generalized IoU of broadcast boxes (cx, cy, w, h).

    A box without area overlaps nothing, and a hull without area takes nothing away.
    """
    half, other_half = (x[..., 2:].clamp(min=0) / 2 for x in (boxes, others))
    low, high = boxes[..., :2] - half, boxes[..., :2] + half
    other_low, other_high = others[..., :2] - other_half, others[..., :2] + other_half

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(-1)

    inside = area(torch.maximum(low, other_low), torch.minimum(high, other_high))
    union = area(low, high) + area(other_low, other_high) - inside
    hull = area(torch.minimum(low, other_low), torch.maximum(high, other_high))
    lost = ((hull - union) / hull).masked_fill(hull == 0, 0)
    return (inside / union).masked_fill(union == 0, 0) - lost


def forward(
    class_logits: Tensor | None,
    boxes: Tensor | None,
    mask_logits: Tensor | None,
    target_labels: Tensor | None,
    target_boxes: Tensor | None,
    target_masks: Tensor | None,
    num_targets: Tensor | None,
    valid: Tensor | None,
    labelled: Tensor | None,
    cls: float,
    l1: float,
    giou: float,
    mask: float,
    dice: float,
    class_cost: str,
    mask_cost: str,
    alpha: float,
    gamma: float,
    *,
    mask_terms: Callable[..., Tensor] = mask_terms,
) -> Tensor:
    """Compute ``avskernels::matching_cost``, the mask and dice terms by the function given."""
    predictions = class_logits, boxes, mask_logits
    prediction = first_given(*predictions)
    images, queries, frames = prediction.shape[:3]
    target_images, count = first_given(target_labels, target_boxes, target_masks).shape[:2]
    dtype, device = cost_dtype(*predictions), prediction.device
    exists = torch.arange(count, device=device) < count  # [J]
    exists = exists.expand(target_images, -1)
    if num_targets is not None:
        _check_range("num_targets", num_targets, count)
        exists = exists & (torch.arange(count, device=device) < num_targets.unsqueeze(1))
    cost = torch.zeros(images, queries, count, dtype=dtype, device=device)
    if cost.numel() == 0:
        return cost
    layers = images // target_images
    terms = cost.view(layers, target_images, queries, count)

    def stacked(x: Tensor) -> Tensor:
        # [B, N, ...] -> [L, target_images, N, ...]: the layers that share their targets
        return x.reshape(layers, target_images, *x.shape[1:])

    counted = torch.ones(target_images, count, frames, dtype=dtype, device=device)
    if valid is not None:
        counted = counted * valid
    if labelled is not None:
        counted = counted * labelled.unsqueeze(1)
    share = counted / counted.sum(-1, keepdim=True).clamp(min=1)  # [target_images, J, T]
    if class_logits is not None and target_labels is not None:
        _check_range("target_labels", target_labels[exists], class_logits.shape[-1] - 1)
        values = _class_values(stacked(class_logits.to(dtype)), class_cost, alpha, gamma)
        terms += cls * _class_terms(values, target_labels, share)
    if boxes is not None and target_boxes is not None:
        pairs = stacked(boxes.to(dtype)).unsqueeze(3), target_boxes.to(dtype).unsqueeze(1)
        values = l1 * (pairs[0] - pairs[1]).abs().sum(-1) - giou * generalized_iou(*pairs)
        terms += torch.einsum("lbnjt,bjt->lbnj", values, share)
    if mask_logits is not None:
        terms += mask_terms(
            stacked(mask_logits), target_masks, labelled, mask, dice, mask_cost, alpha, gamma
        )
    terms.masked_fill_(~exists.unsqueeze(1), torch.inf)
    return cost


def _check_range(name: str, values: Tensor, largest: int) -> None:
    # Elsewhere than on the CPU this would wait for the device.
    if values.device.type == "cpu" and values.numel():
        low, high = values.aminmax()
        if low < 0 or high > largest:
            wrong = (low if low < 0 else high).item()
            fail("matching_cost", f"{name} in 0..{largest}", wrong)


def _class_values(logits: Tensor, class_cost: str, alpha: float, gamma: float) -> Tensor:
    """Return what each class costs, of logits of any shape."""
    if class_cost == "softmax":
        return -logits.softmax(-1)
    to_one, to_zero = focal_parts(logits, alpha, gamma)
    values = to_one - to_zero
    return values.masked_fill(values == -torch.inf, torch.nan)  # a logit of Inf is no preference


def _class_terms(
    values: Tensor,  # [L, B, N, T, K]
    labels: Tensor,  # [B, J]
    share: Tensor,  # [B, J, T], of each frame
) -> Tensor:
    """Return the cost of each target's class [L, B, N, J]; NaN for a label that is none."""
    known = (labels >= 0) & (labels < values.shape[-1])
    chosen = torch.where(known, labels, 0)[:, None, None].expand(*values.shape[:-1], -1)
    terms = torch.einsum("lbntj,bjt->lbnj", values.gather(-1, chosen), share)
    return terms.masked_fill(~known.unsqueeze(1), torch.nan)
