# SPDX-License-Identifier: Apache-2.0
"""Samples of semantic_argmax, its oracle, and what every operator is checked on."""

import torch

from avskernels import semantic_argmax

OP = "semantic_argmax"

# (images, queries, classes, height, width, size)
CASES = {
    "minimal": (1, 1, 1, 1, 1, None),
    "no image": (0, 3, 4, 5, 5, None),
    "no query": (2, 0, 4, 5, 5, (7, 3)),
    "no pixel": (1, 3, 4, 0, 5, None),
    "no pixel wanted": (1, 3, 4, 5, 5, (0, 5)),
    "one below a vector": (1, 3, 15, 3, 5, None),
    "exact tile": (2, 4, 16, 8, 6, None),
    "tile + 1": (1, 5, 17, 7, 7, None),
    "odd primes": (2, 7, 67, 13, 11, None),
    "enlarged": (2, 5, 9, 7, 9, (28, 36)),
    "enlarged unevenly": (1, 3, 9, 7, 5, (23, 101)),
    "one pixel enlarged": (1, 3, 9, 1, 1, (5, 40)),
    "shrunk": (1, 4, 9, 50, 61, (17, 19)),
    "shrunk a little": (1, 4, 9, 20, 61, (19, 60)),
    "many queries": (1, 33, 40, 9, 8, None),
    "sqd": (2, 5, 71, 28, 28, (56, 56)),
}


def sample(images, queries, classes, height, width, size=None, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(images, queries, classes, generator=generator).softmax(-1)
    logits = torch.randn(images, queries, height, width, generator=generator) * 3
    return probs.to(dtype), logits.to(dtype), size


def half_finite(value, size):
    """One query of a mask whose second row is ``value``, and the labels after resizing."""
    logits = torch.tensor([5.0, value]).view(1, 1, 2, 1).repeat(1, 1, 1, 2)
    probs = torch.tensor([[[0.0, 1.0]]])
    shares = ((torch.arange(size[0]) + 0.5) * 2 / size[0] - 0.5).clamp(0, 1)  # of the second row
    labels = torch.full(size, 1) if value == torch.inf else (shares == 0).long()[:, None]
    return probs, logits, labels.expand(size)


def oracle_volume(probs, logits, size, class_threshold=0.0, mask_threshold=0.0, sigmoid=True):
    """Scores [B, K, H, W] in float64, one query at a time, and the resize written out."""
    probs, masks = probs.double(), logits.double()
    height, width = size or logits.shape[2:]
    if size is not None and 0 not in masks.shape[2:]:
        for dim, count in ((2, height), (3, width)):
            length = masks.shape[dim]
            at = (torch.arange(count, dtype=torch.float64) + 0.5) * (length / max(count, 1)) - 0.5
            at = at.clamp(min=0)
            low = at.floor().long().clamp(max=length - 1)
            high = (low + 1).clamp(max=length - 1)
            share = (at - low).view([-1] + [1] * (3 - dim))
            masks = masks.index_select(dim, low) * (1 - share) + share * masks.index_select(
                dim, high
            )
    masks = 1 / (1 + (-masks).exp()) if sigmoid else masks
    volume = torch.zeros(len(probs), probs.shape[2], height, width, dtype=torch.float64)
    for n in range(probs.shape[1]):
        share = probs[:, n, :, None, None]
        mask = masks[:, n, None]
        volume += torch.where((share > class_threshold) & (mask > mask_threshold), share * mask, 0)
    return volume


def assert_labels(labels, volume):
    """Labels are the float64 ones unless the two best scores are within 1e-6 relative."""
    assert labels.dtype == torch.int64
    assert labels.shape == (volume.shape[0], *volume.shape[2:])
    expected = volume.argmax(1)
    best = volume.amax(1)
    chosen = volume.gather(1, labels.unsqueeze(1)).squeeze(1)
    wrong = (labels != expected) & (best - chosen > 1e-6 * best.abs())
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} labels differ"


def arguments(dtype):
    probs, logits, size = sample(2, 5, 9, 13, 14, (29, 33), dtype)
    return probs, logits, *size, 0.03, 0.5, True, True


PROBS, LOGITS, _ = sample(2, 3, 9, 7, 8)

GENERIC = [
    (PROBS, LOGITS, 14, 13, 0.1, 0.4, True, True),
    (PROBS, LOGITS, 14, 13, 0.0, 0.0, True, True),
    (PROBS, LOGITS, 7, 8, 0.1, 0.4, False, False),
]

COMPILED = (
    lambda probs, logits: semantic_argmax(probs, logits, size=(2 * logits.shape[2], 9)),
    [(PROBS, LOGITS), sample(1, 4, 6, 5, 9)[:2]],
)


def wrong(probs=(1, 2, 3), logits=(1, 2, 4, 4), size=(4, 4), dtypes=(torch.float32,) * 2):
    tensors = torch.zeros(probs, dtype=dtypes[0]), torch.zeros(logits, dtype=dtypes[1])
    return *tensors, *size, 0.0, 0.0, True, False


ERRORS = [
    (
        "probabilities of two dimensions",
        wrong(probs=(2, 3)),
        "expected class_probs [B, N, K], got [2, 3]",
    ),
    (
        "masks of three dimensions",
        wrong(logits=(1, 2, 4)),
        "expected mask_logits [1, 2, H, W], got [1, 2, 4]",
    ),
    (
        "another number of queries",
        wrong(probs=(1, 3, 3)),
        "expected mask_logits [1, 3, H, W], got [1, 2, 4, 4]",
    ),
    ("no class", wrong(probs=(1, 2, 0)), "expected at least one class, got [1, 2, 0]"),
    ("negative size", wrong(size=(-1, 4)), "expected a size of at least 0, got [-1, 4]"),
    (
        "empty masks",
        wrong(logits=(1, 2, 0, 4)),
        "expected masks that are not empty, got [1, 2, 0, 4]",
    ),
    (
        "two dtypes",
        wrong(dtypes=(torch.float64, torch.float32)),
        "expected class_probs of torch.float32, got torch.float64",
    ),
    (
        "integers",
        wrong(dtypes=(torch.int64, torch.int64)),
        "expected mask_logits of floating point, got torch.int64",
    ),
]
