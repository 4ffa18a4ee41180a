"""Every operator on a CUDA device: what the CPU computes, the same bits twice, and compiled."""

import pytest
import test_attention_pool
import test_channel_attention_mixer
import test_deformable_attention
import test_dynamic_mask_conv
import test_focal_dice_loss
import test_linear_assignment
import test_matching_cost
import test_semantic_argmax
import test_semantic_recombination
import test_tpavi
import test_vector_quantize
import torch
from checks import assert_bit_equal, check_compile, on_device, run_with_grads, tensors_of

from avskernels.testing import assert_close

pytestmark = pytest.mark.cuda


def attention_pool(dtype):
    return *test_attention_pool.sample((2, 9, 37, (7, 43)), dtype, masked=True), 0.3, True


def channel_attention_mixer(dtype):
    case = 3, 3, 36, 13, 31
    tensors, mask = test_channel_attention_mixer.sample(case, dtype, masked=True)
    return *tensors, mask, case[1], True, "sigmoid"


def deformable_attention(dtype):
    return test_deformable_attention.sample(2, 5, 8, 32, [(28, 28), (7, 5)], 4, dtype=dtype)


def dynamic_mask_conv(dtype):
    return test_dynamic_mask_conv.sample(2, 5, 9, 17, 19, dtype=dtype)


def focal_dice_loss(dtype):
    return *test_focal_dice_loss.sample(3, 7, 5, 3, 11, 13, dtype=dtype), "focal", 0.4, 1.5


def linear_assignment(dtype):
    generator = torch.Generator().manual_seed(0)
    return test_linear_assignment.random_costs("uniform", (5, 20, 33), generator, dtype), None, None


def matching_cost(dtype):
    case = 2, 7, 3, 7, 13, 11, 13
    weights = 2.0, 5.0, 1.0, 4.0, 3.0
    tensors = test_matching_cost.sample(*case, dtype=dtype)
    given = test_matching_cost.options(*case).values()
    return *tensors, *given, *weights, "focal", "bce", 0.3, 1.5


def nearest_codeword(dtype):
    return test_vector_quantize.sample(101, 3, 67, 31, dtype)


def semantic_argmax(dtype):
    probs, logits, size = test_semantic_argmax.sample(2, 5, 9, 13, 14, (29, 33), dtype)
    return probs, logits, *size, 0.03, 0.5, True, True


def semantic_recombination(dtype):
    return test_semantic_recombination.sample((2, 2, 5, 31, 31, 7, 13, 1), dtype)


def tpavi(dtype):
    tensors = test_tpavi.sample((3, 37, 19, 5, 7, 11), dtype)
    return *tensors.values(), True, 1e-5, 1e-5, "dot"


def vector_quantize(dtype):
    return *test_vector_quantize.sample(101, 3, 67, 31, dtype), 0.3, 0.9, "mean"


ARGUMENTS = {
    function.__name__: function
    for function in (
        attention_pool,
        channel_attention_mixer,
        deformable_attention,
        dynamic_mask_conv,
        focal_dice_loss,
        linear_assignment,
        matching_cost,
        nearest_codeword,
        semantic_argmax,
        semantic_recombination,
        tpavi,
        vector_quantize,
    )
}

FORWARD_ONLY = ("matching_cost", "nearest_codeword", "semantic_argmax")


def run(op, args):
    """Return outputs and gradients, or outputs alone of what has no gradient."""
    function = getattr(torch.ops.avskernels, op)
    return (function(*args), []) if op in FORWARD_ONLY else run_with_grads(function, args)


def assert_near(actual, expected, dtype):
    for one, other in zip(actual, expected, strict=True):
        assert (one.dtype, one.device.type) == (other.dtype, "cuda")
        if other.is_floating_point():
            finite = other.double().masked_fill(~other.isfinite(), 0)
            unit = finite.abs().max().clamp(min=1)
            # Sums are taken in another order.
            assert_close(one.cpu().double() / unit, other.double() / unit, dtype, scale=4)
        else:
            assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", ARGUMENTS)
def test_computes_what_the_cpu_does(op, dtype):
    args = ARGUMENTS[op](dtype)
    actual = run(op, on_device(args))
    assert_bit_equal(run(op, on_device(args)), actual)
    for one, other in zip(actual, run(op, args), strict=True):
        assert_near(tensors_of(one), tensors_of(other), dtype)


@pytest.mark.parametrize("op", [op for op in ARGUMENTS if op not in FORWARD_ONLY])
def test_compiles(op):
    check_compile(getattr(torch.ops.avskernels, op), [on_device(ARGUMENTS[op](torch.float32))])
