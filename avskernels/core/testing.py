# SPDX-License-Identifier: Apache-2.0
"""One tolerance table for tests and benchmarks.

Half precision and ill-conditioned problems are judged by the error against float64: at most twice
that of the plain torch reference in the same precision, plus what the table allows.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """Bounds of |actual - expected| <= atol + rtol * |expected|."""

    rtol: float
    atol: float


TOLERANCES = {
    torch.float64: Tolerance(1e-9, 1e-11),
    torch.float32: Tolerance(1e-5, 1e-5),
    torch.float16: Tolerance(2e-3, 2e-3),
    torch.bfloat16: Tolerance(1.6e-2, 1.6e-2),
}


def assert_close(
    actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None, *, scale: float = 1.0
) -> None:
    """Check ``actual`` against a float64 oracle within the table's bounds for ``dtype``.

    Args:
        actual: ``Tensor[...]``, the operator's output.
        expected: ``Tensor[...]``, the oracle, float64.
        dtype: row of the table; by default that of ``actual``.
        scale: a measured widening, with its reason in a comment where it is not 1.

    Raises:
        AssertionError: naming the worst element.
    """
    rtol, atol = TOLERANCES[dtype or actual.dtype]
    torch.testing.assert_close(
        actual.double(),
        expected.double(),
        rtol=rtol * scale,
        atol=atol * scale,
        equal_nan=True,
        check_stride=False,
    )


def assert_as_precise(actual: Tensor, same_precision: Tensor, expected: Tensor) -> None:
    """Check that a result errs at most twice as much as plain torch does in the same precision.

    Rounding costs a problem as many digits as its condition says, whoever computes it; the worst
    error of the reference measures them. The table comes on top: in half precision only ``atol``,
    because the reference's error holds the rounding of the result, and ``rtol`` would hide it.

    Args:
        actual: ``Tensor[...]``, the operator's output.
        same_precision: ``Tensor[...]``, the reference computed in the same precision.
        expected: ``Tensor[...]``, the reference in float64.

    Raises:
        AssertionError: naming the worst element, and the reference's error.
    """
    rtol, atol = TOLERANCES[actual.dtype]
    allowed = (same_precision.double() - expected).abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        actual.double(),
        expected.double(),
        rtol=0.0 if actual.dtype.itemsize == 2 else rtol,
        atol=2 * allowed + atol,
        check_stride=False,
        msg=lambda text: f"{text}\nThe reference's worst error: {allowed:.3g}",
    )
