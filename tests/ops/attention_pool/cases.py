# SPDX-License-Identifier: Apache-2.0
"""Samples of attention_pool, its oracle, and what every operator is checked on."""

import torch

import avskernels

OP = "attention_pool"

# (batch, queries, channels, spatial shape)
CASES = {
    "minimal": (1, 1, 1, (1,)),
    "empty batch": (0, 2, 3, (4,)),
    "no pixels": (2, 2, 3, (0, 4)),
    "no queries": (2, 0, 3, (5,)),
    "one pixel": (3, 2, 5, (1, 1)),
    "one below a vector": (2, 3, 15, (3, 5)),
    "exact tile": (1, 8, 16, (16, 16)),
    "tile + 1": (2, 9, 17, (1, 257)),
    "odd primes": (2, 5, 37, (3, 13, 31)),
    "several blocks": (1, 3, 131, (2, 1291)),
}
DTYPES = [torch.float32, torch.float64]


def sample(case, dtype=torch.float32, seed=0, masked=False):
    batch, rows, channels, space = case
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, channels, *space, generator=generator, dtype=torch.float64)
    queries = torch.randn(batch, rows, channels, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, *space, generator=generator) < 0.6 if masked else None
    return features.to(dtype), queries.to(dtype), mask


def oracle(features, queries, scale, softmax, mask=None):
    """The definition in float64, one sample and query at a time, over the pixels that count."""
    pooled = torch.zeros_like(queries, dtype=torch.float64)
    for b, h in ((b, h) for b in range(queries.shape[0]) for h in range(queries.shape[1])):
        pixels = features[b].double().flatten(1).T
        pixels = pixels if mask is None else pixels[mask[b].flatten()]
        weights = scale * (pixels * queries[b, h].double()).sum(1)
        if softmax and len(weights):
            weights = (weights - weights.max()).exp()
            weights = weights / weights.sum()
        pooled[b, h] = (weights.unsqueeze(1) * pixels).sum(0)
    return pooled


def run(features, queries, scale=1.0, softmax=True, mask=None, backend=None):
    return avskernels.attention_pool(features, queries, scale, softmax, mask=mask, backend=backend)


def arguments(dtype):
    return *sample((2, 9, 37, (7, 43)), dtype, masked=True), 0.3, True


GENERIC = [(*sample(CASES["odd primes"], masked=True), 0.3, softmax) for softmax in (True, False)]
HALF = sample(CASES["odd primes"], torch.bfloat16)
GENERIC.append((HALF[0], HALF[1].float(), None, 0.3, True))

COMPILED = (
    avskernels.attention_pool,
    [sample(CASES["odd primes"])[:2], sample((3, 2, 4, (2, 3, 5)))[:2]],
)


def pooling(softmax, mask):
    return lambda features, queries: run(features, queries, 0.7, softmax, mask)


GRADCHECK = [
    (pooling(softmax, mask), (features, queries))
    for softmax in (True, False)
    for masked in (False, True)
    for features, queries, mask in [sample((2, 3, 5, (3, 7)), torch.float64, masked=masked)]
]


def wrong(features=(2, 3, 4), queries=(2, 1, 3), mask=None):
    mask = None if mask is None else torch.ones(mask, dtype=torch.bool)
    return torch.zeros(features), torch.zeros(queries), mask, 1.0, True


FEATURES, QUERIES, MASK, *_ = wrong(mask=(2, 4))

ERRORS = [
    ("no pixels", wrong((2, 3)), "expected features [B, C, ...], got [2, 3]"),
    ("queries of two dimensions", wrong(queries=(2, 3)), "expected queries [2, h, 3], got [2, 3]"),
    (
        "queries of another batch",
        wrong(queries=(1, 1, 3)),
        "expected queries [2, h, 3], got [1, 1, 3]",
    ),
    ("mask of another shape", wrong(mask=(2, 5)), "expected mask [2, 4], got [2, 5]"),
    (
        "integer features",
        (FEATURES.long(), QUERIES, None, 1.0, True),
        "expected features of floating point, got torch.int64",
    ),
    (
        "queries of another dtype",
        (FEATURES, QUERIES.double(), None, 1.0, True),
        "expected queries of torch.float32, got torch.float64",
    ),
    (
        "floating-point mask",
        (FEATURES, QUERIES, MASK.float(), 1.0, True),
        "expected mask of torch.bool, got torch.float32",
    ),
]
