import pytest
import torch
from checks import (
    check_compile,
    check_deterministic,
    check_error,
    check_large_outputs,
    check_layouts,
    opcheck,
    run_with_grads,
)
from hypothesis import given
from hypothesis import strategies as st

import avskernels
from avskernels.testing import assert_as_precise, assert_close

# (batch, queries, channels, spatial shape)
CASES = {
    "minimal": (1, 1, 1, (1,)),
    "empty batch": (0, 2, 3, (4,)),
    "no pixels": (2, 2, 3, (0, 4)),
    "no queries": (2, 0, 3, (5,)),
    "one pixel": (3, 2, 5, (1, 1)),
    "one below a vector": (2, 3, 15, (3, 5)),
    "exact tile": (1, 8, 16, (16, 16)),
    "tile + 1": (2, 9, 17, (1, 257)),
    "odd primes": (2, 5, 37, (3, 13, 31)),
    "several blocks": (1, 3, 131, (2, 1291)),
}
DTYPES = [torch.float32, torch.float64]


def sample(case, dtype=torch.float32, seed=0, masked=False):
    batch, rows, channels, space = case
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, channels, *space, generator=generator, dtype=torch.float64)
    queries = torch.randn(batch, rows, channels, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, *space, generator=generator) < 0.6 if masked else None
    return features.to(dtype), queries.to(dtype), mask


def oracle(features, queries, scale, softmax, mask=None):
    """The definition in float64, one sample and query at a time, over the pixels that count."""
    pooled = torch.zeros_like(queries, dtype=torch.float64)
    for b, h in ((b, h) for b in range(queries.shape[0]) for h in range(queries.shape[1])):
        pixels = features[b].double().flatten(1).T
        pixels = pixels if mask is None else pixels[mask[b].flatten()]
        weights = scale * (pixels * queries[b, h].double()).sum(1)
        if softmax and len(weights):
            weights = (weights - weights.max()).exp()
            weights = weights / weights.sum()
        pooled[b, h] = (weights.unsqueeze(1) * pixels).sum(0)
    return pooled


def run(features, queries, scale=1.0, softmax=True, mask=None, backend=None):
    return avskernels.attention_pool(features, queries, scale, softmax, mask=mask, backend=backend)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "linear"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_matches_oracle(case, dtype, softmax, masked):
    features, queries, mask = sample(case, dtype, masked=masked)
    scale = 0.7 * case[2] ** -0.5
    expected = oracle(features, queries, scale, softmax, mask)
    actual = run(features, queries, scale, softmax, mask, backend="kernel")
    reference = run(features, queries, scale, softmax, mask, backend="reference")
    assert_as_precise(actual, reference, expected)
    if dtype == torch.float64:
        assert_close(reference, expected)


