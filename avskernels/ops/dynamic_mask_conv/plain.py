# SPDX-License-Identifier: Apache-2.0
"""Dynamic mask convolution in plain torch, and the layout of its params."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from avskernels.core.specification import accumulate_dtype, fail


def num_params(channels: int, hidden: Sequence[int] = (8, 8), coordinates: bool = True) -> int:
    """Count the parameters P that each query brings for features of ``channels`` channels."""
    widths = (channels + 2 * coordinates, *hidden, 1)
    return sum(inputs * outputs + outputs for inputs, outputs in pairwise(widths))


def layers_of(params: Tensor, channels: int, hidden: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Unpack params [..., P] into (weight [..., out, in], bias [..., out, 1]) of each layer."""
    shapes = [(outputs, inputs) for inputs, outputs in pairwise((channels, *hidden, 1))]
    sizes = [outputs * inputs for outputs, inputs in shapes] + [outputs for outputs, _ in shapes]
    pieces = params.split(sizes, dim=-1)
    return [
        (weight.unflatten(-1, shape), bias.unsqueeze(-1))
        for shape, weight, bias in zip(
            shapes, pieces[: len(shapes)], pieces[len(shapes) :], strict=True
        )
    ]


def split_coordinates(weight: Tensor, coords_first: bool) -> tuple[Tensor, Tensor]:
    """Split a first layer's weight [..., out, C + 2] into those of features and coordinates."""
    if coords_first:
        return weight[..., 2:], weight[..., :2]
    return weight[..., :-2], weight[..., -2:]


def _relative_coordinates(
    reference_points: Tensor, coord_scale: Tensor | None, height: int, width: int, stride: float
) -> tuple[Tensor, Tensor]:
    """Return scale * (reference - pixel centre) along x [B, Q, 1, 1, W] and y [B, Q, 1, H, 1]."""
    x, y = (
        reference_points[..., axis, None]
        - (torch.arange(size, device=reference_points.device) * stride + stride / 2)
        for axis, size in enumerate((width, height))
    )
    if coord_scale is not None:
        x, y = x * coord_scale.unsqueeze(-1), y * coord_scale.unsqueeze(-1)
    return x[:, :, None, None, :], y[:, :, None, :, None]


def plain_filter(
    features: Tensor,
    params: Tensor,
    points: Tensor | None,
    scale: Tensor | None,
    stride: float,
    coords_first: bool,
) -> Tensor:
    """Without hidden layers all that is left is one matrix product, which the BLAS does best."""
    wide, weights = (tensor.to(accumulate_dtype(features.dtype)) for tensor in (features, params))
    (weight, bias), *_ = layers_of(weights, features.shape[1] + 2 * (points is not None), ())
    if points is not None:
        weight, coord_weight = split_coordinates(weight, coords_first)
    masks = torch.baddbmm(bias.squeeze(-1), weight.squeeze(2), wide.flatten(2))
    masks = masks.unflatten(2, features.shape[2:])
    if points is not None:
        height, width = features.shape[2:]
        x, y = _relative_coordinates(points, scale, height, width, stride)
        masks = masks.addcmul(coord_weight[..., 0, None], x.squeeze(2))
        masks = masks.addcmul(coord_weight[..., 1, None], y.squeeze(2))
    return masks.to(features.dtype)


def _batch_states(
    features: Tensor,
    params: Tensor,
    points: Tensor | None,
    scale: Tensor | None,
    hidden: Sequence[int],
    stride: float,
    coords_first: bool,
) -> list[Tensor]:
    """Return what each layer puts out, [B, Q, out, H * W], after its activation."""
    batch, channels, height, width = features.shape
    queries = params.shape[1]
    layers = layers_of(params, channels + 2 * (points is not None), hidden)
    weight, bias = layers[0]
    outputs = weight.shape[2]
    if points is not None:
        weight, coord_weight = split_coordinates(weight, coords_first)
    state = weight.reshape(batch, queries * outputs, channels) @ features.flatten(2)
    state = state.view(batch, queries, outputs, height, width) + bias.unsqueeze(-1)
    if points is not None:
        x, y = _relative_coordinates(points, scale, height, width, stride)
        state += coord_weight[..., 0, None, None] * x
        state += coord_weight[..., 1, None, None] * y
    states = [state.flatten(3)]
    for weight, bias in layers[1:]:
        states[-1].relu_()
        states.append(weight @ states[-1] + bias)
    return states


def _batch_forward(features: Tensor, params: Tensor, *rest: Any) -> Tensor:
    masks = _batch_states(features, params, *rest)[-1]
    return masks.view(*params.shape[:2], *features.shape[2:])


