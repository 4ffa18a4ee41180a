# SPDX-License-Identifier: Apache-2.0
"""Boundary accuracy against a search over all pairs of boundary pixels."""

import math

import pytest
import torch

from avsmodel.metrics.davis import boundary, boundary_accuracy, region_similarity


def blobs(count, height, width, seed=0):
    """Random discs and bars, some cut by the frame."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    masks = []
    for _ in range(count):
        cy, cx, r = (
            torch.rand(3, generator=generator) * torch.tensor([height, width, 12])
        ).tolist()
        masks.append(((y - cy) ** 2 + (x - cx) ** 2 < r * r) | ((y > cy + 9) & (x < cx)))
    return torch.stack(masks)


def plain_boundary(mask):
    height, width = mask.shape
    pixels = []
    for y in range(height):
        for x in range(width):
            others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            inside = [(min(b, height - 1), min(a, width - 1)) for b, a in others]
            if any(mask[place] != mask[y, x] for place in inside):
                pixels.append((y, x))
    return pixels


def plain_accuracy(predicted, truth):
    ours, theirs = plain_boundary(predicted), plain_boundary(truth)
    if not ours or not theirs:
        return float(not ours and not theirs)
    reach = math.ceil(0.008 * math.hypot(*predicted.shape)) ** 2

    def near(these, those):
        return sum(
            any((a - c) ** 2 + (b - d) ** 2 <= reach for c, d in those) for a, b in these
        ) / len(these)

    precision, recall = near(ours, theirs), near(theirs, ours)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("height, width", [(28, 30), (19, 126), (1, 9), (5, 1)])
def test_equals_the_search(height, width):
    predicted, truth = blobs(6, height, width), blobs(6, height, width, seed=1)
    truth[0] = predicted[0]
    truth[1] = False
    predicted[2] = False
    predicted[3] = truth[3] = False
    values = boundary_accuracy(predicted, truth)
    for value, p, t, edge in zip(values, predicted, truth, boundary(predicted), strict=True):
        assert value.item() == pytest.approx(plain_accuracy(p, t), abs=1e-12)
        assert [tuple(place) for place in edge.nonzero().tolist()] == plain_boundary(p)


def test_tolerance_follows_the_diagonal():
    # A shift by 3 pixels is within ceil(0.008 * 317) = 3 at 224 x 224, by 4 it is not.
    truth = torch.zeros(1, 224, 224, dtype=torch.bool)
    truth[:, 60:120, 60:120] = True
    assert boundary_accuracy(truth.roll(3, 1), truth).item() == 1.0
    assert boundary_accuracy(truth.roll(4, 1), truth).item() < 1.0


def test_region_similarity():
    predicted, truth = blobs(5, 20, 20), blobs(5, 20, 20, seed=1)
    predicted[4] = truth[4] = False
    values = region_similarity(predicted, truth)
    for value, p, t in zip(values[:4], predicted, truth, strict=False):
        assert value.item() == pytest.approx(((p & t).sum() / (p | t).sum()).item())
    assert values[4] == 1.0
