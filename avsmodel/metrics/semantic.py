# SPDX-License-Identifier: Apache-2.0
"""mIoU and F for masks of classes (AVSS)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avsmodel.metrics.clips import ClipEvaluator
from avsmodel.metrics.histogram import f_measure


class SemanticEvaluator(ClipEvaluator):
    """Per-class intersection over union and F-measure, by a named protocol.

    - ``avsbench``: per frame and class IoU and F (beta^2 = 0.3), summed over frames and divided by
      the number of frames in which the class is predicted or present; then the mean over **all**
      classes, background included; a class that never occurs counts as 0.
    - ``dataset``: intersections and areas are summed over the whole set, and the mean is taken
      over the classes that occur.

    Args:
        num_classes: classes, background included.
        protocol: ``"avsbench"`` or ``"dataset"``.
        real_frames: count only frames that exist; False counts the padding of short clips too,
            predicted as background, as published.

    Raises:
        ValueError: for an unknown protocol, or fewer than 2 classes.
    """

    def __init__(self, num_classes: int, protocol: str = "avsbench", real_frames: bool = False):
        if protocol not in ("avsbench", "dataset"):
            raise ValueError(
                f"SemanticEvaluator: expected protocol avsbench or dataset, got {protocol!r}"
            )
        if num_classes < 2:
            raise ValueError(f"SemanticEvaluator: expected at least 2 classes, got {num_classes}")
        super().__init__()
        self.num_classes, self.protocol, self.real_frames = num_classes, protocol, real_frames

    @torch.no_grad()
    def update(
        self,
        labels: Tensor,
        masks: Tensor,
        real: Tensor | None = None,
        clips: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Add clips.

        Args:
            labels: integer ``Tensor[B, T, H, W]``, predicted class ids.
            masks: integer ``Tensor[B, T, H, W]``, true class ids.
            real: bool ``Tensor[B, T]``, frames that exist; all by default.
            clips: ``[B]``, position of each clip in the data set (``Batch.indices``); by default
                numbered by arrival, which works in a single process only.

        Raises:
            ValueError: for other shapes or dtypes, or an id that is no class.
        """
        real = self._check(labels, masks, real, floating=False)
        for name, ids in (("labels", labels), ("masks", masks)):
            if ids.numel():
                low, high = (bound.item() for bound in torch.aminmax(ids))
                if low < 0 or high >= self.num_classes:
                    raise ValueError(
                        f"SemanticEvaluator.update: expected {name} in 0..{self.num_classes - 1}, "
                        f"got {low} to {high}"
                    )
        labels = labels * real[..., None, None]
        counted = real if self.real_frames else torch.ones_like(real)
        confusion = self._confusion(labels.flatten(0, 1), masks.flatten(0, 1))
        hits = confusion.diagonal(dim1=1, dim2=2)
        areas = {"hits": hits, "predicted": confusion.sum(2), "present": confusion.sum(1)}
        columns = self._per_frame(**areas) if self.protocol == "avsbench" else areas
        columns |= self._sounding(confusion, real.flatten())
        self._add(columns, counted, (labels.shape[-2], labels.shape[-1]), clips)

    def compute(self) -> dict[str, Any]:
        """Return mIoU, F and J in 0..1 and ``per_class``, the IoU by class id (None: never occurs).

        J is that of all sounding classes together, as :class:`BinaryEvaluator` forms it per frame:
        what is left of the task without naming the classes.

        Raises:
            ValueError: if no frame counts yet.
        """
        table = self._table()
        total = {name: column.sum(0) for name, column in table.items()}
        if self.protocol == "avsbench":
            occurs = total["occurs"] > 0
            iou = total["iou"] / total["occurs"].clamp(min=1)
            f = total["f"] / total["occurs"].clamp(min=1)
            miou, mean_f = iou.mean().item(), f.mean().item()
        else:
            per_class = self._per_frame(total["hits"], total["predicted"], total["present"])
            occurs, iou, f = per_class["occurs"] > 0, per_class["iou"], per_class["f"]
            miou, mean_f = iou[occurs].mean().item(), f[occurs].mean().item()
        return {
            "mIoU": miou,
            "F": mean_f,
            "J": (total["J"] / total["real"].clamp(min=1)).item(),
            "per_class": [
                value if seen else None
                for value, seen in zip(iou.tolist(), occurs.tolist(), strict=True)
            ],
            "protocol": self.protocol,
            "real_frames": self.real_frames,
            "resolution": self._resolution(),
            "clips": len(table["frames"]),
            "frames": int(total["frames"]),
        }

    def _confusion(self, labels: Tensor, masks: Tensor) -> Tensor:
        # int64 [F, classes, classes]: pixels by (predicted, true) class.
        frames, cells = len(labels), self.num_classes**2
        first = torch.arange(frames, device=labels.device)[:, None, None] * cells
        index = labels.long() * self.num_classes + masks + first
        counts = torch.bincount(index.view(-1), minlength=frames * cells)
        return counts.view(frames, self.num_classes, self.num_classes)

    @staticmethod
    def _sounding(confusion: Tensor, real: Tensor) -> dict[str, Tensor]:
        # J of everything but the background, in frames that exist.
        predicted, present = confusion[:, 1:].sum((1, 2)), confusion[:, :, 1:].sum((1, 2))
        hits, pixels = confusion[:, 1:, 1:].sum((1, 2)), confusion.sum((1, 2)).clamp(min=1)
        overlap = hits.double() / (predicted + present - hits).clamp(min=1)
        empty = 1 - predicted.double() / pixels
        return {"J": torch.where(present > 0, overlap, empty) * real, "real": real.long()}

    @staticmethod
    def _per_frame(hits: Tensor, predicted: Tensor, present: Tensor) -> dict[str, Tensor]:
        union = predicted + present - hits
        return {
            "iou": hits.double() / union.clamp(min=1),
            "f": f_measure(hits, predicted, present),
            "occurs": (union > 0).long(),
        }
