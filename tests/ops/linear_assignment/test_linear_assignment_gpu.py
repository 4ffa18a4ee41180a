# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel: a block's search takes the CPU's steps, so its matching is the CPU's."""

import pytest
import torch
from ops.linear_assignment.cases import CASES, FLOATS, KINDS, random_costs

import avskernels

pytestmark = pytest.mark.cuda

# One below, at and above the columns for which a block grows; costs beyond shared memory.
LARGE = {
    "a warp": (3, 64, 40),
    "four warps": (3, 40, 65),
    "detr": (4, 300, 100),
    "costs in global memory": (2, 300, 300),
    "sixteen warps": (2, 513, 512),
    "all in global memory": (1, 3, 20000),
}


def assert_cpus(cost, num_rows=None, num_cols=None):
    sizes = [x if x is None else x.cuda() for x in (num_rows, num_cols)]
    columns = torch.ops.avskernels._linear_assignment_cuda(cost.cuda(), *sizes).cpu()
    assert torch.equal(
        columns, avskernels.linear_assignment(cost, num_rows=num_rows, num_cols=num_cols)
    )


@pytest.mark.parametrize("size", (CASES | LARGE).values(), ids=(CASES | LARGE).keys())
@pytest.mark.parametrize("dtype", FLOATS)
def test_finds_the_matching_of_the_cpu(size, dtype):
    generator = torch.Generator().manual_seed(1)
    for kind in KINDS:
        if dtype != torch.float16 or kind != "offset 1e6":  # beyond its range
            assert_cpus(random_costs(kind, size, generator, dtype))


@pytest.mark.parametrize("size", [(9, 5, 3), (5, 20, 33), (3, 70, 90)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_non_finite_costs_and_sizes(size, dtype, share):
    generator = torch.Generator().manual_seed(2)
    cost = torch.rand(size, generator=generator, dtype=dtype)
    extremes = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.finfo(dtype).max], dtype=dtype)
    chosen = torch.rand(size, generator=generator) < share
    kinds = extremes[torch.randint(0, 4, size, generator=generator)]
    num_rows, num_cols = (torch.randint(0, n + 1, size[:1], generator=generator) for n in size[1:])
    assert_cpus(torch.where(chosen, kinds, cost), num_rows, num_cols)


def test_sizes_beyond_the_matrix_are_cut():
    cost = random_costs("uniform", (3, 4, 6), torch.Generator().manual_seed(3)).cuda()
    sizes = torch.tensor([9, -1, 4], device="cuda")
    columns = torch.ops.avskernels._linear_assignment_cuda(cost, sizes, None).cpu()
    expected = avskernels.linear_assignment(cost.cpu(), num_rows=torch.tensor([4, 0, 4]))
    assert torch.equal(columns, expected)


def test_graph_capture():
    op = torch.ops.avskernels._linear_assignment_cuda
    cost = torch.zeros(4, 300, 300, device="cuda")
    sizes = torch.full((4,), 300, device="cuda")
    op(cost, None, sizes)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        columns = op(cost, None, sizes)
    for seed, count in enumerate((300, 70, 0)):
        new = random_costs("integer", cost.shape, torch.Generator().manual_seed(seed))
        cost.copy_(new)
        sizes.fill_(count)
        graph.replay()
        expected = avskernels.linear_assignment(new, num_cols=torch.full((4,), count))
        assert torch.equal(columns.cpu(), expected)
