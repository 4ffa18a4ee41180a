# SPDX-License-Identifier: Apache-2.0
"""Costs for linear_assignment, and what every operator is checked on."""

import torch

import avskernels

OP = "linear_assignment"

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

# (problems, rows, columns)
CASES = {
    "minimal": (1, 1, 1),
    "no problem": (0, 3, 4),
    "no rows": (2, 0, 4),
    "no columns": (2, 4, 0),
    "one below a vector": (3, 15, 7),
    "exact vectors": (2, 16, 32),
    "vector + 1": (2, 33, 17),
    "wide": (2, 5, 67),
    "sqd": (12, 5, 3),
    "mask2former": (2, 100, 37),
    "square": (1, 61, 61),
}


def random_costs(kind, shape, generator, dtype=torch.float32):
    cost = torch.rand(shape, generator=generator, dtype=torch.float64)
    if kind == "integer":
        cost = (cost * 4).floor()
    elif kind == "equal":
        cost = torch.full(shape, 2.5, dtype=torch.float64)
    elif kind == "signed":
        cost = torch.randn(shape, generator=generator, dtype=torch.float64)
    elif kind.startswith("offset"):
        cost = cost + float(kind.split()[1])
    elif kind == "product":  # rank one: the hardest for auctions
        cost = cost[:, :, :1] * cost[:, :1, :]
    return cost.to(dtype)


KINDS = ("uniform", "integer", "equal", "signed", "offset 1e3", "offset 1e6", "product")


def arguments(dtype):
    return random_costs("uniform", (5, 20, 33), torch.Generator().manual_seed(0), dtype), None, None


COST = random_costs("integer", (5, 9, 6), torch.Generator().manual_seed(6))

GENERIC = [
    (COST, torch.tensor([9, 0, 4, 9, 1]), torch.tensor([6, 6, 5, 0, 2])),
    (COST, None, None),
]

COMPILED = (avskernels.linear_assignment, [(COST,), (COST[:3, :4],)])

ERRORS = [
    (
        "cost of two dimensions",
        (torch.zeros(3, 4), None, None),
        "expected cost [B, N, J], got [3, 4]",
    ),
    (
        "integer cost",
        (torch.zeros(1, 3, 4, dtype=torch.int64), None, None),
        "expected cost of floating point, got torch.int64",
    ),
    (
        "sizes of another batch",
        (torch.zeros(2, 3, 4), torch.ones(3).long(), None),
        "expected num_rows [2], got [3]",
    ),
    (
        "floating-point sizes",
        (torch.zeros(2, 3, 4), None, torch.ones(2)),
        "expected num_cols of torch.int64, got torch.float32",
    ),
]
