# SPDX-License-Identifier: Apache-2.0
"""semantic_argmax against the score volume of published post-processing and its compiled form."""

import torch
from common import Case, grid, measure, variants

from avskernels import reference, semantic_argmax
from avskernels.ops.semantic_argmax import plain

OPERATOR = "semantic_argmax"


def case(name, images, queries, classes, side, source=None, **keywords):
    source = source or side

    def arguments(dtype):
        generator = torch.Generator().manual_seed(0)
        class_logits = torch.randn(images, queries, classes, generator=generator)
        masks = torch.randn(images, queries, source, source, generator=generator) * 3
        return class_logits.softmax(-1).to(dtype), masks.to(dtype), (side, side)

    return Case(
        name,
        arguments,
        bytes=images * (4 * queries * source**2 + 8 * side**2),
        flops=2 * images * queries * classes * side**2,
        modes=("forward",),
        **keywords,
    )


CASES = [
    case("SQD, T 10 N 5 K 71 224x224", 10, 5, 71, 224),
    case("SQD, T 10 N 5 K 71 56x56 to 224x224", 10, 5, 71, 224, 56, demo=True),
    case("N 100 K 150 512x512", 1, 100, 150, 512, dtypes=("float32", "bfloat16")),
    case("N 100 K 150 128x128 to 512x512", 1, 100, 150, 512, 128),
]

VARIANTS = variants(
    eager=lambda p, m, size: reference.semantic_argmax(p, m, size=size),
    algebra=lambda p, m, size: plain.forward(p, m, *size, 0.0, 0.0, True, False),
    avskernels=lambda p, m, size: semantic_argmax(p, m, size=size),
)


@grid(CASES, VARIANTS)
def test_semantic_argmax(benchmark, case, mode, dtype, variant):
    measure(benchmark, VARIANTS[variant], case, mode, dtype)
