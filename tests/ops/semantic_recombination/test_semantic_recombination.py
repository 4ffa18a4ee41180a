# SPDX-License-Identifier: Apache-2.0
"""What recombination promises beside its formula, and the formula against its oracle."""

import pytest
import torch
from checks import check_error, check_layouts, run_with_grads
from hypothesis import given
from hypothesis import strategies as st
from ops.semantic_recombination.cases import CASES, oracle, run, sample

import avskernels
from avskernels.core.operator import OPERATORS
from avskernels.testing import assert_as_precise, assert_close


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_oracle(case, dtype):
    args = sample(case, dtype)
    assert_close(run(*args), oracle(*args))
    if args[0].numel():  # torch has no convolution of an empty map
        assert_close(run(*args, backend="reference"), oracle(*args))


@pytest.mark.parametrize("case", ["tile + 1", "odd primes", "other channels out"])
def test_every_instruction_set(case, isa):
    for dtype in (torch.float32, torch.float64):
        args = sample(CASES[case], dtype)
        assert_close(run(*args), oracle(*args))
    for dtype in (torch.bfloat16, torch.float16):
        args = sample(CASES[case], dtype)
        assert_as_precise(run(*args), run(*args, backend="reference"), oracle(*args))


def test_no_tokens_leave_the_features():
    features, filters, weight, bias, _ = sample((2, 0, 0, 3, 3, 4, 5, 1))
    tensors = [t.requires_grad_() for t in (features, filters, weight, bias)]
    mixed = avskernels.semantic_recombination(*tensors)
    assert torch.equal(mixed, features + bias[:, None, None])
    grads = torch.autograd.grad(mixed.sum(), tensors)
    assert torch.equal(grads[0], torch.ones_like(features))
    assert torch.equal(grads[3], torch.full_like(bias, 40.0))


@given(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 3),
        st.integers(1, 5),
        st.integers(1, 20),
        st.integers(1, 20),
        st.integers(1, 9),
        st.integers(1, 9),
        st.sampled_from([1, 3]),
    )
)
def test_gradients_match_reference(case):
    args = sample(case, torch.float64)
    out, grads = run_with_grads(run, args)
    expected, expected_grads = run_with_grads(lambda *a: run(*a, backend="reference"), args)
    for one, other in zip([*out, *grads], [*expected, *expected_grads], strict=True):
        assert_close(one, other)


def test_convolution():
    args = sample(CASES["kernel 3"])
    check_layouts(run, args)
    with pytest.raises(RuntimeError, match=r"expected a weight of 1 x 1 .*, got 3 x 3"):
        torch.ops.avskernels.semantic_recombination(*args)


def test_convolution_of_nothing():
    for shape, out in (((2, 3, 0, 5), (2, 3, 0, 5)), ((1, 0, 2, 2), (1, 3, 2, 2))):
        features = torch.zeros(shape, requires_grad=True)
        filters = torch.ones(shape[0], 1, shape[1], requires_grad=True)
        weight, bias = torch.ones(3, shape[1], 3, 3, requires_grad=True), torch.ones(3)
        mixed = avskernels.semantic_recombination(features, filters, weight, bias, residual=False)
        assert torch.equal(mixed, torch.ones(out))
        for grad in torch.autograd.grad(mixed.sum(), (features, filters, weight)):
            assert not grad.any()


def test_no_kernel_runs_a_convolution():
    features, filters, weight, bias, _ = sample(CASES["kernel 3"])
    op = avskernels.semantic_recombination
    explanation = avskernels.explain(op, features, filters, weight, bias)
    assert explanation.chosen == "plain torch"
    assert ("C++", "a convolution of 3 x 3") in explanation.refused
    with pytest.raises(RuntimeError, match="a convolution of 3 x 3"):
        op(features, filters, weight, bias, backend="kernel")
    args = sample(CASES["tile + 1"])
    assert avskernels.explain(op, *args[:4]).chosen == "C++"
    assert torch.equal(run(*args, backend="kernel"), run(*args))


def test_plain_product_computes_what_the_kernel_does():
    features = sample((2, 2, 2, 5, 5, 3, 7, 1), torch.float64)[0].flatten(3)
    matrices = torch.randn(2, 5, 5, dtype=torch.float64)
    product = OPERATORS["_semantic_recombination_product"]
    args = matrices, features, True
    assert_close(product(*args), product.implementations[-1].run(*args))


def test_errors_of_the_product():
    product = torch.ops.avskernels._semantic_recombination_product
    name = "_semantic_recombination_product"
    message = f"{name}: expected 3 output channels to add the residual to, got 4"
    check_error(product, (torch.zeros(2, 4, 3), torch.zeros(2, 1, 3, 5), True), message)
    assert product(torch.zeros(2, 4, 3), torch.zeros(2, 1, 3, 5), False).shape == (2, 1, 4, 5)


def test_gradients_have_the_dtypes_of_their_arguments():
    features, *small, residual = sample(CASES["tile + 1"])
    _, grads = run_with_grads(run, (features.bfloat16(), *small, residual))
    assert [grad.dtype for grad in grads] == [torch.bfloat16, *[torch.float32] * 3]
    expected = run_with_grads(run, (features.bfloat16().float(), *small, residual))[1]
    for one, other in zip(grads[1:], expected[1:], strict=True):
        unit = other.abs().max().double()
        assert_close(one.double() / unit, other.double() / unit, torch.bfloat16)


def test_gradients_of_many_frames_are_summed_in_float32():
    features = torch.ones(1, 257, 1, 1, 1).bfloat16()  # 257 is no bfloat16
    small = [torch.ones(shape).requires_grad_() for shape in ((1, 1, 1), (1, 1, 1, 1), (1,))]
    mixed = avskernels.semantic_recombination(features, *small)
    for grad in torch.autograd.grad(mixed.sum(), small):
        assert grad.item() == 257


def test_without_bias_and_residual():
    features, filters, weight, bias, _ = sample(CASES["tile + 1"])
    assert_close(
        avskernels.semantic_recombination(features, filters, weight, residual=False),
        oracle(features, filters, weight, torch.zeros_like(bias), False),
    )


def test_channels_last():
    features, *rest = sample(CASES["one below a vector"])
    layout = features.contiguous(memory_format=torch.channels_last)
    assert torch.equal(run(layout, *rest), run(features, *rest))


def test_negative_and_zero_filters():
    features, filters, weight, bias, _ = sample(CASES["tile + 1"])
    args = (features, torch.stack([-filters[:, 0].abs(), 0 * filters[:, 0]], 1), weight, bias, True)
    assert_close(run(*args), oracle(*args))


def test_autocast_runs_as_a_convolution_does():
    args = sample(CASES["odd primes"])
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(*args)
    assert actual.dtype == torch.bfloat16
    same = run(*(t.bfloat16() for t in args[:4]), args[4], backend="reference")
    assert_as_precise(actual, same, oracle(*args))


def test_errors_of_the_public_function():
    args = list(sample(CASES["tile + 1"])[:4])
    args[1] = args[1][..., :5]
    message = "semantic_recombination: expected filters [1, N, 17], got [1, 2, 5]"
    check_error(avskernels.semantic_recombination, args, message)
    args[2] = torch.zeros(17, 34, 3, 3)
    check_error(avskernels.semantic_recombination, args, message)
