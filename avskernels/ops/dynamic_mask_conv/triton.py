# SPDX-License-Identifier: Apache-2.0
"""Dynamic mask convolution: every program runs one query's network over a block of pixels."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from avskernels.core.triton import device_of

BLOCK = 128  # pixels


# computes: the mask of one query for BLOCK pixels
# grid: queries x blocks of pixels
# traffic and FLOPs: masks once, features once per query from L2; 2 P per pixel and query
# numerics: float32 (float64 for float64) throughout, coordinates included
# limits: one hidden layer at least, none wider than 64 (the state stays in registers); an image
#   that is not there gives NaN
@triton.jit
def _forward_kernel(
    features,  # [B, C, H, W], any strides
    filters,  # [Q, P]; `params` is a name that Triton's launcher uses itself
    points,  # [Q, 2]
    scales,  # [Q]
    image_index,  # [Q]
    masks,  # [Q, H * W]
    images,
    channels,
    width,
    pixels,
    filter_size,
    image_step,
    channel_step,
    row_step,
    column_step,
    stride,
    first_feature,  # row of the first layer's inputs
    first_coord,
    COORDINATES: tl.constexpr,
    LAYERS: tl.constexpr,  # (inputs, outputs, first weight, first bias) of each layer
    WIDTH: tl.constexpr,  # power of two not below the widest layer
    BLOCK: tl.constexpr,
):
    dtype: tl.constexpr = points.dtype.element_ty
    blocks = tl.cdiv(pixels, BLOCK)
    query = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = pixel < pixels
    row, column = pixel // width, pixel % width
    image = tl.load(image_index + query)
    there = (image >= 0) & (image < images)
    filters += query * filter_size
    features += tl.where(there, image, 0) * image_step + row * row_step + column * column_step

    unit = tl.arange(0, WIDTH)
    inputs: tl.constexpr = LAYERS[0][0]
    known = unit < LAYERS[0][1]
    weights = filters + LAYERS[0][2] + unit * inputs
    bias = tl.load(filters + LAYERS[0][3] + unit, mask=known, other=0).to(dtype)
    state = tl.zeros([WIDTH, BLOCK], dtype) + bias[:, None]
    if COORDINATES:
        scale = tl.load(scales + query)
        x = (tl.load(points + 2 * query) - (column.to(dtype) * stride + stride / 2)) * scale
        y = (tl.load(points + 2 * query + 1) - (row.to(dtype) * stride + stride / 2)) * scale
        weight = tl.load(weights + first_coord, mask=known, other=0).to(dtype)
        state += weight[:, None] * x[None, :]
        weight = tl.load(weights + first_coord + 1, mask=known, other=0).to(dtype)
        state += weight[:, None] * y[None, :]
    for channel in range(channels):
        values = tl.load(features + channel * channel_step, mask=exists, other=0).to(dtype)
        weight = tl.load(weights + first_feature + channel, mask=known, other=0).to(dtype)
        state += weight[:, None] * values[None, :]

    for layer in tl.static_range(1, len(LAYERS)):
        # In this form NaN stays, and what is beyond the layer's width has no share in it.
        state = tl.where((state < 0) | (unit >= LAYERS[layer][0])[:, None], 0.0, state)
        known = unit < LAYERS[layer][1]
        source = unit < LAYERS[layer][0]
        bias = tl.load(filters + LAYERS[layer][3] + unit, mask=known, other=0).to(dtype)
        weights = filters + LAYERS[layer][2] + unit[:, None] * LAYERS[layer][0] + unit[None, :]
        weight = tl.load(weights, mask=known[:, None] & source[None, :], other=0).to(dtype)
        state = tl.sum(weight[:, :, None] * state[None, :, :], axis=1) + bias[:, None]
    mask = tl.sum(tl.where(unit[:, None] == 0, state, 0.0), axis=0)
    mask = tl.where(there, mask, float("nan"))
    tl.store(masks + query * pixels + pixel, mask, mask=exists)


def forward(
    features: Tensor,
    params: Tensor,
    reference_points: Tensor | None,
    coord_scale: Tensor | None,
    image_index: Tensor | None,
    hidden: Sequence[int],
    stride: float,
    coords_first: bool,
) -> Tensor:
    """Launch one program per query and block of pixels."""
    hidden = tuple(hidden)
    images, channels, height, width = features.shape
    flat = params.reshape(-1, params.shape[-1]).contiguous()
    queries = len(flat)
    masks = features.new_empty((*params.shape[:-1], height, width))
    if masks.numel() == 0:
        return masks
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    if image_index is None:
        image_index = torch.arange(images, device=params.device).repeat_interleave(params.shape[1])
    coordinates = reference_points is not None
    if reference_points is not None:
        points = reference_points.reshape(queries, 2).contiguous()
        if coord_scale is None:
            scales = points.new_ones(queries)
        else:
            scales = coord_scale.reshape(queries).contiguous()
    else:
        points = scales = flat.new_empty(1, dtype=wide)
    block = max(BLOCK // max(triton.next_power_of_2(max(hidden)) // 8, 1), 16)
    with device_of(features):
        _forward_kernel[(queries * triton.cdiv(height * width, block),)](
            features,
            flat,
            points,
            scales,
            image_index.contiguous(),
            masks,
            images,
            channels,
            width,
            height * width,
            flat.shape[1],
            *features.stride(),
            stride,
            2 if coordinates and coords_first else 0,
            0 if coords_first else channels,
            COORDINATES=coordinates,
            LAYERS=_layout(channels + 2 * coordinates, hidden),
            WIDTH=triton.next_power_of_2(max(hidden)),
            BLOCK=block,
        )
    return masks


def _layout(inputs: int, hidden: Sequence[int]) -> tuple[tuple[int, int, int, int], ...]:
    """Return (inputs, outputs, first weight, first bias) of each layer in a row of params."""
    shapes = list(zip((inputs, *hidden), (*hidden, 1), strict=True))
    weight, bias = 0, sum(i * o for i, o in shapes)
    layers = []
    for i, o in shapes:
        layers.append((i, o, weight, bias))
        weight, bias = weight + i * o, bias + o
    return tuple(layers)
