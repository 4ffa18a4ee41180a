# SPDX-License-Identifier: Apache-2.0
"""attention_pool against attention as it is written: all logits, softmax, weighted sum."""

import torch
from common import Case, grid, measure, variants

from avskernels import attention_pool, reference

OPERATOR = "attention_pool"


def case(name, batch, rows, channels, height, width, **keywords):
    def arguments(dtype):
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(batch, channels, height, width, generator=generator)
        queries = torch.randn(batch, rows, channels, generator=generator)
        return features.to(dtype), queries.to(dtype), channels**-0.5

    size = batch * channels * height * width
    return Case(name, arguments, bytes=4 * size, flops=4 * rows * size, **keywords)


CASES = [
    case("one clip, 5x256x56x56, 8 queries", 5, 8, 256, 56, 56, dtypes=("float32", "bfloat16"))
]


def algebra(features, queries, scale):
    pixels = features.flatten(2)
    return torch.bmm(torch.bmm(queries * scale, pixels).softmax(-1), pixels.mT)


VARIANTS = variants(
    eager=reference.attention_pool,
    algebra=algebra,
    avskernels=attention_pool,
)


@grid(CASES, VARIANTS)
def test_attention_pool(benchmark, case, mode, dtype, variant):
    measure(benchmark, VARIANTS[variant], case, mode, dtype)
