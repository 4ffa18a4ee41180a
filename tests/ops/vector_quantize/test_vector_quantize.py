# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from checks import assert_bit_equal, check_error, poisoned_empty, run_with_grads
from hypothesis import given
from hypothesis import strategies as st
from ops.vector_quantize.cases import CASES, oracle_distances, published, sample
from torch._subclasses.fake_tensor import FakeTensorMode

import avskernels
from avskernels.core.testing import assert_as_precise, assert_close
from avskernels.ops.vector_quantize import plain
from avskernels.ops.vector_quantize.operator import backward_cuda


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_nearest_codeword_is_exact(case, dtype, isa):
    x, codebook = sample(*case, dtype=dtype)
    indices, distance = avskernels.nearest_codeword(x, codebook, backend="kernel")
    expected = oracle_distances(x, codebook)
    assert torch.equal(indices, expected.argmin(-1))
    assert_close(distance, expected.amin(-1))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_match_reference(case, reduction, isa):
    x, codebook = sample(*case)

    def ours(x, codebook):
        return avskernels.vector_quantize(
            x, codebook, commitment_weight=0.3, codebook_weight=0.9, reduction=reduction
        )

    with poisoned_empty():
        outputs, grads = run_with_grads(ours, (x, codebook))
    expected = run_with_grads(published, (x.double(), codebook.double(), 0.3, 0.9, reduction))
    for one, other in zip((*outputs, *grads), (*expected[0], *expected[1]), strict=True):
        assert_close(one, other, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients(dtype, isa):
    x, codebook = sample(60, 0, 20, 33, dtype)
    args = (x, codebook, 0.3, 0.9, "sum")
    grads = run_with_grads(torch.ops.avskernels.vector_quantize, args)[1]
    same = run_with_grads(published, args)[1]
    exact = run_with_grads(published, (x.double(), codebook.double(), *args[2:]))[1]
    for ours, theirs, expected in zip(grads, same, exact, strict=True):
        assert ours.dtype == dtype
        assert_as_precise(ours, theirs, expected)


def test_only_what_is_asked_for_gets_a_gradient():
    x, codebook = sample(20, 0, 6, 4)
    x.requires_grad_()
    codebook.requires_grad_()
    avskernels.vector_quantize(x, codebook).quantized.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert codebook.grad is None
    commit = avskernels.vector_quantize(x, codebook.detach(), codebook_weight=0.0)
    assert_close(torch.autograd.grad(commit.loss, x)[0], 0.5 * (x - commit.quantized) / x.numel())


def test_gradient_of_a_sum_of_losses():
    tensors = [t.requires_grad_() for t in sample(20, 0, 6, 4)]
    loss = avskernels.vector_quantize(*tensors, reduction="none").loss
    expected = torch.autograd.grad(loss, tensors, torch.ones_like(loss), retain_graph=True)
    actual = torch.autograd.grad(loss.sum(), tensors)  # of an expanded scalar
    assert_bit_equal(actual, expected)


def test_plain_torch_version_matches(isa):
    x, codebook = sample(40, 3, 21, 10)
    grad_quantized = torch.randn_like(x)
    grad_loss = torch.rand(40, 3)
    indices = avskernels.nearest_codeword(x, codebook)[0]
    arguments = (grad_quantized, grad_loss, x, codebook, indices, 0.3, 0.9, "none")
    actual = torch.ops.avskernels._vector_quantize_backward(*arguments)
    for one, other in zip(actual, plain.backward(*arguments), strict=True):
        assert_close(one, other.double())


@pytest.mark.cuda
@pytest.mark.parametrize("codewords", [1, 21])
def test_cuda_backward_matches(codewords):
    x, codebook = sample(700, 3, codewords, 10)
    indices = avskernels.nearest_codeword(x, codebook)[0]
    tensors = [t.cuda() for t in (torch.randn_like(x), torch.rand(700, 3), x, codebook, indices)]
    expected = plain.backward(*tensors, 0.3, 0.9, "none")
    for one, other in zip(backward_cuda(*tensors, 0.3, 0.9, "none"), expected, strict=True):
        assert_close(one.cpu(), other.cpu().double())
    assert_bit_equal(
        backward_cuda(*tensors, 0.3, 0.9, "none"), backward_cuda(*tensors, 0.3, 0.9, "none")
    )


def test_cosine_chooses_by_angle():
    x, codebook = sample(30, 0, 11, 6)
    unit = torch.nn.functional.normalize
    result = avskernels.vector_quantize(x, 3 * codebook, metric="cosine")
    assert torch.equal(result.indices, (unit(x) @ unit(codebook).T).argmax(1))
    assert_close(result.quantized, unit(codebook)[result.indices])


def test_autocast_computes_in_float32():
    x, codebook = sample(30, 0, 11, 6)
    with torch.autocast("cpu", torch.bfloat16):
        result = avskernels.vector_quantize(x.bfloat16(), codebook)
    assert_bit_equal(result, avskernels.vector_quantize(x.bfloat16().float(), codebook))


def test_autocast_finds_the_nearest_in_float32():
    x, codebook = sample(30, 0, 11, 6)
    with torch.autocast("cpu", torch.bfloat16):
        result = avskernels.nearest_codeword(x.bfloat16(), codebook)
    assert_bit_equal(result, avskernels.nearest_codeword(x.bfloat16().float(), codebook))


def test_the_fake_of_nearest_codeword_in_half_precision():
    x, codebook = (tensor.bfloat16() for tensor in sample(30, 0, 11, 6))
    with FakeTensorMode() as mode:
        fake = avskernels.nearest_codeword(mode.from_tensor(x), mode.from_tensor(codebook))
    for one, other in zip(fake, avskernels.nearest_codeword(x, codebook), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_autocast_lets_the_kernel_be_demanded():
    x, codebook = sample(30, 0, 11, 6)
    with torch.autocast("cpu", torch.bfloat16):
        result = avskernels.vector_quantize(x.bfloat16(), codebook, backend="kernel")
    assert_bit_equal(result, avskernels.vector_quantize(x.bfloat16().float(), codebook))


@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_single_row(groups, reduction):
    x, codebook = sample(1, groups, 5, 3)
    args = (codebook, 0.3, 0.9, reduction)
    function = torch.ops.avskernels.vector_quantize
    actual, expected = (run_with_grads(function, (rows, *args)) for rows in (x[0], x))
    for one, other in zip((*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True):
        assert_bit_equal(one, other.view(one.shape))


@given(
    rows=st.integers(0, 40),
    groups=st.integers(0, 3),
    codewords=st.integers(1, 70),
    dim=st.integers(1, 70),
    seed=st.integers(0, 99),
)
def test_matches_reference(rows, groups, codewords, dim, seed):
    x, codebook = sample(rows, groups, codewords, dim, torch.float64, seed)
    actual = avskernels.vector_quantize(x, codebook, reduction="none")
    expected = avskernels.vector_quantize(x, codebook, reduction="none", backend="reference")
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, torch.float64)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"reduction": "max"}, "vector_quantize: expected reduction to be one of .*, got 'max'"),
        ({"metric": "l1"}, "vector_quantize: expected metric to be one of .*, got 'l1'"),
    ],
)
def test_unknown_names(keywords, message):
    with pytest.raises(ValueError, match=message):
        avskernels.vector_quantize(torch.zeros(4, 3), torch.zeros(5, 3), **keywords)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({0: torch.zeros(4, 2)}, "expected x [4, 2], got [4, 3]"),
        ({1: torch.zeros(4)}, "expected grad_loss of one value, got [4]"),
        ({7: "none"}, "expected grad_loss of one value per row, got []"),
        ({1: torch.zeros(()).double()}, "expected grad_loss of torch.float32, got torch.float64"),
        (
            {3: torch.zeros(0, 3)},
            "expected a codebook with at least one codeword and one dimension, got [0, 3]",
        ),
        ({4: torch.zeros(5).long()}, "expected indices [4], got [5]"),
        ({4: torch.zeros(4)}, "expected indices of torch.int64, got torch.float32"),
    ],
)
def test_errors_of_the_backward_operator(changed, message):
    x, codebook, indices = torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(4).long()
    args = dict(enumerate((None, torch.zeros(()), x, codebook, indices, 0.25, 1.0, "mean")))
    check_error(
        torch.ops.avskernels._vector_quantize_backward,
        tuple((args | changed).values()),
        f"_vector_quantize_backward: {message}",
    )
