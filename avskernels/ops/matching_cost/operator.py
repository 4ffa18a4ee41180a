# SPDX-License-Identifier: Apache-2.0
"""Cost of every prediction for every target, for a whole batch at once."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from avskernels.core.backend import cpp, plain_torch, triton_kernel
from avskernels.core.mask_loss import check_divides
from avskernels.core.operator import Operator
from avskernels.core.specification import check_choice, fail
from avskernels.ops.matching_cost import plain
from avskernels.ops.matching_cost.reference import MatchingWeights
from avskernels.ops.matching_cost.reference import matching_cost as reference

CLASS_COSTS = ("focal", "softmax")
MASK_COSTS = ("focal", "bce")


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
    backend: str | None = None,
) -> Tensor:
    r"""Compute what matching each prediction with each target costs.

    .. math::
        C_{nj} = w_\mathrm{cls} C_\mathrm{cls} + w_\mathrm{l1} \|b_n - b_j\|_1
            - w_\mathrm{giou} \mathrm{GIoU}(b_n, b_j) + w_\mathrm{mask} C_\mathrm{mask}
            + w_\mathrm{dice} \left(1 - \frac{2 \sum p t + 1}{\sum p + \sum t + 1}\right)

    With p the sigmoid of a logit, the focal class cost is
    :math:`-\alpha (1-p)^\gamma \log p + (1-\alpha) p^\gamma \log(1-p)` at the target's class, and
    the softmax one the negated probability. The mask cost is the mean focal loss (no alpha factors
    where alpha is negative) or binary cross entropy. Class and box terms are averaged over the
    target's valid frames (0 where it has none), mask terms count all pixels of the labelled frames,
    with zeros where the target is absent. Masks may be any set of pixels, such as sampled points.

    A prediction left out (None, and so its target) leaves out its terms. The targets'
    batch may be a divisor of the predictions': prediction b meets target b modulo that, so that
    auxiliary layers stack into the batch, [L, B, ...] flattened, without copies of the targets.
    Not differentiable. A NaN or Inf in a prediction makes the costs that depend on it NaN or +Inf,
    which :func:`linear_assignment` never chooses; a box without area overlaps nothing.

    Args:
        class_logits: ``Tensor[B, N, T, K]`` or None, floating-point like the other predictions.
        boxes: ``Tensor[B, N, T, 4]`` or None: (cx, cy, w, h) in 0..1.
        mask_logits: ``Tensor[B, N, T, H, W]`` or None; any number of pixel dimensions.
        target_labels: ``Tensor[B, J]`` int64 in [0, K), or None.
        target_boxes: ``Tensor[B, J, T, 4]`` or None.
        target_masks: ``Tensor[B, J, T, H, W]`` or None: bool, uint8 (not 0 is inside) or floats in
            0..1.
        num_targets: ``Tensor[B]`` int64: the targets of an image, the others are padding, whose
            values do not matter and whose cost is +Inf. None: all J.
        valid: ``Tensor[B, J, T]`` bool: the frames that show the target. None: all.
        labelled: ``Tensor[B, T]`` bool: the frames that count at all. None: all.
        weights: :class:`MatchingWeights`, or five numbers.
        class_cost: ``"focal"`` or ``"softmax"``.
        mask_cost: ``"focal"`` or ``"bce"``.
        alpha: weight of the positive class in the focal terms; negative for none.
        gamma: exponent of the focal terms, at least 0.
        backend: see :func:`avskernels.backend`.

    Returns:
        Tensor: ``cost [B, N, J]`` float32, or float64 where a prediction is float64.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit, and for a label or a number of
            targets out of range (not on devices where seeing it would mean waiting for the device:
            there the costs of a target with such a label are NaN).
        ValueError: for an unknown ``class_cost`` or ``mask_cost``.

    Source: DETR (Carion et al. 2020), Eq. 1; ReferFormer (Wu et al. 2022), Eq. 5; Mask2Former.

    Example:
        >>> logits = torch.tensor([[[[4.0]], [[-4.0]]]])  # one image, two predictions, one class
        >>> labels = torch.tensor([[0]])
        >>> matching_cost(logits, None, None, labels, None, None).squeeze()
        tensor([-5.8124,  1.9374])
    """
    check_choice("matching_cost", "class_cost", class_cost, CLASS_COSTS)
    check_choice("matching_cost", "mask_cost", mask_cost, MASK_COSTS)
    weights = MatchingWeights(*map(float, weights))
    if weights.cls == 0:
        class_logits = target_labels = None
    if weights.l1 == 0 and weights.giou == 0:
        boxes = target_boxes = None
    if weights.mask == 0 and weights.dice == 0:
        mask_logits = target_masks = None
    tensors = class_logits, boxes, mask_logits, target_labels, target_boxes, target_masks
    options = num_targets, valid, labelled
    args = (*tensors, *options, *weights, class_cost, mask_cost, float(alpha), float(gamma))
    if OPERATOR.wants_reference(backend, args):
        return reference(
            *tensors,
            num_targets=num_targets,
            valid=valid,
            labelled=labelled,
            weights=weights,
            class_cost=class_cost,
            mask_cost=mask_cost,
            alpha=alpha,
            gamma=gamma,
        )
    cost: Tensor = OPERATOR(*args)
    return cost


def _require(a: Any) -> None:
    if a.class_logits is None and a.boxes is None and a.mask_logits is None:
        fail("matching_cost", "class_logits, boxes or mask_logits", "none of them")
    for name, prediction, target in (
        ("target_labels", a.class_logits, a.target_labels),
        ("target_boxes", a.boxes, a.target_boxes),
        ("target_masks", a.mask_logits, a.target_masks),
    ):
        if (prediction is None) != (target is None):
            got = "none" if target is None else "it alone"
            fail("matching_cost", f"{name} with its prediction", got)
    prediction, target = _first_pair(a)
    check_divides("matching_cost", target.shape[0], prediction.shape[0])


def _first_pair(a: Any) -> tuple[Tensor, Tensor]:
    prediction = plain.first_given(a.class_logits, a.boxes, a.mask_logits)
    return prediction, plain.first_given(a.target_labels, a.target_boxes, a.target_masks)


def _empty_cost(a: Any) -> Tensor:
    prediction, target = _first_pair(a)
    dtype = plain.cost_dtype(a.class_logits, a.boxes, a.mask_logits)
    return prediction.new_empty(*prediction.shape[:2], target.shape[1], dtype=dtype)


def _triton(*args: Any) -> Tensor:
    from avskernels.ops.matching_cost import triton

    return triton.forward(*args)


def _triton_refuses(a: Any) -> str | None:
    if a.mask_logits is None:
        return "without masks there is nothing to fuse"
    if torch.float64 in (a.mask_logits.dtype, a.target_masks.dtype):
        return "float64"
    pairs = a.mask_logits.shape[:2].numel() * a.target_masks.shape[1]
    return "no pairs" if pairs == 0 else None


OPERATOR = Operator(
    "matching_cost",
    [cpp(), triton_kernel(_triton, _triton_refuses), plain_torch(plain.forward)],
    requires=_require,
    results=_empty_cost,
)
