# SPDX-License-Identifier: Apache-2.0
"""Semantic inference of query-based segmenters: the best class of every pixel, in one pass."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from avskernels.core.backend import cpp, plain_torch, triton_kernel
from avskernels.core.operator import Operator
from avskernels.core.specification import check_choice, fail
from avskernels.ops.semantic_argmax import plain
from avskernels.ops.semantic_argmax.reference import semantic_argmax as reference

ACTIVATIONS = ("sigmoid", "none")


@overload
def semantic_argmax(
    class_probs: Tensor,
    mask_logits: Tensor,
    *,
    size: tuple[int, int] | None = None,
    class_threshold: float = 0.0,
    mask_threshold: float = 0.0,
    activation: str = "sigmoid",
    return_scores: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
def semantic_argmax(
    class_probs: Tensor,
    mask_logits: Tensor,
    *,
    size: tuple[int, int] | None = None,
    class_threshold: float = 0.0,
    mask_threshold: float = 0.0,
    activation: str = "sigmoid",
    return_scores: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def semantic_argmax(
    class_probs: Tensor,
    mask_logits: Tensor,
    *,
    size: tuple[int, int] | None = None,
    class_threshold: float = 0.0,
    mask_threshold: float = 0.0,
    activation: str = "sigmoid",
    return_scores: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Label every pixel with the class of the highest sum of class and mask probabilities.

    .. math:: y(p) = \arg\max_c \sum_i P_{ic} \sigma(M_i(p))

    The sum runs over the entries with P above ``class_threshold`` and a mask value above
    ``mask_threshold`` (NaN is above nothing); of equal scores the lowest class wins, so a pixel
    where nothing is left gets class 0. The [K, H, W] volume of scores is never formed. Labels are
    those of float64 arithmetic, except where the two best scores differ by less than 1e-6 relative.
    Not differentiable. Under autocast it runs in float32.

    The inference of QDFormer is ``semantic_argmax(pad(P), M, class_threshold=0.1,
    mask_threshold=0.5)`` with a background column of zeros in front; that of Mask2Former
    ``semantic_argmax(logits.softmax(-1)[..., :-1], M, size=image_size)``; Hugging Face, which
    resizes probabilities, ``semantic_argmax(P, interpolate(M, (384, 384)).sigmoid(),
    size=image_size, activation="none")``.

    Args:
        class_probs: ``Tensor[B, N, K]``, P: any values, normalised or not; K at least 1. Negative
            ones count where ``class_threshold`` is below them.
        mask_logits: ``Tensor[B, N, H, W]``, M, of the same dtype; float16, bfloat16, float32 or
            float64; any strides.
        size: (height, width) to resize the masks to before the activation, bilinear with
            ``align_corners=False``; None keeps theirs.
        class_threshold: entries of P not above it are dropped.
        mask_threshold: mask values (after the activation) not above it are dropped.
        activation: ``"sigmoid"``, or ``"none"`` where ``mask_logits`` are probabilities already.
        return_scores: also return the winning score.
        backend: see :func:`avskernels.backend`.

    Returns:
        Tensor: labels int64 ``[B, H', W']``; with ``return_scores`` a pair of the labels and their
        scores, float32 (float64 for float64 input).

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit.
        ValueError: for an unknown activation.

    Source: MaskFormer (Cheng et al. 2021), section 3.4; QDFormer, section 3.4.

    Example:
        >>> class_probs = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]])
        >>> mask_logits = torch.tensor([[[[5.0, -5.0]], [[-5.0, 5.0]]]])
        >>> semantic_argmax(class_probs, mask_logits)
        tensor([[[0, 1]]])
    """
    check_choice(OPERATOR.name, "activation", activation, ACTIVATIONS)
    height, width = mask_logits.shape[-2:] if size is None else size
    sigmoid = activation == "sigmoid"
    thresholds = class_threshold, mask_threshold
    args = class_probs, mask_logits, height, width, *thresholds, sigmoid, return_scores
    if OPERATOR.wants_reference(backend, args):
        return reference(
            class_probs,
            mask_logits,
            size=size,
            class_threshold=class_threshold,
            mask_threshold=mask_threshold,
            activation=activation,
            return_scores=return_scores,
        )
    labels, scores = OPERATOR(*args)
    return (labels, scores) if return_scores else labels


def _require(arguments: Any) -> None:
    # The same conditions as those of SemanticArgmax::require in csrc.
    probs, masks = arguments.class_probs, arguments.mask_logits
    height, width = arguments.height, arguments.width
    if probs.shape[2] == 0:
        fail(OPERATOR.name, "at least one class", list(probs.shape))
    if height < 0 or width < 0:
        fail(OPERATOR.name, "a size of at least 0", [height, width])
    if 0 in masks.shape[2:] and height * width > 0:
        fail(OPERATOR.name, "masks that are not empty", list(masks.shape))


def _triton() -> Any:
    from avskernels.ops.semantic_argmax import triton

    return triton


def triton_refuses(mask_logits: Tensor, height: int, width: int) -> str | None:
    """Return why the Triton kernels cannot label pixels, or None."""
    batch, queries = mask_logits.shape[:2]
    if batch * height * width == 0:
        return "no pixels"
    return "no queries" if queries == 0 else None


OPERATOR = Operator(
    "semantic_argmax",
    [
        cpp(),
        triton_kernel(
            lambda *args: _triton().forward(*args),
            lambda a: triton_refuses(a.mask_logits, a.height, a.width),
        ),
        plain_torch(plain.forward),
    ],
    requires=_require,
    autocast=torch.float32,
)
