# SPDX-License-Identifier: Apache-2.0
"""J, F and their mean for masks without classes (S4, MS3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avsmodel.metrics.clips import ClipEvaluator
from avsmodel.metrics.davis import boundary_accuracy, region_similarity
from avsmodel.metrics.histogram import f_measure, threshold_counts

_EPSILON = 1e-7


class BinaryEvaluator(ClipEvaluator):
    """Region and threshold measures of a binary data set, by a named protocol.

    - ``avsbench``: J = |P n G| / |P u G| of P = score > 0.5, per frame; a frame with an empty
      ground truth scores the share of its pixels outside P. F = max over 255 thresholds of the
      mean over frames of (1.3 p r) / (0.3 p + r), frames with an empty ground truth left out.
      Both are formed per batch of ``batch_size`` clips and then averaged over batches, as
      published: F depends on it (a batch without sounding frames counts as 0). The values
      ``*_batch_free`` treat the whole set as one batch.
    - ``dataset``: intersections, unions, hits and areas are summed over the whole set first.
    - ``davis``: J and boundary F of DAVIS, averaged over the frames of a clip, then over clips.

    Args:
        protocol: ``"avsbench"``, ``"dataset"`` or ``"davis"``.
        batch_size: clips in a test batch of the avsbench protocol; batches are consecutive
            clips of the data set, in whatever order the clips are added.

    Raises:
        ValueError: for an unknown protocol, or a batch_size below 1.
    """

    def __init__(self, protocol: str = "avsbench", batch_size: int = 1):
        if protocol not in _MEASURES:
            raise ValueError(
                f"BinaryEvaluator: expected protocol avsbench, dataset or davis, got {protocol!r}"
            )
        if batch_size < 1:
            raise ValueError(f"BinaryEvaluator: expected a positive batch_size, got {batch_size}")
        super().__init__()
        self.protocol, self.batch_size = protocol, batch_size

    @torch.no_grad()
    def update(
        self,
        scores: Tensor,
        masks: Tensor,
        valid: Tensor | None = None,
        clips: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Add clips.

        Args:
            scores: floating-point ``Tensor[B, T, H, W]``, probability of foreground, 0..1.
            masks: integer ``Tensor[B, T, H, W]``, foreground where above 0.
            valid: bool ``Tensor[B, T]``, frames that count; all by default.
            clips: ``[B]``, position of each clip in the data set (``Batch.indices``); by default
                numbered by arrival, which works in a single process only.

        Raises:
            ValueError: for other shapes or dtypes, or scores outside 0..1.
        """
        valid = self._check(scores, masks, valid, floating=True)
        measure, _ = _MEASURES[self.protocol]
        columns = measure(scores.flatten(0, 1), masks.flatten(0, 1) > 0)
        self._add(columns, valid, (scores.shape[-2], scores.shape[-1]), clips)

    def compute(self) -> dict[str, float | int | str]:
        """Return J, F and JF (their mean) in 0..1, and the settings of the protocol.

        Raises:
            ValueError: if no frame counts yet.
        """
        table = self._table()
        _, summarise = _MEASURES[self.protocol]
        values = summarise(table, self.batch_size)
        for suffix in ("", "_batch_free"):
            if f"J{suffix}" in values:
                values[f"JF{suffix}"] = (values[f"J{suffix}"] + values[f"F{suffix}"]) / 2
        return {
            **values,
            "protocol": self.protocol,
            "batch_size": self.batch_size,
            "resolution": self._resolution(),
            "clips": len(table["frames"]),
            "frames": int(table["frames"].sum()),
        }


def _avsbench_frames(scores: Tensor, truth: Tensor) -> dict[str, Tensor]:
    reached, above = threshold_counts(scores, truth)
    background, positive = reached[..., 0].unbind(1)
    sounding = positive > 0
    share = torch.where(sounding, above[:, 1], background - above[:, 0]).double()
    whole = torch.where(sounding, positive + above[:, 0], background).double()
    j = share / (whole + _EPSILON)
    curve = f_measure(reached[:, 1], reached.sum(1), positive[:, None])
    return {"j": j, "curve": curve, "sounding": sounding.long()}


def _avsbench_summary(table: dict[str, Tensor], batch_size: int) -> dict[str, float]:
    def average(size: int) -> tuple[float, float]:
        j, f = [], []
        for start in range(0, len(table["j"]), size):
            batch = {name: column[start : start + size].sum(0) for name, column in table.items()}
            j.append(batch["j"] / batch["frames"])
            f.append((batch["curve"] / batch["sounding"].clamp(min=1)).max())
        return torch.stack(j).mean().item(), torch.stack(f).mean().item()

    j, f = average(batch_size)
    j_free, f_free = average(len(table["j"]))
    return {"J": j, "F": f, "J_batch_free": j_free, "F_batch_free": f_free}


def _dataset_frames(scores: Tensor, truth: Tensor) -> dict[str, Tensor]:
    reached, above = threshold_counts(scores, truth)
    positive = reached[:, 1, 0]
    return {
        "intersection": above[:, 1],
        "union": positive + above[:, 0],
        "hits": reached[:, 1],
        "predicted": reached.sum(1),
        "positive": positive,
    }


def _dataset_summary(table: dict[str, Tensor], batch_size: int) -> dict[str, float]:
    total = {name: column.sum(0) for name, column in table.items()}
    # Nothing to find and nothing found: perfect, as for a frame.
    union = int(total["union"])
    j = int(total["intersection"]) / union if union else 1.0
    f = f_measure(total["hits"], total["predicted"], total["positive"]).max()
    return {"J": j, "F": f.item()}


def _davis_frames(scores: Tensor, truth: Tensor) -> dict[str, Tensor]:
    predicted = scores.to(torch.float32) > 0.5
    return {"j": region_similarity(predicted, truth), "f": boundary_accuracy(predicted, truth)}


def _davis_summary(table: dict[str, Tensor], batch_size: int) -> dict[str, float]:
    return {
        "J": (table["j"] / table["frames"]).mean().item(),
        "F": (table["f"] / table["frames"]).mean().item(),
    }


# Per protocol: the measures of a frame, which are summed over a clip, and the average over clips.
_MEASURES = {
    "avsbench": (_avsbench_frames, _avsbench_summary),
    "dataset": (_dataset_frames, _dataset_summary),
    "davis": (_davis_frames, _davis_summary),
}
