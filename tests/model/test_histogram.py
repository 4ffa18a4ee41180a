# SPDX-License-Identifier: Apache-2.0
"""Threshold counts against the loop they replace, pixel by pixel and bit by bit."""

import pytest
import torch

from avsmodel.metrics.histogram import f_measure, threshold_counts, thresholds


def loop_counts(scores, foreground):
    """The definition: one comparison of the whole frame per threshold."""
    reached = [
        torch.stack(
            [((scores >= t) & ~foreground).sum((1, 2)), ((scores >= t) & foreground).sum((1, 2))], 1
        )
        for t in torch.linspace(0, 1 - 1e-10, 255)
    ]
    above = scores > 0.5
    half = torch.stack([(above & ~foreground).sum((1, 2)), (above & foreground).sum((1, 2))], 1)
    return torch.stack(reached, -1), half


def neighbours(values):
    """Each value with the float32 numbers just below and above it."""
    down = torch.nextafter(values, torch.tensor(0.0))
    up = torch.nextafter(values, torch.tensor(1.0))
    return torch.stack([down, values, up])


def random_scores(*shape):
    return torch.rand(shape)


CASES = {
    "one pixel": lambda: random_scores(1, 1, 1),
    "uniform": lambda: random_scores(3, 31, 29),
    "thresholds and their neighbours": lambda: neighbours(thresholds()).view(1, 3, 255),
    "halves of thresholds and neighbours": lambda: neighbours(
        (thresholds()[1:] + thresholds()[:-1]) / 2
    ).view(1, 3, 254),
    "around one half": lambda: neighbours(torch.full((1, 5, 5), 0.5)).view(3, 5, 5),
    "saturated": lambda: (torch.randn(2, 16, 17) * 60).sigmoid(),
    "all zero": lambda: torch.zeros(2, 4, 4),
    "all one": lambda: torch.ones(2, 4, 4),
    "subnormal": lambda: torch.full((1, 2, 2), 1e-42),
    "no frame": lambda: random_scores(0, 4, 4),
    "sliced": lambda: random_scores(2, 40, 40)[:, ::2, 3:],
}


@pytest.mark.parametrize("name", CASES)
def test_counts_equal_the_loop(name):
    torch.manual_seed(0)
    scores = CASES[name]()
    foreground = torch.rand(scores.shape) > 0.6
    reached, above_half = threshold_counts(scores, foreground)
    expected_reached, expected_half = loop_counts(scores, foreground)
    assert torch.equal(reached, expected_reached)
    assert torch.equal(above_half, expected_half)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_compared_in_float32(dtype):
    torch.manual_seed(1)
    scores, foreground = torch.rand(2, 20, 20).to(dtype), torch.rand(2, 20, 20) > 0.5
    reached, _ = threshold_counts(scores, foreground)
    assert torch.equal(reached, loop_counts(scores.float(), foreground)[0])


def test_every_frame_at_once_counts_the_same():
    # The path of a GPU, which takes all frames in one launch, run here on the CPU.
    from avsmodel.metrics.histogram import _histogram

    torch.manual_seed(2)
    scores, foreground = torch.rand(5, 9, 11), torch.rand(5, 9, 11) > 0.5
    single = [_histogram(scores[i : i + 1], foreground[i : i + 1]) for i in range(5)]
    assert torch.equal(_histogram(scores, foreground), torch.cat(single))


def test_f_measure_is_precision_and_recall():
    torch.manual_seed(3)
    hits = torch.randint(0, 50, (200,))
    predicted, positive = hits + torch.randint(0, 9, (200,)), hits + torch.randint(0, 9, (200,))
    p, r = hits.double() / predicted, hits.double() / positive
    expected = (1.3 * p * r / (0.3 * p + r)).nan_to_num()
    torch.testing.assert_close(f_measure(hits, predicted, positive), expected, rtol=1e-12, atol=0)


def test_thresholds_are_the_published_ones():
    assert thresholds().dtype == torch.float32 and len(thresholds()) == 255
    assert thresholds()[0] == 0 and thresholds()[127] == 0.5 and thresholds()[-1] == 1


@pytest.mark.cuda
def test_cuda_counts_equal_the_cpu():
    torch.manual_seed(4)
    scores, foreground = torch.rand(7, 33, 35), torch.rand(7, 33, 35) > 0.5
    here = threshold_counts(scores, foreground)
    there = threshold_counts(scores.cuda(), foreground.cuda())
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))