def _batch_backward(
    grad_masks: Tensor,
    features: Tensor,
    params: Tensor,
    points: Tensor | None,
    scale: Tensor | None,
    hidden: Sequence[int],
    stride: float,
    coords_first: bool,
) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = features.shape
    queries = params.shape[1]
    layers = layers_of(params, channels + 2 * (points is not None), hidden)
    states = _batch_states(features, params, points, scale, hidden, stride, coords_first)
    grad = grad_masks.flatten(2).unsqueeze(2)  # [B, Q, 1, H * W]
    grad_weights: list[Tensor] = []
    grad_biases: list[Tensor] = []
    for (weight, _), state in zip(layers[:0:-1], states[-2::-1], strict=True):
        grad_weights.insert(0, (grad @ state.transpose(2, 3)).flatten(2))
        grad_biases.insert(0, grad.sum(-1))
        grad = (weight.transpose(2, 3) @ grad).masked_fill_(state <= 0, 0)
    weight, _ = layers[0]
    outputs = weight.shape[2]
    if points is not None:
        weight, _ = split_coordinates(weight, coords_first)
    flat = grad.reshape(batch, queries * outputs, height * width)
    grad_features = weight.reshape(batch, queries * outputs, channels).transpose(1, 2) @ flat
    grad_weight = (flat @ features.flatten(2).transpose(1, 2)).view(
        batch, queries, outputs, channels
    )
    if points is not None:
        x, y = _relative_coordinates(points, scale, height, width, stride)
        grid = grad.unflatten(-1, (height, width))
        along = torch.stack([(grid * x).sum((3, 4)), (grid * y).sum((3, 4))], dim=-1)
        parts = [along, grad_weight] if coords_first else [grad_weight, along]
        grad_weight = torch.cat(parts, dim=-1)
    grad_weights.insert(0, grad_weight.flatten(2))
    grad_biases.insert(0, grad.sum(-1))
    grad_params = torch.cat([*grad_weights, *grad_biases], dim=-1)
    return grad_features.view(features.shape), grad_params


def _queries_of_images(image_index: Tensor, images: int) -> list[tuple[int, Tensor]]:
    if ((image_index < 0) | (image_index >= images)).any():
        low, high = image_index.min().item(), image_index.max().item()
        fail("dynamic_mask_conv", f"image_index in 0..{images - 1}", f"{low}..{high}")
    return [(b, (image_index == b).nonzero().flatten()) for b in range(images)]


def _of_queries(tensors: Sequence[Tensor | None], queries: Tensor) -> list[Any]:
    return [None if tensor is None else tensor[queries].unsqueeze(0) for tensor in tensors]


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
    """Compute ``avskernels::dynamic_mask_conv``."""
    dtype = accumulate_dtype(features.dtype)
    wide, weights = features.to(dtype), params.to(dtype)
    per_query = weights, reference_points, coord_scale
    rest = hidden, stride, coords_first
    if image_index is None:
        return _batch_forward(wide, *per_query, *rest).to(features.dtype)
    masks = features.new_empty((*params.shape[:-1], *features.shape[2:]))
    for image, queries in _queries_of_images(image_index, features.shape[0]):
        tensors = _of_queries(per_query, queries)
        masks[queries] = _batch_forward(wide[image : image + 1], *tensors, *rest)[0].to(masks.dtype)
    return masks


def backward(
    grad_masks: Tensor,
    features: Tensor,
    params: Tensor,
    reference_points: Tensor | None,
    coord_scale: Tensor | None,
    image_index: Tensor | None,
    hidden: Sequence[int],
    stride: float,
    coords_first: bool,
) -> tuple[Tensor, Tensor]:
    """Compute ``avskernels::_dynamic_mask_conv_backward``."""
    dtype = accumulate_dtype(features.dtype)
    grad, wide, weights = (tensor.to(dtype) for tensor in (grad_masks, features, params))
    per_query = weights, reference_points, coord_scale
    rest = hidden, stride, coords_first
    grad_features = features.new_empty(features.shape)
    grad_params = params.new_empty(params.shape)
    if image_index is None:
        grads = _batch_backward(grad, wide, *per_query, *rest)
        return grad_features.copy_(grads[0]), grad_params.copy_(grads[1])
    for image, queries in _queries_of_images(image_index, features.shape[0]):
        one = slice(image, image + 1)
        own, *tensors = _of_queries((grad, *per_query), queries)
        grads = _batch_backward(own, wide[one], tensors[0], tensors[1], tensors[2], *rest)
        grad_features[one] = grads[0].to(features.dtype)
        grad_params[queries] = grads[1][0].to(params.dtype)
    return grad_features, grad_params


def grad_reference_points(grad_params: Tensor, arguments: Any) -> Tensor:
    """Take the gradient of the reference points from that of the parameters.

    A reference point adds scale * weight * point to the first layer, as the bias does.

    Args:
        grad_params: like ``params``.
        arguments: the operator's, a named tuple.
    """
    points = arguments.reference_points
    channels = arguments.features.shape[1] + 2
    weight, _ = layers_of(arguments.params, channels, arguments.hidden)[0]
    _, grad_bias = layers_of(grad_params, channels, arguments.hidden)[0]
    weight = split_coordinates(weight, arguments.coords_first)[1].to(points.dtype)
    grad = (grad_bias.to(points.dtype) * weight).sum(-2)
    if arguments.coord_scale is not None:
        grad = grad * arguments.coord_scale.unsqueeze(-1)
    return grad
