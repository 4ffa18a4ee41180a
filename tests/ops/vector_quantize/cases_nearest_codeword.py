# SPDX-License-Identifier: Apache-2.0
"""Cases of nearest_codeword; samples and oracle are those of vector_quantize."""

import torch
from ops.vector_quantize.cases import WRONG_ROWS, sample

import avskernels

OP = "nearest_codeword"


def arguments(dtype):
    return sample(101, 3, 67, 31, dtype)


GENERIC = [sample(33, 2, 9, 7), sample(33, 2, 9, 7, torch.bfloat16)]

COMPILED = (avskernels.nearest_codeword, [sample(5, 0, 6, 7), sample(8, 0, 3, 9)])

ERRORS = [(name, (x, codebook), message) for name, x, codebook, message in WRONG_ROWS]

GRADCHECK = []  # not differentiable
