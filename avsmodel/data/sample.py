# SPDX-License-Identifier: Apache-2.0
"""What a data set yields: one clip, and a batch of clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class Sample:
    """One clip of T frames, each with one second of sound.

    Attributes:
        uid: name of the clip, unique in its data set.
        frames: float32 ``Tensor[T, 3, H, W]``, normalised with ImageNet's mean and deviation; zero
            where the frame does not exist.
        log_mel: float32 ``Tensor[T, 1, 96, 64]``, VGGish's log-mel examples.
        masks: int64 ``Tensor[T, H, W]``, class ids, 0 = background; zero where there is no label.
        real: bool ``Tensor[T]``, whether the frame exists (False = padding).
        labelled: bool ``Tensor[T]``, whether the frame has a ground truth that may be used.
        index: position of the clip in its data set, -1 if it has none.
    """

    uid: str
    frames: Tensor
    log_mel: Tensor
    masks: Tensor
    real: Tensor
    labelled: Tensor
    index: int = -1


@dataclass
class Batch:
    """B clips of T frames: the fields of :class:`Sample` with a leading batch dimension.

    Attributes:
        indices: int64 ``Tensor[B]``, each clip's position in its data set.
    """

    uids: list[str]
    frames: Tensor
    log_mel: Tensor
    masks: Tensor
    real: Tensor
    labelled: Tensor
    indices: Tensor | None = None

    def __len__(self) -> int:
        return len(self.uids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; a ``DataLoader`` calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        tensors: dict[str, Any] = {
            field.name: function(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **tensors)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack clips of equal length and size into a batch (a ``DataLoader``'s ``collate_fn``)."""

    def stack(name: str) -> Tensor:
        return torch.stack([getattr(sample, name) for sample in samples])

    return Batch(
        uids=[sample.uid for sample in samples],
        frames=stack("frames"),
        log_mel=stack("log_mel"),
        masks=stack("masks"),
        real=stack("real"),
        labelled=stack("labelled"),
        indices=torch.tensor([sample.index for sample in samples]),
    )
