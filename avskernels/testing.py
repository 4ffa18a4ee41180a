"""One tolerance table for tests and benchmarks.

Half precision is judged by the error against float64: at most twice that of the plain torch
reference in the same precision, plus ``atol``.
"""

from typing import NamedTuple

import torch


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


def assert_close(actual, expected, dtype=None, *, scale=1.0):
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


def assert_half_precision(actual, same_precision, expected):
    """Check that a half-precision result errs at most twice as much as plain torch does.

    Args:
        actual: ``Tensor[...]`` float16 or bfloat16, the operator's output.
        same_precision: ``Tensor[...]``, the reference computed in the same precision.
        expected: ``Tensor[...]``, the reference in float64.

    Raises:
        AssertionError: with both errors.
    """
    error = (actual.double() - expected).abs().max().item() if expected.numel() else 0.0
    allowed = (same_precision.double() - expected).abs().max().item() if expected.numel() else 0.0
    atol = TOLERANCES[actual.dtype].atol
    if not error <= 2 * allowed + atol:
        raise AssertionError(
            f"expected an error of at most 2 * {allowed:.3g} + {atol:.3g}, got {error:.3g}"
        )
