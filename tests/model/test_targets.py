# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from avsmodel.targets import clip_targets, mask_boxes


def test_boxes_against_a_walk_over_the_pixels():
    random = torch.Generator().manual_seed(0)
    masks = torch.rand(3, 4, 9, 13, generator=random) > 0.97
    masks[0, 0] = False
    masks[1, 1] = True
    boxes, present = mask_boxes(masks)
    for row in range(3):
        for column in range(4):
            pixels = masks[row, column].nonzero().tolist()
            assert bool(present[row, column]) == bool(pixels)
            if not pixels:
                assert boxes[row, column].tolist() == [0, 0, 0, 0]
                continue
            ys, xs = zip(*pixels, strict=True)
            top, bottom, left, right = min(ys), max(ys) + 1, min(xs), max(xs) + 1
            expected = [
                (left + right) / 2 / 13,
                (top + bottom) / 2 / 9,
                (right - left) / 13,
                (bottom - top) / 9,
            ]
            assert boxes[row, column].tolist() == pytest.approx(expected)


def test_one_target_per_class_present():
    masks = torch.zeros(3, 2, 8, 8, dtype=torch.int64)
    masks[0, 0, :4, :4] = 5
    masks[0, 1, 4:, 4:] = 2
    masks[2, 0, 0, 0] = 1
    labelled = torch.ones(3, 2, dtype=torch.bool)
    targets = clip_targets(masks, labelled)
    assert targets.counts.tolist() == [2, 0, 1]
    assert targets.labels[0].tolist() == [1, 4]  # classes 2 and 5, background not counted
    assert targets.labels[2, 0] == 0
    assert targets.present[0].tolist() == [[False, True], [True, False]]
    assert not targets.present[1].any()
    assert targets.masks[0, 1, 0].tolist() == [[True, False], [False, False]]
    assert targets.boxes[0, 0, 1].tolist() == [0.75, 0.75, 0.5, 0.5]
    # One pixel of sixteen: present, with a box, and too small for a cell.
    assert targets.present[2, 0, 0]
    assert targets.boxes[2, 0, 0].tolist() == [1 / 16, 1 / 16, 1 / 8, 1 / 8]
    assert not targets.masks[2].any()


def test_cells_are_the_majority_of_their_pixels():
    masks = (torch.rand(1, 1, 10, 7, generator=torch.Generator().manual_seed(1)) > 0.5).long()
    cells = clip_targets(masks, torch.ones(1, 1, dtype=torch.bool)).masks[0, 0, 0]
    assert cells.shape == (3, 2)
    for row in range(3):
        for column in range(2):
            block = masks[0, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert bool(cells[row, column]) == (int(block.sum()) >= 8)


def test_unlabelled_frames_hold_no_target():
    masks = torch.ones(1, 2, 4, 4, dtype=torch.int64)
    masks[0, 1] = 2
    targets = clip_targets(masks, torch.tensor([[False, True]]))
    assert targets.labels.tolist() == [[1]]
    assert targets.present.tolist() == [[[False, True]]]


def test_silent_clips():
    masks = torch.zeros(2, 3, 8, 8, dtype=torch.int64)
    targets = clip_targets(masks, torch.ones(2, 3, dtype=torch.bool))
    assert targets.labels.shape == (2, 0)
    assert targets.masks.shape == (2, 0, 3, 2, 2)
    assert targets.counts.tolist() == [0, 0]
