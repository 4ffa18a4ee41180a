# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from checks import check_error, check_large_outputs, opcheck, run_with_grads
from hypothesis import given
from hypothesis import strategies as st
from ops.attention_pool.cases import CASES, DTYPES, ERRORS, oracle, run, sample

import avskernels
from avskernels.ops.attention_pool import plain
from avskernels.testing import assert_as_precise, assert_close


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_result_has_the_dtype_of_the_features(dtype):
    features, queries, _ = sample(CASES["exact tile"])
    assert run(features.to(dtype), queries).dtype == dtype


def test_the_fake_of_the_backward_in_half_precision():
    features, queries, mask = sample(CASES["odd primes"], torch.bfloat16, masked=True)
    queries = queries.float()
    pooled, normalizer = torch.ops.avskernels.attention_pool(features, queries, mask, 1.0, True)
    args = torch.ones_like(queries), features, queries, mask, pooled.float(), normalizer, 1.0, True
    opcheck("_attention_pool_backward", args)


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


def test_channels_last():
    features, queries, _ = sample((2, 3, 17, (5, 7)))
    layout = features.contiguous(memory_format=torch.channels_last)
    assert torch.equal(run(layout, queries), run(features, queries))


def test_gradient_of_a_sum():
    tensors = [t.requires_grad_() for t in sample((2, 3, 17, (5, 7)))[:2]]
    pooled = run(*tensors)
    expected = torch.autograd.grad(pooled, tensors, torch.ones_like(pooled), retain_graph=True)
    for one, other in zip(torch.autograd.grad(pooled.sum(), tensors), expected, strict=True):
        assert torch.equal(one, other)  # of an expanded scalar


def test_expanded_queries():
    features, queries, _ = sample((3, 2, 5, (4, 4)))
    queries = queries[:1].expand(3, -1, -1)
    assert_close(run(features, queries), oracle(features, queries, 1.0, True))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits(size, isa):
    features, queries, _ = sample((2, 3, 8, (5, 7)))
    assert_close(run(features, queries, size), oracle(features, queries, size, True))


def test_the_last_pixel_has_the_largest_logit(isa):
    features = torch.zeros(1, 1, 16)
    features[..., -1] = 200
    queries = torch.ones(1, 1, 1)
    assert_close(run(features, queries), oracle(features, queries, 1.0, True))


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


@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "linear"])
def test_nothing_takes_part_on_other_devices(softmax):
    features, queries, mask = sample((2, 3, 8, (5, 7)), torch.float64, masked=True)
    mask[1] = False
    pooled, _ = plain.forward(features, queries, mask, 1.0, softmax)
    assert_close(pooled, oracle(features, queries, 1.0, softmax, mask))


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


PUBLIC_ERRORS = {name: rest for name, *rest in ERRORS if name != "queries of another dtype"}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("args", "message"), PUBLIC_ERRORS.values(), ids=PUBLIC_ERRORS.keys())
def test_errors_of_the_public_function(args, message, backend):
    features, queries, mask, scale, softmax = args
    check_error(
        lambda f, q, m: run(f, q, scale, softmax, m, backend),
        (features, queries, mask),
        f"attention_pool: {message}",
    )
