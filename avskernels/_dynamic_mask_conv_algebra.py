"""What dynamic_mask_conv computes beside its kernels: the layout of params, and plain torch."""

from itertools import pairwise

import torch

from avskernels._check import FLOATS, accumulate_dtype, expect


def num_params(channels, hidden=(8, 8), coordinates=True):
    """Count the parameters P that each query brings for features of ``channels`` channels."""
    widths = (channels + 2 * coordinates, *hidden, 1)
    return sum(inputs * outputs + outputs for inputs, outputs in pairwise(widths))


def check(features, params, reference_points, coord_scale, image_index, hidden):
    # The same sentences as check_mask_conv in csrc/dynamic_mask_conv/dynamic_mask_conv.h.
    op = "dynamic_mask_conv"
    expect(op, "features", features, ("B", "C", "H", "W"), FLOATS)
    batch, channels = features.shape[:2]
    device = features.device
    if any(width < 1 for width in hidden):
        raise RuntimeError(f"{op}: expected hidden widths of at least 1, got {list(hidden)}")
    if channels == 0:
        raise RuntimeError(f"{op}: expected at least one channel, got {list(features.shape)}")
    count = num_params(channels, hidden, reference_points is not None)
    queries = ("Q",) if image_index is not None else (batch, "Q")
    expect(op, "params", params, (*queries, count), (features.dtype,), device)
    queries = params.shape[:-1]
    wide = (accumulate_dtype(features.dtype),)
    if image_index is not None:
        expect(op, "image_index", image_index, queries, (torch.int64,), device)
    if reference_points is not None:
        expect(op, "reference_points", reference_points, (*queries, 2), wide, device)
    if coord_scale is not None:
        expect(op, "coord_scale", coord_scale, queries, wide, device)


def layers_of(params, channels, hidden):
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


def split_coordinates(weight, coords_first):
    """Split a first layer's weight [..., out, C + 2] into those of features and coordinates."""
    if coords_first:
        return weight[..., 2:], weight[..., :2]
    return weight[..., :-2], weight[..., -2:]


def _relative_coordinates(reference_points, coord_scale, height, width, stride):
    """Return scale * (reference - pixel centre) along x [B, Q, 1, 1, W] and y [B, Q, 1, H, 1]."""
    x, y = (
        reference_points[..., axis, None]
        - (torch.arange(size, device=reference_points.device) * stride + stride / 2)
        for axis, size in enumerate((width, height))
    )
    if coord_scale is not None:
        x, y = x * coord_scale.unsqueeze(-1), y * coord_scale.unsqueeze(-1)
    return x[:, :, None, None, :], y[:, :, None, :, None]


def plain_filter(features, params, points, scale, stride, coords_first):
    """Without hidden layers all that is left is one matrix product, which the BLAS does best."""
    device, dtype = features.device.type, features.dtype
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        features, params, dtype = features.float(), params.float(), torch.float32
    check(features, params, points, scale, None, ())
    with torch.autocast(device, enabled=False):
        wide, weights = (tensor.to(accumulate_dtype(dtype)) for tensor in (features, params))
        (weight, bias), *_ = layers_of(weights, features.shape[1] + 2 * (points is not None), ())
        if points is not None:
            weight, coord_weight = split_coordinates(weight, coords_first)
        masks = torch.baddbmm(bias.squeeze(-1), weight.squeeze(2), wide.flatten(2))
        masks = masks.unflatten(2, features.shape[2:])
        if points is not None:
            x, y = _relative_coordinates(points, scale, *features.shape[2:], stride)
            masks = masks.addcmul(coord_weight[..., 0, None], x.squeeze(2))
            masks = masks.addcmul(coord_weight[..., 1, None], y.squeeze(2))
        return masks.to(dtype)


def _batch_states(features, params, points, scale, hidden, stride, coords_first):
    """Return what each layer puts out, [B, Q, out, H * W], after its activation."""
    batch, channels, height, width = features.shape
    queries = params.shape[1]
    layers = layers_of(params, channels + 2 * (points is not None), hidden)
    weight, bias = layers[0]
    outputs = weight.shape[2]
    coord_weight = None
    if points is not None:
        weight, coord_weight = split_coordinates(weight, coords_first)
    state = weight.reshape(batch, queries * outputs, channels) @ features.flatten(2)
    state = state.view(batch, queries, outputs, height, width) + bias.unsqueeze(-1)
    if coord_weight is not None:
        x, y = _relative_coordinates(points, scale, height, width, stride)
        state += coord_weight[..., 0, None, None] * x
        state += coord_weight[..., 1, None, None] * y
    states = [state.flatten(3)]
    for weight, bias in layers[1:]:
        states[-1].relu_()
        states.append(weight @ states[-1] + bias)
    return states


def _batch_forward(features, params, *rest):
    masks = _batch_states(features, params, *rest)[-1]
    return masks.view(*params.shape[:2], *features.shape[2:])


def _batch_backward(grad_masks, features, params, points, scale, hidden, stride, coords_first):
    batch, channels, height, width = features.shape
    queries = params.shape[1]
    layers = layers_of(params, channels + 2 * (points is not None), hidden)
    states = _batch_states(features, params, points, scale, hidden, stride, coords_first)
    grad = grad_masks.flatten(2).unsqueeze(2)  # [B, Q, 1, H * W]
    grad_weights, grad_biases = [], []
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


def _queries_of_images(image_index, images):
    if ((image_index < 0) | (image_index >= images)).any():
        raise RuntimeError(
            f"dynamic_mask_conv: expected image_index in 0..{images - 1}, "
            f"got {image_index.min().item()}..{image_index.max().item()}"
        )
    return [(b, (image_index == b).nonzero().flatten()) for b in range(images)]


def _of_queries(tensor, queries):
    return None if tensor is None else tensor[queries].unsqueeze(0)


def algebra(features, params, points, scale, image_index, hidden, stride, coords_first):
    """Return what the operator does; without features repeated for every query."""
    check(features, params, points, scale, image_index, hidden)
    dtype = accumulate_dtype(features.dtype)
    wide, weights = features.to(dtype), params.to(dtype)
    rest = hidden, stride, coords_first
    if image_index is None:
        return _batch_forward(wide, weights, points, scale, *rest).to(features.dtype)
    masks = features.new_empty((*params.shape[:-1], *features.shape[2:]))
    for image, queries in _queries_of_images(image_index, features.shape[0]):
        tensors = (_of_queries(tensor, queries) for tensor in (weights, points, scale))
        masks[queries] = _batch_forward(wide[image : image + 1], *tensors, *rest)[0].to(masks.dtype)
    return masks


def backward_algebra(
    grad_masks, features, params, points, scale, image_index, hidden, stride, coords_first
):
    """Return the gradients of features and params."""
    dtype = accumulate_dtype(features.dtype)
    grad, wide, weights = (tensor.to(dtype) for tensor in (grad_masks, features, params))
    rest = hidden, stride, coords_first
    grad_features = features.new_empty(features.shape)
    grad_params = params.new_empty(params.shape)
    if image_index is None:
        grads = _batch_backward(grad, wide, weights, points, scale, *rest)
        return grad_features.copy_(grads[0]), grad_params.copy_(grads[1])
    for image, queries in _queries_of_images(image_index, features.shape[0]):
        tensors = (_of_queries(tensor, queries) for tensor in (weights, points, scale))
        one = slice(image, image + 1)
        grads = _batch_backward(_of_queries(grad, queries), wide[one], *tensors, *rest)
        grad_features[one] = grads[0].to(features.dtype)
        grad_params[queries] = grads[1][0].to(params.dtype)
    return grad_features, grad_params
