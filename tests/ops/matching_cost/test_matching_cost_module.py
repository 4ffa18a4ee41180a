# SPDX-License-Identifier: Apache-2.0
"""HungarianMatcher against matchers written as DETR, Mask2Former and ReferFormer write them."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional
from torchvision.ops import generalized_box_iou

from avskernels.nn import HungarianMatcher


def corners(boxes):
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def random_boxes(*shape):
    return 0.3 + 0.3 * torch.rand(*shape, 4)


def indices_of(cost):
    rows, columns = linear_sum_assignment(cost.double().numpy())
    return torch.as_tensor(rows), torch.as_tensor(columns)


def assert_same(pairs, expected):
    for (rows, columns), (other_rows, other_columns) in zip(pairs, expected, strict=True):
        assert rows.dtype == columns.dtype == torch.int64
        assert torch.equal(rows, other_rows)
        assert torch.equal(columns, other_columns)


def mask_costs(logits, masks):
    """Binary cross entropy and dice of every pair: logits [N, P], masks [J, P]."""
    pairs = torch.broadcast_tensors(logits.unsqueeze(1), masks.unsqueeze(0))
    bce = functional.binary_cross_entropy_with_logits(*pairs, reduction="none").mean(-1)
    p = logits.sigmoid()
    return bce, 1 - (2 * p @ masks.T + 1) / (p.sum(1, keepdim=True) + masks.sum(1) + 1)


def test_detr():
    torch.manual_seed(0)
    counts = (3, 0, 12, 7)
    outputs = {
        "pred_logits": torch.randn(4, 9, 6),
        "pred_boxes": random_boxes(4, 9),
        "unused": None,
    }
    targets = [{"labels": torch.randint(0, 5, (j,)), "boxes": random_boxes(j)} for j in counts]
    expected = []
    for logits, boxes, target in zip(*list(outputs.values())[:2], targets, strict=True):
        cost = -logits.softmax(-1)[:, target["labels"]]
        cost = cost + 5 * torch.cdist(boxes, target["boxes"], p=1)
        giou = generalized_box_iou(corners(boxes), corners(target["boxes"]))
        expected.append(indices_of(cost - 2 * giou))
    assert_same(HungarianMatcher(1, 5, 2)(outputs, targets), expected)


def test_mask2former_on_all_pixels():
    torch.manual_seed(1)
    outputs = {"pred_logits": torch.randn(2, 9, 6), "pred_masks": 3 * torch.randn(2, 9, 8, 12)}
    targets = [
        {"labels": torch.randint(0, 5, (j,)), "masks": torch.rand(j, 8, 12) > 0.6} for j in (4, 2)
    ]
    expected = []
    for logits, masks, target in zip(*outputs.values(), targets, strict=True):
        bce, dice = mask_costs(masks.flatten(1), target["masks"].flatten(1).float())
        cost = 2 * -logits.softmax(-1)[:, target["labels"]] + 5 * bce + 4 * dice
        expected.append(indices_of(cost))
    assert_same(HungarianMatcher(2, 0, 0, 5, 4)(outputs, targets), expected)


def test_mask2former_at_random_points():
    torch.manual_seed(2)
    masks = functional.interpolate((torch.rand(2, 4, 4, 4) > 0.5).float(), size=(32, 32))
    logits = functional.interpolate(masks, size=(8, 8)) * 12 - 6
    order = torch.tensor([2, 0, 3, 1])
    outputs = {"pred_logits": torch.zeros(2, 4, 3), "pred_masks": logits[:, order]}
    targets = [{"labels": torch.zeros(4).long(), "masks": image} for image in masks.bool()]
    pairs = HungarianMatcher(1, 0, 0, 1, 1, num_points=500)(outputs, targets)
    assert_same(pairs, [(torch.arange(4), order)] * 2)


def test_referformer():
    torch.manual_seed(3)
    frames, queries = 4, 5
    outputs = {
        "pred_logits": torch.randn(2, frames, queries, 1),
        "pred_boxes": random_boxes(2, frames, queries),
        "pred_masks": 3 * torch.randn(2, frames, queries, 6, 6),
    }
    targets = [
        {
            "labels": torch.zeros(frames).long(),
            "boxes": random_boxes(frames),
            "masks": torch.rand(frames, 24, 24) > 0.6,
            "valid": torch.tensor(valid),
        }
        for valid in ([1, 1, 0, 1], [1, 0, 0, 0])
    ]
    matcher = HungarianMatcher(2, 5, 2, 2, 5, class_cost="focal", mask_cost="focal")
    expected = []
    for b, target in enumerate(targets):
        seen = target["valid"].nonzero().flatten()
        p = outputs["pred_logits"][b, seen, :, 0].sigmoid()  # [seen, N]
        focal = 0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log()
        boxes = outputs["pred_boxes"][b, seen]
        l1 = (boxes - target["boxes"][seen].unsqueeze(1)).abs().sum(-1)
        giou = torch.stack(
            [
                generalized_box_iou(corners(x), corners(t).unsqueeze(0)).squeeze(1)
                for x, t in zip(boxes, target["boxes"][seen], strict=True)
            ]
        )
        x = outputs["pred_masks"][b].transpose(0, 1).flatten(1)
        t = target["masks"][:, 2::4, 2::4].flatten().float()
        p, truth = x.sigmoid(), t.expand_as(x)
        bce = functional.binary_cross_entropy_with_logits(x, truth, reduction="none")
        pixel = torch.where(t > 0, 0.25 * (1 - p) ** 2, 0.75 * p**2) * bce
        dice = 1 - (2 * p @ t + 1) / (p.sum(1) + t.sum() + 1)
        cost = (2 * focal + 5 * l1 - 2 * giou).mean(0) + 2 * pixel.mean(1) + 5 * dice
        expected.append((cost.argmin().view(1), torch.zeros(1).long()))
    assert_same(matcher(outputs, targets), expected)
    assert_same(
        matcher(
            outputs,
            [
                {key: x[:1] if key == "labels" else x.unsqueeze(0) for key, x in target.items()}
                for target in targets
            ],
        ),
        expected,
    )


def test_no_targets_and_nan():
    outputs = {"pred_logits": torch.randn(2, 3, 4), "pred_boxes": random_boxes(2, 3)}
    empty = {"labels": torch.zeros(0).long(), "boxes": torch.zeros(0, 4)}
    pairs = HungarianMatcher(1, 1, 1)(outputs, [empty, empty])
    assert [len(rows) + len(columns) for rows, columns in pairs] == [0, 0]
    full = {"labels": torch.tensor([1, 2, 3]), "boxes": random_boxes(3)}
    outputs["pred_logits"][0, 1] = torch.nan
    (rows, columns), _ = HungarianMatcher(1, 1, 1)(outputs, [full, empty])
    assert rows.tolist() == [0, 2]
    assert len(set(columns.tolist())) == 2
    assert HungarianMatcher(1, 1, 1)({k: x[:0] for k, x in outputs.items()}, []) == []


def test_masks_of_another_size():
    outputs = {"pred_masks": torch.randn(1, 3, 6, 6)}
    targets = [{"masks": torch.zeros(2, 9, 9)}]
    with pytest.raises(RuntimeError, match=r"as large as \[6, 6\], got \[9, 9\]"):
        HungarianMatcher(0, 0, 0, 1, 1)(outputs, targets)
