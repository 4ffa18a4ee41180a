# SPDX-License-Identifier: Apache-2.0
"""Values that a screen of semantic_argmax could decide wrongly."""

import pytest
import torch
from ops.semantic_argmax.cases import assert_labels, half_finite, oracle_volume, sample

from avskernels import semantic_argmax
from avskernels.ops.semantic_argmax import plain


def test_ties_go_to_the_lowest_class(isa):
    probs = torch.full((1, 3, 40), 0.25)
    assert not semantic_argmax(probs, torch.randn(1, 3, 5, 7)).any()
    probs[:, :, 17:] = 0.5
    assert (semantic_argmax(probs, torch.randn(1, 3, 5, 7)) == 17).all()


def test_near_ties_are_decided_in_float64(isa):
    # Scores of 20 classes a few float32 roundings apart, far below what a screen resolves.
    generator = torch.Generator().manual_seed(0)
    probs = 0.5 + torch.randint(0, 8, (1, 40, 20), generator=generator) * 2.0**-22
    logits = torch.randn(1, 40, 9, 31, generator=generator)
    labels = semantic_argmax(probs, logits)
    volume = oracle_volume(probs, logits, None)
    assert torch.equal(labels, volume.argmax(1))


def test_near_ties_of_two_classes_among_lower_ones(isa):
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(1, 40, 20, generator=generator) / 4
    probs[..., 2:4] = 0.5 + torch.randint(0, 8, (1, 40, 2), generator=generator) * 2.0**-22
    logits = torch.randn(1, 40, 9, 31, generator=generator)
    labels = semantic_argmax(probs, logits)
    assert torch.equal(labels, oracle_volume(probs, logits, None).argmax(1))


def test_nothing_left_is_class_0(isa):
    probs, logits, _ = sample(1, 4, 9, 6, 20)
    assert not semantic_argmax(probs, logits, class_threshold=1.0).any()
    assert not semantic_argmax(probs, logits, mask_threshold=1.0).any()
    labels, scores = semantic_argmax(probs, logits - 60, mask_threshold=0.5, return_scores=True)
    assert not labels.any() and not scores.any()


def test_threshold_is_exclusive_and_exact(isa):
    probs = torch.tensor([[[0.0, 0.5]]])
    logits = torch.tensor([[[[-1e-7, 0.0, 1e-7]]]])
    labels = semantic_argmax(probs, logits, mask_threshold=0.5)
    assert labels.tolist() == [[[0, 0, 1]]]
    assert semantic_argmax(probs, logits, class_threshold=0.5).tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize("size", [None, (7, 40)], ids=["as it is", "resized"])
def test_values_next_to_a_threshold_are_decided_in_float64(size, isa):
    probs = torch.tensor([[[0.0, 0.5]]])
    steps = torch.arange(-20, 20, dtype=torch.float64)
    for threshold in (0.1, 0.2, 0.3, 0.6, 0.7, 0.9):
        limit = torch.tensor(threshold, dtype=torch.float64).logit()
        logits = (limit * (1 + steps * 2.0**-25)).float().view(1, 1, 1, 40)
        volume = oracle_volume(probs, logits, size, 0.0, threshold)
        labels = semantic_argmax(probs, logits, size=size, mask_threshold=threshold)
        assert torch.equal(labels, volume.argmax(1))


def test_negative_probabilities(isa):
    probs, logits, _ = sample(1, 9, 30, 6, 20)
    probs = probs - 0.1
    assert_labels(
        semantic_argmax(probs, logits, class_threshold=-1.0),
        oracle_volume(probs, logits, None, -1.0),
    )
    assert_labels(semantic_argmax(probs, logits), oracle_volume(probs, logits, None))
    negative = -probs.abs() - 0.1
    assert_labels(
        semantic_argmax(negative, logits, class_threshold=-torch.inf),
        oracle_volume(negative, logits, None, -torch.inf),
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e3, 1e30])
def test_unnormalised_probabilities(scale, isa):
    probs, logits, _ = sample(1, 9, 30, 6, 20)
    labels = semantic_argmax(probs * scale, logits)
    assert_labels(labels, oracle_volume(probs * scale, logits, None))


def test_one_large_probability_does_not_hide_small_ones(isa):
    probs, logits, _ = sample(1, 9, 30, 6, 20)
    probs[0, 0, 3] = 1e4
    logits[0, 0, :, :10] = -80
    assert_labels(semantic_argmax(probs, logits), oracle_volume(probs, logits, None))


