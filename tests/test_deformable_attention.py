import pytest
import torch
from checks import (
    assert_all_as_precise,
    check_compile,
    check_deterministic,
    check_error,
    check_layouts,
    opcheck,
    run_with_grads,
)
from hypothesis import given
from hypothesis import strategies as st

import avskernels
from avskernels.deformable_attention import _algebra, _backward_algebra
from avskernels.testing import assert_as_precise, assert_close

# (batch, queries, heads, dim, spatial shapes, points)
CASES = {
    "minimal": (1, 1, 1, 1, [(1, 1)], 1),
    "no queries": (2, 0, 2, 4, [(2, 3)], 2),
    "no images": (0, 3, 2, 4, [(2, 3)], 2),
    "no points": (1, 3, 2, 4, [(2, 3)], 0),
    "one below a vector": (1, 5, 2, 15, [(4, 5), (2, 3)], 3),
    "exact vector": (1, 5, 2, 16, [(4, 5), (2, 3)], 4),
    "vector + 1": (1, 5, 2, 17, [(4, 5), (1, 1)], 5),
    "odd primes": (3, 37, 3, 37, [(7, 5), (3, 11), (1, 13)], 3),
    "one query, many samples": (1, 1, 1, 8, [(6, 6)] * 7, 11),
    "sqd decoder": (2, 5, 8, 32, [(28, 28), (14, 14), (7, 7), (4, 4)], 4),
}


