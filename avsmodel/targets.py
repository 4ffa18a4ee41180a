# SPDX-License-Identifier: Apache-2.0
"""The targets of a clip's ground truth: one per sounding class."""

from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Targets:
    """Targets of B clips, at most J each; clips with fewer are padded with absent targets.

    Attributes:
        labels: int64 ``Tensor[B, J]``, index among the foreground classes (class id - 1).
        counts: int64 ``Tensor[B]``, targets of each clip.
        present: bool ``Tensor[B, J, T]``, whether the target is in the frame.
        boxes: ``Tensor[B, J, T, 4]``, cxcywh as fractions of the frame; zeros where the target is
            absent.
        masks: bool ``Tensor[B, J, T, h, w]``, the cells of ``stride`` x ``stride`` pixels at least
            half of which belong to the target.
    """

    labels: Tensor
    counts: Tensor
    present: Tensor
    boxes: Tensor
    masks: Tensor


def clip_targets(masks: Tensor, labelled: Tensor, *, stride: int = 4) -> Targets:
    """Make one target of each class in the labelled frames of a clip.

    Args:
        masks: int64 ``Tensor[B, T, H, W]``, class ids, 0 = background.
        labelled: bool ``Tensor[B, T]``; targets are absent from the other frames.
        stride: side of a mask cell in pixels.
    """
    masks = masks * labelled[..., None, None]
    present_ids = [clip.flatten().bincount()[1:].nonzero().flatten() + 1 for clip in masks]
    counts = torch.tensor([len(ids) for ids in present_ids], device=masks.device)
    ids = torch.nn.utils.rnn.pad_sequence(present_ids, batch_first=True, padding_value=-1)  # [B, J]
    full = masks[:, None] == ids[:, :, None, None, None]  # [B, J, T, H, W]
    boxes, present = mask_boxes(full)
    height, width = masks.shape[-2:]
    padded = F.pad(full.view(torch.uint8), (0, -width % stride, 0, -height % stride))
    columns = reduce(torch.add, (padded[..., i::stride, :] for i in range(stride))).int()
    cells = 2 * reduce(torch.add, (columns[..., i::stride] for i in range(stride))) >= stride**2
    return Targets((ids - 1).clamp(min=0), counts, present, boxes, cells)


def mask_boxes(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounding boxes of masks.

    Args:
        masks: bool ``Tensor[..., H, W]``.

    Returns:
        Boxes float32 ``Tensor[..., 4]``, cxcywh as fractions of the frame, zeros for empty masks;
        and bool ``Tensor[...]``, whether the mask is not empty.
    """

    def extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
        length = occupied.shape[-1]
        first = occupied.int().argmax(-1)
        last = length - occupied.flip(-1).int().argmax(-1)
        return first / length, last / length

    pixels = masks.view(torch.uint8)  # torch takes a maximum of uint8 faster than of bool
    rows = pixels.amax(-1)
    left, right = extent(pixels.amax(-2))
    top, bottom = extent(rows)
    present = rows.amax(-1).bool()
    boxes = torch.stack(
        ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top), dim=-1
    )
    return boxes * present[..., None], present
