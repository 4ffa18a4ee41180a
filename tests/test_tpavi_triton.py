"""The Triton kernels: interpreted on the CPU, or on a CUDA device where there is one."""

import pytest
import torch
from checks import DEVICE, in_double, launch

from avskernels._tpavi_passes import (
    fuse,
    fuse_backward,
    scores_and_sums,
    scores_and_sums_backward_,
)
from avskernels.testing import assert_close

forward = pytest.importorskip("avskernels.triton.tpavi")
backward = pytest.importorskip("avskernels.triton.tpavi_backward")
# The interpreter computes with NumPy, which announces what the kernel masks.
pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning"),
]


def sample(batch=2, channels=19, frames=3, height=5, width=7):
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (batch, channels, frames, height, width),
        (batch, frames, channels),
        (batch, frames),
        (batch, frames, frames * height * width),
        (channels,),
        (channels,),
        (channels,),
    )
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("with_offsets", [True, False])
def test_scores(with_offsets):
    visual, keys, offsets, *_ = sample()
    offsets = offsets if with_offsets else None
    actual = launch(forward._tpavi_scores, visual, keys, offsets)
    expected = scores_and_sums(*in_double((visual, keys, offsets)))
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)


def test_scores_backward():
    visual, keys, _, grad_scores, *_ = sample(height=9, width=31)
    grad_visual, grad_sums = torch.randn_like(visual), torch.randn_like(keys)
    exact = in_double((grad_visual, visual, keys, grad_scores, grad_sums))
    expected = scores_and_sums_backward_(*exact)
    grad_visual = grad_visual.to(DEVICE)
    grad_keys = launch(
        lambda *args: backward._tpavi_scores_backward(grad_visual, *args),
        *(visual, keys, grad_scores, grad_sums),
    )
    assert_close(grad_visual.cpu(), exact[0])
    assert_close(grad_keys, expected)


@pytest.mark.parametrize("normalised", [True, False])
def test_fuse_backward(normalised):
    visual, values, _, weights, shift, norm_weight, norm_bias = sample(height=9, width=31)
    norm = (norm_weight, norm_bias) if normalised else (None, None)
    exact = in_double((visual, weights, values, shift, *norm))
    _, mean, rstd = fuse(*exact, 1e-3)
    grad = torch.randn(visual.shape, generator=torch.Generator().manual_seed(1))
    args = (visual, weights, values, shift, norm[0], mean.float(), rstd.float())
    actual = launch(backward._tpavi_fuse_backward, grad, *args)
    expected = fuse_backward(grad.double(), *exact[:5], mean, rstd)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normalised", [True, False])
def test_fuse(dtype, normalised):
    visual, values, _, weights, shift, norm_weight, norm_bias = sample()
    visual = visual.to(dtype)
    norm = (norm_weight, norm_bias) if normalised else (None, None)
    actual = launch(forward._tpavi_fuse, visual, weights, values, shift, *norm, 1e-3)
    expected = fuse(*in_double((visual, weights, values, shift, *norm)), 1e-3)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)
