# SPDX-License-Identifier: Apache-2.0
"""One tolerance table for tests and benchmarks."""

from avskernels.core.testing import TOLERANCES, Tolerance, assert_as_precise, assert_close

__all__ = ["TOLERANCES", "Tolerance", "assert_as_precise", "assert_close"]
