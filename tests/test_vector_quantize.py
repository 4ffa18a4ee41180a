import pytest
import torch
from checks import (
    assert_bit_equal,
    check_compile,
    check_deterministic,
    check_error,
    check_layouts,
    opcheck,
    poisoned_empty,
    run_with_grads,
)
from hypothesis import given
from hypothesis import strategies as st

import avskernels
from avskernels import reference
from avskernels._vector_quantize_algebra import backward_algebra
from avskernels.testing import assert_as_precise, assert_close
from avskernels.vector_quantize import backward_cuda

# (rows, groups (0 = one shared codebook), codewords, dim)
CASES = {
    "minimal": (1, 0, 1, 1),
    "empty": (0, 0, 5, 8),
    "one below a vector": (15, 0, 15, 15),
    "exact tile": (16, 0, 16, 16),
    "tile + 1": (17, 0, 17, 17),
    "odd primes": (101, 3, 67, 31),
    "sqd": (100, 0, 128, 256),
}


def sample(rows, groups, codewords, dim, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_shape = (rows, groups, dim) if groups else (rows, dim)
    book_shape = (groups, codewords, dim) if groups else (codewords, dim)
    x = torch.randn(x_shape, generator=generator, dtype=torch.float64)
    codebook = torch.randn(book_shape, generator=generator, dtype=torch.float64)
    return x.to(dtype), codebook.to(dtype)


def oracle_distances(x, codebook):
    """All squared distances in float64, one codeword at a time: [..., K]."""
    books = codebook.double()
    columns = [x.double() - books[..., k, :] for k in range(books.shape[-2])]
    return torch.stack([(c * c).sum(-1) for c in columns], dim=-1)


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

    def published(x, codebook):
        return reference.vector_quantize(x, codebook, 0.3, 0.9, reduction)

    with poisoned_empty():
        outputs, grads = run_with_grads(ours, (x, codebook))
    expected = run_with_grads(published, (x.double(), codebook.double()))
    for one, other in zip((*outputs, *grads), (*expected[0], *expected[1]), strict=True):
        assert_close(one, other, torch.float32)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(reduction):
    x, codebook = (t.requires_grad_() for t in sample(4, 2, 3, 5, torch.float64))

    def commitment(x):  # each term alone, because the other one stops this gradient
        return avskernels.vector_quantize(
            x, codebook.detach(), commitment_weight=0.7, codebook_weight=0.0, reduction=reduction
        ).loss

    def codebook_term(codebook):
        return avskernels.vector_quantize(
            x.detach(), codebook, commitment_weight=0.0, codebook_weight=0.7, reduction=reduction
        ).loss

    assert torch.autograd.gradcheck(commitment, x)
    assert torch.autograd.gradcheck(codebook_term, codebook)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients(dtype, isa):
    x, codebook = sample(60, 0, 20, 33, dtype)
    args = (x, codebook, 0.3, 0.9, "sum")
    grads = run_with_grads(torch.ops.avskernels.vector_quantize, args)[1]
    same = run_with_grads(reference.vector_quantize, args)[1]
    exact = run_with_grads(reference.vector_quantize, (x.double(), codebook.double(), *args[2:]))[1]
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


def test_plain_torch_version_matches(isa):
    x, codebook = sample(40, 3, 21, 10)
    grad_quantized = torch.randn_like(x)
    grad_loss = torch.rand(40, 3)
    indices = avskernels.nearest_codeword(x, codebook)[0]
    arguments = (grad_quantized, grad_loss, x, codebook, indices, 0.3, 0.9, "none")
    actual = torch.ops.avskernels._vector_quantize_backward(*arguments)
    for one, other in zip(actual, backward_algebra(*arguments), strict=True):
        assert_close(one, other.double())


@pytest.mark.cuda
@pytest.mark.parametrize("codewords", [1, 21])
def test_cuda_backward_matches(codewords):
    x, codebook = sample(700, 3, codewords, 10)
    indices = avskernels.nearest_codeword(x, codebook)[0]
    tensors = [t.cuda() for t in (torch.randn_like(x), torch.rand(700, 3), x, codebook, indices)]
    expected = backward_algebra(*tensors, 0.3, 0.9, "none")
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


def test_generic_checks():
    args = (*sample(33, 2, 9, 7), 0.3, 1.5, "sum")
    op = torch.ops.avskernels.vector_quantize
    opcheck("vector_quantize", (args[0].requires_grad_(), args[1].requires_grad_(), *args[2:]))
    check_deterministic(op, args)
    check_layouts(op, args)
    check_compile(
        lambda x, c: avskernels.vector_quantize(x, c), [sample(5, 0, 6, 7), sample(8, 0, 3, 9)]
    )


@pytest.mark.parametrize(
    ("x_shape", "book_shape", "message"),
    [
        ((4, 3), (5,), "expected codebook [K, D] or [G, K, D], got [5]"),
        ((4, 3), (5, 2), "expected x [..., 2] to match codebook [5, 2], got [4, 3]"),
        ((4, 3), (2, 5, 3), "expected x [..., 2, 3] to match codebook [2, 5, 3], got [4, 3]"),
        (
            (4, 3),
            (0, 3),
            "expected a codebook with at least one codeword and one dimension, got [0, 3]",
        ),
    ],
)
def test_shape_errors(x_shape, book_shape, message):
    for name in ("vector_quantize", "nearest_codeword"):
        check_error(
            getattr(avskernels, name),
            (torch.zeros(x_shape), torch.zeros(book_shape)),
            f"{name}: {message}",
        )


def test_dtype_errors():
    x, codebook = torch.zeros(4, 3), torch.zeros(5, 3)
    for name in ("vector_quantize", "nearest_codeword"):
        function = getattr(avskernels, name)
        message = f"{name}: expected x and codebook of one dtype, got torch.float32 and torch."
        check_error(function, (x, codebook.double()), f"{message}float64")
        message = f"{name}: expected a floating-point dtype, got torch.int64"
        check_error(function, (x.long(), codebook.long()), message)


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
