# SPDX-License-Identifier: Apache-2.0
"""What a model segments when nothing on screen sounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avsmodel.metrics.clips import ClipEvaluator


class FalsePositiveRate(ClipEvaluator):
    """Foreground predicted for silence, noise or sound from off the screen.

    The right answer to each is an empty mask, so every pixel with score > 0.5 is a false
    positive. ``pixels`` is their share, ``frames`` the share of frames with at least one.

    Args:
        condition: name of what was heard (silence, noise, offscreen), repeated in the result.
    """

    def __init__(self, condition: str):
        super().__init__()
        self.condition = condition

    @torch.no_grad()
    def update(
        self,
        scores: Tensor,
        valid: Tensor | None = None,
        clips: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Add clips; arguments as for :meth:`BinaryEvaluator.update`, without masks."""
        valid = self._check(scores, None, valid, floating=True)
        false = (scores > 0.5).flatten(0, 1).sum((-2, -1))
        pixels = torch.full_like(false, scores.shape[-2] * scores.shape[-1])
        columns = {"false_pixels": false, "false_frames": (false > 0).long(), "pixels": pixels}
        self._add(columns, valid, (scores.shape[-2], scores.shape[-1]), clips)

    def compute(self) -> dict[str, float | int | str]:
        """Return the false-positive rates in 0..1.

        Raises:
            ValueError: if no frame counts yet.
        """
        table = self._table()
        total = {name: int(column.sum()) for name, column in table.items()}
        return {
            "pixels": total["false_pixels"] / max(total["pixels"], 1),
            "frames": total["false_frames"] / total["frames"],
            "condition": self.condition,
            "resolution": self._resolution(),
            "clips": len(table["frames"]),
        }
