# SPDX-License-Identifier: Apache-2.0
"""vector_quantize against published code, torch.compile, faiss and vector-quantize-pytorch.

faiss-cpu returns only indices and distances, so ``nearest_codeword`` is measured too.
"""

import functools

import pytest
import torch
from common import Case, grid, in_cuda, measure, variants

from avskernels import nearest_codeword, reference, vector_quantize
from avskernels.ops.vector_quantize import plain

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
    case(
        "SQD tokens, M 100 K 128 D 256",
        100,
        128,
        256,
        dtypes=("float32", "bfloat16"),
        demo=True,
    ),
    case("M 20000 K 128 D 256", 20000, 128, 256),
    case("M 20000 K 1024 D 256", 20000, 1024, 256, dtypes=("float32", "bfloat16")),
    case("M 4096 K 8192 D 256", 4096, 8192, 256, modes=("forward",)),
]


def faiss_search(x, codebook):
    """Search the codebook with an exact index on the CPU; half precision becomes float32."""
    faiss = pytest.importorskip("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.float().cpu().numpy())
    distances, indices = index.search(x.float().cpu().numpy(), 1)
    return torch.from_numpy(indices), torch.from_numpy(distances)


@functools.cache
def _module(codewords, dim):
    peer = pytest.importorskip("vector_quantize_pytorch")
    return peer.VectorQuantize(
        dim=dim, codebook_size=codewords, learnable_codebook=True, ema_update=False
    )


def vector_quantize_pytorch(x, codebook):
    """Run the module with its own codebook, which has the shape of the given one."""
    quantized, indices, loss = _module(*codebook.shape).to(x.device)(x.float().unsqueeze(0))
    return quantized, indices, loss


VARIANTS = variants(
    eager=reference.vector_quantize,
    algebra=lambda x, c: plain.forward(x, c, 0.25, 1.0, "mean"),
    avskernels=vector_quantize,
    **in_cuda(vector_quantize),
    nearest_codeword=nearest_codeword,
    faiss=faiss_search,
    vector_quantize_pytorch=vector_quantize_pytorch,
)


@grid(
    CASES,
    VARIANTS,
    forward_only=("algebra", "nearest_codeword", "faiss"),
    backward_only=("cuda",),
)
def test_vector_quantize(benchmark, case, mode, dtype, variant):
    measure(benchmark, VARIANTS[variant], case, mode, dtype)
