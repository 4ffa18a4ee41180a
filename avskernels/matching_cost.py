"""Cost of every prediction for every target, for a whole batch at once."""

from typing import NamedTuple

import torch

from avskernels import reference
from avskernels._backend import use_reference
from avskernels._check import FLOATS, expect
from avskernels._library import register_fallback, register_triton
from avskernels._mask_terms import MASK_DTYPES, focal_parts, plain_mask_terms
from avskernels.reference.matching_cost import generalized_iou

CLASS_COSTS = ("focal", "softmax")
MASK_COSTS = ("focal", "bce")


class MatchingWeights(NamedTuple):
    """Weights of the five terms of :func:`matching_cost`: class, two of boxes, two of masks.

    A term of weight 0 is not computed.
    """

    cls: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    mask: float = 5.0
    dice: float = 2.0


def matching_cost(
    class_logits,
    boxes,
    mask_logits,
    target_labels,
    target_boxes,
    target_masks,
    *,
    num_targets=None,
    valid=None,
    labelled=None,
    weights=MatchingWeights(),  # noqa: B008 (immutable)
    class_cost="focal",
    mask_cost="focal",
    alpha=0.25,
    gamma=2.0,
    backend=None,
):
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
    if class_cost not in CLASS_COSTS:
        raise ValueError(
            f"matching_cost: expected class_cost to be one of {CLASS_COSTS}, got {class_cost!r}"
        )
    if mask_cost not in MASK_COSTS:
        raise ValueError(
            f"matching_cost: expected mask_cost to be one of {MASK_COSTS}, got {mask_cost!r}"
        )
    weights = MatchingWeights(*map(float, weights))
    if weights.cls == 0:
        class_logits = target_labels = None
    if weights.l1 == 0 and weights.giou == 0:
        boxes = target_boxes = None
    if weights.mask == 0 and weights.dice == 0:
        mask_logits = target_masks = None
    tensors = (class_logits, boxes, mask_logits, target_labels, target_boxes, target_masks)
    tensors = [x if x is None else x.detach() for x in tensors]
    tensors += [num_targets, valid, labelled]
    settings = class_cost, mask_cost, float(alpha), float(gamma)
    given = [x for x in tensors if x is not None]
    if not given or use_reference("matching_cost", backend, *given):
        dtype = _check(*tensors).dtype
        return reference.matching_cost(*tensors, weights, *settings).to(dtype)
    return torch.ops.avskernels.matching_cost.default(*tensors, *weights, *settings)


class _Layout(NamedTuple):
    images: int  # B
    queries: int  # N
    target_images: int  # the targets' batch, a divisor of B
    targets: int  # J
    dtype: torch.dtype  # of the cost
    device: torch.device


def _check(
    class_logits,
    boxes,
    mask_logits,
    target_labels,
    target_boxes,
    target_masks,
    num_targets,
    valid,
    labelled,
):
    # The same sentences as check_matching in csrc/matching_cost/matching_cost.h.
    op = "matching_cost"
    predictions = {
        "class_logits": (class_logits, ("K",)),
        "boxes": (boxes, (4,)),
        "mask_logits": (mask_logits, ("...",)),
    }
    head, device, dtype = ("B", "N", "T"), None, torch.float32
    for name, (tensor, tail) in predictions.items():
        if tensor is not None:
            expect(op, name, tensor, (*head, *tail), FLOATS, device)
            head, device = tuple(tensor.shape[:3]), tensor.device
            dtype = torch.promote_types(dtype, tensor.dtype)
    if device is None:
        raise RuntimeError(f"{op}: expected class_logits, boxes or mask_logits, got none of them")
    images, queries, frames = head
    targets = {
        "target_labels": (target_labels, class_logits, (), (torch.int64,)),
        "target_boxes": (target_boxes, boxes, (frames, 4), FLOATS),
        "target_masks": (
            target_masks,
            mask_logits,
            () if mask_logits is None else tuple(mask_logits.shape[2:]),
            MASK_DTYPES,
        ),
    }
    head = ("B", "J")
    for name, (tensor, prediction, tail, dtypes) in targets.items():
        if (tensor is None) != (prediction is None):
            given = "none" if tensor is None else "it alone"
            raise RuntimeError(f"{op}: expected {name} with its prediction, got {given}")
        if tensor is not None:
            expect(op, name, tensor, (*head, *tail), dtypes, device)
            head = tuple(tensor.shape[:2])
    target_images, count = head
    if target_images != images and (target_images == 0 or images % target_images != 0):
        raise RuntimeError(
            f"{op}: expected a number of target images that divides {images}, got {target_images}"
        )
    if num_targets is not None:
        expect(op, "num_targets", num_targets, (target_images,), (torch.int64,), device)
    if valid is not None:
        expect(op, "valid", valid, (target_images, count, frames), (torch.bool,), device)
    if labelled is not None:
        expect(op, "labelled", labelled, (target_images, frames), (torch.bool,), device)
    return _Layout(images, queries, target_images, count, dtype, device)


