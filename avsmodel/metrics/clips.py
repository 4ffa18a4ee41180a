# SPDX-License-Identifier: Apache-2.0
"""What every evaluator keeps: a row of numbers per clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class ClipEvaluator:
    """Rows of numbers, one per clip, in any order and from any number of processes.

    Averages are formed in ``compute`` only, over the rows in the order of the data set, so that
    the result does not depend on the loader's batches, on the order of arrival or on how many
    processes shared the work; a clip that a padded sampler served twice counts once.
    """

    def __init__(self) -> None:
        self._rows: dict[int, dict[str, Tensor]] = {}
        self._sizes: set[tuple[int, int]] = set()
        self._counted = False  # clips were numbered by arrival, not by the caller

    def reset(self) -> None:
        """Forget every clip."""
        ClipEvaluator.__init__(self)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows as tensors, for ``merge`` in another process."""
        clips = sorted(self._rows)
        names = self._rows[clips[0]] if clips else ()
        return {
            "clips": torch.tensor(clips, dtype=torch.int64),
            "columns": {n: torch.stack([self._rows[clip][n] for clip in clips]) for n in names},
            "sizes": sorted(self._sizes),
            "counted": self._counted,
        }

    def merge(self, state: dict[str, Any]) -> None:
        """Add the rows of another evaluator's ``state_dict``; a clip that is already here stays.

        Raises:
            ValueError: for rows that were numbered by arrival, since other processes use these
                numbers too.
        """
        if len(state["clips"]) and (state["counted"] or self._counted):
            raise ValueError(
                f"{type(self).__name__}.merge: expected clips passed to update in every process, "
                "got clips numbered by arrival"
            )
        for position, clip in enumerate(state["clips"].tolist()):
            row = {name: column[position] for name, column in state["columns"].items()}
            self._rows.setdefault(clip, row)
        self._sizes.update(tuple(size) for size in state["sizes"])

    def _check(
        self, values: Tensor, masks: Tensor | None, valid: Tensor | None, floating: bool
    ) -> Tensor:
        # Returns `valid`, all True where it was None.
        who = f"{type(self).__name__}.update"
        name = "scores" if floating else "labels"
        kind = "floating-point" if floating else "integer"
        if values.ndim != 4 or values.is_floating_point() != floating:
            raise ValueError(
                f"{who}: expected {kind} {name} [B, T, H, W], got {values.dtype} "
                f"{list(values.shape)}"
            )
        if masks is not None and (masks.shape != values.shape or masks.is_floating_point()):
            raise ValueError(
                f"{who}: expected integer masks {list(values.shape)}, got {masks.dtype} "
                f"{list(masks.shape)}"
            )
        if floating and values.numel():
            low, high = (bound.item() for bound in torch.aminmax(values))
            if not (low >= 0 and high <= 1):  # NaN is neither
                raise ValueError(f"{who}: expected scores in 0..1, got {low} to {high}")
        if valid is None:
            return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        if valid.shape != values.shape[:2] or valid.dtype != torch.bool:
            raise ValueError(
                f"{who}: expected bool valid {list(values.shape[:2])}, got {valid.dtype} "
                f"{list(valid.shape)}"
            )
        return valid

    def _add(
        self,
        columns: dict[str, Tensor],  # each [B*T, ...], a row per frame
        counted: Tensor,  # [B, T] bool
        size: tuple[int, int],
        clips: Sequence[int] | Tensor | None,
    ) -> None:
        # Keeps the sums over the frames of each clip that are counted, and their number.
        count = len(counted)
        if clips is None:
            self._counted = True
            clips = range(len(self._rows), len(self._rows) + count)
        elif self._counted:
            raise ValueError(
                f"{type(self).__name__}.update: expected clips in every call or in none, got both"
            )
        numbers = clips.tolist() if isinstance(clips, Tensor) else list(clips)
        if len(numbers) != count:
            raise ValueError(
                f"{type(self).__name__}.update: expected {count} clips, got {len(numbers)}"
            )
        self._sizes.add(size)
        sums = {"frames": counted.sum(1).cpu()}
        for name, column in columns.items():
            per_frame = column.unflatten(0, counted.shape)
            weight = counted.reshape(*counted.shape, *[1] * (column.ndim - 1))
            sums[name] = (per_frame * weight).sum(1).cpu()
        for position, clip in enumerate(numbers):
            row = {name: column[position].clone() for name, column in sums.items()}
            self._rows.setdefault(clip, row)

    def _table(self) -> dict[str, Tensor]:
        # Columns [clips, ...] in the order of the data set, of clips with a frame that counts.
        table = self.state_dict()["columns"]
        if not table or not table["frames"].any():
            raise ValueError(f"{type(self).__name__}.compute: expected a counted frame, got none")
        return {name: column[table["frames"] > 0] for name, column in table.items()}

    def _resolution(self) -> str:
        return ", ".join(f"{height}x{width}" for height, width in sorted(self._sizes))
