# SPDX-License-Identifier: Apache-2.0
"""Deformable attention: gathers forward, fixed-point scatters backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from avskernels.core.triton import device_of
from avskernels.ops.deformable_attention.plain import level_shapes

TILE = 1024  # numbers a program keeps of the output


@triton.jit
def _pixels(location, size):
    """One coordinate: the pixels on both sides, moved onto the map, their shares, whether off."""
    size = size.to(location.dtype)
    position = location * size - 0.5
    low = tl.floor(position)
    high = low + 1
    low_off = (low < 0) | (low >= size)
    high_off = (high < 0) | (high >= size)
    low_share = tl.where(low_off, 0.0, high - position)
    high_share = tl.where(high_off, 0.0, position - low)
    # Compared so that NaN, too, becomes a pixel of the map.
    low = tl.where(low > 0, low, 0.0)
    high = tl.where(high > 0, high, 0.0)
    low = tl.where(low < size, low, size - 1).to(tl.int64)
    high = tl.where(high < size, high, size - 1).to(tl.int64)
    return low, high, low_share, high_share, low_off, high_off


@triton.jit
def _sample(locations, weights, sample, exists, height, width):
    """One sampling point of each query: coordinates, weight, and pixels along x and along y."""
    x = tl.load(locations + 2 * sample, mask=exists, other=0)
    y = tl.load(locations + 2 * sample + 1, mask=exists, other=0)
    weight = tl.load(weights + sample, mask=exists, other=0)
    return x, y, weight, _pixels(x, width), _pixels(y, height)


@triton.jit
def _corner(across, down, first, width, tokens, RIGHT: tl.constexpr, LOWER: tl.constexpr):
    """One of the four pixels around a point: its token, its shares, whether it is on the map."""
    token = first + down[LOWER] * width + across[RIGHT]
    on = ~(across[4 + RIGHT] | down[4 + LOWER])
    # The bound on token holds for every shape that fits, and keeps any other inside the tensor.
    on = on & (token >= 0) & (token < tokens)
    return token, across[2 + RIGHT], down[2 + LOWER], on


@triton.jit
def _program(queries, heads, BLOCK_Q: tl.constexpr):
    """Image, head and rows ``(image * Q + query) * heads + head`` of this program."""
    blocks = tl.cdiv(queries, BLOCK_Q)
    item = tl.program_id(0)
    image = (item // blocks // heads).to(tl.int64)
    head = item // blocks % heads
    query = item % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    return image, head, (image * queries + query) * heads + head, query < queries


# computes: output rows of BLOCK_Q queries of one image and head
# grid: images x heads x blocks of queries
# traffic and FLOPs: locations, weights, output once; value from L2; 8 B Q heads L P D
# numerics: summed in float32 (float64 for float64), level by level, point by point
# limits: none; NaN where spatial_shapes does not cover the value
@triton.jit
def _forward_kernel(
    value,  # [B, S, heads, D]
    shapes,  # [L, 2]
    locations,  # [B, Q, heads, L, P, 2]
    weights,  # [B, Q, heads, L, P]
    output,  # [B, Q, heads, D]
    tokens,
    queries,
    heads,
    dim,
    levels,
    points,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    dtype: tl.constexpr = locations.dtype.element_ty
    image, head, row, exists = _program(queries, heads, BLOCK_Q)
    channel = tl.arange(0, BLOCK_D)
    mask = exists[:, None] & (channel < dim)[None, :]
    stride = heads * dim
    value += image * tokens * stride + head * dim
    total = tl.zeros([BLOCK_Q, BLOCK_D], dtype)
    first = tl.full([], 0, tl.int64)
    fits = first == 0
    for level in range(levels):
        height = tl.load(shapes + 2 * level)
        width = tl.load(shapes + 2 * level + 1)
        for point in range(points):
            sample = (row * levels + level) * points + point
            _, _, weight, across, down = _sample(locations, weights, sample, exists, height, width)
            for corner in tl.static_range(4):
                token, x_share, y_share, on = _corner(
                    across, down, first, width, tokens, corner % 2, corner // 2
                )
                at = token[:, None] * stride + channel[None, :]
                pixel = tl.load(value + at, mask=mask & on[:, None], other=0).to(dtype)
                total += pixel * (weight * y_share * x_share)[:, None]
        fits = fits & (height > 0) & (width > 0)
        first += height * width
    total = tl.where(fits & (first == tokens), total, float("nan"))
    tl.store(output + row[:, None] * dim + channel[None, :], total, mask=mask)


# computes: what BLOCK_Q queries of one image and head pass back to value, locations and weights
# grid: images x heads x blocks of queries
# traffic and FLOPs: grad_output, locations, weights and their gradients once, value from L2, four
#   additions of 8 bytes to L2 per sample and channel; 16 B Q heads L P D
# numerics: as forward; the gradient of value is summed in 64-bit fixed point of the given scale,
#   where the order does not matter, so results are deterministic
# limits: none; NaN where spatial_shapes does not cover the value
@triton.jit
def _backward_kernel(
    grad_output,  # [B, Q, heads, D]
    value,  # [B, S, heads, D]
    shapes,  # [L, 2]
    locations,  # [B, Q, heads, L, P, 2]
    weights,  # [B, Q, heads, L, P]
    scale,  # []
    fixed_value,  # [B, S, heads, D] int64
    grad_locations,  # as locations
    grad_weights,  # as weights
    tokens,
    queries,
    heads,
    dim,
    levels,
    points,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    dtype: tl.constexpr = locations.dtype.element_ty
    image, head, row, exists = _program(queries, heads, BLOCK_Q)
    channel = tl.arange(0, BLOCK_D)
    mask = exists[:, None] & (channel < dim)[None, :]
    stride = heads * dim
    value += image * tokens * stride + head * dim
    fixed_value += image * tokens * stride + head * dim
    scale = tl.load(scale)
    grad = tl.load(grad_output + row[:, None] * dim + channel[None, :], mask=mask, other=0)
    grad = grad.to(dtype)
    first = tl.full([], 0, tl.int64)
    for level in range(levels):
        height = tl.load(shapes + 2 * level)
        width = tl.load(shapes + 2 * level + 1)
        for point in range(points):
            sample = (row * levels + level) * points + point
            x, y, weight, across, down = _sample(locations, weights, sample, exists, height, width)
            located = (x == x) & (y == y)
            value_sum = tl.zeros([BLOCK_Q], dtype)
            x_slope = tl.zeros([BLOCK_Q], dtype)
            y_slope = tl.zeros([BLOCK_Q], dtype)
            for corner in tl.static_range(4):
                token, x_share, y_share, on = _corner(
                    across, down, first, width, tokens, corner % 2, corner // 2
                )
                at = token[:, None] * stride + channel[None, :]
                pixel = tl.load(value + at, mask=mask & on[:, None], other=0).to(dtype)
                dot = tl.sum(pixel * grad, axis=1)
                value_sum += dot * x_share * y_share
                x_slope += dot * y_share if corner % 2 else -dot * y_share
                y_slope += dot * x_share if corner // 2 else -dot * x_share
                part = grad * (weight * y_share * x_share)[:, None]
                fixed = (part.to(tl.float64) * scale).to(tl.int64)
                passed = mask & (located & on)[:, None]
                tl.atomic_add(fixed_value + at, fixed, mask=passed, sem="relaxed")
            tl.store(grad_weights + sample, value_sum, mask=exists)
            tl.store(grad_locations + 2 * sample, weight * width * x_slope, mask=exists)
            tl.store(grad_locations + 2 * sample + 1, weight * height * y_slope, mask=exists)
        first += height * width


def _arguments(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> tuple[tuple[Tensor, ...], tuple[int, ...], tuple[int]]:
    """Return the tensors, sizes and grid of both kernels."""
    if not spatial_shapes.is_cuda:  # otherwise a wrong S shows as NaN: no wait for the device
        level_shapes(value, spatial_shapes)
    tensors = (
        value.contiguous(),
        spatial_shapes.to(value.device).contiguous(),
        sampling_locations.contiguous(),
        attention_weights.contiguous(),
    )
    batch, tokens, heads, dim = value.shape
    queries, levels, points = (sampling_locations.shape[i] for i in (1, 3, 4))
    block_d = triton.next_power_of_2(max(dim, 1))
    block_q = max(TILE // block_d, 1)
    grid = (batch * heads * triton.cdiv(queries, block_q),)
    return tensors, (tokens, queries, heads, dim, levels, points, block_q, block_d), grid


def forward(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Launch the forward kernel."""
    tensors, sizes, grid = _arguments(value, spatial_shapes, sampling_locations, attention_weights)
    batch, _, heads, dim = value.shape
    output = value.new_empty(batch, sampling_locations.shape[1], heads * dim)
    if output.numel() > 0:
        with device_of(value):
            _forward_kernel[grid](*tensors, output, *sizes)
    return output


def backward(
    value: Tensor,
    spatial_shapes: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward kernel; take the gradient of value out of its fixed point."""
    tensors, sizes, grid = _arguments(value, spatial_shapes, sampling_locations, attention_weights)
    grad_locations = sampling_locations.new_zeros(sampling_locations.shape)
    grad_weights = attention_weights.new_zeros(attention_weights.shape)
    if grad_output.numel() == 0 or grad_weights.numel() == 0:
        return value.new_zeros(value.shape), grad_locations, grad_weights
    # No pixel can sum more than this, so that 62 bits hold it. It is the last bits that are lost:
    # those below 2^-62 of the largest sum there could be.
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    most = grad_output.abs().amax().double() * attention_weights.abs().amax() * queries * points
    exponent = 62 - most.clamp(min=2.0**-900).log2().ceil()
    fixed_value = torch.zeros(value.shape, dtype=torch.int64, device=value.device)
    with device_of(value):
        _backward_kernel[grid](
            grad_output.contiguous(),
            *tensors,
            exponent.exp2(),
            fixed_value,
            grad_locations,
            grad_weights,
            *sizes,
        )
    return (fixed_value * (-exponent).exp2()).to(value.dtype), grad_locations, grad_weights
