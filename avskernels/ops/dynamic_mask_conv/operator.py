# SPDX-License-Identifier: Apache-2.0
"""Per-query masks: a chain of 1x1 convolutions whose weights each query brings along."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avskernels.core.backend import cpp, cuda_cpp, plain_torch, triton_kernel
from avskernels.core.operator import Gradient, Operator
from avskernels.core.specification import accumulate_dtype, check_choice, fail
from avskernels.ops.dynamic_mask_conv import plain
from avskernels.ops.dynamic_mask_conv.reference import dynamic_mask_conv as reference

OP = "dynamic_mask_conv"
COORDS = ("last", "first")
CUDA_HIDDEN = (8, 8)
CUDA_CHANNELS = 256  # the backward kernel's tile fits 99 KiB of shared memory, what devices have
TRITON_WIDTH = 64  # of a hidden layer that a program keeps in registers


def dynamic_mask_conv(
    features: Tensor,
    params: Tensor,
    *,
    hidden: Sequence[int] = (8, 8),
    reference_points: Tensor | None = None,
    stride: float = 4,
    coord_scale: float | Tensor = 1.0,
    coords: str = "last",
    image_index: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
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
    check_choice(OP, "coords", coords, COORDS)
    hidden = tuple(hidden)
    points, scale = reference_points, None
    if points is not None:
        points = points.to(accumulate_dtype(features.dtype))
        if isinstance(coord_scale, Tensor):
            scale = coord_scale.detach().to(points.dtype)
        elif coord_scale != 1:
            scale = points.new_full(points.shape[:-1], coord_scale)
    coords_first = coords == "first"
    args = features, params, points, scale, image_index, hidden, float(stride), coords_first
    if OPERATOR.wants_reference(backend, args):
        return reference(
            features,
            params,
            hidden=hidden,
            reference_points=reference_points,
            stride=stride,
            coord_scale=coord_scale,
            coords=coords,
            image_index=image_index,
        )
    if not hidden and image_index is None:
        return _plain_filter(features, params, points, scale, float(stride), coords_first)
    masks: Tensor = OPERATOR(*args)
    return masks


def _plain_filter(
    features: Tensor,
    params: Tensor,
    points: Tensor | None,
    scale: Tensor | None,
    stride: float,
    coords_first: bool,
) -> Tensor:
    device = features.device.type
    if features.dtype != torch.float64 and torch.is_autocast_enabled(device):
        features, params = features.float(), params.float()
    OPERATOR.check((features, params, points, scale, None, (), stride, coords_first))
    with torch.autocast(device, enabled=False):
        return plain.plain_filter(features, params, points, scale, stride, coords_first)


def _triton() -> Any:
    from avskernels.ops.dynamic_mask_conv import triton

    return triton


def _require(arguments: Any) -> None:
    hidden, features, params = arguments.hidden, arguments.features, arguments.params
    if any(width < 1 for width in hidden):
        fail(OP, "hidden widths of at least 1", list(hidden))
    batch, channels = features.shape[:2]
    if channels == 0:
        fail(OP, "at least one channel", list(features.shape))
    count = plain.num_params(channels, hidden, arguments.reference_points is not None)
    images = f"{batch}, " if arguments.image_index is None else ""
    if params.shape[-1] != count or params.dim() != (3 if images else 2):
        fail(OP, f"params [{images}Q, {count}]", list(params.shape))


def _cpp_refuses(arguments: Any) -> str | None:
    if not arguments.hidden and arguments.image_index is None:
        return "without hidden layers it is one matrix product, which the BLAS does best"
    return None


def _cuda_refuses(arguments: Any) -> str | None:
    if tuple(arguments.hidden) != CUDA_HIDDEN:
        return f"hidden widths other than {CUDA_HIDDEN}"
    if arguments.features.dtype == torch.float64:
        return "float64"
    channels = arguments.features.shape[1]
    return f"more than {CUDA_CHANNELS} channels" if channels > CUDA_CHANNELS else None


def _triton_refuses(arguments: Any) -> str | None:
    if not arguments.hidden:
        return "no hidden layer"
    widest = max(arguments.hidden)
    return f"a hidden layer wider than {TRITON_WIDTH}" if widest > TRITON_WIDTH else None


def _setup_context(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    arguments = OPERATOR.specification.Arguments(*inputs)
    ctx.hidden, ctx.stride = arguments.hidden, arguments.stride
    ctx.coords_first = arguments.coords_first
    ctx.save_for_backward(
        arguments.features,
        arguments.params,
        arguments.reference_points,
        arguments.coord_scale,
        arguments.image_index,
    )


def _run_backward(ctx: Any, grad_masks: Tensor) -> tuple[Tensor | None, ...]:
    arguments = OPERATOR.specification.Arguments(
        *ctx.saved_tensors, ctx.hidden, ctx.stride, ctx.coords_first
    )
    grad_features, grad_params = BACKWARD(grad_masks, *arguments)
    grads = dict.fromkeys(arguments._fields) | {"features": grad_features, "params": grad_params}
    if ctx.needs_input_grad[arguments._fields.index("reference_points")]:
        grads["reference_points"] = plain.grad_reference_points(grad_params, arguments)
    return tuple(grads.values())


BACKWARD = Operator(
    "_dynamic_mask_conv_backward",
    [
        cpp(),
        cuda_cpp(
            lambda *args: torch.ops.avskernels._dynamic_mask_conv_backward_cuda.default(*args),
            _cuda_refuses,
        ),
        plain_torch(plain.backward),
    ],
    requires=_require,
)
OPERATOR = Operator(
    "dynamic_mask_conv",
    [
        cpp(_cpp_refuses),
        cuda_cpp(
            lambda *args: torch.ops.avskernels._dynamic_mask_conv_cuda.default(*args),
            _cuda_refuses,
        ),
        triton_kernel(lambda *args: _triton().forward(*args), _triton_refuses),
        plain_torch(plain.forward),
    ],
    requires=_require,
    gradient=Gradient(_setup_context, _run_backward),
    autocast=torch.float32,
)
