# SPDX-License-Identifier: Apache-2.0
"""focal_dice_loss against the mask losses of published criteria."""

import torch
from common import Case, grid, measure, variants

from avskernels import focal_dice_loss, reference
from avskernels.ops.focal_dice_loss import plain

OPERATOR = "focal_dice_loss"


def case(name, images, queries, targets, frames, size, **keywords):
    def arguments(dtype):
        generator = torch.Generator().manual_seed(0)
        logits = 3 * torch.randn(images, queries, frames, size, size, generator=generator)
        masks = torch.rand(images, targets, frames, size, size, generator=generator) > 0.7
        columns = torch.full((images, queries), -1)
        for row in columns:
            row[torch.randperm(queries, generator=generator)[:targets]] = torch.arange(targets)
        return logits.to(dtype), masks, columns

    pixels = images * targets * frames * size * size
    return Case(
        name,
        arguments,
        bytes=5 * pixels,
        flops=60 * pixels,
        dtypes=("float32", "bfloat16"),
        **keywords,
    )


CASES = [
    case("SQD, 4 layers B 4 N 5 J 3 T 5 56x56", 16, 5, 3, 5, 56, demo=True),
    case("DETR, B 2 N 100 J 20 200x200", 2, 100, 20, 1, 200),
]

VARIANTS = variants(
    eager=reference.focal_dice_loss,
    algebra=lambda x, t, c: plain.forward(x, t, c, None, "focal", 0.25, 2.0)[:2],
    avskernels=focal_dice_loss,
)


@grid(CASES, VARIANTS, forward_only=("algebra",))
def test_focal_dice_loss(benchmark, case, mode, dtype, variant):
    measure(benchmark, VARIANTS[variant], case, mode, dtype)