@torch.library.register_fake("avskernels::matching_cost")
def _matching_cost_fake(*args):
    layout = _check(*args[:9])
    return torch.empty(
        (layout.images, layout.queries, layout.targets), dtype=layout.dtype, device=layout.device
    )


def _matching_cost_algebra(*args, mask_terms=plain_mask_terms):
    images, queries, target_images, count, dtype, device = _check(*args[:9])
    class_logits, boxes, mask_logits, target_labels, target_boxes, target_masks = args[:6]
    num_targets, valid, labelled = args[6:9]
    cls, l1, giou, mask, dice, class_cost, mask_cost, alpha, gamma = args[9:]
    layers = images // max(1, target_images)
    exists = torch.arange(count, device=device) < count  # [J]
    exists = exists.expand(target_images, -1)
    if num_targets is not None:
        _check_range("num_targets", num_targets, count)
        exists = exists & (torch.arange(count, device=device) < num_targets.unsqueeze(1))
    frames = next(x for x in (class_logits, boxes, mask_logits) if x is not None).shape[2]
    counted = torch.ones(target_images, count, frames, dtype=dtype, device=device)
    if valid is not None:
        counted = counted * valid
    if labelled is not None:
        counted = counted * labelled.unsqueeze(1)
    counted = counted / counted.sum(-1, keepdim=True).clamp(min=1)  # [B', J, T]

    def stacked(x):  # [L B', N, ...] -> [L, B', N, ...]: the layers that share their targets
        return x.reshape(layers, target_images, *x.shape[1:])

    cost = torch.zeros(images, queries, count, dtype=dtype, device=device)
    if cost.numel() == 0:
        return cost
    terms = cost.view(layers, target_images, queries, count)
    if class_logits is not None:
        classes = class_logits.shape[-1]
        _check_range("target_labels", target_labels[exists], classes - 1)
        known = (target_labels >= 0) & (target_labels < classes)
        values = _class_values(stacked(class_logits.to(dtype)), class_cost, alpha, gamma)
        labels = torch.where(known, target_labels, 0).view(1, target_images, 1, 1, count)
        values = values.gather(-1, labels.expand(*values.shape[:-1], count))  # [L, B', N, T, J]
        values = torch.einsum("lbntj,bjt->lbnj", values, counted)
        terms += cls * values.masked_fill(~known.unsqueeze(1), torch.nan)
    if boxes is not None:
        pairs = stacked(boxes.to(dtype)).unsqueeze(3), target_boxes.to(dtype).unsqueeze(1)
        values = l1 * (pairs[0] - pairs[1]).abs().sum(-1) - giou * generalized_iou(*pairs)
        terms += torch.einsum("lbnjt,bjt->lbnj", values, counted)
    if mask_logits is not None:
        terms += mask_terms(
            stacked(mask_logits), target_masks, labelled, mask, dice, mask_cost, alpha, gamma
        )
    terms.masked_fill_(~exists.unsqueeze(1), torch.inf)
    return cost


def _check_range(name, values, largest):
    # Elsewhere than on the CPU this would wait for the device.
    if values.device.type == "cpu" and values.numel():
        low, high = values.aminmax()
        if low < 0 or high > largest:
            wrong = (low if low < 0 else high).item()
            raise RuntimeError(f"matching_cost: expected {name} in 0..{largest}, got {wrong}")


def _class_values(logits, class_cost, alpha, gamma):
    if class_cost == "softmax":
        return -logits.softmax(-1)
    to_one, to_zero = focal_parts(logits, alpha, gamma)
    values = to_one - to_zero
    return values.masked_fill(values == -torch.inf, torch.nan)  # a logit of Inf is no preference


register_fallback("matching_cost", _matching_cost_algebra)
register_triton("matching_cost", "matching_cost")
