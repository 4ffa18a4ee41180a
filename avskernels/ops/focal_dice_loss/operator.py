# SPDX-License-Identifier: Apache-2.0
"""Mask losses of matched pairs: focal or binary cross entropy, and dice, in one pass."""

from typing import Any

import torch
from torch import Tensor

from avskernels.core.backend import cpp, plain_torch, triton_kernel
from avskernels.core.mask_loss import check_divides
from avskernels.core.operator import Operator
from avskernels.core.specification import check_choice
from avskernels.ops.focal_dice_loss import plain
from avskernels.ops.focal_dice_loss.reference import MaskLosses
from avskernels.ops.focal_dice_loss.reference import focal_dice_loss as reference

MASK_LOSSES = ("focal", "bce")


def focal_dice_loss(
    mask_logits: Tensor,
    target_masks: Tensor,
    columns: Tensor,
    *,
    labelled: Tensor | None = None,
    mask_loss: str = "focal",
    alpha: float = 0.25,
    gamma: float = 2.0,
    backend: str | None = None,
) -> MaskLosses:
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
    check_choice("focal_dice_loss", "mask_loss", mask_loss, MASK_LOSSES)
    args = mask_logits, target_masks, columns, labelled, mask_loss, float(alpha), float(gamma)
    if OPERATOR.wants_reference(backend, args):
        return reference(
            mask_logits,
            target_masks,
            columns,
            labelled=labelled,
            mask_loss=mask_loss,
            alpha=alpha,
            gamma=gamma,
        )
    return MaskLosses(*OPERATOR(*args)[:2])


def _require(a: Any) -> None:
    check_divides("focal_dice_loss", a.target_masks.shape[0], a.mask_logits.shape[0])


def _require_backward(a: Any) -> None:
    check_divides("_focal_dice_loss_backward", a.target_masks.shape[0], a.mask_logits.shape[0])


def _triton() -> Any:
    from avskernels.ops.focal_dice_loss import triton

    return triton


def _triton_refuses(a: Any) -> str | None:
    if torch.float64 in (a.mask_logits.dtype, a.target_masks.dtype):
        return "float64"
    return "no pixels" if a.mask_logits.numel() == 0 else None


BACKWARD = Operator(
    "_focal_dice_loss_backward",
    [
        cpp(),
        triton_kernel(lambda *args: _triton().backward(*args), _triton_refuses),
        plain_torch(plain.backward),
    ],
    requires=_require_backward,
)
OPERATOR = Operator(
    "focal_dice_loss",
    [
        cpp(),
        triton_kernel(lambda *args: _triton().forward(*args), _triton_refuses),
        plain_torch(plain.forward),
    ],
    requires=_require,
    gradient=BACKWARD,
)
