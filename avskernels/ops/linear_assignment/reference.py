# SPDX-License-Identifier: Apache-2.0
"""Linear assignment as matchers do it: a copy to the CPU and scipy, problem by problem."""

import numpy
import torch
from torch import Tensor


def linear_assignment(
    cost: Tensor, *, num_rows: Tensor | None = None, num_cols: Tensor | None = None
) -> Tensor:
    """Return the column of each row, -1 where unmatched: most pairs first, then the least total."""
    from scipy.optimize import linear_sum_assignment

    columns = torch.full(cost.shape[:2], -1)
    for b, problem in enumerate(cost.detach().cpu().double().numpy()):
        rows = problem.shape[0] if num_rows is None else int(num_rows[b])
        cols = problem.shape[1] if num_cols is None else int(num_cols[b])
        problem = problem[:rows, :cols]
        if problem.size == 0:
            continue
        forbidden = numpy.isnan(problem) | (problem == numpy.inf)
        finite = numpy.isfinite(problem)
        # Larger than any sum of finite costs, so that preferred pairs, and allowed ones, count
        # first. It costs digits of the finite ones: scipy knows no better.
        span = 1 + 2 * min(rows, cols) * numpy.abs(problem[finite]).max(initial=0)
        problem = numpy.where(finite, problem, -span)
        if forbidden.any():
            problem[forbidden] = span * (2 + min(rows, cols))
        for row, column in zip(*linear_sum_assignment(problem), strict=True):
            if not forbidden[row, column]:
                columns[b, row] = int(column)
    return columns.to(cost.device)
