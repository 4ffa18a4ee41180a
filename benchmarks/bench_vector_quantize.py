"""vector_quantize against published code, torch.compile, faiss and vector-quantize-pytorch."""

import torch
from common import Case, grid, measure, variants

from avskernels import reference, vector_quantize
from avskernels.vector_quantize import _vector_quantize_algebra

OPERATOR = "vector_quantize"


def case(name, rows, codewords, dim, **keywords):
    def arguments(dtype):
        generator = torch.Generator().manual_seed(0)
        return (
            torch.randn(rows, dim, generator=generator).to(dtype),
            torch.randn(codewords, dim, generator=generator).to(dtype),
        )

    return Case(
        name,
        arguments,
        bytes=4 * (2 * rows * dim + codewords * dim + 2 * rows),
        flops=2 * rows * codewords * dim,
        **keywords,
    )


CASES = [
    case("SQD tokens, M 100 K 128 D 256", 100, 128, 256, demo=True),
    case("M 20000 K 1024 D 256", 20000, 1024, 256, modes=("forward",)),
]

VARIANTS = variants(
    eager=reference.vector_quantize,
    algebra=lambda x, c: _vector_quantize_algebra(x, c, 0.25, 1.0, "mean"),
    avskernels=vector_quantize,
)


@grid(CASES, VARIANTS, forward_only=("algebra",))
def test_vector_quantize(benchmark, case, mode, dtype, variant):
    measure(benchmark, VARIANTS[variant], case, mode, dtype)
