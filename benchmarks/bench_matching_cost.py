# SPDX-License-Identifier: Apache-2.0
"""matching_cost against the matchers of ReferFormer and Mask2Former."""

import torch
from common import Case, grid, measure, variants
from torch.nn import functional

from avskernels import MatchingWeights, matching_cost, reference
from avskernels.ops.matching_cost import plain

OPERATOR = "matching_cost"
CLASSES = 71
MASK2FORMER = MatchingWeights(cls=2, l1=0, giou=0, mask=5, dice=5)


def discs(images, targets, height, width, generator):
    """Round objects of 5 to 35 percent of the image's size: [B, J, 1, H, W] bool."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    numbers = torch.rand(images, targets, 3, generator=generator)
    centre_y, centre_x, radius = numbers[..., None, None].unbind(2)
    inside = (y - height * centre_y) ** 2 + (x - width * centre_x) ** 2
    return (inside < (0.05 + 0.3 * radius) ** 2 * height * width).unsqueeze(2)


def case(name, style, images, queries, targets, size, frames=1, **keywords):
    def arguments(dtype):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(images, queries, frames, CLASSES, generator=generator)
        masks = 3 * torch.randn(images, queries, frames, size, size, generator=generator)
        boxes = torch.rand(images, queries, frames, 4, generator=generator)
        return (
            style,
            logits.to(dtype),
            boxes.to(dtype),
            masks.to(dtype),
            torch.randint(0, CLASSES, (images, targets), generator=generator),
            torch.rand(images, targets, frames, 4, generator=generator).to(dtype),
            discs(images, targets, size, size, generator).repeat(1, 1, frames, 1, 1),
        )

    pixels = images * frames * size * size
    return Case(
        name,
        arguments,
        bytes=pixels * (4 * queries + targets),
        flops=pixels * queries * (60 + 4 * targets),
        modes=("forward",),
        dtypes=("float32", "bfloat16"),
        **keywords,
    )


CASES = [
    case("ReferFormer, B 2 N 100 J 20 200x200", "referformer", 2, 100, 20, 200, demo=True),
    case("Mask2Former, N 300 J 100 256x256", "mask2former", 1, 300, 100, 256),
    case("SQD, 4 layers B 4 N 5 J 3 T 5 56x56", "referformer", 16, 5, 3, 56, frames=5),
]


def weights_of(style):
    return MatchingWeights() if style == "referformer" else MASK2FORMER


def names_of(style):
    return ("focal", "focal") if style == "referformer" else ("softmax", "bce")


def eager(style, *tensors):
    """Run the style's published matcher; Mask2Former's has two products instead of a broadcast."""
    if style == "referformer":
        return reference.matching_cost(*tensors)
    logits, _, masks, labels, _, target_masks = tensors
    cost = []
    for b in range(len(masks)):
        x, t = masks[b].flatten(1), target_masks[b].flatten(1).to(masks)
        entropy = functional.binary_cross_entropy_with_logits
        positive = entropy(x, torch.ones_like(x), reduction="none")
        negative = entropy(x, torch.zeros_like(x), reduction="none")
        bce = (positive @ t.T + negative @ (1 - t).T) / x.shape[1]
        p = x.sigmoid()
        dice = 1 - (2 * p @ t.T + 1) / (p.sum(1, keepdim=True) + t.sum(1) + 1)
        cost.append(5 * bce + 5 * dice - 2 * logits[b, :, 0].softmax(-1)[:, labels[b]])
    return torch.stack(cost)


def _arguments(style, tensors):
    logits, boxes, masks, labels, target_boxes, target_masks = tensors
    if style == "mask2former":
        boxes = target_boxes = None
    return logits, boxes, masks, labels, target_boxes, target_masks


def algebra(style, *tensors):
    settings = *weights_of(style), *names_of(style), 0.25, 2.0
    return plain.forward(*_arguments(style, tensors), None, None, None, *settings)


def fused(style, *tensors):
    class_cost, mask_cost = names_of(style)
    return matching_cost(
        *_arguments(style, tensors),
        weights=weights_of(style),
        class_cost=class_cost,
        mask_cost=mask_cost,
    )


VARIANTS = variants(eager=eager, algebra=algebra, avskernels=fused)


@grid(CASES, VARIANTS)
def test_matching_cost(benchmark, case, mode, dtype, variant):
    measure(benchmark, VARIANTS[variant], case, mode, dtype)
