"""Mask losses of matched pairs: focal or binary cross entropy, and dice, in one pass."""

from typing import NamedTuple

import torch
from torch import Tensor

from avskernels import reference
from avskernels._backend import use_reference
from avskernels._check import FLOATS, accumulate_dtype, expect
from avskernels._library import register_fallback, register_triton
from avskernels._mask_terms import MASK_DTYPES, focal_parts

MASK_LOSSES = ("focal", "bce")


class MaskLosses(NamedTuple):
    """Result of :func:`focal_dice_loss`: ``mask_loss`` and ``dice_loss``, both ``[B, N]``."""

    mask_loss: Tensor
    dice_loss: Tensor


def focal_dice_loss(
    mask_logits,
    target_masks,
    columns,
    *,
    labelled=None,
    mask_loss="focal",
    alpha=0.25,
    gamma=2.0,
    backend=None,
):
    r"""Compute the mask loss and the dice loss of every matched prediction.

    .. math::
        L_\mathrm{focal} = \frac{1}{P} \sum -\alpha t (1-p)^\gamma \log p
            - (1-\alpha) (1-t) p^\gamma \log(1-p), \quad
        L_\mathrm{dice} = 1 - \frac{2 \sum p t + 1}{\sum p + \sum t + 1}

    p is the sigmoid of a logit; both sums run over the P pixels of the labelled frames. The losses
    of unmatched predictions are 0, and so are their gradients; the sum over all, divided by the
    number of targets, is the loss of the DETR family. ``columns`` is what
    :func:`avskernels.linear_assignment` returns. The targets' batch may be a divisor of the
    predictions', as in :func:`avskernels.matching_cost`: auxiliary layers stack into the batch.
    Differentiable in ``mask_logits`` alone; the gradient is deterministic.

    Args:
        mask_logits: ``Tensor[B, N, T, H, W]``, floating-point; any number of pixel dimensions.
        target_masks: ``Tensor[B, J, T, H, W]``: bool, uint8 (not 0 is inside) or floats in 0..1.
        columns: ``Tensor[B, N]`` int64: the target of each prediction, negative for none.
        labelled: ``Tensor[B, T]`` bool, of the targets' batch: the frames that count. None: all.
        mask_loss: ``"focal"`` or ``"bce"`` (mean binary cross entropy).
        alpha: weight of pixels inside, 1 - alpha outside; negative for no weights. Focal only.
        gamma: focusing exponent, at least 0. Focal only.
        backend: see :func:`avskernels.backend`.

    Returns:
        MaskLosses: two ``Tensor[B, N]``, float32, or float64 for float64 logits.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit, and for a column that is not a
            target (not by the Triton kernels of CUDA devices, where seeing it would mean waiting:
            there the losses of that prediction are NaN).
        ValueError: for an unknown ``mask_loss``.

    Source: Lin et al. 2017, Eq. 5; Milletari et al. 2016; DETR (Carion et al. 2020).

    Example:
        >>> logits = torch.tensor([4.0, -4.0]).view(1, 2, 1, 1, 1)  # two predictions of one pixel
        >>> masks = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
        >>> focal_dice_loss(logits, masks, torch.tensor([[-1, 0]]), mask_loss="bce")
        MaskLosses(mask_loss=tensor([[0.0000, 4.0181]]), dice_loss=tensor([[0.0000, 0.4866]]))
    """
    if mask_loss not in MASK_LOSSES:
        raise ValueError(
            f"focal_dice_loss: expected mask_loss to be one of {MASK_LOSSES}, got {mask_loss!r}"
        )
    args = mask_logits, target_masks, columns, labelled, mask_loss, float(alpha), float(gamma)
    if use_reference("focal_dice_loss", backend, mask_logits):
        _check(*args[:4])
        return MaskLosses(*reference.focal_dice_loss(*args))
    return MaskLosses(*torch.ops.avskernels.focal_dice_loss.default(*args)[:2])


def _check(mask_logits, target_masks, columns, labelled):
    # The same sentences as check_pairs in csrc/focal_dice_loss/focal_dice_loss.h.
    op, device = "focal_dice_loss", mask_logits.device
    expect(op, "mask_logits", mask_logits, ("B", "N", "T", "..."), FLOATS)
    images, queries, *pixels = mask_logits.shape
    expect(op, "target_masks", target_masks, ("B", "J", *pixels), MASK_DTYPES, device)
    expect(op, "columns", columns, (images, queries), (torch.int64,), device)
    target_images = target_masks.shape[0]
    if target_images != images and (target_images == 0 or images % target_images != 0):
        raise RuntimeError(
            f"{op}: expected a number of target images that divides {images}, got {target_images}"
        )
    if labelled is not None:
        expect(op, "labelled", labelled, (target_images, pixels[0]), (torch.bool,), device)


@torch.library.register_fake("avskernels::focal_dice_loss")
def _focal_dice_loss_fake(mask_logits, target_masks, columns, labelled, mask_loss, alpha, gamma):
    _check(mask_logits, target_masks, columns, labelled)
    dtype = accumulate_dtype(mask_logits.dtype)
    losses = mask_logits.new_empty(columns.shape, dtype=dtype)
    sums = mask_logits.new_empty((*columns.shape, 3), dtype=dtype)
    return losses, torch.empty_like(losses), sums


