# SPDX-License-Identifier: Apache-2.0
"""deformable_attention against grid_sample (what every library runs without a GPU) and compiled."""

import torch
from common import Case, grid, in_cuda, measure, variants

from avskernels import deformable_attention, reference
from avskernels.ops.deformable_attention import plain

OPERATOR = "deformable_attention"
HEADS, DIM, POINTS = 8, 32, 4
OFFSET_PIXELS = 2.5  # standard deviation of the offsets, on every level


def pixel_centres(shapes):
    """The references of an encoder, whose queries are the pixels: [S, 2] (x, y) in 0..1."""
    grids = []
    for height, width in shapes:
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grids.append(torch.stack(((x + 0.5) / width, (y + 0.5) / height), dim=-1).view(-1, 2))
    return torch.cat(grids)


def case(name, batch, shapes, queries=None, **keywords):
    """An encoder, or a decoder with ``queries`` at random reference points."""
    tokens, levels = sum(height * width for height, width in shapes), len(shapes)
    rows = batch * (queries or tokens)

    def arguments(dtype):
        generator = torch.Generator().manual_seed(0)
        if queries is None:
            references = pixel_centres(shapes)
        else:
            references = torch.rand(queries, 2, generator=generator)
        per_query = (batch, len(references), HEADS, levels, POINTS)
        sizes = torch.tensor(shapes).flip(-1)[:, None]
        offsets = OFFSET_PIXELS * torch.randn(*per_query, 2, generator=generator) / sizes
        weights = torch.rand(*per_query[:3], levels * POINTS, generator=generator).softmax(-1)
        return (
            torch.randn(batch, tokens, HEADS, DIM, generator=generator).to(dtype),
            torch.tensor(shapes),
            references[:, None, None, None] + offsets,
            weights.view(per_query),
        )

    samples = rows * HEADS * levels * POINTS
    return Case(
        name,
        arguments,
        bytes=4 * (batch * tokens * HEADS * DIM + 3 * samples + rows * HEADS * DIM),
        flops=8 * samples * DIM,
        **keywords,
    )


DETR = [(100, 167), (50, 84), (25, 42), (13, 21)]
SQD = [(28, 28), (14, 14), (7, 7)]
CASES = [
    case("800x1333 encoder", 1, DETR, dtypes=("float32", "bfloat16")),
    case("SQD encoder, B 20", 20, SQD, demo=True),
    case("800x1333 decoder, Q 300", 1, DETR, queries=300),
]

VARIANTS = variants(
    eager=reference.deformable_attention,
    algebra=plain.forward,
    avskernels=deformable_attention,
    **in_cuda(deformable_attention),
)


@grid(CASES, VARIANTS, forward_only=("algebra",))
def test_deformable_attention(benchmark, case, mode, dtype, variant):
    measure(benchmark, VARIANTS[variant], case, mode, dtype)
