# SPDX-License-Identifier: Apache-2.0
"""linear_assignment against the scipy loop of matchers, lapx and torch-linear-assignment."""

import pytest
import torch
from common import Case, grid, in_cuda, measure

from avskernels import linear_assignment, reference

OPERATOR = "linear_assignment"


def case(name, problems, rows, cols, **keywords):
    def arguments(dtype):
        generator = torch.Generator().manual_seed(0)
        return (torch.rand(problems, rows, cols, generator=generator).to(dtype),)

    return Case(
        name,
        arguments,
        bytes=problems * (4 * rows * cols + 8 * rows),
        flops=2 * problems * rows * cols,
        modes=("forward",),
        **keywords,
    )


CASES = [
    case("64 x (300 x 100)", 64, 300, 100, demo=True),
    case("16 x (300 x 300)", 16, 300, 300),
    case("4 x (1000 x 1000)", 4, 1000, 1000),
    case("1000 x (5 x 5)", 1000, 5, 5),
]


def scipy_loop(cost):
    """The loop alone: no policy for NaN, no result tensor; costs are copied to the CPU."""
    from scipy.optimize import linear_sum_assignment

    return [linear_sum_assignment(problem) for problem in cost.cpu().numpy()]


def lapx(cost):
    lap = pytest.importorskip("lap", reason="lapx is not installed")
    return lap.lapjvx_batch(cost.cpu().numpy(), extend_cost=True, n_threads=torch.get_num_threads())


def torch_linear_assignment(cost):
    peer = pytest.importorskip(
        "torch_linear_assignment", reason="torch-linear-assignment is not installed"
    )
    return peer.batch_linear_assignment(cost)


# torch.compile cannot look into scipy, and no plain torch is worth a row.
VARIANTS = {
    "eager": scipy_loop,
    "reference": reference.linear_assignment,
    "avskernels": linear_assignment,
    **in_cuda(linear_assignment),
    "lapx": lapx,
    "torch-linear-assignment": torch_linear_assignment,
}


@grid(CASES, VARIANTS)
def test_linear_assignment(benchmark, case, mode, dtype, variant):
    measure(benchmark, VARIANTS[variant], case, mode, dtype)
