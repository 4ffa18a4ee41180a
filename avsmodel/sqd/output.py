# SPDX-License-Identifier: Apache-2.0
"""What the model returns, and the inference rule that turns it into a segmentation."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avskernels import semantic_argmax
from avsmodel.sqd.masks import MASK_STRIDE


@dataclass
class SQDOutput:
    """Predictions of N tokens in T frames of B clips; K foreground classes, 1 for binary sets.

    Attributes:
        class_logits: ``Tensor[B, N, T, K]``.
        boxes: ``Tensor[B, N, T, 4]``, cxcywh as fractions of the frame.
        mask_logits: ``Tensor[B, N, T, h, w]``, one value per 4 x 4 pixels; the last row and column
            reach beyond a frame whose size is no multiple of 4.
        quantization_loss: scalar, L_quant of Eq. 9.
        global_indices: int64 ``Tensor[B, N]``, codewords of the clip; None without global
            decomposition.
        local_indices: int64 ``Tensor[B, N, T]``, codewords of each frame; None without local
            decomposition.
        frame_size: ``(H, W)`` of the input.
        auxiliary: (class_logits, boxes, mask_logits) of the earlier decoder layers, in training.
    """

    class_logits: Tensor
    boxes: Tensor
    mask_logits: Tensor
    quantization_loss: Tensor
    global_indices: Tensor | None
    local_indices: Tensor | None
    frame_size: tuple[int, int]
    auxiliary: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)


@dataclass
class Segmentation:
    """A segmentation of B clips.

    Attributes:
        labels: int64 ``Tensor[B, T, H, W]``, class ids with 0 = background.
        scores: ``Tensor[B, T, H, W]``, foreground probability in 0..1.
        token_masks: ``Tensor[B, N, T, H, W]``, mask probability of each token, kept or not.
    """

    labels: Tensor
    scores: Tensor
    token_masks: Tensor


def join_tracks(outputs: list[SQDOutput]) -> SQDOutput:
    """Merge the outputs for separated sound tracks of the same clips into one with all tokens.

    This is decomposition in the time domain: each track is segmented alone, and the inference
    rule sees the tokens of all of them.
    """

    def join(name: str) -> Any:  # a tensor, or None where no output has it
        parts = [getattr(output, name) for output in outputs]
        return None if parts[0] is None else torch.cat(parts, dim=1)

    names = ("class_logits", "boxes", "mask_logits", "global_indices", "local_indices")
    return SQDOutput(
        **{name: join(name) for name in names},
        quantization_loss=torch.stack([output.quantization_loss for output in outputs]).mean(),
        frame_size=outputs[0].frame_size,
    )


def segment(
    output: SQDOutput,
    size: tuple[int, int] | None = None,
    *,
    class_threshold: float = 0.1,
    mask_threshold: float = 0.5,
) -> Segmentation:
    """Give each pixel the class ``argmax_c sum_i P_i[c] M_i`` (Eq. 11).

    Only masks above ``mask_threshold`` of classes above ``class_threshold`` count; all other pixels
    are background. With one class the foreground is the union of the kept masks. A pixel's score is
    the highest mask probability among the tokens that have a class above the threshold.

    Args:
        output: what the model returned.
        size: ``(H, W)`` of the result; the input's by default.
        class_threshold: of class probabilities.
        mask_threshold: of mask probabilities.
    """
    B, T = output.mask_logits.shape[0], output.mask_logits.shape[2]
    size = size or output.frame_size
    # The grid of masks may reach beyond the frame: enlarge all of it, then crop.
    grid = [
        round(pixels * cells * MASK_STRIDE / frame)
        for pixels, cells, frame in zip(
            size, output.mask_logits.shape[-2:], output.frame_size, strict=True
        )
    ]
    frames = output.mask_logits.transpose(1, 2).flatten(0, 1).float()  # [B*T, N, h, w]
    logits = F.interpolate(frames, grid, mode="bilinear", align_corners=False)
    logits = logits[..., : size[0], : size[1]].contiguous()
    class_probs = output.class_logits.float().sigmoid().transpose(1, 2).flatten(0, 1)
    labels = semantic_argmax(
        F.pad(class_probs, (1, 0)),  # class 0, the background, is below every threshold
        logits,
        class_threshold=class_threshold,
        mask_threshold=mask_threshold,
    )
    probabilities = logits.sigmoid()
    kept = class_probs.amax(-1) > class_threshold  # [B*T, N]
    scores = torch.where(kept[..., None, None], probabilities, 0.0).amax(1)
    return Segmentation(
        labels.unflatten(0, (B, T)),
        scores.unflatten(0, (B, T)),
        probabilities.unflatten(0, (B, T)).transpose(1, 2),
    )
