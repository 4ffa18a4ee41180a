# SPDX-License-Identifier: Apache-2.0
"""Data of the tests of focal_dice_loss."""

import torch

import avskernels

OP = "focal_dice_loss"

# (images, queries, targets, frames, height, width)
CASES = {
    "minimal": (1, 1, 1, 1, 1, 1),
    "no image": (0, 2, 1, 1, 4, 4),
    "no query": (2, 0, 1, 1, 4, 4),
    "no target": (2, 3, 0, 1, 4, 4),
    "no pixel": (1, 2, 2, 1, 0, 4),
    "one below a vector": (1, 3, 4, 1, 3, 5),
    "exact vectors": (2, 4, 3, 2, 16, 16),
    "vector + 1": (1, 5, 2, 1, 1, 17),
    "odd primes": (3, 7, 5, 3, 11, 13),
    "several blocks": (1, 3, 2, 1, 47, 61),
    "sqd": (4, 5, 3, 5, 56, 56),
}


def sample(b, n, j, t, h, w, dtype=torch.float32, mask_dtype=torch.bool, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(b, n, t, h, w, generator=generator, dtype=torch.float64)
    masks = torch.randn(b, j, t, h, w, generator=generator, dtype=torch.float64)
    masks = masks.sigmoid() if mask_dtype.is_floating_point else masks > 0.3
    columns = torch.full((b, n), -1)
    for image in range(b):
        rows = torch.randperm(n, generator=generator)[: min(n, j)]
        columns[image, rows] = torch.randperm(j, generator=generator)[: len(rows)]
    labelled = torch.rand(b, t, generator=generator) < 0.7
    return logits.to(dtype), masks.to(mask_dtype), columns, labelled


def oracle(logits, masks, columns, labelled, mask_loss="focal", alpha=0.25, gamma=2.0):
    """Compute one pair at a time in float64, from probabilities."""
    one, zero = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
    losses = []
    for b in range(columns.shape[0]):
        k = b % masks.shape[0]
        for n in range(columns.shape[1]):
            if columns[b, n] < 0:
                losses.append(torch.zeros(2, dtype=torch.float64))
                continue
            shown = slice(None) if labelled is None else labelled[k].nonzero().flatten()
            x = logits[b, n, shown].double().flatten()
            t = masks[k, columns[b, n], shown].double().flatten()
            p, q = 1 / (1 + torch.exp(-x)), 1 / (1 + torch.exp(x))
            to_one, to_zero = torch.log1p(torch.exp(-x)), torch.log1p(torch.exp(x))
            if mask_loss == "focal":
                to_one, to_zero = one * q**gamma * to_one, zero * p**gamma * to_zero
            pixels = (t * to_one + (1 - t) * to_zero).sum() / max(1, len(x))
            dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
            losses.append(torch.stack([pixels, dice]))
    stacked = torch.stack(losses) if losses else torch.zeros(0, 2, dtype=torch.float64)
    return stacked.view(*columns.shape, 2).unbind(-1)


def public(logits, masks, columns, labelled, **settings):
    return avskernels.focal_dice_loss(logits, masks, columns, labelled=labelled, **settings)


SETTINGS = [
    {"mask_loss": "bce"},
    {"alpha": 0.4, "gamma": 1.5},
    {"alpha": -1.0, "gamma": 0.0},
    {"gamma": 3.0},
]


def arguments(dtype):
    return *sample(3, 7, 5, 3, 11, 13, dtype=dtype), "focal", 0.4, 1.5


GENERIC = [(*sample(*CASES["odd primes"]), "focal", 0.3, 1.5)]
GENERIC[0][0].requires_grad_()

COMPILED = (public, [sample(*CASES["odd primes"]), sample(*CASES["vector + 1"])])


def _with(position, tensor):
    args = [*sample(2, 4, 2, 1, 9, 9), "focal", 0.25, 2.0]
    args[position] = tensor
    return tuple(args)


ERRORS = [
    (
        "rank of mask_logits",
        _with(0, torch.zeros(2, 3, 4)),
        "expected mask_logits [B, N, T, ...], got [2, 3, 4]",
    ),
    (
        "dtype of mask_logits",
        _with(0, torch.zeros(2, 4, 1, 9, 9).long()),
        "expected mask_logits of floating point, got torch.int64",
    ),
    (
        "size of target_masks",
        _with(1, torch.zeros(2, 2, 1, 9, 8)),
        "expected target_masks [target_images, J, 1, 9, 9], got [2, 2, 1, 9, 8]",
    ),
    (
        "size of columns",
        _with(2, torch.zeros(2, 3).long()),
        "expected columns [2, 4], got [2, 3]",
    ),
    (
        "dtype of columns",
        _with(2, torch.zeros(2, 4)),
        "expected columns of torch.int64, got torch.float32",
    ),
    (
        "frames of labelled",
        _with(3, torch.zeros(2, 2).bool()),
        "expected labelled [2, 1], got [2, 2]",
    ),
    (
        "target images that do not divide",
        (*_with(1, torch.zeros(3, 2, 1, 9, 9))[:3], None, "focal", 0.25, 2.0),
        "expected a number of target images that divides 2, got 3",
    ),
]

_SMALL, *_TARGETS = sample(2, 3, 2, 2, 3, 7, torch.float64, torch.float64)


def _losses(settings):
    return lambda logits: tuple(public(logits, *_TARGETS, **settings))


GRADCHECK = [(_losses(settings), (_SMALL.requires_grad_(),)) for settings in ({}, *SETTINGS)]
