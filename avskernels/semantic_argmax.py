"""Semantic inference of query-based segmenters: the best class of every pixel, in one pass."""

import torch
from torch.nn import functional

from avskernels import reference
from avskernels._backend import use_reference
from avskernels._check import FLOATS, accumulate_dtype, expect
from avskernels._library import register_autocast, register_fallback, register_triton

ACTIVATIONS = ("sigmoid", "none")


def semantic_argmax(
    class_probs,
    mask_logits,
    *,
    size=None,
    class_threshold=0.0,
    mask_threshold=0.0,
    activation="sigmoid",
    return_scores=False,
    backend=None,
):
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
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"semantic_argmax: expected activation to be one of {ACTIVATIONS}, got {activation!r}"
        )
    class_probs, mask_logits = class_probs.detach(), mask_logits.detach()
    height, width = mask_logits.shape[-2:] if size is None else size
    if use_reference("semantic_argmax", backend, mask_logits):
        _check(class_probs, mask_logits, height, width)
        return reference.semantic_argmax(
            class_probs,
            mask_logits,
            size,
            class_threshold,
            mask_threshold,
            activation,
            return_scores,
        )
    labels, scores = torch.ops.avskernels.semantic_argmax.default(
        class_probs,
        mask_logits,
        height,
        width,
        class_threshold,
        mask_threshold,
        activation == "sigmoid",
        return_scores,
    )
    return (labels, scores) if return_scores else labels


def _check(class_probs, mask_logits, height, width):
    # The same sentences as check_semantic_argmax in csrc/semantic_argmax/semantic_argmax.h.
    op = "semantic_argmax"
    expect(op, "mask_logits", mask_logits, ("B", "N", "H", "W"), FLOATS)
    batch, queries = mask_logits.shape[:2]
    expect(
        op,
        "class_probs",
        class_probs,
        (batch, queries, "K"),
        (mask_logits.dtype,),
        mask_logits.device,
    )
    if class_probs.shape[2] == 0:
        raise RuntimeError(f"{op}: expected at least one class, got {list(class_probs.shape)}")
    if height < 0 or width < 0:
        raise RuntimeError(f"{op}: expected a size of at least 0, got {[height, width]}")
    if 0 in mask_logits.shape[2:] and height * width > 0:
        raise RuntimeError(
            f"{op}: expected masks that are not empty, got {list(mask_logits.shape)}"
        )


@torch.library.register_fake("avskernels::semantic_argmax")
def _fake(
    class_probs,
    mask_logits,
    height,
    width,
    class_threshold,
    mask_threshold,
    sigmoid,
    return_scores,
):
    _check(class_probs, mask_logits, height, width)
    shape = (mask_logits.shape[0], height, width)
    return (
        mask_logits.new_empty(shape, dtype=torch.int64),
        mask_logits.new_empty(
            shape if return_scores else (0,), dtype=accumulate_dtype(mask_logits.dtype)
        ),
    )


CHUNK = 2**22  # scores held at a time


def _algebra(
    class_probs,
    mask_logits,
    height,
    width,
    class_threshold,
    mask_threshold,
    sigmoid,
    return_scores,
):
    _check(class_probs, mask_logits, height, width)
    batch, queries, classes = class_probs.shape
    labels = mask_logits.new_empty((batch, height * width), dtype=torch.int64)
    dtype = accumulate_dtype(mask_logits.dtype)
    scores = mask_logits.new_empty((batch, height * width) if return_scores else (0,), dtype=dtype)
    for image in range(batch if height * width else 0):
        probs = class_probs[image].double()
        probs = torch.where(probs > class_threshold, probs, 0).T  # [K, N]
        masks = mask_logits[image : image + 1].double()
        if masks.shape[2:] != (height, width) and queries:
            masks = functional.interpolate(
                masks, size=(height, width), mode="bilinear", align_corners=False
            )
        masks = masks[0].reshape(queries, height * width)
        step = max(1, CHUNK // classes)
        for begin in range(0, height * width, step):
            part = masks[:, begin : begin + step]
            part = part.sigmoid() if sigmoid else part
            volume = probs @ torch.where(part > mask_threshold, part, 0)
            labels[image, begin : begin + step] = volume.argmax(0)
            if return_scores:
                scores[image, begin : begin + step] = volume.amax(0)
    shape = (batch, height, width)
    return labels.view(shape), scores.view(shape) if return_scores else scores


register_fallback("semantic_argmax", _algebra)
register_triton("semantic_argmax", "semantic_argmax")
register_autocast("semantic_argmax")
