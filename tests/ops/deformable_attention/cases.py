# SPDX-License-Identifier: Apache-2.0
"""Samples of deformable_attention, its oracle, and what every operator is checked on."""

import torch

import avskernels
from avskernels.ops.deformable_attention import plain
from avskernels.testing import assert_close

OP = "deformable_attention"

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


class Plain(torch.autograd.Function):
    """The plain-torch version that serves devices without a kernel, forward and backward."""

    @staticmethod
    def forward(ctx, *args):
        ctx.save_for_backward(*args)
        return plain.forward(*args)

    @staticmethod
    def backward(ctx, grad_output):
        grad_value, *grads = plain.backward(*ctx.saved_tensors, grad_output)
        return grad_value, None, *grads


FUNCTIONS = {"operator": avskernels.deformable_attention, "plain torch": Plain.apply}


def assert_all_close(actual, expected, dtype, scale=1.0):
    for ones, others in zip(actual, expected, strict=True):
        for one, other in zip(ones, others, strict=True):
            assert_close(one, other, dtype, scale=scale)


def on_one_map(values, *points):
    """Sample an 8 x 8 map (a step of 1/16 in a location is half a pixel) with weight 1 each."""
    value = torch.as_tensor(values, dtype=torch.float32).view(1, 64, 1, 1)
    locations = torch.tensor(points).view(1, len(points), 1, 1, 1, 2)
    weights = torch.ones(1, len(points), 1, 1, 1)
    return value, torch.tensor([[8, 8]]), locations, weights


BORDERS = [-1 / 16, 0.0, 1 / 16, 0.5, 15 / 16, 1.0, 17 / 16]
FAR = [-1e9, 1e9, 1e38, -1e38, float("inf"), float("-inf"), -0.07, 1.07]


def arguments(dtype):
    return sample(2, 5, 8, 32, [(28, 28), (7, 5)], 4, dtype=dtype)


# Nine levels of heads: two threads share a head backward.
GENERIC = [sample(1, 7, 3, 5, [(4, 3), (2, 2), (1, 3)], 3)]


def attend(value, locations, weights, height, width):
    return avskernels.deformable_attention(value, [(height, width), (1, 2)], locations, weights)


def of_one_size(height, width):
    value, _, locations, weights = sample(1, 5, 2, 4, [(height, width), (1, 2)], 3)
    return value, locations, weights, height, width


COMPILED = (attend, [of_one_size(3, 4), of_one_size(5, 2)])


def on_two_levels(value, locations, weights):
    return avskernels.deformable_attention(value, [(4, 5), (1, 1)], locations, weights)


GRADCHECK = [
    (on_two_levels, (value, locations, weights))
    for value, _, locations, weights in [sample(2, 3, 2, 3, [(4, 5), (1, 1)], 2, torch.float64)]
]

SHAPES = ((2, 12, 3, 4), (2, 2), (2, 5, 3, 2, 6, 2), (2, 5, 3, 2, 6))
DTYPES = (torch.float32, torch.int64, torch.float32, torch.float32)


def wrong(position, shape=None, dtype=None):
    """Arguments of which one may have another shape or dtype."""
    shapes, dtypes = list(SHAPES), list(DTYPES)
    shapes[position] = shape or shapes[position]
    dtypes[position] = dtype or dtypes[position]
    return tuple(
        torch.full(shape, 2, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)
    )


ERRORS = [
    ("value", wrong(0, (2, 12, 12)), "expected value [B, S, heads, D], got [2, 12, 12]"),
    ("spatial_shapes", wrong(1, (2, 3)), "expected spatial_shapes [L, 2], got [2, 3]"),
    (
        "sampling_locations",
        wrong(2, (2, 5, 3, 4, 6, 2)),
        "expected sampling_locations [2, Q, 3, 2, P, 2], got [2, 5, 3, 4, 6, 2]",
    ),
    (
        "attention_weights",
        wrong(3, (2, 5, 3, 12)),
        "expected attention_weights [2, 5, 3, 2, 6], got [2, 5, 3, 12]",
    ),
    (
        "spatial_shapes' dtype",
        wrong(1, dtype=torch.int32),
        "expected spatial_shapes of torch.int64, got torch.int32",
    ),
    (
        "value's dtype",
        wrong(0, dtype=torch.int64),
        "expected value of floating point, got torch.int64",
    ),
    (
        "sampling_locations' dtype",
        (wrong(0, dtype=torch.float16)[0], *wrong(2, dtype=torch.float64)[1:]),
        "expected sampling_locations of torch.float32, got torch.float64",
    ),
    (
        "attention_weights' dtype",
        wrong(3, dtype=torch.float16),
        "expected attention_weights of torch.float32, got torch.float16",
    ),
    (
        "more tokens than the kernels count",
        (torch.zeros(1).expand(2, 2**31, 3, 4), *wrong(0)[1:]),
        "expected value of at most 2147483647 tokens, got [2, 2147483648, 3, 4]",
    ),
]
