# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from checks import (
    assert_all_as_precise,
    check_error,
    check_layouts,
    opcheck,
    run_with_grads,
)
from hypothesis import given
from hypothesis import strategies as st
from ops.deformable_attention.cases import (
    CASES,
    FUNCTIONS,
    GENERIC,
    SHAPES,
    assert_all_close,
    oracle,
    sample,
)

import avskernels
from avskernels.testing import assert_as_precise


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_matches_oracle_in_float64(case, function):
    args = sample(*case, dtype=torch.float64)
    assert_all_close(run_with_grads(function, args), run_with_grads(oracle, args), torch.float64)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_matches_oracle_in_float32(case, isa):
    args = sample(*case)
    assert_all_as_precise(
        run_with_grads(avskernels.deformable_attention, args),
        run_with_grads(avskernels.reference.deformable_attention, args),
        run_with_grads(oracle, args),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_values_with_float32_locations(dtype, isa):
    args = sample(*CASES["vector + 1"], dtype=dtype)
    output, grads = run_with_grads(avskernels.deformable_attention, args)
    plain, plain_grads = run_with_grads(avskernels.reference.deformable_attention, args)
    expected, expected_grads = run_with_grads(oracle, args)
    assert output[0].dtype == grads[0].dtype == dtype
    assert grads[1].dtype == grads[2].dtype == torch.float32
    assert_as_precise(output[0], plain[0], expected[0])
    assert_as_precise(grads[0], plain_grads[0], expected_grads[0])
    for one, other in zip(grads[1:], expected_grads[1:], strict=True):
        # Sums of products of half-precision values, kept in float32.
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-2, atol=1e-2)


@given(
    batch=st.integers(1, 2),
    queries=st.integers(0, 9),
    heads=st.integers(1, 3),
    dim=st.integers(1, 70),
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    points=st.integers(1, 5),
    spread=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_matches_reference(batch, queries, heads, dim, shapes, points, spread, seed):
    args = sample(batch, queries, heads, dim, shapes, points, torch.float64, seed, spread)
    actual = run_with_grads(avskernels.deformable_attention, args)
    expected = run_with_grads(avskernels.reference.deformable_attention, args)
    assert_all_close(actual, expected, torch.float64)


def test_backward_operator():
    args = *GENERIC[0], torch.ones(1, 7, 15)
    opcheck("_deformable_attention_backward", args)

    def backward(*args):
        with torch.no_grad():
            return torch.ops.avskernels._deformable_attention_backward(*args)

    check_layouts(backward, args)
    message = "_deformable_attention_backward: expected grad_output [1, 7, 15], got [1, 7, 14]"
    check_error(backward, (*args[:4], torch.ones(1, 7, 14)), message)


def test_half_precision_locations_are_widened():
    value, shapes, locations, weights = sample(*CASES["exact vector"])
    output = avskernels.deformable_attention(value, shapes, locations.half(), weights.bfloat16())
    expected = avskernels.deformable_attention(
        value, shapes, locations.half().float(), weights.bfloat16().float()
    )
    assert torch.equal(output, expected)


def test_float64_weights_are_not_narrowed():
    value, shapes, locations, weights = sample(*CASES["exact vector"])
    for args in ((locations.double(), weights), (locations, weights.double())):
        with pytest.raises(RuntimeError, match=r"of torch\.float32, got torch\.float64"):
            avskernels.deformable_attention(value, shapes, *args)


def test_autocast_keeps_half_precision_values():
    args = sample(*CASES["exact vector"], dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = avskernels.deformable_attention(*args)
    assert torch.equal(output, avskernels.deformable_attention(*args))


@pytest.mark.parametrize(
    "shapes", [[(2, 3), (2, 2)], [(2, 3), (2, 4)], [(-2, -3), (2, 3)], [(0, 3), (3, 4)]]
)
def test_levels_that_do_not_cover_the_value_are_an_error(shapes):
    value, _, locations, weights = (torch.zeros(shape) for shape in SHAPES)
    listed = [list(shape) for shape in shapes]
    for backend in ("auto", "reference"):
        with pytest.raises(RuntimeError) as error:
            avskernels.deformable_attention(value, shapes, locations, weights, backend=backend)
        assert str(error.value) == (
            "deformable_attention: expected spatial_shapes of sides from 1 to 16777216 whose areas "
            f"add up to the 12 tokens of value, got {listed}"
        )


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_sides_that_float32_cannot_count_are_an_error(backend):
    value = torch.zeros(1).expand(1, 2**24 + 1, 1, 1)
    locations, weights = torch.zeros(1, 1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 1)
    with pytest.raises(RuntimeError, match=r"sides from 1 to 16777216 .*, got \[\[1, 16777217\]\]"):
        avskernels.deformable_attention(
            value, [(1, 2**24 + 1)], locations, weights, backend=backend
        )
