# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels: Triton interpreted on the CPU, or both kinds on a CUDA device."""

import pytest
import torch
from checks import assert_all_as_precise, assert_bit_equal, launch, on_device, run_with_grads
from ops.deformable_attention.cases import (
    BORDERS,
    CASES,
    FAR,
    assert_all_close,
    on_one_map,
    oracle,
    sample,
)

import avskernels

kernels = pytest.importorskip("avskernels.ops.deformable_attention.triton")
# The interpreter computes with NumPy, which announces what the kernel masks.
pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning"),
]


class Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *args):
        ctx.save_for_backward(*args)
        return launch(kernels.forward, *args)

    @staticmethod
    def backward(ctx, grad_output):
        args = *ctx.saved_tensors, grad_output
        grad_value, *grads = launch(kernels.backward, *args)
        return grad_value, None, *grads


SMALL = ["minimal", "no queries", "no images", "no points", "one below a vector", "vector + 1"]


@pytest.mark.parametrize("case", SMALL)
def test_matches_oracle(case):
    args = sample(*CASES[case])
    assert_all_as_precise(
        run_with_grads(Triton.apply, args),
        run_with_grads(avskernels.reference.deformable_attention, args),
        run_with_grads(oracle, args),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_matches_cpu_kernel_in_other_precisions(dtype):
    args = sample(1, 3, 2, 5, [(4, 3), (1, 2)], 2, dtype=dtype)
    output, grads = run_with_grads(Triton.apply, args)
    expected, expected_grads = run_with_grads(avskernels.deformable_attention, args)
    assert [tensor.dtype for tensor in (*output, *grads)] == [
        tensor.dtype for tensor in (*expected, *expected_grads)
    ]
    assert_all_close((output, grads[:1]), (expected, expected_grads[:1]), dtype)
    exact = torch.promote_types(dtype, torch.float32)
    assert_all_close([grads[1:]], [expected_grads[1:]], exact)


def test_borders_and_far_samples():
    points = [(x, y) for x in BORDERS[::2] for y in BORDERS[::2]] + [(x, 0.5) for x in FAR]
    args = on_one_map(torch.arange(1.0, 65.0).square(), *points)
    actual = run_with_grads(Triton.apply, args)
    expected = run_with_grads(avskernels.deformable_attention, args)
    # A map of values up to 4096 on which gradients are differences.
    assert_all_close(actual, expected, torch.float32)


def test_nan_location_poisons_its_query_alone():
    nan = float("nan")
    args = on_one_map(torch.ones(64), (0.5, 0.5), (nan, 0.5), (0.5, nan), (0.25, 0.5))
    (output,), (grad_value, grad_locations, grad_weights) = run_with_grads(Triton.apply, args)
    poisoned = torch.tensor([False, True, True, False])
    assert torch.equal(output.flatten().isnan(), poisoned)
    assert torch.equal(grad_locations.flatten(1, 4).isnan().any(-1).flatten(), poisoned)
    assert torch.equal(grad_weights.flatten().isnan(), poisoned)
    assert not grad_value.isnan().any()


def test_fixed_point_keeps_small_and_large_gradients():
    value, shapes, locations, weights = sample(1, 4, 1, 2, [(3, 3)], 2)
    exact = [tensor.double() for tensor in (value, locations, weights)]
    for scale in (1e-30, 1.0, 1e30):
        grad = torch.full((1, 4, 2), scale)
        args = value, shapes, locations, weights, grad
        grad_value = launch(kernels.backward, *args)[0]
        expected = torch.ops.avskernels._deformable_attention_backward(
            exact[0], shapes, *exact[1:], grad.double()
        )[0]
        torch.testing.assert_close(grad_value.double(), expected, rtol=1e-5, atol=1e-6 * scale)


def test_infinite_gradients_are_not_hidden():
    args = sample(1, 2, 1, 2, [(2, 2)], 1)
    grad = torch.tensor([[[float("inf"), 1.0], [1.0, 1.0]]])
    grads = launch(kernels.backward, *args, grad)
    assert not grads[0].isfinite().any()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_operator_on_a_cuda_device(case, dtype):
    args = sample(*case, dtype=dtype)
    device_args = on_device(args)
    actual = run_with_grads(avskernels.deformable_attention, device_args)
    assert_bit_equal(run_with_grads(avskernels.deformable_attention, device_args), actual)
    expected = run_with_grads(avskernels.deformable_attention, args)
    actual = [[tensor.cpu() for tensor in tensors] for tensors in actual]
    assert_all_close(actual, expected, dtype, scale=4)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_cuda_kernels(case, dtype):
    args = sample(*case, dtype=dtype)
    device_args = on_device(args)
    ops = torch.ops.avskernels
    output = ops._deformable_attention_cuda(*device_args)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    grads = ops._deformable_attention_backward_cuda(*device_args, grad)
    assert_bit_equal(ops._deformable_attention_backward_cuda(*device_args, grad), grads)
    expected = ops.deformable_attention(*args)
    expected_grads = ops._deformable_attention_backward(*args, grad.cpu())
    actual = [[output.cpu()], [tensor.cpu() for tensor in grads]]
    assert_all_close(actual, ([expected], expected_grads), dtype, scale=4)


@pytest.mark.cuda
def test_levels_on_the_device_that_do_not_fit_give_nan():
    value, _, locations, weights = (arg.cuda() for arg in sample(1, 3, 2, 4, [(3, 4)], 2))
    shapes = torch.tensor([[3, 5]], device="cuda")
    assert avskernels.deformable_attention(value, shapes, locations, weights).isnan().all()
