"""Per-query masks: a chain of 1x1 convolutions whose weights each query brings along."""

import torch

from avskernels import reference
from avskernels._backend import use_reference
from avskernels._check import accumulate_dtype
from avskernels._dynamic_mask_conv_algebra import (
    algebra,
    backward_algebra,
    check,
    layers_of,
    plain_filter,
    split_coordinates,
)
from avskernels._library import register_autocast, register_fallback, register_triton

COORDS = ("last", "first")


def dynamic_mask_conv(
    features,
    params,
    *,
    hidden=(8, 8),
    reference_points=None,
    stride=4,
    coord_scale=1.0,
    coords="last",
    image_index=None,
    backend=None,
):
    r"""Run each query's own small convolution network over the features of its image.

    .. math::
        M_q = W_q^{(L)} \cdots \mathrm{relu}(W_q^{(1)} [F; s (r_q - p)] + b_q^{(1)}) \cdots
              + b_q^{(L)}

    where p is the centre of a feature pixel in image pixels, (x * stride + stride / 2,
    y * stride + stride / 2). The features are never repeated, and the relative coordinates are
    computed and accumulated in float32. Gradients (to features, params and reference_points) are
    deterministic. Under autocast the operator runs in float32.

    Args:
        features: ``Tensor[B, C, H, W]``; float16, bfloat16, float32 or float64; any strides.
        params: ``Tensor[B, Q, P]`` of the features' dtype: all weights [out, in] layer by layer,
            then all biases; or ``Tensor[Q, P]`` with ``image_index``.
        hidden: widths of the hidden layers; ``()`` makes the plain filter ``W F + b``.
        reference_points: ``Tensor[B, Q, 2]`` or ``Tensor[Q, 2]``, (x, y) in image pixels; appends
            two input channels. Kept in float32 for half-precision features.
        stride: image pixels per feature pixel.
        coord_scale: factor s of the relative coordinates, a number or ``Tensor[B, Q]`` /
            ``Tensor[Q]`` (1 / size of interest in AdelaiDet); no gradient. Without
            ``reference_points`` there is nothing to scale.
        coords: ``"last"`` (ReferFormer) or ``"first"`` (AdelaiDet): where the two channels stand.
        image_index: ``Tensor[Q]`` int64, the image of each query, in any order.
        backend: see :func:`avskernels.backend`.

    Returns:
        Tensor: masks ``[B, Q, H, W]``, or ``[Q, H, W]`` with ``image_index``; logits.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit, and for an image that is not
            there (not by the kernels of CUDA devices, where seeing it would mean waiting: there the
            masks of that query are NaN).
        ValueError: for an unknown ``coords``.

    Source: CondInst (Tian et al. 2020), section 3.1; ReferFormer; QDFormer, Eq. 7.

    Example:
        >>> features = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
        >>> params = torch.tensor([[[3.0, -1.0, 2.0, 0.5, 0.25]]])  # 2 relu(3 x0 - x1 + 0.5) + 0.25
        >>> dynamic_mask_conv(features, params, hidden=(1,))
        tensor([[[[3.2500]]]])
    """
    if coords not in COORDS:
        raise ValueError(
            f"dynamic_mask_conv: expected coords to be one of {COORDS}, got {coords!r}"
        )
    hidden = tuple(hidden)
    if reference_points is not None:
        dtype = accumulate_dtype(features.dtype)
        reference_points = reference_points.to(dtype)
        if isinstance(coord_scale, torch.Tensor):
            coord_scale = coord_scale.detach().to(dtype)
        elif coord_scale == 1:
            coord_scale = None
        else:
            coord_scale = reference_points.new_full(reference_points.shape[:-1], coord_scale)
    else:
        coord_scale = None
    if use_reference("dynamic_mask_conv", backend, features):
        check(features, params, reference_points, coord_scale, image_index, hidden)
        scale = 1.0 if coord_scale is None else coord_scale
        return reference.dynamic_mask_conv(
            features, params, hidden, reference_points, stride, scale, coords, image_index
        )
    if not hidden and image_index is None:
        return plain_filter(
            features, params, reference_points, coord_scale, float(stride), coords == "first"
        )
    return torch.ops.avskernels.dynamic_mask_conv.default(
        features,
        params,
        reference_points,
        coord_scale,
        image_index,
        hidden,
        float(stride),
        coords == "first",
    )


@torch.library.register_fake("avskernels::dynamic_mask_conv")
def _fake(
    features, params, reference_points, coord_scale, image_index, hidden, stride, coords_first
):
    check(features, params, reference_points, coord_scale, image_index, hidden)
    return features.new_empty((*params.shape[:-1], *features.shape[2:]))


@torch.library.register_fake("avskernels::_dynamic_mask_conv_backward")
def _backward_fake(grad_masks, features, params, *_):
    return features.new_empty(features.shape), params.new_empty(params.shape)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.hidden, ctx.stride, ctx.coords_first = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_masks):
    features, params, reference_points, coord_scale, _ = ctx.saved_tensors
    grad_features, grad_params = torch.ops.avskernels._dynamic_mask_conv_backward.default(
        grad_masks, *ctx.saved_tensors, ctx.hidden, ctx.stride, ctx.coords_first
    )
    grad_reference = None
    if ctx.needs_input_grad[2]:
        # A reference point adds scale * weight * point to the first layer, as the bias does.
        channels = features.shape[1] + 2
        weight, _ = layers_of(params, channels, ctx.hidden)[0]
        _, grad_bias = layers_of(grad_params, channels, ctx.hidden)[0]
        weight = split_coordinates(weight, ctx.coords_first)[1].to(reference_points.dtype)
        grad_reference = (grad_bias.to(reference_points.dtype) * weight).sum(-2)
        if coord_scale is not None:
            grad_reference = grad_reference * coord_scale.unsqueeze(-1)
    return grad_features, grad_params, grad_reference, None, None, None, None, None


torch.library.register_autograd(
    "avskernels::dynamic_mask_conv", _backward, setup_context=_setup_context
)


register_fallback("dynamic_mask_conv", algebra)
register_fallback("_dynamic_mask_conv_backward", backward_algebra)
register_triton("dynamic_mask_conv", "dynamic_mask_conv")
# CUDA C++ kernels for hidden widths (8, 8) wait under torch.ops.avskernels._dynamic_mask_conv_cuda
# and ..._backward_cuda, with the same arguments, until they have run on a GPU.
register_autocast("dynamic_mask_conv")