@torch.library.register_fake("avskernels::_focal_dice_loss_backward")
def _focal_dice_loss_backward_fake(grad_mask_loss, grad_dice_loss, mask_logits, *_):
    return mask_logits.new_empty(mask_logits.shape)


def _setup_context(ctx, inputs, output):
    mask_logits, target_masks, columns, labelled, *ctx.settings = inputs
    ctx.save_for_backward(mask_logits, target_masks, columns, labelled, output[2])
    ctx.mark_non_differentiable(output[2])


def _backward(ctx, grad_mask_loss, grad_dice_loss, _):
    grad = torch.ops.avskernels._focal_dice_loss_backward.default(
        grad_mask_loss, grad_dice_loss, *ctx.saved_tensors, *ctx.settings
    )
    return grad, None, None, None, None, None, None


torch.library.register_autograd(
    "avskernels::focal_dice_loss", _backward, setup_context=_setup_context
)


def _pairs(mask_logits, target_masks, columns, labelled):
    """Return the matched pairs: where they are, their logits and truths [M, T, P], what counts."""
    dtype = accumulate_dtype(mask_logits.dtype)
    count = target_masks.shape[1]
    image, query = (columns >= 0).nonzero(as_tuple=True)
    column = columns[image, query]
    if (column >= count).any():
        raise RuntimeError(
            f"focal_dice_loss: expected columns below {count}, got {column.max().item()}"
        )
    target_image = image % max(1, target_masks.shape[0])
    logits = mask_logits[image, query].to(dtype).flatten(2)
    masks = target_masks if target_masks.is_floating_point() else target_masks != 0
    truth = masks[target_image, column].to(dtype).flatten(2)
    counted = torch.ones_like(logits[..., :1], dtype=torch.bool)
    if labelled is not None:
        counted = labelled[target_image].unsqueeze(-1)
    return (image, query), logits, truth, counted


def _focal_dice_loss_algebra(mask_logits, target_masks, columns, labelled, mask_loss, alpha, gamma):
    _check(mask_logits, target_masks, columns, labelled)
    where, x, t, counted = _pairs(mask_logits, target_masks, columns, labelled)
    to_one, to_zero = (
        focal_parts(x, alpha, gamma) if mask_loss == "focal" else focal_parts(x, -1, 0)
    )
    pixels = (t * to_one + (1 - t) * to_zero).where(counted, 0).sum((1, 2))
    count = counted.sum((1, 2)) * x.shape[2]
    p, t = x.sigmoid().where(counted, 0), t.where(counted, 0)
    sums = torch.stack([(p * t).sum((1, 2)), p.sum((1, 2)), t.sum((1, 2))], dim=-1)
    dice = 1 - (2 * sums[:, 0] + 1) / (sums[:, 1] + sums[:, 2] + 1)

    def scatter(values):
        full = values.new_zeros(*columns.shape, *values.shape[1:])
        full[where] = values
        return full

    return scatter(pixels / count.clamp(min=1)), scatter(dice), scatter(sums)


def _focal_dice_loss_backward_algebra(
    grad_mask_loss,
    grad_dice_loss,
    mask_logits,
    target_masks,
    columns,
    labelled,
    sums,
    mask_loss,
    alpha,
    gamma,
):
    where, x, t, counted = _pairs(mask_logits, target_masks, columns, labelled)
    p, q = x.sigmoid(), (-x).sigmoid()  # q = 1 - p, unrounded
    if mask_loss == "bce":
        slope = p - t
    else:
        to_one, to_zero = focal_parts(x, -1, 0)  # -log p, -log q
        # d/dx (q^g -log p) = -q^g (q + g p -log p), and its mirror image
        slope_one = -torch.exp(-gamma * to_zero) * (q + gamma * p * to_one)
        slope_zero = torch.exp(-gamma * to_one) * (p + gamma * q * to_zero)
        inside, outside = (alpha, 1 - alpha) if alpha >= 0 else (1, 1)
        slope = inside * t * slope_one + outside * (1 - t) * slope_zero
    count = (counted.sum((1, 2)) * x.shape[2]).clamp(min=1)
    intersection, *sizes = sums[where].unbind(-1)
    size = sizes[0] + sizes[1] + 1
    grad_mask, grad_dice = grad_mask_loss[where] / count, grad_dice_loss[where] / size

    def per_pair(values):
        return values.view(-1, 1, 1)

    # d dice / dp = ((2 I + 1) / size - 2 t) / size
    grad = per_pair(grad_mask) * slope
    grad += per_pair(grad_dice) * (per_pair((2 * intersection + 1) / size) - 2 * t) * p * q
    full = mask_logits.new_zeros(mask_logits.shape)
    grad = grad.where(counted, 0).to(mask_logits.dtype)
    full[where] = grad.view(grad.shape[0], *mask_logits.shape[2:])
    return full


register_fallback("focal_dice_loss", _focal_dice_loss_algebra)
register_fallback("_focal_dice_loss_backward", _focal_dice_loss_backward_algebra)
register_triton("focal_dice_loss", "focal_dice_loss")
register_triton("_focal_dice_loss_backward", "focal_dice_loss")
