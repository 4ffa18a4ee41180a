# SPDX-License-Identifier: Apache-2.0
"""semantic_recombination against Eq. 5 as it is written: concatenation and projection."""

import torch
from common import Case, grid, measure, variants

from avskernels import reference, semantic_recombination

OPERATOR = "semantic_recombination"


def case(name, batch, tokens, channels, height, width, **keywords):
    def arguments(dtype):
        generator = torch.Generator().manual_seed(0)
        shapes = (
            (batch, channels, height, width),
            (batch, tokens, channels),
            (channels, tokens * channels, 1, 1),
            (channels,),
        )
        tensors = [torch.randn(shape, generator=generator) for shape in shapes]
        tensors[2] /= (tokens * channels) ** 0.5
        return tuple(tensor.to(dtype) for tensor in tensors)

    size = batch * channels * height * width
    return Case(name, arguments, bytes=8 * size, flops=2 * channels * size, **keywords)


CASES = [
    case(
        "one clip, 5x256x56x56, N 5", 5, 5, 256, 56, 56, dtypes=("float32", "bfloat16"), demo=True
    ),
    case("20 frames, 20x256x56x56, N 5", 20, 5, 256, 56, 56, modes=("forward",)),
]


def algebra(features, filters, weight, bias):
    """One matrix per sample, in plain torch."""
    by_token = weight.flatten(1).unflatten(1, filters.shape[1:])  # [C_out, N, C]
    matrices = (by_token * filters.unsqueeze(1)).sum(2)
    pixels = features.flatten(2)
    mixed = torch.baddbmm(pixels + bias.unsqueeze(1), matrices, pixels)
    return mixed.view(features.shape)


VARIANTS = variants(
    eager=reference.semantic_recombination,
    algebra=algebra,
    avskernels=semantic_recombination,
)


@grid(CASES, VARIANTS)
def test_semantic_recombination(benchmark, case, mode, dtype, variant):
    measure(benchmark, VARIANTS[variant], case, mode, dtype)
