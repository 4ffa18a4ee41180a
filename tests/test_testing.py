"""The criteria that the other tests rest on."""

import pytest
import torch

from avskernels.testing import assert_as_precise, assert_close

EXPECTED = torch.tensor([1.0, -3.0, 1000.0], dtype=torch.float64)


def off_by(error, dtype):
    return (EXPECTED + torch.tensor([0.0, error, 0.0], dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twice_the_error_of_the_reference_is_allowed(dtype):
    assert_as_precise(off_by(-0.199, dtype), off_by(0.1, dtype), EXPECTED)
    with pytest.raises(AssertionError, match=r"The reference's worst error: 0\.1"):
        assert_as_precise(off_by(-0.201, dtype), off_by(0.1, dtype), EXPECTED)
    with pytest.raises(AssertionError):
        assert_as_precise(off_by(torch.nan, dtype), off_by(0.1, dtype), EXPECTED)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_no_relative_part(dtype):
    off = off_by(0.03 if dtype == torch.bfloat16 else 0.005, dtype)
    assert_close(off, EXPECTED)
    with pytest.raises(AssertionError, match="The reference's worst error: 0"):
        assert_as_precise(off, off_by(0.0, dtype), EXPECTED)