def test_extreme_logits(isa):
    probs, logits, _ = sample(1, 9, 30, 6, 20)
    logits = logits * 30
    logits[0, :, 0] -= 80
    logits[0, 1, 1] = torch.inf
    logits[0, 2, 2] = -torch.inf
    assert_labels(semantic_argmax(probs, logits), oracle_volume(probs, logits, None))


@pytest.mark.parametrize("size", [(2, 4), (4, 2), (2, 2), (6, 2), (3, 3)])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
def test_a_pixel_without_a_share_does_not_count(value, turned, size, isa):
    probs, logits, expected = half_finite(value, size)
    if turned:
        logits, expected, size = logits.mT, expected.mT, size[::-1]
    assert torch.equal(semantic_argmax(probs, logits, size=size)[0], expected)
    labels, _ = plain.forward(probs, logits, *size, 0.0, 0.0, True, False)
    assert torch.equal(labels[0], expected)


def test_nan_is_above_no_threshold(isa):
    probs, logits, _ = sample(1, 9, 30, 6, 20)
    probs[0, 0, 4] = torch.nan
    logits[0, 3, 2:4] = torch.nan
    clean_probs, clean_logits = probs.nan_to_num(0.0), logits.nan_to_num(-torch.inf)
    assert_labels(semantic_argmax(probs, logits), oracle_volume(clean_probs, clean_logits, None))


def test_infinite_probability_wins(isa):
    probs, logits, _ = sample(1, 9, 30, 6, 20)
    probs[0, 2, 7] = torch.inf
    assert (semantic_argmax(probs, logits) == 7).all()


def test_more_classes_than_int16_holds(isa):
    probs, logits, _ = sample(1, 3, 40000, 2, 3)
    probs[0, 1, 39998] = 1.0
    logits[0, 1, 1] = 20.0
    labels = semantic_argmax(probs, logits)
    assert (labels[0, 1] == 39998).all()
    assert_labels(labels, oracle_volume(probs, logits, None))


@pytest.mark.parametrize("rounded", ["probabilities", "masks"])
def test_rounding_errors_that_add_up(rounded, isa):
    # Multiples of 16-bit steps plus 0.51 for class 1 and 0.49 for class 2, which one entry more
    # brings into front: rounded to whole steps, class 1 would win by far.
    queries, room = 128, 2147480000.0
    mask_step = (queries / 2 / room) ** 0.5
    probs, masks = torch.zeros(1, queries, 4), torch.ones(1, queries, 5, 7, dtype=torch.float64)
    if rounded == "probabilities":
        probs[0, 100:, 3] = 1.0  # class 3 sets the size of a step; its masks are empty
        masks[0, 100:] = 1e-30
        step = 28 / (room * mask_step - queries)
        probs[0, :100, 1] = 100.51 * step
        probs[0, :100, 2] = 100.49 * step
        probs[0, 0, 2] += 3 * step
    else:
        probs[0, :50, 1] = probs[0, 50:100, 2] = 1.0
        masks[0, :50] = 3000.51 * mask_step
        masks[0, 50:] = 3000.49 * mask_step
        masks[0, 50] += 2 * mask_step
    logits = (masks / (1 - masks)).log().clamp(max=40).float()
    volume = oracle_volume(probs, logits, None)
    assert (volume.argmax(1) == 2).all()
    assert torch.equal(semantic_argmax(probs, logits), volume.argmax(1))


def test_error_of_resizing_large_logits(isa):
    # In image i pixel 10 + i lies between two logits of about 1000 that cancel to about 0.3; class
    # 2 scores 1e-5 of a logit more or less there.
    shares = (torch.arange(10, 27, dtype=torch.float64) + 0.5) * 2 / 37 - 0.5
    left = 1000 + 100 * torch.rand(17, generator=torch.Generator().manual_seed(0)).double()
    logits = torch.zeros(17, 2, 1, 2, dtype=torch.float64)
    logits[:, 0, 0, 0], logits[:, 0, 0, 1] = left, (0.3 - (1 - shares) * left) / shares
    logits = logits.float()
    middle = (logits[:, 0, 0].double() * torch.stack([1 - shares, shares], 1)).sum(1)
    side = torch.tensor([1e-5, -1e-5], dtype=torch.float64).repeat(9)[:17]
    logits[:, 1, 0] = (middle + side).float()[:, None]
    probs = torch.zeros(17, 2, 3)
    probs[:, 0, 1] = probs[:, 1, 2] = 0.5
    volume = oracle_volume(probs, logits, (1, 37))
    assert torch.equal(semantic_argmax(probs, logits, size=(1, 37)), volume.argmax(1))
