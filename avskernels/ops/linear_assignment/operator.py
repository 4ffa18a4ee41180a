# SPDX-License-Identifier: Apache-2.0
"""Exact linear assignment (Hungarian matching) for a batch of problems."""

import torch
from torch import Tensor

from avskernels.core.backend import composite, cpp, cuda_cpp, plain_torch
from avskernels.core.operator import Operator
from avskernels.ops.linear_assignment.reference import linear_assignment as reference


def linear_assignment(
    cost: Tensor,
    *,
    num_rows: Tensor | None = None,
    num_cols: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Match rows with columns, one to one, at the least total cost.

    .. math:: \min_\sigma \sum_n C_{n \sigma(n)}

    Exact for any real costs: duals are float64, and no cost is padded or rounded. NaN and +Inf
    forbid a pair; of the matchings with the most pairs the result has the most -Inf pairs, and of
    those the least sum of finite costs. It depends on the values alone: not on the number of
    threads, not on the run, not on the other problems of the batch. Never raises because of a
    value. Not differentiable.

    Args:
        cost: ``Tensor[B, N, J]``, floating-point, any strides.
        num_rows: ``Tensor[B]`` int64: the rows of each problem, the rest is padding. None: all N.
        num_cols: ``Tensor[B]`` int64: the columns of each problem. None: all J.
        backend: see :func:`avskernels.backend`.

    Returns:
        Tensor: ``columns [B, N]`` int64, the column of each row, -1 where it has none.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit, or sizes beyond N or J.

    Source: Jonker and Volgenant 1987 (augmenting row reduction, shortest augmenting paths).

    Example:
        >>> cost = torch.tensor([[[4.0, 1.0], [2.0, 0.0], [3.0, 2.0]]])
        >>> linear_assignment(cost)
        tensor([[ 1,  0, -1]])
    """
    args = cost, num_rows, num_cols
    if OPERATOR.wants_reference(backend, args):
        return reference(cost, num_rows=num_rows, num_cols=num_cols)
    columns: Tensor = OPERATOR(*args)
    return columns


def _on_cpu(cost: Tensor, num_rows: Tensor | None, num_cols: Tensor | None) -> Tensor:
    # No formula in plain torch is worth having: the CPU's kernel serves, with two copies.
    sizes = [x if x is None else x.cpu() for x in (num_rows, num_cols)]
    columns: Tensor = OPERATOR(cost.cpu(), *sizes)
    return columns.to(cost.device)


OPERATOR = Operator(
    "linear_assignment",
    [
        cpp(),
        cuda_cpp(lambda *args: torch.ops.avskernels._linear_assignment_cuda.default(*args)),
        *composite(_on_cpu, "cuda", name="C++ on the CPU, with two copies"),
        plain_torch(_on_cpu, "C++ on the CPU, with two copies"),
    ],
)
