# SPDX-License-Identifier: Apache-2.0
import torch

from avsmodel.data import Batch, Sample, collate


def sample(uid, index=-1):
    generator = torch.Generator().manual_seed(index + 1)
    return Sample(
        uid=uid,
        frames=torch.rand(2, 3, 4, 5, generator=generator),
        log_mel=torch.rand(2, 1, 96, 64, generator=generator),
        masks=torch.randint(2, (2, 4, 5), generator=generator),
        real=torch.tensor([True, False]),
        labelled=torch.tensor([True, False]),
        index=index,
    )


def test_collate_stacks_every_field():
    samples = [sample("a", 4), sample("b", 7)]
    batch = collate(samples)
    assert isinstance(batch, Batch) and len(batch) == 2
    assert batch.uids == ["a", "b"] and batch.indices.tolist() == [4, 7]
    for name in ("frames", "log_mel", "masks", "real", "labelled"):
        for position, item in enumerate(samples):
            assert torch.equal(getattr(batch, name)[position], getattr(item, name))


def test_to_moves_every_tensor():
    batch = collate([sample("a")]).to("meta")
    for name in ("frames", "log_mel", "masks", "real", "labelled", "indices"):
        assert getattr(batch, name).device.type == "meta"
    assert batch.uids == ["a"]
