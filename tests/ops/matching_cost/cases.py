# SPDX-License-Identifier: Apache-2.0
"""Data of the tests of matching_cost."""

import math

import torch

import avskernels

OP = "matching_cost"

# (images, queries, frames, classes, targets, height, width)
CASES = {
    "minimal": (1, 1, 1, 1, 1, 1, 1),
    "no image": (0, 2, 1, 3, 2, 4, 4),
    "no query": (2, 0, 1, 3, 2, 4, 4),
    "no target": (2, 3, 1, 3, 0, 4, 4),
    "no pixel": (1, 2, 1, 3, 2, 0, 4),
    "one below a vector": (1, 3, 1, 2, 4, 3, 5),
    "exact vectors": (2, 4, 2, 3, 8, 16, 16),
    "vector + 1": (1, 5, 1, 3, 17, 1, 17),
    "more targets than queries": (2, 3, 2, 5, 40, 9, 7),
    "odd primes": (2, 7, 3, 7, 13, 11, 13),
    "several blocks": (1, 3, 1, 2, 2, 47, 61),
    "sqd": (2, 5, 5, 71, 2, 56, 56),
    "several chunks of queries": (1, 67, 1, 2, 2, 3, 5),
}


def sample(b, n, t, k, j, h, w, dtype=torch.float32, mask_dtype=torch.bool, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    masks = normal(b, j, t, h, w) > 0.3
    if mask_dtype.is_floating_point:
        masks = normal(b, j, t, h, w).sigmoid()
    return (
        (2 * normal(b, n, t, k)).to(dtype),
        normal(b, n, t, 4).sigmoid().to(dtype),
        (3 * normal(b, n, t, h, w)).to(dtype),
        torch.randint(0, k, (b, j), generator=generator),
        normal(b, j, t, 4).sigmoid().to(dtype),
        masks.to(mask_dtype),
    )


def options(b, n, t, k, j, h, w, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "num_targets": torch.randint(0, j + 1, (b,), generator=generator),
        "valid": torch.rand((b, j, t), generator=generator) < 0.7,
        "labelled": torch.rand((b, t), generator=generator) < 0.7,
    }


def oracle(tensors, weights, class_cost="focal", mask_cost="focal", alpha=0.25, gamma=2.0, **given):
    """Compute every cost on its own, in float64, from probabilities."""
    logits, boxes, masks, labels, target_boxes, target_masks = tensors
    images, queries, frames = masks.shape[:3]
    count = labels.shape[1]
    cost = torch.zeros(images, queries, count, dtype=torch.float64)
    one, zero = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)

    def losses(x):  # of truth 1 and of truth 0
        p, q = 1 / (1 + torch.exp(-x)), 1 / (1 + torch.exp(x))
        to_one, to_zero = torch.log1p(torch.exp(-x)), torch.log1p(torch.exp(x))
        return one * q**gamma * to_one, zero * p**gamma * to_zero

    def corners(box):
        cx, cy, w, h = box.tolist()
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2

    def giou(a, b):
        (ax, ay, au, av), (bx, by, bu, bv) = corners(a), corners(b)
        inter = max(0, min(au, bu) - max(ax, bx)) * max(0, min(av, bv) - max(ay, by))
        union = (au - ax) * (av - ay) + (bu - bx) * (bv - by) - inter
        hull = (max(au, bu) - min(ax, bx)) * (max(av, bv) - min(ay, by))
        return (inter / union if union else 0) - ((hull - union) / hull if hull else 0)

    for b in range(images):
        k = b % labels.shape[0]
        shown = [f for f in range(frames) if "labelled" not in given or given["labelled"][k, f]]
        for n in range(queries):
            for j in range(count):
                if "num_targets" in given and j >= given["num_targets"][k]:
                    cost[b, n, j] = math.inf
                    continue
                seen = [f for f in shown if "valid" not in given or given["valid"][k, j, f]]
                for f in seen:
                    x = logits[b, n, f].double()
                    if class_cost == "softmax":
                        value = -(x - x.logsumexp(0)).exp()[labels[k, j]]
                    else:
                        to_one, to_zero = losses(x[labels[k, j]])
                        value = to_one - to_zero
                    ours, theirs = boxes[b, n, f].double(), target_boxes[k, j, f].double()
                    value = weights.cls * value + weights.l1 * (ours - theirs).abs().sum()
                    cost[b, n, j] += (value - weights.giou * giou(ours, theirs)) / len(seen)
                x = masks[b, n, shown].double().flatten()
                t = target_masks[k, j, shown].double().flatten()
                if mask_cost == "focal":
                    to_one, to_zero = losses(x)
                    pixels = t * to_one + (1 - t) * to_zero
                else:
                    pixels = x.clamp(min=0) - x * t + torch.log1p(torch.exp(-x.abs()))
                p = x.sigmoid()
                dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
                cost[b, n, j] += weights.mask * pixels.sum() / max(1, len(x)) + weights.dice * dice
    return cost


