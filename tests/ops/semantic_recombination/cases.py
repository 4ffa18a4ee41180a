# SPDX-License-Identifier: Apache-2.0
"""Samples of semantic_recombination, its oracle, and what every operator is checked on."""

import torch

import avskernels

OP = "semantic_recombination"

# (batch, frames (0 = none), tokens, channels, channels out, height, width, kernel)
CASES = {
    "minimal": (1, 0, 1, 1, 1, 1, 1, 1),
    "empty batch": (0, 0, 2, 3, 3, 4, 4, 1),
    "no frames": (2, 0, 2, 3, 3, 0, 4, 1),
    "one below a vector": (2, 0, 3, 15, 15, 3, 5, 1),
    "exact tile": (2, 2, 2, 16, 16, 4, 8, 1),
    "tile + 1": (1, 3, 2, 17, 17, 3, 11, 1),
    "other channels out": (2, 2, 3, 5, 7, 3, 3, 1),
    "kernel 3": (2, 2, 2, 3, 3, 4, 5, 3),
    "odd primes": (3, 0, 5, 31, 31, 7, 13, 1),
    "several pieces": (2, 2, 2, 3, 3, 13, 31, 1),
}


def sample(case, dtype=torch.float32, seed=0):
    batch, frames, tokens, channels, out, height, width, kernel = case
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (batch, *([frames] if frames else []), channels, height, width),
        (batch, tokens, channels),
        (out, tokens * channels, kernel, kernel),
        (out,),
    )
    features, filters, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    weight /= max(tokens * channels, 1) ** 0.5
    return *(t.to(dtype) for t in (features, filters, weight, bias)), channels == out


def oracle(features, filters, weight, bias, residual):
    """Eq. 5 in float64, one sample, frame, token and tap at a time."""
    features, filters, weight, bias = (t.double() for t in (features, filters, weight, bias))
    frames = features if features.dim() == 5 else features.unsqueeze(1)
    channels, height, width = frames.shape[2:]
    pad = weight.shape[-1] // 2
    out = frames.new_zeros(*frames.shape[:2], len(weight), height, width) + bias[:, None, None]
    for b, t in ((b, t) for b in range(frames.shape[0]) for t in range(frames.shape[1])):
        padded = torch.nn.functional.pad(frames[b, t], (pad, pad, pad, pad))
        for n, (i, j) in (
            (n, (i, j))
            for n in range(filters.shape[1])
            for i in range(weight.shape[-1])
            for j in range(weight.shape[-1])
        ):
            taps = weight[:, n * channels : (n + 1) * channels, i, j] * filters[b, n]
            shifted = padded[:, i : i + height, j : j + width]
            out[b, t] += (taps @ shifted.flatten(1)).view(len(taps), height, width)
    out = out + frames if residual else out
    return out if features.dim() == 5 else out.squeeze(1)


def run(*args, backend=None):
    *tensors, residual = args
    return avskernels.semantic_recombination(*tensors, residual=residual, backend=backend)


def arguments(dtype):
    return sample((2, 2, 5, 31, 31, 7, 13, 1), dtype)


# Without "kernel 3": torch's own convolution differs with the number of threads.
GENERIC = [sample(CASES["tile + 1"]), sample(CASES["other channels out"])]


def recombine(features, filters, weight):
    return avskernels.semantic_recombination(features, filters, weight)


COMPILED = [
    (recombine, [sample(CASES[case])[:3], sample((3, 4, 2, 5, 5, 6, 7, 3))[:3]])
    for case in ("tile + 1", "kernel 3")
]

GRADCHECK = [
    (lambda *tensors, residual=residual: run(*tensors, residual), tensors)
    for kernel in (1, 3)
    for *tensors, residual in [sample((1, 2, 2, 3, 3, 2, 2, kernel), torch.float64)]
]

SHAPES = {"features": (2, 3, 4, 5), "filters": (2, 2, 3), "weight": (3, 6, 1, 1), "bias": (3,)}


def wrong(dtype=torch.float32, **changed):
    features, *others = (torch.zeros(shape) for shape in (SHAPES | changed).values())
    return features.to(dtype), *others, True


ERRORS = [
    (
        "features of three dimensions",
        wrong(features=(3, 4, 5)),
        "expected features [B, C, H, W] or [B, T, C, H, W], got [3, 4, 5]",
    ),
    (
        "filters of other channels",
        wrong(filters=(2, 2, 4)),
        "expected filters [2, N, 3], got [2, 2, 4]",
    ),
    (
        "filters of another batch",
        wrong(filters=(1, 2, 3)),
        "expected filters [2, N, 3], got [1, 2, 3]",
    ),
    (
        "weight of other tokens",
        wrong(filters=(2, 3, 3)),
        "expected weight [C_out, 9, k, k], got [3, 6, 1, 1]",
    ),
    (
        "oblong kernel",
        wrong(weight=(3, 6, 1, 3)),
        "expected weight [C_out, 6, k, k], got [3, 6, 1, 3]",
    ),
    (
        "even kernel",
        wrong(weight=(3, 6, 2, 2)),
        "expected weight [C_out, 6, k, k] with odd k, got [3, 6, 2, 2]",
    ),
    ("long bias", wrong(bias=(4,)), "expected bias [3], got [4]"),
    (
        "nothing to add the features to",
        wrong(weight=(4, 6, 1, 1), bias=(4,)),
        "expected 3 output channels to add the residual to, got 4",
    ),
    (
        "integer features",
        wrong(torch.int64),
        "expected features of floating point, got torch.int64",
    ),
]
