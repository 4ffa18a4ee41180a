# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from avsmodel.data import log_mel, open_dataset
from avsmodel.hearing import OtherSound


@pytest.fixture
def dataset(data_root):
    return open_dataset(data_root, split="test", size=64)


def test_shuffled_gives_every_sound_to_another_clip(dataset):
    shuffled = OtherSound(dataset, "shuffled")
    own = [sample.log_mel for sample in dataset]
    heard = [
        next(source for source in range(len(own)) if own[source].equal(shuffled[index].log_mel))
        for index in range(len(shuffled))
    ]
    assert sorted(heard) == list(range(len(dataset)))
    assert np.all(np.array(heard) != np.arange(len(dataset)))
    assert heard == [shuffled.source[index] for index in range(len(dataset))]
    assert all(torch.equal(shuffled[i].frames, dataset[i].frames) for i in range(len(dataset)))


def test_silence_is_silent_and_noise_is_loud_at_every_pitch(dataset):
    silence, noise = (OtherSound(dataset, sound)[0] for sound in ("silence", "noise"))
    assert torch.equal(silence.log_mel, log_mel(np.zeros(80000), 5))
    assert noise.log_mel.shape == silence.log_mel.shape
    assert (noise.log_mel.mean((0, 1, 2)) > silence.log_mel.mean() + 2).all()
    assert torch.equal(OtherSound(dataset, "noise")[0].log_mel, noise.log_mel)


def test_what_is_no_sound_is_named(dataset):
    with pytest.raises(ValueError, match="expected shuffled, silence, noise, got 'music'"):
        OtherSound(dataset, "music")
    with pytest.raises(ValueError, match="at least 2 clips, got 1"):
        OtherSound([dataset[0]], "shuffled")