def sample(batch, queries, heads, dim, shapes, points, dtype=torch.float32, seed=0, spread=1.4):
    """Locations in and around the maps; those of half-precision values are float32."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*size):
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    exact = torch.promote_types(dtype, torch.float32)
    tokens = sum(height * width for height, width in shapes)
    value = 2 * rand(batch, tokens, heads, dim) - 1
    locations = spread * (rand(batch, queries, heads, len(shapes), points, 2) - 0.5) + 0.5
    weights = rand(batch, queries, heads, len(shapes), points)
    weights = weights / weights.sum((-1, -2), keepdim=True)
    return value.to(dtype), torch.tensor(shapes), locations.to(exact), weights.to(exact)


def oracle(value, spatial_shapes, sampling_locations, attention_weights):
    """Every pixel weighted by how near it is, max(0, 1 - |x - i|) max(0, 1 - |y - j|), float64."""
    locations, weights = sampling_locations.double(), attention_weights.double()
    batch, queries = locations.shape[:2]
    result = torch.zeros(batch, queries, *value.shape[2:], dtype=torch.float64)
    start = 0
    for level, (height, width) in enumerate(spatial_shapes.tolist()):
        pixels = value[:, start : start + height * width].double().unflatten(1, (height, width))
        x, y = locations[:, :, :, level].unbind(-1)
        near_x = (1 - (x.unsqueeze(-1) * width - 0.5 - torch.arange(width)).abs()).clamp(min=0)
        near_y = (1 - (y.unsqueeze(-1) * height - 0.5 - torch.arange(height)).abs()).clamp(min=0)
        level_weights = weights[:, :, :, level]
        result += torch.einsum(
            "bqhp,bqhpj,bqhpi,bjihd->bqhd", level_weights, near_y, near_x, pixels
        )
        start += height * width
    return result.flatten(2)


class Algebra(torch.autograd.Function):
    """The plain-torch version that serves devices without a kernel, forward and backward."""

    @staticmethod
    def forward(ctx, *args):
        ctx.save_for_backward(*args)
        return _algebra(*args)

    @staticmethod
    def backward(ctx, grad_output):
        grad_value, *grads = _backward_algebra(grad_output, *ctx.saved_tensors)
        return grad_value, None, *grads


def assert_all_close(actual, expected, dtype, scale=1.0):
    for ones, others in zip(actual, expected, strict=True):
        for one, other in zip(ones, others, strict=True):
            assert_close(one, other, dtype, scale=scale)


FUNCTIONS = {"operator": avskernels.deformable_attention, "algebra": Algebra.apply}


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


def test_gradcheck():
    value, shapes, locations, weights = sample(2, 3, 2, 3, [(4, 5), (1, 1)], 2, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, x, w: avskernels.deformable_attention(v, shapes, x, w), leaves
    )


def test_generic_checks():
    # Nine levels of heads: two threads share a head backward.
    args = sample(1, 7, 3, 5, [(4, 3), (2, 2), (1, 3)], 3)
    op = torch.ops.avskernels.deformable_attention
    leaves = [arg.clone().requires_grad_(arg.is_floating_point()) for arg in args]
    opcheck("deformable_attention", leaves)
    opcheck("_deformable_attention_backward", (torch.ones(1, 7, 15), *args))
    check_deterministic(op, args)
    check_layouts(op, args)


def test_compiles_with_dynamic_shapes():
    def attend(value, locations, weights, height, width):
        shapes = [(height, width), (1, 2)]
        return avskernels.deformable_attention(value, shapes, locations, weights)

    samples = []
    for height, width in ((3, 4), (5, 2)):
        value, _, locations, weights = sample(1, 5, 2, 4, [(height, width), (1, 2)], 3)
        samples.append((value, locations, weights, height, width))
    check_compile(attend, samples)


def test_half_precision_locations_are_widened():
    value, shapes, locations, weights = sample(*CASES["exact vector"])
    output = avskernels.deformable_attention(value, shapes, locations.half(), weights.bfloat16())
    expected = avskernels.deformable_attention(
        value, shapes, locations.half().float(), weights.bfloat16().float()
    )
    assert torch.equal(output, expected)


def test_autocast_keeps_half_precision_values():
    args = sample(*CASES["exact vector"], dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = avskernels.deformable_attention(*args)
    assert torch.equal(output, avskernels.deformable_attention(*args))


SHAPES = ((2, 12, 3, 4), (2, 2), (2, 5, 3, 2, 6, 2), (2, 5, 3, 2, 6))


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (2, 12, 12), "expected value [B, S, heads, D], got [2, 12, 12]"),
        (1, (2, 3), "expected spatial_shapes [L, 2], got [2, 3]"),
        (
            2,
            (2, 5, 3, 4, 6, 2),
            "expected sampling_locations [2, Q, 3, 2, P, 2] to match value and spatial_shapes, "
            "got [2, 5, 3, 4, 6, 2]",
        ),
        (
            3,
            (2, 5, 3, 12),
            "expected attention_weights [2, 5, 3, 2, 6] to match sampling_locations, "
            "got [2, 5, 3, 12]",
        ),
    ],
)
def test_shape_errors(position, shape, message):
    shapes = [*SHAPES[:position], shape, *SHAPES[position + 1 :]]
    args = [torch.zeros(shape) for shape in shapes]
    args[1] = torch.full(shapes[1], 2)
    check_error(avskernels.deformable_attention, args, f"deformable_attention: {message}")


@pytest.mark.parametrize(
    ("dtypes", "message"),
    [
        (
            (torch.float32, torch.int32, torch.float32, torch.float32),
            "expected spatial_shapes of torch.int64, got torch.int32",
        ),
        (
            (torch.int64, torch.int64, torch.float32, torch.float32),
            "expected a floating-point dtype, got torch.int64",
        ),
        (
            (torch.float16, torch.int64, torch.float64, torch.float32),
            "expected sampling_locations and attention_weights of torch.float32 with value of "
            "torch.float16, got torch.float64 and torch.float32",
        ),
    ],
)
def test_dtype_errors(dtypes, message):
    args = [torch.full(shape, 2, dtype=dtype) for shape, dtype in zip(SHAPES, dtypes, strict=True)]
    check_error(avskernels.deformable_attention, args, f"deformable_attention: {message}")


@pytest.mark.parametrize("shapes", [[(2, 3), (2, 2)], [(2, 3), (2, 4)], [(-2, -3), (2, 3)]])
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
