# SPDX-License-Identifier: Apache-2.0
"""Hungarian matching with the calling conventions of DETR, Mask2Former and ReferFormer."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from avskernels.ops.linear_assignment.operator import linear_assignment
from avskernels.ops.matching_cost.operator import MatchingWeights, matching_cost

OUTPUTS = ("pred_logits", "pred_boxes", "pred_masks")
TARGETS = {"pred_logits": "labels", "pred_boxes": "boxes", "pred_masks": "masks"}


class HungarianMatcher(nn.Module):
    """Match predictions with targets, image by image, at the least total cost.

    A drop-in for the matchers of DETR, Mask2Former and ReferFormer: the cost of a whole batch and
    its assignments are two calls, whatever the number of targets, and NaN never raises. A cost of
    weight 0 needs no tensors, neither in the outputs nor in the targets.

    Args:
        cost_class: weight of the class term.
        cost_bbox: weight of the L1 distance of the boxes.
        cost_giou: weight of the generalized IoU.
        cost_mask: weight of the mask term.
        cost_dice: weight of the dice term.
        class_cost: ``"softmax"`` (DETR, Mask2Former) or ``"focal"`` (ReferFormer).
        mask_cost: ``"bce"`` (Mask2Former) or ``"focal"`` (ReferFormer).
        num_points: compare masks at so many random points, as Mask2Former does (12544); 0 compares
            all pixels.
        alpha: weight of the positive class in the focal terms; negative for none.
        gamma: exponent of the focal terms.

    Source: DETR (Carion et al. 2020), Eq. 1; Mask2Former; ReferFormer (Wu et al. 2022), Eq. 5.

    Example:
        >>> matcher = HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)
        >>> outputs = {
        ...     "pred_logits": torch.tensor([[[0.0, 3.0], [3.0, 0.0]]]),
        ...     "pred_boxes": torch.full((1, 2, 4), 0.5),
        ... }
        >>> targets = [{"labels": torch.tensor([0]), "boxes": torch.full((1, 4), 0.5)}]
        >>> matcher(outputs, targets)
        [(tensor([1]), tensor([0]))]
    """

    def __init__(
        self,
        cost_class: float = 1.0,
        cost_bbox: float = 0.0,
        cost_giou: float = 0.0,
        cost_mask: float = 0.0,
        cost_dice: float = 0.0,
        *,
        class_cost: str = "softmax",
        mask_cost: str = "bce",
        num_points: int = 0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.weights = MatchingWeights(cost_class, cost_bbox, cost_giou, cost_mask, cost_dice)
        self.class_cost = class_cost
        self.mask_cost = mask_cost
        self.num_points = num_points
        self.alpha = alpha
        self.gamma = gamma

    @torch.no_grad()
    def forward(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return a list of (prediction indices, target indices), one pair per image.

        Args:
            outputs: dictionary with ``pred_logits [B, N, K]``, and, where their terms are on,
                ``pred_boxes [B, N, 4]`` and ``pred_masks [B, N, H, W]``; for clips (ReferFormer)
                ``[B, T, N, ...]`` each.
            targets: one dictionary per image with ``labels [J]``, ``boxes [J, 4]`` and ``masks
                [J, H, W]``. For clips ``labels [J]``, ``boxes [J, T, 4]``, ``masks [J, T, H, W]``
                and optionally ``valid [J, T]``; or, for the one target of a clip (ReferFormer),
                ``labels [T]``, ``boxes [T, 4]``, ``masks [T, H, W]`` and ``valid [T]``. Masks may
                be larger than the logits by a whole factor: their pixels are then taken at the
                middles; with ``num_points`` their size does not matter. All images share one size.

        Returns:
            list[tuple[Tensor, Tensor]]: int64 indices, ascending in the predictions; as many pairs
            as the smaller of N and J, less those that NaN or Inf forbid.

        Raises:
            RuntimeError: for shapes and dtypes that do not fit.
            ValueError: for an unknown ``class_cost`` or ``mask_cost``.
        """
        terms = (self.weights.cls, max(self.weights[1:3]), max(self.weights[3:]))
        given = {
            name: outputs[name] for name, weight in zip(OUTPUTS, terms, strict=True) if weight != 0
        }
        if not targets:
            return []
        clips = any(x.dim() == (5 if name == "pred_masks" else 4) for name, x in given.items())
        logits, boxes, masks = (
            _frames_third(given[name], clips) if name in given else None for name in OUTPUTS
        )
        used = {TARGETS[name] for name in given}
        targets = [_target(target, used, clips) for target in targets]
        counts = [len(next(iter(target.values()))) for target in targets]
        num_targets = torch.tensor(counts, device=next(iter(given.values())).device)
        # [B, J, ...]: zeros after an image's own targets
        padded = {key: pad_sequence([t[key] for t in targets], True) for key in targets[0]}
        if masks is not None:
            masks, padded["masks"] = self._comparable(masks, padded["masks"])
        cost = matching_cost(
            logits,
            boxes,
            masks,
            padded.get("labels"),
            padded.get("boxes"),
            padded.get("masks"),
            num_targets=num_targets,
            valid=padded.get("valid"),
            weights=self.weights,
            class_cost=self.class_cost,
            mask_cost=self.mask_cost,
            alpha=self.alpha,
            gamma=self.gamma,
        )
        pairs = []
        for columns in linear_assignment(cost, num_cols=num_targets).cpu():
            predictions = (columns >= 0).nonzero().flatten()
            pairs.append((predictions, columns[predictions]))
        return pairs

    def _comparable(self, masks: Tensor, target_masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return masks [B, N, T, ...] and targets [B, J, T, ...] at the same pixels."""
        if self.num_points:
            points = torch.rand(masks.shape[0], 1, self.num_points, 2, device=masks.device)
            return _at_points(masks, points), _at_points(target_masks, points)
        size, wanted = target_masks.shape[-2:], masks.shape[-2:]
        step = max(1, size[0] // max(1, wanted[0]))
        target_masks = target_masks[..., step // 2 :: step, step // 2 :: step]
        if target_masks.shape[-2:] != wanted:
            raise RuntimeError(
                f"HungarianMatcher: expected target masks a whole number of times as large as "
                f"{list(wanted)}, got {list(size)}"
            )
        return masks, target_masks


def _at_points(maps: Tensor, points: Tensor) -> Tensor:
    """Sample maps [B, N, T, H, W] bilinearly at points [B, 1, P, 2] in 0..1: [B, N, T, P]."""
    flat = maps.flatten(1, 2).float()
    sampled = functional.grid_sample(flat, 2 * points - 1, align_corners=False)
    return sampled.view(*maps.shape[:3], points.shape[2])


def _frames_third(x: Tensor, clips: bool) -> Tensor:
    """Return [B, N, T, ...] from a clip's [B, T, N, ...] or an image's [B, N, ...]."""
    return x.transpose(1, 2) if clips else x.unsqueeze(2)


def _target(target: Mapping[str, Tensor], used: Collection[str], clips: bool) -> dict[str, Tensor]:
    """Return the used tensors of an image's targets: labels [J], the others [J, T, ...]."""
    found = {key: target[key] for key in sorted(used)}
    if not clips:
        return {key: x if key == "labels" else x.unsqueeze(1) for key, x in found.items()}
    if "valid" in target:
        found["valid"] = target["valid"].bool()
    single = {"boxes": 2, "masks": 3, "valid": 1}  # dimensions where a clip has one target
    if any(x.dim() == single.get(key) for key, x in found.items()):
        return {
            key: x.reshape(-1)[:1] if key == "labels" else x.unsqueeze(0)
            for key, x in found.items()
        }
    return found
