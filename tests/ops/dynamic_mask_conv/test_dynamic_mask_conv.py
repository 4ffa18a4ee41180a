# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from checks import (
    assert_all_as_precise,
    assert_bit_equal,
    check_error,
    check_layouts,
    in_double,
    opcheck,
    plain_and_exact,
    run_with_grads,
)
from hypothesis import given
from hypothesis import strategies as st
from ops.dynamic_mask_conv.cases import CASES, GENERIC, operator, oracle, plain, sample
from torch._subclasses.fake_tensor import FakeTensorMode

from avskernels import build_info, dynamic_mask_conv, explain, use_cuda_cpp
from avskernels.testing import assert_as_precise, assert_close

# What takes every path through a kernel, for each instruction set.
LEVEL_CASES = ["odd primes", "several blocks", "three layers", "two groups of queries", "sqd"]


@pytest.mark.parametrize("points", [True, False], ids=["coordinates", "no coordinates"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_matches_oracle(case, points):
    args = sample(*case, points=points)
    expected = oracle(*args)
    reference = plain(*args) if expected.numel() else expected  # torch convolves no empty map
    assert_as_precise(operator(*args), reference, expected)


@pytest.mark.parametrize("case", LEVEL_CASES)
def test_every_level_matches_oracle(case, isa):
    args = sample(*CASES[case])
    assert_as_precise(operator(*args), plain(*args), oracle(*args))


@pytest.mark.parametrize("name", ["no query", "no image", "no pixel"])
def test_gradients_of_nothing_are_zero(name):
    _, grads = run_with_grads(operator, sample(*CASES[name]))
    assert [grad.shape for grad in grads] == [arg.shape for arg in sample(*CASES[name])[:3]]
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("case", LEVEL_CASES)
def test_gradients_of_every_level_match_reference(case, isa):
    check_gradients(CASES[case])


@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith("no ")])
def test_gradients_match_reference(case):
    check_gradients(CASES[case])


def check_gradients(case):
    for dtype in (torch.float64, torch.float32):
        *tensors, scale, index, hidden, stride, coords_first = sample(*case, dtype=dtype)
        rest = (scale, index, hidden, stride, coords_first)
        assert_all_as_precise(
            run_with_grads(lambda *t, rest=rest: operator(*t, *rest), tensors),
            *plain_and_exact(lambda *t, rest=rest: plain(*t, *rest), tensors),
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, isa):
    args = sample(2, 3, 8, 9, 11, dtype=dtype)
    assert_as_precise(operator(*args), plain(*args), oracle(*args))
    actual = run_with_grads(operator, args)[1]
    expected = run_with_grads(operator, in_double(args))[1]
    for one, other in zip(actual[:2], expected[:2], strict=True):
        size = other.abs().max()
        assert_close(one / size, other / size, dtype)


@given(
    images=st.integers(0, 3),
    queries=st.integers(0, 4),
    channels=st.integers(1, 20),
    height=st.integers(1, 9),
    width=st.integers(1, 30),
    hidden=st.lists(st.integers(1, 11), max_size=3).map(tuple),
    points=st.booleans(),
    seed=st.integers(0, 99),
)
def test_matches_reference(images, queries, channels, height, width, hidden, points, seed):
    args = sample(images, queries, channels, height, width, hidden, torch.float64, points, seed)
    actual = dynamic_mask_conv(*args[:2], hidden=hidden, reference_points=args[2], stride=3)
    expected = dynamic_mask_conv(
        *args[:2], hidden=hidden, reference_points=args[2], stride=3, backend="reference"
    )
    assert_close(actual, expected, torch.float64)


def test_backward_operator():
    args = GENERIC[0]
    grad = torch.randn(2, 3, 7, 8)
    opcheck("_dynamic_mask_conv_backward", (grad, *args))

    def backward(*args):
        with torch.no_grad():
            return torch.ops.avskernels._dynamic_mask_conv_backward(*args)

    check_layouts(backward, (grad, *args))
    expanded = torch.ones(()).expand(2, 3, 7, 8)
    assert_bit_equal(backward(expanded, *args), backward(torch.ones(2, 3, 7, 8), *args))


def test_unknown_coords():
    with pytest.raises(ValueError, match="expected coords to be one of"):
        dynamic_mask_conv(*sample(1, 1, 1, 1, 1, points=False)[:2], coords="middle")


def test_wrong_arguments_of_the_backward_operator():
    function = torch.ops.avskernels._dynamic_mask_conv_backward
    message = "_dynamic_mask_conv_backward: expected grad_masks of torch.float32, got torch.float16"
    check_error(function, (torch.zeros(2, 3, 7, 8).half(), *GENERIC[0]), message)
    message = "_dynamic_mask_conv_backward: expected features [2, C, 7, 9], got [2, 5, 7, 8]"
    check_error(function, (torch.zeros(2, 3, 7, 9), *GENERIC[0]), message)


def test_a_plain_filter_is_no_kernels_work():
    args = sample(1, 2, 3, 4, 5, (), points=False)[:2]
    explanation = explain(dynamic_mask_conv, *args, hidden=())
    assert explanation.chosen == "plain torch"
    assert "one matrix product" in dict(explanation.refused)["C++"]
    with pytest.raises(RuntimeError, match="expected arguments for a kernel on cpu, got such for"):
        dynamic_mask_conv(*args, hidden=(), backend="kernel")
    index = torch.tensor([0, 0])
    listed = args[0], args[1].flatten(0, 1)
    masks = dynamic_mask_conv(*listed, hidden=(), image_index=index, backend="kernel")
    assert_close(masks, oracle(*listed, None, None, index, (), 4.0, False))


@pytest.mark.parametrize(
    ("hidden", "cuda_cpp", "chosen", "refused"),
    [
        ((8, 8), False, "Triton", ["C++", "CUDA C++"]),
        ((8, 8), True, "CUDA C++", ["C++"]),
        ((9,), True, "Triton", ["C++", "CUDA C++"]),
        ((65,), True, "plain torch", ["C++", "CUDA C++", "Triton"]),
        ((), True, "plain torch", ["C++", "CUDA C++", "Triton"]),
    ],
)
def test_who_computes_on_a_cuda_device(hidden, cuda_cpp, chosen, refused):
    pytest.importorskip("triton")
    if chosen == "CUDA C++" and build_info()["cuda"] == "none":
        pytest.skip("this build has no CUDA library")
    args = sample(1, 2, 3, 4, 5, hidden, points=False)[:2]
    use_cuda_cpp(cuda_cpp)
    try:
        with FakeTensorMode() as mode:
            on_cuda = [mode.from_tensor(arg).to("cuda") for arg in args]
            explanation = explain(dynamic_mask_conv, *on_cuda, hidden=hidden)
    finally:
        use_cuda_cpp(False)
    assert explanation.chosen == chosen
    assert [name for name, _ in explanation.refused] == refused
