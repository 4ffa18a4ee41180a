# SPDX-License-Identifier: Apache-2.0
"""What vector_quantize could get wrong: near ties, huge and broken values, memory."""

import random
from pathlib import Path

import pytest
import torch
from checks import check_deterministic, run_with_grads
from ops.vector_quantize.cases import oracle_distances, published, sample

import avskernels
from avskernels.core.testing import assert_close
from avskernels.ops.vector_quantize import plain


def hard(kind, x, codebook, generator):
    """Distort a random problem into one that screening or rounding could get wrong."""
    codewords, dim = codebook.shape
    match kind:
        case "shifted":
            return x + 1e4, codebook + 1e4
        case "duplicates":
            return x, codebook[torch.randint(max(1, codewords // 3), (codewords,))]
        case "equal codewords":
            return x, codebook[:1].expand(codewords, dim).contiguous()
        case "ties":
            integers = [torch.randint(-1, 2, t.shape, generator=generator) for t in (x, codebook)]
            return tuple(t.float() for t in integers)
        case "outlier channel":
            weights = torch.ones(dim)
            weights[0] = 1e4
            return x * weights, codebook * weights
        case "on codewords":
            return codebook[torch.randint(codewords, (len(x),))] + 1e-4 * x, codebook
        case "mixed norms":
            return x, codebook * torch.logspace(-4, 4, codewords)[:, None]
        case "tiny":
            return x * 1e-22, codebook * 1e-22
        case "denormal":
            return x * 1e-39, codebook * 1e-39
        case "huge":
            return x * 1e37, codebook * 1e37
        case "far rows":
            return x * 1e6, codebook
        case _:
            return x, codebook


KINDS = (
    "random shifted duplicates ties on-codewords mixed-norms outlier-channel equal-codewords "
    "denormal huge far-rows tiny"
)
KINDS = [kind.replace("-", " ") for kind in KINDS.split()]


def check_nearest(x, codebook):
    """Each index is the lowest of those whose float64 distance is the least."""
    indices, distance = avskernels.nearest_codeword(x, codebook, backend="kernel")
    expected = oracle_distances(x, codebook)
    least = expected.amin(-1, keepdim=True)
    equal = expected <= least * (1 + 1e-13)  # the oracle's own rounding
    assert torch.equal(indices, equal.int().argmax(-1))
    assert_close(distance, least[..., 0].to(distance.dtype))  # which may overflow


def test_exact_on_random_problems():
    choose = random.Random(0)
    for seed in range(200):
        codewords = choose.choice([1, 2, 3, 17, 63, 64, 65, 128, 500, 1024, 1025, 2100, 8192])
        dim = choose.choice([1, 2, 3, 7, 15, 16, 17, 33, 64, 100, 256, 512])
        rows = choose.choice([1, 15, 16, 17, 49, 97, 400])
        rows = max(min(rows, 2_000_000 // (codewords * dim)), 1)
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        x, codebook = sample(rows, 0, codewords, dim, seed=seed)
        kind = KINDS[seed % len(KINDS)]
        try:
            check_nearest(*hard(kind, x, codebook, generator))
        except AssertionError as error:
            raise AssertionError(
                f"{kind}: M {rows}, K {codewords}, D {dim}, seed {seed}"
            ) from error


@pytest.mark.parametrize("kind", KINDS)
def test_exact_on_hard_problems(kind, isa):
    torch.manual_seed(0)
    x, codebook = sample(50, 0, 140, 70)
    check_nearest(*hard(kind, x, codebook, torch.Generator().manual_seed(0)))


def test_equal_distances_summed_in_another_order_are_ties(isa):
    generator = torch.Generator().manual_seed(0)
    offset = torch.randn(31, generator=generator)
    orders = [torch.randperm(31, generator=generator) for _ in range(40)]
    check_nearest(torch.zeros(3, 31), torch.stack([offset[order] for order in orders]))


def test_loss_of_rows_with_and_without_too_many_candidates(isa):
    x, codebook = sample(50, 0, 140, 70)
    codebook[:40] = codebook[0]
    x[:5] = codebook[0] + 0.1 * x[:5]
    loss = avskernels.vector_quantize(x, codebook, reduction="sum").loss
    assert_close(loss, 1.25 * oracle_distances(x, codebook).amin(-1).sum())


def test_exact_when_a_group_has_more_codewords_than_a_chunk(isa):
    check_nearest(*sample(18, 2, 1100, 9))


def test_rows_and_codewords_that_are_not_finite(isa):
    x, codebook = sample(40, 0, 90, 20)
    x[3, 5], x[7, 0], x[8, 19] = torch.nan, torch.inf, -torch.inf
    codebook[:70, 2] = torch.nan
    codebook[75, 1] = torch.inf
    broken = [3, 7, 8]
    sound = [i for i in range(40) if i not in broken]
    quantized, indices, loss = avskernels.vector_quantize(x, codebook, reduction="none")
    assert indices[broken].tolist() == [0, 0, 0]
    assert loss[broken].isnan().all()
    expected = oracle_distances(x[sound], codebook).nan_to_num(nan=torch.inf)
    assert torch.equal(indices[sound], expected.argmin(-1))
    assert torch.equal(quantized[sound], codebook[indices[sound]])
    assert avskernels.vector_quantize(x, codebook).loss.isnan()
    codebook[:] = torch.nan
    indices, distance = avskernels.nearest_codeword(x, codebook)
    assert indices.eq(0).all()
    assert distance.isnan().all()


def test_codewords_that_are_not_finite_on_other_devices():
    x, codebook = sample(20, 0, 30, 8)
    codebook[:10, 2] = torch.nan
    codebook[12, 1] = torch.inf
    indices, distance = plain.nearest(x, codebook)
    expected = oracle_distances(x, codebook).nan_to_num(nan=torch.inf)
    assert torch.equal(indices, expected.argmin(-1))
    assert_close(distance, expected.amin(-1))


def test_gradients_of_a_collapsed_codebook():
    # More rows of one codeword than a thread adds up at a time.
    x, codebook = sample(1500, 0, 3, 5, torch.float64)
    codebook[1:] += 100
    function = torch.ops.avskernels.vector_quantize
    check_deterministic(function, (x, codebook, 0.3, 0.9, "sum"))
    grads = run_with_grads(function, (x, codebook, 0.3, 0.9, "sum"))[1]
    expected = run_with_grads(published, (x, codebook, 0.3, 0.9, "sum"))[1]
    for one, other in zip(grads, expected, strict=True):
        assert_close(one, other)


def test_bad_indices_are_refused_by_the_backward_kernel():
    x, codebook = sample(3, 0, 4, 2)
    with pytest.raises(RuntimeError, match=r"expected indices in \[0, 4\), got 4"):
        torch.ops.avskernels._vector_quantize_backward(
            None, torch.ones(()), x, codebook, torch.tensor([0, 4, 1]), 0.1, 1.0, "sum"
        )


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_is_that_of_the_results():
    rows, codewords, dim = 8000, 1024, 256
    x, codebook = sample(rows, 0, codewords, dim)
    avskernels.vector_quantize(x, codebook)  # working memory that the allocator keeps
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    result = avskernels.vector_quantize(x, codebook)
    grown = resident_bytes("VmHWM") - before
    del result
    assert grown <= 1.2 * 4 * rows * (dim + 2)  # all distances would be 4 times that


def resident_bytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])
