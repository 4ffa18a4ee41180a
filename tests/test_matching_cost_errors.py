"""What matching_cost refuses, and what little it accepts."""

import pytest
import torch
from checks import check_error
from test_matching_cost import sample

import avskernels


def changed(position, tensor):
    def apply(tensors):
        tensors[position] = tensor

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(0, torch.zeros(2, 3, 4)), "expected class_logits [B, N, T, K], got [2, 3, 4]"),
        (changed(1, torch.zeros(2, 4, 2, 3)), "expected boxes [2, 4, 2, 4], got [2, 4, 2, 3]"),
        (
            changed(2, torch.zeros(2, 3, 2, 6, 6)),
            "expected mask_logits [2, 4, 2, ...], got [2, 3, 2, 6, 6]",
        ),
        (
            changed(1, torch.zeros(2, 4, 2, 4, dtype=torch.int32)),
            "expected boxes of floating point, got torch.int32",
        ),
        (changed(3, torch.zeros(2).long()), "expected target_labels [B, J], got [2]"),
        (
            changed(3, torch.zeros(2, 3)),
            "expected target_labels of torch.int64, got torch.float32",
        ),
        (changed(3, None), "expected target_labels with its prediction, got none"),
        (changed(1, None), "expected target_boxes with its prediction, got it alone"),
        (
            changed(5, torch.zeros(2, 3, 2, 7, 6)),
            "expected target_masks [2, 3, 2, 6, 6], got [2, 3, 2, 7, 6]",
        ),
        (changed(6, torch.zeros(3).long()), "expected num_targets [2], got [3]"),
        (changed(7, torch.zeros(2, 3, 2)), "expected valid of torch.bool, got torch.float32"),
        (changed(8, torch.zeros(2, 3).bool()), "expected labelled [2, 2], got [2, 3]"),
    ],
)
def test_errors(change, message):
    tensors = [*sample(2, 4, 2, 3, 3, 6, 6), None, None, None]
    change(tensors)
    args = (*tensors, 1.0, 1.0, 1.0, 1.0, 1.0, "focal", "focal", 0.25, 2.0)
    check_error(torch.ops.avskernels.matching_cost, args, f"matching_cost: {message}")


def test_values_out_of_range():
    tensors = sample(2, 4, 2, 3, 3, 6, 6)
    for wrong in (3, -1):
        tensors[3][1, 2] = wrong
        with pytest.raises(RuntimeError) as error:
            avskernels.matching_cost(*tensors)
        assert str(error.value) == f"matching_cost: expected target_labels in 0..2, got {wrong}"
    with pytest.raises(RuntimeError, match=r"expected num_targets in 0\.\.3, got 4"):
        avskernels.matching_cost(*tensors, num_targets=torch.tensor([2, 4]))


def test_target_images_must_divide():
    tensors = [*sample(3, 4, 2, 3, 3, 6, 6)[:3], *sample(2, 4, 2, 3, 3, 6, 6)[3:]]
    with pytest.raises(RuntimeError, match="target images that divides 3, got 2"):
        avskernels.matching_cost(*tensors)


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
