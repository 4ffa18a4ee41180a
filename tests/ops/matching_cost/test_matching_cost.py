# SPDX-License-Identifier: Apache-2.0
import functools
import math

import pytest
import torch
from checks import opcheck
from ops.matching_cost.cases import CASES, options, oracle, sample

import avskernels
from avskernels import MatchingWeights
from avskernels.core.testing import assert_close
from avskernels.ops.matching_cost import plain


@functools.cache
def sample_and_expected(case, dtype, mask_dtype):
    tensors, given = sample(*case, dtype=dtype, mask_dtype=mask_dtype), options(*case)
    given["weights"] = MatchingWeights(1.5, 2.5, 0.5, 3.0, 4.0)
    if dtype == torch.float64:
        given |= {"class_cost": "softmax", "mask_cost": "bce"}
    return tensors, given, oracle(tensors, **given)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.float32])
def test_matches_the_oracle(case, dtype, mask_dtype):
    tensors, given, expected = sample_and_expected(case, dtype, mask_dtype)
    cost = avskernels.matching_cost(*tensors, **given, backend="kernel")
    assert cost.dtype == dtype
    assert_close(cost, expected)


@pytest.mark.parametrize("case", ["odd primes", "several blocks", "more targets than queries"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("isa", ["portable", "avx2"], indirect=True)
def test_lower_levels_match_the_oracle(case, dtype, isa):
    tensors, given, expected = sample_and_expected(CASES[case], dtype, torch.bool)
    assert_close(avskernels.matching_cost(*tensors, **given), expected)


SETTINGS = [
    {"weights": (1, 0, 0, 0, 0)},
    {"weights": (0, 1, 0, 0, 0)},
    {"weights": (0, 0, 1, 0, 0)},
    {"weights": (0, 0, 0, 1, 0)},
    {"weights": (0, 0, 0, 0, 1)},
    {"weights": (0, 0, 0, 1, 0), "mask_cost": "bce"},
    {"weights": (0, 0, 0, 1, 1), "mask_cost": "bce"},
    {"weights": (1, 0, 0, 0, 0), "class_cost": "softmax"},
    {"alpha": 0.4, "gamma": 1.5},
    {"alpha": -1.0, "gamma": 0.0},
    {"gamma": 3.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, torch.float32])
def test_settings(settings, mask_dtype):
    case = CASES["odd primes"]
    tensors = sample(*case, mask_dtype=mask_dtype)
    settings = {**settings, "weights": MatchingWeights(*settings.get("weights", (2, 5, 2, 5, 2)))}
    expected = oracle(tensors, **settings)
    assert_close(avskernels.matching_cost(*tensors, **settings), expected)
    reference = avskernels.matching_cost(*tensors, **settings, backend="reference")
    assert_close(reference, expected)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("names", [("focal", "bce"), ("softmax", "focal")])
@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_the_version_for_other_devices(case, names, gamma):
    args = (*sample(*case), *options(*case).values(), 2.0, 5.0, 1.0, 4.0, 3.0, *names, 0.3, gamma)
    expected = torch.ops.avskernels.matching_cost(*args)
    assert_close(plain.forward(*args), expected.double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_exactly(dtype):
    tensors = sample(*CASES["odd primes"], dtype=dtype)
    cost = avskernels.matching_cost(*tensors)
    assert cost.dtype == torch.float32
    assert_close(cost, oracle(tensors, MatchingWeights()))


def test_one_float64_prediction_makes_the_cost_float64():
    tensors = list(sample(*CASES["odd primes"]))
    tensors[0] = tensors[0].double()
    cost = avskernels.matching_cost(*tensors)
    assert cost.dtype == torch.float64
    assert_close(cost, oracle(tensors, MatchingWeights()))


def test_the_fake_of_half_precision():
    tensors = sample(*CASES["odd primes"], dtype=torch.bfloat16)
    args = *tensors, None, None, None, *MatchingWeights(), "focal", "focal", 0.25, 2.0
    opcheck("matching_cost", args)


def test_stacked_layers_share_their_targets():
    case = CASES["exact vectors"]
    first, second = sample(*case), sample(*case, seed=1)
    given = options(*case)
    stacked = [torch.cat([a, b]) for a, b in zip(first[:3], second[:3], strict=True)]
    cost = avskernels.matching_cost(*stacked, *first[3:], **given)
    for layer, tensors in zip(cost.chunk(2), (first[:3], second[:3]), strict=True):
        assert torch.equal(layer, avskernels.matching_cost(*tensors, *first[3:], **given))


def test_terms_that_are_off_need_no_tensors():
    tensors = sample(*CASES["odd primes"])
    logits, boxes, masks, labels, target_boxes, target_masks = tensors
    full = avskernels.matching_cost(*tensors, weights=(2, 5, 2, 0, 0))
    detr = avskernels.matching_cost(logits, boxes, None, labels, target_boxes, None)
    assert torch.equal(full, detr)
    full = avskernels.matching_cost(*tensors, weights=(2, 0, 0, 5, 2))
    mask2former = avskernels.matching_cost(logits, None, masks, labels, None, target_masks)
    assert torch.equal(full, mask2former)


def test_sampled_points():
    tensors = list(sample(*CASES["odd primes"], mask_dtype=torch.float32))
    whole = avskernels.matching_cost(*tensors)
    tensors[2], tensors[5] = tensors[2].flatten(3), tensors[5].flatten(3)
    assert_close(avskernels.matching_cost(*tensors), whole.double())


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("mask_cost", ["focal", "bce"])
@pytest.mark.parametrize("level", [100.0, -100.0])
def test_saturated_logits_and_full_masks(mask_dtype, mask_cost, level):
    tensors = list(sample(1, 2, 1, 2, 3, 5, 7, mask_dtype=mask_dtype))
    tensors[0].fill_(level)
    tensors[2].fill_(level)
    tensors[5][:, 0], tensors[5][:, 1] = 0, 1
    cost = avskernels.matching_cost(*tensors, mask_cost=mask_cost)
    assert cost.isfinite().all()
    assert_close(cost, oracle(tensors, MatchingWeights(), mask_cost=mask_cost))


def test_degenerate_boxes():
    boxes = torch.tensor([[0.5, 0.5, 0, 0], [0.2, 0.2, 0, 0], [0.5, 0.5, 0.4, 0.4], [0, 0, 0, 1]])
    boxes = boxes.view(1, 4, 1, 4)
    weights = MatchingWeights(0, 0, 1, 0, 0)
    cost = avskernels.matching_cost(None, boxes, None, None, boxes, None, weights=weights)[0]
    assert cost.isfinite().all()
    assert torch.equal(cost.diagonal(), torch.tensor([0.0, 0.0, -1.0, 0.0]))
    assert cost[0, 1] == 1
    wrong = boxes * torch.tensor([1, 1, -1, 1])
    assert avskernels.matching_cost(None, wrong, None, None, boxes, None).isfinite().all()


def test_a_negative_size_counts_as_none():
    weights = MatchingWeights(0, 0, 1, 0, 0)
    target = torch.tensor([0.5, 0.5, 0.4, 0.4]).view(1, 1, 1, 4)
    for sizes in ((-0.2, 0.3), (0.2, -0.3)):
        box = torch.tensor([0.4, 0.6, *sizes]).view(1, 1, 1, 4)
        cost, same = (
            avskernels.matching_cost(None, x, None, None, target, None, weights=weights)
            for x in (box, box.clamp(min=0))
        )
        assert torch.equal(cost, same)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_prediction_is_its_own_affair(position, value):
    tensors = list(sample(2, 4, 2, 3, 5, 9, 9))
    expected = avskernels.matching_cost(*tensors)
    tensors[position][1, 2, 0] = value
    cost = avskernels.matching_cost(*tensors)
    others = [n for n in range(4) if n != 2]
    assert torch.equal(cost[0], expected[0])
    assert torch.equal(cost[1, others], expected[1, others])
    assert not (cost[1, 2] < math.inf).any()
    columns = avskernels.linear_assignment(cost)
    assert columns[1, 2] == -1
    assert (columns[1, others] >= 0).all()


def test_a_logit_of_infinity_is_no_preference_on_other_devices():
    tensors = sample(1, 2, 1, 1, 3, 4, 4)
    tensors[0][0, 1] = math.inf
    cost = plain.forward(
        *tensors, None, None, None, *MatchingWeights(), "focal", "focal", 0.25, 2.0
    )
    assert cost[0, 0].isfinite().all()
    assert not (cost[0, 1] < math.inf).any()


def test_padding_does_not_matter():
    case = CASES["exact vectors"]
    tensors = sample(*case)
    num_targets = torch.tensor([3, 0])
    expected = avskernels.matching_cost(*tensors, num_targets=num_targets)
    assert expected[0, :, :3].isfinite().all()
    assert (expected[0, :, 3:] == math.inf).all()
    assert (expected[1] == math.inf).all()
    tensors[3][:, 3:] = -7
    tensors[4][1] = math.nan
    assert torch.equal(avskernels.matching_cost(*tensors, num_targets=num_targets), expected)


def test_autocast_leaves_precision_alone():
    tensors = sample(*CASES["odd primes"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cost = avskernels.matching_cost(*tensors)
    assert torch.equal(cost, avskernels.matching_cost(*tensors))


def test_values_out_of_range():
    tensors = sample(2, 4, 2, 3, 3, 6, 6)
    for wrong in (3, -1):
        tensors[3][1, 2] = wrong
        with pytest.raises(RuntimeError) as error:
            avskernels.matching_cost(*tensors)
        assert str(error.value) == f"matching_cost: expected target_labels in 0..2, got {wrong}"
    with pytest.raises(RuntimeError, match=r"expected num_targets in 0\.\.3, got 4"):
        avskernels.matching_cost(*tensors, num_targets=torch.tensor([2, 4]))
    with pytest.raises(RuntimeError, match=r"expected num_targets in 0\.\.3, got -1"):
        avskernels.matching_cost(*tensors, num_targets=torch.tensor([2, -1]))


def test_nothing_to_compute():
    tensors = sample(2, 4, 2, 3, 3, 6, 6)
    with pytest.raises(RuntimeError, match="got none of them"):
        avskernels.matching_cost(*tensors, weights=(0, 0, 0, 0, 0))


def test_unknown_names():
    tensors = sample(1, 1, 1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"expected class_cost to be one of .*, got 'hinge'"):
        avskernels.matching_cost(*tensors, class_cost="hinge")
    with pytest.raises(ValueError, match=r"expected mask_cost to be one of .*, got 'iou'"):
        avskernels.matching_cost(*tensors, mask_cost="iou")
