"""The Triton kernel against the CPU's: interpreted, or on a CUDA device where there is one."""

import pytest
import torch
from checks import launch
from test_matching_cost import options, sample

from avskernels.testing import assert_close

launcher = pytest.importorskip("avskernels.triton.matching_cost")
pytestmark = pytest.mark.triton

TRITON_CASES = {
    "minimal": (1, 1, 1, 1, 1, 1, 1),
    "no target": (2, 3, 1, 3, 0, 4, 4),
    "no pixel": (1, 2, 1, 3, 2, 0, 4),
    "tile + 1": (2, 33, 2, 3, 65, 3, 5),
    "frames": (2, 3, 3, 3, 2, 9, 9),
}


@pytest.mark.parametrize("case", TRITON_CASES.values(), ids=TRITON_CASES.keys())
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("names", "gamma"), [(("focal", "bce"), 2.0), (("softmax", "focal"), 1.5)], ids=str
)
def test_matches_cpu_kernel(case, mask_dtype, names, gamma):
    tensors = sample(*case, mask_dtype=mask_dtype)
    args = (*tensors, *options(*case).values(), 2.0, 5.0, 1.0, 4.0, 3.0, *names, 0.3, gamma)
    expected = torch.ops.avskernels.matching_cost(*args)
    assert_close(launch(launcher.matching_cost, *args), expected.double())
