import pytest
import torch
from checks import check_compile, check_deterministic, check_error, check_layouts, opcheck
from hypothesis import given
from hypothesis import strategies as st

import avskernels
from avskernels.testing import assert_close

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
