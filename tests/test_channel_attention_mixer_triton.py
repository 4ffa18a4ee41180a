"""The Triton kernels: interpreted on the CPU, or on a CUDA device where there is one."""

import pytest
import torch
from checks import in_double, launch
from test_channel_attention_mixer import FORMULAS, IDS, sample

from avskernels._channel_attention_mixer_algebra import algebra, backward_algebra
from avskernels.testing import assert_as_precise, assert_close

kernels = pytest.importorskip("avskernels.triton.channel_attention_mixer")
# The interpreter computes with NumPy, which announces what the kernel masks.
pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning"),
]


def test_dots():
    generator = torch.Generator().manual_seed(0)
    grad, features = torch.randn(2, 1, 2, 33, 41, generator=generator)  # more than a step's pixels
    sums = launch(kernels._launch_dots, grad, features)
    assert_close(sums, (grad.double() * features.double()).sum((2, 3)))


@pytest.mark.parametrize("formula", FORMULAS, ids=IDS)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_backward(formula, masked):
    tensors, mask = sample((2, 3, 18, 7, 43), masked=masked)
    grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    _, *saved = algebra(*in_double(tensors), mask, 3, *formula.values())
    saved = [t.float() for t in saved]  # what 1 - gate loses in float32 is not the kernel's doing
    small = [0, 1, 2, 3, 4, 6, 7]  # all but out_bias
    args = (grad, *(tensors[i] for i in small), mask, *saved)
    actual = launch(kernels._channel_attention_mixer_backward, *args, 3, *formula.values())
    plain = backward_algebra(*args, 3, *formula.values())
    expected = backward_algebra(*in_double(args), 3, *formula.values())
    for results in zip(actual, plain, expected, strict=True):
        assert_as_precise(*results)
