# SPDX-License-Identifier: Apache-2.0
"""What a data set yields: one clip, and a batch of clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass
class Sample:
    """One clip of T frames, one second of sound each.

    Attributes:
        uid: name of the clip, unique in its data set.
        frames: Tensor[T, 3, H, W] float32, normalised with ImageNet's mean and deviation; zero
            where the frame does not exist.
        log_mel: Tensor[T, 1, 96, 64] float32, VGGish's log-mel examples.
        masks: Tensor[T, H, W] int64, class ids, 0 = background; zero where there is no label.
        real: Tensor[T] bool, the frame exists (False = padding).
        labelled: Tensor[T] bool, the frame has a ground truth that may be used.
        index: position of the clip in its data set, -1 where it has none.
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
    """B clips of T frames: the fields of `Sample` with a leading batch dimension.

    `indices` is Tensor[B] int64, each clip's position in its data set.
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
        """Return the batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory (called by `torch.utils.data.DataLoader`)."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{k: function(v) for k, v in tensors.items() if isinstance(v, Tensor)}
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack clips of equal length and size into a batch (a `DataLoader`'s `collate_fn`)."""

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
