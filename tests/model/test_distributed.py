# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from avsmodel.distributed import ALONE, join, pick_device


def test_alone_there_is_nothing_to_wait_for():
    with join("cpu") as world:
        assert world == ALONE
        assert world.gather(3) == [3]
        world.barrier()


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="expected auto, cpu or cuda, got 'abacus'"):
        pick_device("abacus")
    with pytest.raises(ValueError, match="which is not there"):
        pick_device("cuda:99")
