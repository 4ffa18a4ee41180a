# SPDX-License-Identifier: Apache-2.0
"""The Triton kernel against the CPU's: interpreted, or on a CUDA device where there is one."""

import pytest
import torch
from checks import launch
from ops.matching_cost.cases import CASES, options, sample

from avskernels.core.testing import assert_close
from avskernels.ops.matching_cost.operator import OPERATOR

kernels = pytest.importorskip("avskernels.ops.matching_cost.triton")
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
    assert_close(launch(kernels.forward, *args), expected.double())


@pytest.mark.parametrize(
    ("case", "dtype", "present", "reason"),
    [
        ("odd primes", torch.float32, True, None),
        ("odd primes", torch.float64, True, "float64"),
        ("odd primes", torch.float32, False, "without masks there is nothing to fuse"),
        ("no image", torch.float32, True, "no pairs"),
        ("no query", torch.float32, True, "no pairs"),
        ("no target", torch.float32, True, "no pairs"),
    ],
)
def test_says_what_it_leaves_to_plain_torch(case, dtype, present, reason):
    tensors = [*sample(*CASES[case], dtype=dtype), None, None, None]
    if not present:
        tensors[2] = tensors[5] = None
    args = (*tensors, 2.0, 5.0, 1.0, 4.0, 3.0, "focal", "focal", 0.25, 2.0)
    (triton,) = (each for each in OPERATOR.implementations if each.name == "Triton")
    assert triton.refusal("cuda", OPERATOR.specification.Arguments(*args)) == reason
