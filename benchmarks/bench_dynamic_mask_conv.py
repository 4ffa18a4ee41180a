# SPDX-License-Identifier: Apache-2.0
"""dynamic_mask_conv against the grouped convolution of published heads and its compiled form."""

import pytest
import torch
from common import Case, grid, in_cuda, measure, variants

from avskernels import dynamic_mask_conv, reference
from avskernels.ops.dynamic_mask_conv import plain

OPERATOR = "dynamic_mask_conv"


def case(name, images, queries, channels, side, hidden=(8, 8), **keywords):
    coordinates = bool(hidden)

    def arguments(dtype):
        generator = torch.Generator().manual_seed(0)
        count = plain.num_params(channels, hidden, coordinates)
        points = torch.rand(images, queries, 2, generator=generator) * side * 4
        return (
            torch.randn(images, channels, side, side, generator=generator).to(dtype),
            (torch.randn(images, queries, count, generator=generator) / 3).to(dtype),
            points if coordinates else None,
            hidden,
        )

    masks = images * queries * side**2
    biases = sum(hidden) + 1
    return Case(
        name,
        arguments,
        bytes=4 * (images * channels * side**2 + masks),
        flops=2 * masks * (plain.num_params(channels, hidden, coordinates) - biases),
        **keywords,
    )


CASES = [
    case("Q 300 C 8 200x200", 1, 300, 8, 200, dtypes=("float32", "bfloat16")),
    case("SQD, B 20 Q 5 C 8 56x56", 20, 5, 8, 56, demo=True),
    case("SQD, B 20 Q 5 C 256 56x56", 20, 5, 256, 56),
    case("plain filter, B 20 Q 5 C 256 56x56", 20, 5, 256, 56, hidden=()),
]


def fused(features, params, points, hidden):
    return dynamic_mask_conv(features, params, hidden=hidden, reference_points=points)


def fused_in_cuda(features, params, points, hidden):
    if not hidden:
        pytest.skip("a plain filter is one matrix product")
    return fused(features, params, points, hidden)


VARIANTS = variants(
    eager=lambda f, p, r, hidden: reference.dynamic_mask_conv(
        f, p, hidden=hidden, reference_points=r
    ),
    algebra=lambda f, p, r, hidden: plain.forward(f, p, r, None, None, hidden, 4.0, False),
    avskernels=fused,
    **in_cuda(fused_in_cuda),
)


@grid(CASES, VARIANTS)
def test_dynamic_mask_conv(benchmark, case, mode, dtype, variant):
    measure(benchmark, VARIANTS[variant], case, mode, dtype)
