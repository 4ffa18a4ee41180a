# SPDX-License-Identifier: Apache-2.0
"""What the mixer promises beside its formula, and the formula against its oracle."""

import pytest
import torch
from checks import (
    assert_all_as_precise,
    check_error,
    check_large_outputs,
    plain_and_exact,
    run_with_grads,
)
from hypothesis import given
from hypothesis import strategies as st
from ops.channel_attention_mixer.cases import (
    CASES,
    DTYPES,
    FORMULAS,
    IDS,
    PAPER,
    RELEASED,
    oracle,
    run,
    sample,
)

import avskernels
from avskernels.testing import assert_as_precise, assert_close


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("formula", FORMULAS, ids=IDS)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_matches_oracle(case, formula, masked):
    for dtype in DTYPES:
        tensors, mask = sample(case, dtype, masked=masked)
        expected = oracle(tensors, mask, case[1], **formula)
        reference = run(tensors, mask, case[1], **formula, backend="reference")
        assert_as_precise(run(tensors, mask, case[1], **formula), reference, expected)
        if dtype == torch.float64:
            assert_close(reference, expected)


@pytest.mark.parametrize("formula", FORMULAS[:2], ids=IDS[:2])
def test_every_instruction_set(formula, isa):
    for dtype in (*DTYPES, torch.bfloat16, torch.float16):
        tensors, mask = sample((2, 4, 36, 13, 31), dtype, masked=True)
        assert_all_as_precise(
            run_with_grads(lambda *t, m=mask: run(t, m, 4, **formula), tensors),
            *plain_and_exact(
                lambda *t, m=mask: run(t, m, 4, **formula, backend="reference"), tensors
            ),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_outputs(dtype, isa):
    weights = [torch.randn(3, 3) for _ in range(3)]
    features = torch.randn(2, 3, 1024, 2752 // dtype.itemsize).to(dtype)
    check_large_outputs(
        lambda x, q: avskernels.channel_attention_mixer(x, q, *weights, None, num_heads=3),
        [features, torch.randn(2, 3)],
    )


@given(
    shape=st.tuples(
        st.integers(0, 3),
        st.integers(1, 5),
        st.integers(1, 8),
        st.integers(1, 20),
        st.integers(1, 20),
    ),
    formula=st.sampled_from(FORMULAS),
    masked=st.booleans(),
)
def test_gradients_match_reference(shape, formula, masked):
    batch, heads, head_channels, height, width = shape
    case = (batch, heads, heads * head_channels, height, width)
    tensors, mask = sample(case, torch.float64, masked=masked)
    actual = run_with_grads(lambda *t: run(t, mask, heads, **formula), tensors)
    expected = run_with_grads(
        lambda *t: run(t, mask, heads, **formula, backend="reference"), tensors
    )
    for one, other in zip([*actual[0], *actual[1]], [*expected[0], *expected[1]], strict=True):
        assert_close(one, other)


def test_channels_last():
    tensors, _ = sample((2, 2, 6, 5, 7))
    layout = tensors[0].contiguous(memory_format=torch.channels_last)
    assert torch.equal(run((layout, *tensors[1:]), None, 2), run(tensors, None, 2))


def test_no_weights_is_the_paper():
    (features, query, *_), _ = sample((2, 2, 6, 5, 7))
    eye, zero = torch.eye(6), torch.zeros(6)
    mixed = run((features, query, *[None] * 6), None, 2, **PAPER)
    assert_close(
        mixed, oracle((features, query, eye, eye, eye, zero, zero, zero), None, 2, **PAPER)
    )


def test_biases_without_weights():
    (features, query, *_, out_bias, k_bias, v_bias), _ = sample((2, 2, 6, 5, 7))
    tensors = (features, query, None, None, None, out_bias, k_bias, v_bias)
    expected = oracle((*tensors[:2], *[torch.eye(6)] * 3, *tensors[5:]), None, 2, **PAPER)
    assert_close(run(tensors, None, 2, **PAPER), expected)
    assert_close(run(tensors, None, 2, **PAPER, backend="reference"), expected)


def test_only_what_asks_for_a_gradient_gets_one():
    tensors, _ = sample((2, 2, 6, 5, 7))
    everything = run_with_grads(lambda *t: run(t, None, 2), tensors)[1]
    for i in range(len(tensors)):
        leaves = [t.detach().requires_grad_(i == j) for j, t in enumerate(tensors)]
        generator = torch.Generator().manual_seed(0)
        grad = torch.randn(tensors[0].shape, generator=generator, dtype=torch.float64).bfloat16()
        run(leaves, None, 2).backward(grad.float())
        assert torch.equal(leaves[i].grad, everything[i])
        assert all(leaf.grad is None for j, leaf in enumerate(leaves) if i != j)


def test_negative_gate_turns_the_sign():
    features = torch.ones(1, 2, 2, 2)
    query = torch.full((1, 2), -1.0)
    mixed = run((features, query, *[None] * 6), None, 2, **PAPER)
    assert torch.equal(mixed, torch.full_like(features, -3.0))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits(size):
    (features, query, *rest), _ = sample((2, 2, 6, 5, 7))
    tensors = (features, size * query, *rest)
    assert_close(run(tensors, None, 2), oracle(tensors, None, 2, **RELEASED))


@pytest.mark.parametrize("formula", FORMULAS, ids=IDS)
def test_fully_masked_map_has_gate_zero(formula):
    tensors, mask = sample((2, 2, 6, 5, 7), masked=True)
    mask[1] = False
    (mixed,), grads = run_with_grads(lambda *t: run(t, mask, 2, **formula), tensors)
    expected = torch.zeros_like(mixed[1]) if formula["gate"] == "sigmoid" else tensors[0][1]
    assert torch.equal(mixed[1], expected)
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[1][1].any()


def test_half_precision_map_with_float32_parameters():
    tensors, _ = sample((2, 2, 6, 5, 7))
    half = (tensors[0].bfloat16(), *tensors[1:])
    mixed = run(half, None, 2)
    assert mixed.dtype == torch.bfloat16
    assert_close(mixed, oracle(half, None, 2, **RELEASED))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(half, None, 2), mixed)


def test_nan_stays_in_its_sample():
    (features, *rest), _ = sample((2, 2, 6, 5, 7))
    features[0, 3, 2, 2] = float("nan")
    mixed = run((features, *rest), None, 2)
    assert mixed[0].isnan().all()
    assert mixed[1].isfinite().all()


def test_errors_of_the_public_function():
    tensors, mask = sample((2, 2, 6, 5, 7), masked=True)
    message = "channel_attention_mixer: expected num_heads to divide 6 channels, got 4"
    check_error(lambda *t: run(t, None, 4), tensors, message)
    message = "channel_attention_mixer: expected mask [2, 5, 7], got [2, 7, 5]"
    check_error(lambda m, *t: run(t, m, 2), (mask.mT, *tensors), message)
    with pytest.raises(ValueError, match=r"expected gate to be one of .*, got 'tanh'"):
        run(tensors, None, 2, gate="tanh")
