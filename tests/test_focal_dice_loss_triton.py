"""The Triton kernels against the CPU's: interpreted, or on a CUDA device where there is one."""

import pytest
import torch
from checks import launch
from test_focal_dice_loss import CASES, sample

from avskernels.testing import assert_close

kernels = pytest.importorskip("avskernels.triton.focal_dice_loss")
pytestmark = pytest.mark.triton


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("sqd", "no image")])
@pytest.mark.parametrize("settings", [("bce", 0.25, 2.0), ("focal", 0.4, 1.5)], ids=str)
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.float32])
def test_matches_cpu_kernel(name, settings, mask_dtype):
    args = (*sample(*CASES[name], mask_dtype=mask_dtype), *settings)
    expected = torch.ops.avskernels.focal_dice_loss(*args)
    for one, other in zip(launch(kernels.focal_dice_loss, *args), expected, strict=True):
        assert_close(one, other.double())
    grads = torch.linspace(0.5, 1.5, 2 * args[2].numel()).view(2, *args[2].shape)
    args = (*grads, *args[:4], expected[2], *settings)
    expected = torch.ops.avskernels._focal_dice_loss_backward(*args)
    assert_close(launch(kernels._focal_dice_loss_backward, *args), expected.double())