@pytest.mark.parametrize("case", ["tile + 1", "several blocks"])
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "linear"])
def test_every_instruction_set(case, softmax, isa):
    for dtype in (*DTYPES, torch.bfloat16, torch.float16):
        features, queries, mask = sample(CASES[case], dtype, masked=True)
        assert_as_precise(
            run(features, queries, 0.1, softmax, mask),
            run(features, queries, 0.1, softmax, mask, backend="reference"),
            oracle(features, queries, 0.1, softmax, mask),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_gradients(dtype, isa):
    features = torch.randn(2, 3, 1024, 2752 // dtype.itemsize).to(dtype)
    check_large_outputs(avskernels.attention_pool, [features, torch.randn(2, 5, 3).to(dtype)])


@given(
    case=st.tuples(
        st.integers(0, 3),
        st.integers(1, 18),
        st.integers(1, 40),
        st.lists(st.integers(1, 40), min_size=1, max_size=2).map(tuple),
    ),
    softmax=st.booleans(),
    masked=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_gradients_match_reference(case, softmax, masked, dtype):
    features, queries, mask = sample(case, torch.float64, masked=masked)
    expected = run_with_grads(
        lambda f, q: run(f, q, 0.3, softmax, mask, "reference"), (features, queries)
    )
    actual = run_with_grads(
        lambda f, q: run(f, q, 0.3, softmax, mask), (features.to(dtype), queries.to(dtype))
    )
    for one, other in zip([*actual[0], *actual[1]], [*expected[0], *expected[1]], strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "linear"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_gradcheck(softmax, masked, isa):
    features, queries, mask = sample((2, 3, 5, (3, 7)), torch.float64, masked=masked)
    assert torch.autograd.gradcheck(
        lambda f, q: run(f, q, 0.7, softmax, mask),
        (features.requires_grad_(), queries.requires_grad_()),
    )


def test_generic_checks():
    features, queries, mask = sample(CASES["odd primes"], masked=True)
    op = torch.ops.avskernels.attention_pool
    args = (features, queries, mask, 0.3, False)
    opcheck(
        "attention_pool", (features.requires_grad_(), queries.requires_grad_(), mask, 0.3, True)
    )
    check_deterministic(op, args)
    check_layouts(op, args)
    check_compile(
        avskernels.attention_pool,
        [sample(CASES["odd primes"])[:2], sample((3, 2, 4, (2, 3, 5)))[:2]],
    )


def test_channels_last():
    features, queries, _ = sample((2, 3, 17, (5, 7)))
    layout = features.contiguous(memory_format=torch.channels_last)
    assert torch.equal(run(layout, queries), run(features, queries))


def test_expanded_queries():
    features, queries, _ = sample((3, 2, 5, (4, 4)))
    queries = queries[:1].expand(3, -1, -1)
    assert_close(run(features, queries), oracle(features, queries, 1.0, True))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits(size, isa):
    features, queries, _ = sample((2, 3, 8, (5, 7)))
    assert_close(run(features, queries, size), oracle(features, queries, size, True))


def test_equal_logits_average(isa):
    features, _, _ = sample((2, 3, 8, (5, 7)))
    pooled = run(features, torch.zeros(2, 3, 8))
    assert_close(pooled, features.double().mean((2, 3)).unsqueeze(1).expand(2, 3, 8))


@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "linear"])
def test_nothing_takes_part(softmax, isa):
    features, queries, mask = sample((2, 3, 8, (5, 7)), masked=True)
    mask[1] = False
    (pooled,), grads = run_with_grads(
        lambda f, q: run(f, q, 1.0, softmax, mask), (features, queries)
    )
    assert torch.equal(pooled[1], torch.zeros(3, 8))
    assert not any(grad[1].any() for grad in grads)
    assert all(grad.isfinite().all() for grad in grads)


def test_logits_of_minus_infinity(isa):
    # 3e38 * -3e38 overflows: pixel 0 takes no part for the first query, no pixel for the second.
    features = torch.tensor([[[3e38, 1.0, 2.0]]])
    queries = torch.tensor([[[-3e38], [0.0]]])
    pooled = run(features, queries)
    assert_close(pooled[0, 0], torch.tensor([1.0]), torch.float32)
    every = run(torch.full((1, 1, 3), 3e38), queries[:, :1])
    assert torch.equal(every, torch.zeros(1, 1, 1))


def test_nan_stays_in_its_sample(isa):
    features, queries, _ = sample((2, 2, 8, (40,)))
    features[0, 3, 17] = float("nan")
    pooled = run(features, queries)
    assert pooled[0].isnan().all()
    assert_close(pooled[1], oracle(features[1:], queries[1:], 1.0, True)[0])


def test_autocast_leaves_the_precision_alone():
    features, queries, _ = sample(CASES["odd primes"])
    with torch.autocast("cpu", torch.bfloat16):
        pooled = run(features, queries, 0.1)
    assert torch.equal(pooled, run(features, queries, 0.1))


@pytest.mark.parametrize(
    ("features", "queries", "mask", "message"),
    [
        ((2, 3), (2, 1, 3), None, "expected features [B, C, ...], got [2, 3]"),
        (
            (2, 3, 4),
            (2, 3),
            None,
            "expected queries [2, h, 3], got [2, 3]",
        ),
        (
            (2, 3, 4),
            (1, 1, 3),
            None,
            "expected queries [2, h, 3], got [1, 1, 3]",
        ),
        (
            (2, 3, 4),
            (2, 1, 3),
            (2, 5),
            "expected mask [2, 4], got [2, 5]",
        ),
    ],
)
def test_shape_errors(features, queries, mask, message):
    mask = None if mask is None else torch.ones(mask, dtype=torch.bool)
    op = torch.ops.avskernels.attention_pool
    args = (torch.zeros(features), torch.zeros(queries), mask, 1.0, True)
    check_error(op, args, f"attention_pool: {message}")
    check_error(lambda f, q, m: run(f, q, mask=m), args[:3], f"attention_pool: {message}")


def test_dtype_errors():
    features, queries, _ = sample((2, 3, 8, (5, 7)))
    check_error(
        run,
        (features.long(), queries),
        "attention_pool: expected features of floating point, got torch.int64",
    )
    check_error(
        lambda f, q, m: run(f, q, mask=m),
        (features, queries, torch.zeros(2, 5, 7)),
        "attention_pool: expected mask of torch.bool, got torch.float32",
    )
