# SPDX-License-Identifier: Apache-2.0
"""What a clip's ground truth asks of the tokens: one target per sounding class."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Targets:
    """Targets of B clips, at most J each; the places of clips with fewer hold no target.

    labels: int64 ``[B, J]``, index of the class among the foreground classes (class id - 1).
    counts: int64 ``[B]``, targets of each clip.
    present: bool ``[B, J, T]``, the target is in the frame.
    boxes: ``[B, J, T, 4]``, cxcywh as shares of the frame; zeros where the target is absent.
    masks: bool ``[B, J, T, h, w]``, cells of ``stride`` pixels, at least half of which belong to
        the target.
    """

    labels: Tensor
    counts: Tensor
    present: Tensor
    boxes: Tensor
    masks: Tensor


def clip_targets(masks: Tensor, labelled: Tensor, *, stride: int = 4) -> Targets:
    """Make one target of each class in the labelled frames of a clip.

    Args:
        masks: int64 ``[B, T, H, W]``, class ids, 0 = background.
        labelled: bool ``[B, T]``; targets are absent from the other frames.
        stride: side of a mask cell in pixels.
    """
    masks = masks * labelled[..., None, None]
    ids = [clip.flatten().bincount()[1:].nonzero().flatten() + 1 for clip in masks]
    counts = torch.tensor([len(values) for values in ids], device=masks.device)
    ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)  # [B, J]
    full = masks[:, None] == ids[:, :, None, None, None]  # [B, J, T, H, W]
    boxes, present = mask_boxes(full)
    height, width = masks.shape[-2:]
    padded = F.pad(full.view(torch.uint8), (0, -width % stride, 0, -height % stride))
    columns = sum(padded[..., i::stride, :] for i in range(stride)).int()
    cells = 2 * sum(columns[..., i::stride] for i in range(stride)) >= stride**2
    return Targets((ids - 1).clamp(min=0), counts, present, boxes, cells)


def mask_boxes(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Bound masks bool ``[..., H, W]``.

    Returns:
        Boxes float32 ``[..., 4]``, cxcywh as shares of the frame, zeros for empty masks; and bool
        ``[...]``, whether there is anything in the mask.
    """

    def extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
        length = occupied.shape[-1]
        first = occupied.int().argmax(-1)
        last = length - occupied.flip(-1).int().argmax(-1)
        return first / length, last / length

    pixels = masks.view(torch.uint8)  # of which torch takes a maximum faster than of bools
    rows = pixels.amax(-1)
    left, right = extent(pixels.amax(-2))
    top, bottom = extent(rows)
    present = rows.amax(-1).bool()
    boxes = torch.stack(
        ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top), dim=-1
    )
    return boxes * present[..., None], present
