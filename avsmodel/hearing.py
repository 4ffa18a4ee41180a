# SPDX-License-Identifier: Apache-2.0
"""Clips with a sound that is not their own: a test of whether a model uses the sound."""

import numpy as np
import torch
from torch.utils.data import Dataset

from avsmodel.data import AVSDataset, Sample, log_mel
from avsmodel.data.audio import SAMPLE_RATE

SOUNDS = ("own", "shuffled", "silence", "noise")
_NOISE_LEVEL = 0.1  # root mean square


class OtherSound(Dataset[Sample]):
    """The clips of a data set, each with another sound.

    - ``shuffled``: that of another clip. A seeded cycle through all clips pairs them, so that
      every sound is used once and no clip keeps its own; ``source`` tells which clip it is from.
    - ``silence``, ``noise`` (white): nothing on screen sounds so, and the right answer is empty.

    Raises:
        ValueError: for another name, or fewer than two clips to shuffle.
    """

    def __init__(self, dataset: AVSDataset, sound: str, seed: int = 0) -> None:
        if sound not in SOUNDS[1:]:
            raise ValueError(f"sound: expected {', '.join(SOUNDS[1:])}, got {sound!r}")
        self.dataset, self.sound, self.seed = dataset, sound, seed
        if sound == "shuffled":
            if len(dataset) < 2:
                raise ValueError(f"shuffled sound: expected at least 2 clips, got {len(dataset)}")
            cycle = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
            self.source = dict(zip(cycle.tolist(), cycle.roll(1).tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        if self.sound == "shuffled":
            sample.log_mel = self.dataset[self.source[index]].log_mel
        else:
            level = _NOISE_LEVEL if self.sound == "noise" else 0.0
            random = np.random.default_rng([self.seed, index])
            waveform = level * random.normal(size=(len(sample.log_mel) + 1) * SAMPLE_RATE)
            sample.log_mel = log_mel(waveform, len(sample.log_mel))
        return sample
