# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from avsmodel.metrics import FalsePositiveRate


def test_counts_pixels_and_frames():
    scores = torch.zeros(2, 3, 4, 5)
    scores[0, 0, 0, :3] = 0.9
    scores[0, 1] = 0.5  # not above one half
    scores[1, 2] = 1.0
    valid = torch.tensor([[True, True, True], [True, True, False]])
    evaluator = FalsePositiveRate("silence")
    evaluator.update(scores, valid)
    result = evaluator.compute()
    assert result["pixels"] == pytest.approx(3 / 100)
    assert result["frames"] == pytest.approx(1 / 5)
    assert result["condition"] == "silence" and result["resolution"] == "4x5"
    assert result["clips"] == 2


def test_errors():
    evaluator = FalsePositiveRate("noise")
    with pytest.raises(ValueError, match=r"update: expected scores in 0..1, got nan"):
        evaluator.update(torch.full((1, 1, 2, 2), torch.nan))
    with pytest.raises(ValueError, match="compute: expected a counted frame, got none"):
        evaluator.compute()
