"""Exact linear assignment (Hungarian matching) for a batch of problems."""

import torch

from avskernels import reference
from avskernels._backend import use_reference
from avskernels._check import FLOATS, expect
from avskernels._library import register_fallback


def linear_assignment(cost, *, num_rows=None, num_cols=None, backend=None):
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
    cost = cost.detach()
    _check(cost, num_rows, num_cols)
    if use_reference("linear_assignment", backend, cost):
        return reference.linear_assignment(cost, num_rows, num_cols)
    return torch.ops.avskernels.linear_assignment.default(cost, num_rows, num_cols)


def _check(cost, num_rows, num_cols):
    # The same sentences as linear_assignment_cpu in csrc/linear_assignment.
    op = "linear_assignment"
    expect(op, "cost", cost, ("B", "N", "J"), FLOATS)
    for name, sizes in (("num_rows", num_rows), ("num_cols", num_cols)):
        if sizes is not None:
            expect(op, name, sizes, (cost.shape[0],), (torch.int64,), cost.device)


@torch.library.register_fake("avskernels::linear_assignment")
def _linear_assignment_fake(cost, num_rows, num_cols):
    _check(cost, num_rows, num_cols)
    return cost.new_empty(cost.shape[:2], dtype=torch.int64)


def _linear_assignment_algebra(cost, num_rows, num_cols):
    # No formula in plain torch is worth having: the CPU's kernel serves, with two copies. One in
    # CUDA C++ waits under torch.ops.avskernels._linear_assignment_cuda, with the same arguments,
    # until it has run on a GPU.
    _check(cost, num_rows, num_cols)
    sizes = [x if x is None else x.cpu() for x in (num_rows, num_cols)]
    return torch.ops.avskernels.linear_assignment.default(cost.cpu(), *sizes).to(cost.device)


register_fallback("linear_assignment", _linear_assignment_algebra)
