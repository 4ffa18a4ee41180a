# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: interpreted on the CPU, or on a CUDA device where there is one."""

import pytest
import torch
from checks import DEVICE, in_double, launch

from avskernels.ops.tpavi import plain
from avskernels.ops.tpavi.operator import triton_refuses
from avskernels.testing import assert_close

kernels = pytest.importorskip("avskernels.ops.tpavi.triton")
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
    actual = launch(kernels.scores, visual, keys, offsets)
    expected = plain.scores(*in_double((visual, keys, offsets)))
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)


def test_scores_backward():
    visual, keys, _, grad_scores, *_ = sample(height=9, width=31)
    grad_visual, grad_sums = torch.randn_like(visual), torch.randn_like(keys)
    exact = in_double((grad_visual, visual, keys, grad_scores, grad_sums))
    expected = plain.scores_backward(*exact)
    grad_visual = grad_visual.to(DEVICE)
    grad_keys = launch(
        lambda *args: kernels.scores_backward(grad_visual, *args),
        *(visual, keys, grad_scores, grad_sums),
    )
    assert_close(grad_visual.cpu(), exact[0])
    assert_close(grad_keys, expected)


def to_float(*tensors):
    return [None if tensor is None else tensor.float() for tensor in tensors]


@pytest.mark.parametrize("normalised", [True, False])
def test_fuse_backward(normalised):
    visual, values, _, weights, shift, norm_weight, norm_bias = sample(height=9, width=31)
    norm = (norm_weight, norm_bias) if normalised else (None, None)
    exact = in_double((visual, weights, values, shift, *norm))
    _, mean, rstd = plain.fuse(*exact, 1e-3)
    grad = torch.randn(visual.shape, generator=torch.Generator().manual_seed(1))
    mean, rstd = (mean, rstd) if normalised else (None, None)
    args = (visual, weights, values, shift, norm[0], *to_float(mean, rstd))
    actual = launch(kernels.fuse_backward, grad, *args)
    expected = plain.fuse_backward(grad.double(), *exact[:5], mean, rstd)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normalised", [True, False])
def test_fuse(dtype, normalised):
    visual, values, _, weights, shift, norm_weight, norm_bias = sample()
    visual = visual.to(dtype)
    norm = (norm_weight, norm_bias) if normalised else (None, None)
    actual = launch(kernels.fuse, visual, weights, values, shift, *norm, 1e-3)
    expected = plain.fuse(*in_double((visual, weights, values, shift, *norm)), 1e-3)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)


def test_refusals():
    visual = torch.zeros(1, 3, 2, 4, 5)
    assert triton_refuses(visual, 16) is None
    assert triton_refuses(visual, 17) == "more than 16 frames"
    assert triton_refuses(visual, 0) == "nothing to fuse"
    assert triton_refuses(visual[..., :0], 2) == "nothing to fuse"
    assert triton_refuses(visual.double(), 2) == "float64"
    assert triton_refuses(torch.zeros(1, 513, 1, 1, 1), 1) == "more than 512 channels"
