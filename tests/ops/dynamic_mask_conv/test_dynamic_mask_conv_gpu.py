# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels: Triton interpreted on the CPU, or both kinds on a CUDA device."""

import pytest
import torch
from checks import assert_bit_equal, launch, on_device, run_with_grads
from ops.dynamic_mask_conv.cases import CASES as ALL_CASES
from ops.dynamic_mask_conv.cases import operator, oracle, plain, sample

from avskernels.testing import assert_as_precise, assert_close

kernels = pytest.importorskip("avskernels.ops.dynamic_mask_conv.triton")
# The interpreter computes with NumPy, which announces NaN.
pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
]

# (images, queries, channels, height, width, hidden)
CASES = {
    "minimal": (1, 1, 1, 1, 1, (8, 8)),
    "no query": (2, 0, 8, 5, 5, (8, 8)),
    "block + 1": (1, 2, 8, 3, 43, (8, 8)),
    "odd primes": (2, 3, 7, 13, 11, (5, 3)),
    "one wide layer": (1, 2, 6, 5, 9, (17,)),
    "three layers": (1, 2, 4, 5, 9, (4, 9, 2)),
}


def run(*args):
    return launch(kernels.forward, *args)


@pytest.mark.parametrize("points", [True, False], ids=["coordinates", "no coordinates"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_matches_oracle(case, points):
    args = sample(*case, points=points)
    assert_as_precise(run(*args), plain(*args), oracle(*args))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_matches_cpu_kernel_in_other_precisions(dtype):
    args = sample(1, 2, 3, 5, 7, dtype=dtype)
    masks = run(*args)
    assert masks.dtype == dtype
    assert_close(masks, operator(*args).double())


def test_query_list_and_strides():
    features, params, points, scale, *_ = sample(3, 2, 4, 5, 6)
    index = torch.tensor([2, 0, 3])
    listed = [tensor.flatten(0, 1)[:3] for tensor in (params, points, scale)]
    channels_last = features.contiguous(memory_format=torch.channels_last)
    masks = run(channels_last, *listed, index, (8, 8), 2.0, False)
    expected = oracle(features, *listed, index.clamp(max=2), (8, 8), 2.0, False)
    assert_close(masks[:2], expected[:2])
    assert masks[2].isnan().all()  # an image that is not there


def test_nan_filter_and_far_coordinates():
    args = list(sample(1, 3, 4, 5, 6))
    args[2] = args[2] + 1e4
    expected = oracle(*args)
    size = expected.abs().max()
    clean = run(*args)
    assert_close(clean / size, expected / size)
    args[1][0, 1, 0] = torch.nan
    poisoned = run(*args)
    assert poisoned[0, 1].isnan().all()
    assert_bit_equal(poisoned[0, ::2], clean[0, ::2])


def assert_near(actual, expected, dtype):
    # Three TF32 products make up one of float32: sums of 258 of them came out 1.1e-5 off.
    for one, other in zip(actual, expected, strict=True):
        size = other.abs().max().clamp(min=1) if other.numel() else 1
        assert_close(one.cpu() / size, other / size, dtype, scale=4)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", ALL_CASES.values(), ids=ALL_CASES.keys())
def test_operator_on_a_cuda_device(case, dtype):
    args = sample(*case, dtype=dtype)
    actual = run_with_grads(operator, on_device(args))
    expected = run_with_grads(operator, args)
    for one, other in zip(actual, expected, strict=True):
        assert_near(one, other, dtype)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("points", [True, False], ids=["coordinates", "no coordinates"])
@pytest.mark.parametrize("case", [case for case in ALL_CASES.values() if case[-1] == (8, 8)])
def test_cuda_kernels(case, points, dtype):
    args = sample(*case, dtype=dtype, points=points)
    ops, device_args = torch.ops.avskernels, on_device(args)
    masks = ops._dynamic_mask_conv_cuda(*device_args)
    assert_near([masks], [operator(*args)], dtype)
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(masks.shape, generator=generator).to(dtype)
    grads = ops._dynamic_mask_conv_backward_cuda(grad.cuda(), *device_args)
    assert_bit_equal(ops._dynamic_mask_conv_backward_cuda(grad.cuda(), *device_args), grads)
    assert_near(grads, ops._dynamic_mask_conv_backward(grad, *args), dtype)


@pytest.mark.cuda
@pytest.mark.parametrize("channels", [5, 30])
def test_cuda_kernels_with_a_query_list(channels):
    features, params, points, scale, *_ = sample(3, 2, channels, 9, 13)
    features = features.contiguous(memory_format=torch.channels_last)
    index = torch.tensor([2, 0, 2, 0, 0])
    listed = [tensor.flatten(0, 1)[:5] for tensor in (params, points, scale)]
    args = (features, *listed, index, (8, 8), 2.0, False)
    masks = torch.ops.avskernels._dynamic_mask_conv_cuda(*on_device(args))
    assert_near([masks], [oracle(*args)], torch.float32)
    grad = torch.randn(masks.shape, generator=torch.Generator().manual_seed(0))
    grads = torch.ops.avskernels._dynamic_mask_conv_backward_cuda(grad.cuda(), *on_device(args))
    expected = torch.ops.avskernels._dynamic_mask_conv_backward(grad, *args)
    assert_near(grads, expected, torch.float32)
    device_args = on_device((*args[:4], index + 3, *args[5:]))
    assert torch.ops.avskernels._dynamic_mask_conv_cuda(*device_args)[[0, 2]].isnan().all()