def arguments(dtype):
    case = 2, 7, 3, 7, 13, 11, 13
    weights = 2.0, 5.0, 1.0, 4.0, 3.0
    tensors = *sample(*case, dtype=dtype), *options(*case).values()
    return *tensors, *weights, "focal", "bce", 0.3, 1.5


ODD_PRIMES = *sample(*CASES["odd primes"]), *options(*CASES["odd primes"]).values()
MASKS_ALONE = None, None, ODD_PRIMES[2], None, None, *ODD_PRIMES[5:]
GENERIC = [
    (*ODD_PRIMES, 2.0, 5.0, 1.0, 4.0, 3.0, "softmax", "bce", 0.3, 1.0),
    (*ODD_PRIMES, *avskernels.MatchingWeights(), "focal", "focal", 0.25, 1.5),
    (*MASKS_ALONE, 2.0, 5.0, 1.0, 4.0, 3.0, "softmax", "bce", 0.3, 1.0),
]

COMPILED = (avskernels.matching_cost, [ODD_PRIMES[:6], sample(*CASES["vector + 1"])])


def _with(position, tensor):
    tensors = [*sample(2, 4, 2, 3, 3, 6, 6), None, None, None]
    tensors[position] = tensor
    return *tensors, 1.0, 1.0, 1.0, 1.0, 1.0, "focal", "focal", 0.25, 2.0


ERRORS = [
    (
        "rank of class_logits",
        _with(0, torch.zeros(2, 3, 4)),
        "expected class_logits [B, N, T, K], got [2, 3, 4]",
    ),
    (
        "size of boxes",
        _with(1, torch.zeros(2, 4, 2, 3)),
        "expected boxes [2, 4, 2, 4], got [2, 4, 2, 3]",
    ),
    (
        "queries of mask_logits",
        _with(2, torch.zeros(2, 3, 2, 6, 6)),
        "expected mask_logits [2, 4, 2, ...], got [2, 3, 2, 6, 6]",
    ),
    (
        "size of target_boxes",
        _with(4, torch.zeros(2, 3, 2, 3)),
        "expected target_boxes [2, 3, 2, 4], got [2, 3, 2, 3]",
    ),
    (
        "dtype of boxes",
        _with(1, torch.zeros(2, 4, 2, 4, dtype=torch.int32)),
        "expected boxes of floating point, got torch.int32",
    ),
    (
        "rank of target_labels",
        _with(3, torch.zeros(2).long()),
        "expected target_labels [target_images, J], got [2]",
    ),
    (
        "dtype of target_labels",
        _with(3, torch.zeros(2, 3)),
        "expected target_labels of torch.int64, got torch.float32",
    ),
    (
        "no target_labels",
        _with(3, None),
        "expected target_labels with its prediction, got none",
    ),
    (
        "target_boxes alone",
        _with(1, None),
        "expected target_boxes with its prediction, got it alone",
    ),
    (
        "size of target_masks",
        _with(5, torch.zeros(2, 3, 2, 7, 6)),
        "expected target_masks [2, 3, 2, 6, 6], got [2, 3, 2, 7, 6]",
    ),
    (
        "size of num_targets",
        _with(6, torch.zeros(3).long()),
        "expected num_targets [2], got [3]",
    ),
    (
        "dtype of valid",
        _with(7, torch.zeros(2, 3, 2)),
        "expected valid of torch.bool, got torch.float32",
    ),
    (
        "frames of labelled",
        _with(8, torch.zeros(2, 3).bool()),
        "expected labelled [2, 2], got [2, 3]",
    ),
    (
        "target images that do not divide",
        (*sample(3, 4, 2, 3, 3, 6, 6)[:3], *_with(0, None)[3:]),
        "expected a number of target images that divides 3, got 2",
    ),
]
