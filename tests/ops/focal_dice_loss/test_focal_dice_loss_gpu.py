# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels against the CPU's: interpreted, or on a CUDA device where there is one."""

import pytest
import torch
from checks import launch
from ops.focal_dice_loss.cases import CASES, sample

from avskernels.core.testing import assert_close
from avskernels.ops.focal_dice_loss.operator import BACKWARD, OPERATOR

kernels = pytest.importorskip("avskernels.ops.focal_dice_loss.triton")
pytestmark = pytest.mark.triton


# Left to plain torch.
REFUSED = {"no image": "no pixels", "no query": "no pixels", "no pixel": "no pixels"}


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("sqd", *REFUSED)])
@pytest.mark.parametrize("settings", [("bce", 0.25, 2.0), ("focal", 0.4, 1.5)], ids=str)
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.float32])
def test_matches_cpu_kernel(name, settings, mask_dtype):
    args = (*sample(*CASES[name], mask_dtype=mask_dtype), *settings)
    expected = torch.ops.avskernels.focal_dice_loss(*args)
    for one, other in zip(launch(kernels.forward, *args), expected, strict=True):
        assert_close(one, other.double())
    grads = torch.linspace(0.5, 1.5, 2 * args[2].numel()).view(2, *args[2].shape)
    args = (*grads, *args[:4], expected[2], *settings)
    expected = torch.ops.avskernels._focal_dice_loss_backward(*args)
    assert_close(launch(kernels.backward, *args), expected.double())


def refusals(name, dtype):
    args = sample(*CASES[name], dtype=dtype)
    saved = torch.zeros(3, *args[2].shape)
    settings = "focal", 0.25, 2.0
    calls = {OPERATOR: (*args, *settings), BACKWARD: (*saved[:2], *args, saved[2], *settings)}
    for operator, call in calls.items():
        (triton,) = (each for each in operator.implementations if each.name == "Triton")
        yield triton.refusal("cuda", operator.specification.Arguments(*call))


@pytest.mark.parametrize("name", CASES)
def test_says_what_it_leaves_to_plain_torch(name):
    assert list(refusals(name, torch.float32)) == 2 * [REFUSED.get(name)]
    assert list(refusals(name, torch.float64)) == 2 * ["float64"]
