# SPDX-License-Identifier: Apache-2.0
"""Samples, oracle and cases of vector_quantize."""

import functools

import torch

import avskernels
from avskernels.ops.vector_quantize import reference

OP = "vector_quantize"

# (rows, groups (0 = one shared codebook), codewords, dim)
CASES = {
    "minimal": (1, 0, 1, 1),
    "empty": (0, 0, 5, 8),
    "one below a vector": (15, 0, 15, 15),
    "exact tile": (16, 0, 16, 16),
    "tile + 1": (17, 0, 17, 17),
    "odd primes": (101, 3, 67, 31),
    "sqd": (100, 0, 128, 256),
}


def sample(rows, groups, codewords, dim, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_shape = (rows, groups, dim) if groups else (rows, dim)
    book_shape = (groups, codewords, dim) if groups else (codewords, dim)
    x = torch.randn(x_shape, generator=generator, dtype=torch.float64)
    codebook = torch.randn(book_shape, generator=generator, dtype=torch.float64)
    return x.to(dtype), codebook.to(dtype)


def oracle_distances(x, codebook):
    """All squared distances in float64, one codeword at a time: [..., K]."""
    books = codebook.double()
    columns = [x.double() - books[..., k, :] for k in range(books.shape[-2])]
    return torch.stack([(c * c).sum(-1) for c in columns], dim=-1)


def published(x, codebook, commitment_weight, codebook_weight, reduction):
    """The reference with the operator's arguments."""
    return reference.vector_quantize(
        x,
        codebook,
        commitment_weight=commitment_weight,
        codebook_weight=codebook_weight,
        reduction=reduction,
    )


def arguments(dtype):
    return *sample(101, 3, 67, 31, dtype), 0.3, 0.9, "mean"


GENERIC = [(*sample(33, 2, 9, 7), 0.3, 1.5, "sum")]

COMPILED = (avskernels.vector_quantize, [sample(5, 0, 6, 7), sample(8, 0, 3, 9)])

# (id, x, codebook, message), of nearest_codeword too
WRONG_ROWS = [
    (
        "codebook of rank 1",
        torch.zeros(4, 3),
        torch.zeros(5),
        "expected codebook [K, 3] or [G, K, 3], got [5]",
    ),
    (
        "another dimension",
        torch.zeros(4, 3),
        torch.zeros(5, 2),
        "expected codebook [K, 3] or [G, K, 3], got [5, 2]",
    ),
    (
        "no group in x",
        torch.zeros(4, 3),
        torch.zeros(2, 5, 3),
        "expected x [..., 2, 3], got [4, 3]",
    ),
    ("x without rows", torch.zeros(3), torch.zeros(2, 5, 3), "expected x [..., 2, 3], got [3]"),
    (
        "no codeword",
        torch.zeros(4, 3),
        torch.zeros(0, 3),
        "expected a codebook with at least one codeword and one dimension, got [0, 3]",
    ),
    (
        "no dimension",
        torch.zeros(4, 0),
        torch.zeros(5, 0),
        "expected a codebook with at least one codeword and one dimension, got [5, 0]",
    ),
    (
        "no group",
        torch.zeros(4, 0, 3),
        torch.zeros(0, 5, 3),
        "expected a codebook with at least one codeword and one dimension, got [0, 5, 3]",
    ),
    (
        "two dtypes",
        torch.zeros(4, 3),
        torch.zeros(5, 3).double(),
        "expected codebook of torch.float32, got torch.float64",
    ),
    (
        "integers",
        torch.zeros(4, 3).long(),
        torch.zeros(5, 3).long(),
        "expected x of floating point, got torch.int64",
    ),
]

ERRORS = [
    (name, (x, codebook, 0.25, 1.0, "mean"), message) for name, x, codebook, message in WRONG_ROWS
]


# Each term alone, because the other one stops this gradient.
def _commitment(x, codebook, reduction):
    return avskernels.vector_quantize(
        x, codebook, commitment_weight=0.7, codebook_weight=0.0, reduction=reduction
    ).loss


def _codebook_term(codebook, x, reduction):
    return avskernels.vector_quantize(
        x, codebook, commitment_weight=0.0, codebook_weight=0.7, reduction=reduction
    ).loss


def _gradcheck_calls():
    for reduction in ("mean", "sum", "none"):
        x, codebook = sample(4, 2, 3, 5, torch.float64)
        term = functools.partial(_commitment, codebook=codebook.clone(), reduction=reduction)
        yield term, (x.clone().requires_grad_(),)
        term = functools.partial(_codebook_term, x=x, reduction=reduction)
        yield term, (codebook.requires_grad_(),)


GRADCHECK = list(_gradcheck_calls())
