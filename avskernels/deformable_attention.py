"""Multi-scale deformable attention."""

import torch
from torch import Tensor
from torch.nn import functional

from avskernels import reference
from avskernels._backend import use_reference
from avskernels._library import define, register_fallback


def deformable_attention(
    value, spatial_shapes, sampling_locations, attention_weights, *, backend=None
):
    r"""Sum, for every query and head, a few bilinear samples of a feature pyramid.

    .. math:: o_{qh} = \sum_{l,p} A_{qhlp}\, V_{hl}(W_l x_{qhlp} - 1/2,\ H_l y_{qhlp} - 1/2)

    where V between pixel centres is bilinear and outside the map zero. A sample that lies off its
    map, infinitely far too, adds nothing; a location that is NaN makes its query's head NaN. The
    gradients of all three are deterministic.

    Args:
        value: ``Tensor[B, S, heads, D]``, the maps of all levels, flattened and concatenated;
            float16, bfloat16, float32 or float64.
        spatial_shapes: (height, width) of each level, ``Tensor[L, 2]`` int64 or a sequence of
            pairs; the areas add up to S.
        sampling_locations: ``Tensor[B, Q, heads, L, P, 2]``, (x, y) with 0 and 1 at the outer
            edges of the map; of value's dtype or float32, and kept in float32 at least.
        attention_weights: ``Tensor[B, Q, heads, L, P]``, dtype likewise.
        backend: see :func:`avskernels.backend`.

    Returns:
        Tensor: ``Tensor[B, Q, heads * D]`` of value's dtype, summed in float32 (float64 for
        float64).

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit.

    Source: Zhu et al. 2021, Deformable DETR, Eq. 3.

    Example:
        >>> value = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)  # one map of 2 x 2
        >>> locations = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).view(1, 1, 1, 1, 2, 2)
        >>> weights = torch.tensor([0.5, 0.5]).view(1, 1, 1, 1, 2)
        >>> deformable_attention(value, [(2, 2)], locations, weights)
        tensor([[[2.2500]]])
    """
    if not isinstance(spatial_shapes, Tensor):
        spatial_shapes = torch.tensor(spatial_shapes, dtype=torch.int64).view(-1, 2)
    dtype = _accumulate_dtype(value.dtype)
    args = (
        value,
        spatial_shapes,
        sampling_locations.to(torch.promote_types(sampling_locations.dtype, dtype)),
        attention_weights.to(torch.promote_types(attention_weights.dtype, dtype)),
    )
    if use_reference("deformable_attention", backend, value):
        _check(*args)
        _check_tokens(value, spatial_shapes)
        return reference.deformable_attention(*args)
    return torch.ops.avskernels.deformable_attention(*args)


def _accumulate_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(value, spatial_shapes, sampling_locations, attention_weights):
    # The same sentences as check_deformable in csrc/deformable_attention/deformable_attention.h.
    op = "deformable_attention"
    if value.dim() != 4:
        raise RuntimeError(f"{op}: expected value [B, S, heads, D], got {list(value.shape)}")
    if not value.dtype.is_floating_point:
        raise RuntimeError(f"{op}: expected a floating-point dtype, got {value.dtype}")
    if spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2:
        raise RuntimeError(
            f"{op}: expected spatial_shapes [L, 2], got {list(spatial_shapes.shape)}"
        )
    if spatial_shapes.dtype != torch.int64:
        raise RuntimeError(
            f"{op}: expected spatial_shapes of torch.int64, got {spatial_shapes.dtype}"
        )
    batch, _, heads, _ = value.shape
    levels = spatial_shapes.shape[0]
    shape = sampling_locations.shape
    if len(shape) != 6 or (shape[0], *shape[2:4], shape[5]) != (batch, heads, levels, 2):
        raise RuntimeError(
            f"{op}: expected sampling_locations [{batch}, Q, {heads}, {levels}, P, 2] to match "
            f"value and spatial_shapes, got {list(shape)}"
        )
    if attention_weights.shape != shape[:-1]:
        raise RuntimeError(
            f"{op}: expected attention_weights {list(shape[:-1])} to match sampling_locations, "
            f"got {list(attention_weights.shape)}"
        )
    dtype = _accumulate_dtype(value.dtype)
    if sampling_locations.dtype != dtype or attention_weights.dtype != dtype:
        raise RuntimeError(
            f"{op}: expected sampling_locations and attention_weights of {dtype} with value of "
            f"{value.dtype}, got {sampling_locations.dtype} and {attention_weights.dtype}"
        )
    if not value.device == sampling_locations.device == attention_weights.device:
        raise RuntimeError(
            f"{op}: expected value, sampling_locations and attention_weights on one device, got "
            f"{value.device}, {sampling_locations.device} and {attention_weights.device}"
        )


def _check_tokens(value, spatial_shapes):
    shapes = spatial_shapes.tolist()
    covered = sum(height * width for height, width in shapes)
    if covered != value.shape[1] or any(min(shape) < 1 for shape in shapes):
        raise RuntimeError(
            f"deformable_attention: expected spatial_shapes whose areas are positive and add up to "
            f"the {value.shape[1]} tokens of value, got {shapes}"
        )


define(
    "deformable_attention",
    "(Tensor value, Tensor spatial_shapes, Tensor sampling_locations, Tensor attention_weights) "
    "-> Tensor",
)
define(
    "_deformable_attention_backward",
    "(Tensor grad_output, Tensor value, Tensor spatial_shapes, Tensor sampling_locations, "
    "Tensor attention_weights) -> (Tensor grad_value, Tensor grad_locations, Tensor grad_weights)",
)


@torch.library.register_fake("avskernels::deformable_attention")
def _fake(value, spatial_shapes, sampling_locations, attention_weights):
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    batch, _, heads, dim = value.shape
    return value.new_empty(batch, sampling_locations.shape[1], heads * dim)


@torch.library.register_fake("avskernels::_deformable_attention_backward")
def _backward_fake(grad_output, value, spatial_shapes, sampling_locations, attention_weights):
    return (
        value.new_empty(value.shape),
        sampling_locations.new_empty(sampling_locations.shape),
        attention_weights.new_empty(attention_weights.shape),
    )


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_output):
    grad_value, grad_locations, grad_weights = torch.ops.avskernels._deformable_attention_backward(
        grad_output, *ctx.saved_tensors
    )
    return grad_value, None, grad_locations, grad_weights


torch.library.register_autograd(
    "avskernels::deformable_attention", _backward, setup_context=_setup_context
)


def _corners(value, spatial_shapes, sampling_locations):
    """Return, each [B, Q, heads, L, P, 4] or [..., 4, 2], what the four corners of a sample are.

    Rows of value as a [B * S * heads, D] table, bilinear weights, and their (x, y) derivatives.
    """
    batch, tokens, heads, _ = value.shape
    device = value.device
    shapes = spatial_shapes.to(device)
    sizes = shapes.flip(-1)[:, None]  # [L, 1, 2], (width, height)
    first = (shapes.prod(-1).cumsum(0) - shapes.prod(-1))[:, None, None]
    position = sampling_locations * sizes - 0.5
    outside = ((position < -1) | (position >= sizes)).any(-1, keepdim=True)
    low = position.floor()
    high_share = position - low
    share = torch.stack((1 - high_share, high_share), dim=-1)  # [..., (x, y), (low, high)]
    low = low.nan_to_num(0).clamp(sizes.new_tensor(-1), sizes).long()
    index = torch.stack((low, low + 1), dim=-1)
    valid = (index >= 0) & (index < sizes.unsqueeze(-1)) & ~outside.unsqueeze(-1)
    index = index.clamp(min=0).minimum(sizes.unsqueeze(-1) - 1)

    def pairs(per_axis):  # [..., 2, 2] -> x and y of the corners (y, x) = 00, 01, 10, 11
        x, y = per_axis.unbind(-2)
        return x[..., None, :].expand_as(per_axis), y[..., :, None].expand_as(per_axis)

    (x, y), (x_share, y_share), (x_valid, y_valid) = map(pairs, (index, share, valid))
    token = first[..., None] + y * shapes[:, None, None, None, 1] + x
    image = torch.arange(batch, device=device).view(-1, 1, 1, 1, 1, 1, 1)
    head = torch.arange(heads, device=device).view(-1, 1, 1, 1, 1)
    row = (image * tokens + token) * heads + head
    sign = torch.tensor([-1.0, 1.0], device=device, dtype=position.dtype)
    slope = torch.stack((sign * y_share, sign[:, None] * x_share), dim=-1)
    valid = x_valid & y_valid
    return (
        row.flatten(-2),
        torch.where(valid, x_share * y_share, 0).flatten(-2),
        torch.where(valid.unsqueeze(-1), slope, 0).flatten(-3, -2),
    )


# A sample is a weighted sum of four rows of value, so the operator is an embedding bag: nothing
# of size Q * P * D is stored, where grid_sample stores all samples before it weights them.
def _algebra(value, spatial_shapes, sampling_locations, attention_weights):
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    _check_tokens(value, spatial_shapes)
    batch, _, heads, dim = value.shape
    queries = sampling_locations.shape[1]
    row, bilinear, _ = _corners(value, spatial_shapes, sampling_locations)
    bags = torch.arange(batch * queries * heads, device=value.device)
    output = functional.embedding_bag(
        row.flatten(),
        value.to(bilinear.dtype).reshape(-1, dim),
        bags * (sampling_locations.shape[3:5].numel() * 4),
        mode="sum",
        per_sample_weights=(bilinear * attention_weights.unsqueeze(-1)).flatten(),
    )
    return output.view(batch, queries, heads * dim).to(value.dtype)


def _backward_algebra(grad_output, value, spatial_shapes, sampling_locations, attention_weights):
    row, bilinear, slope = _corners(value, spatial_shapes, sampling_locations)
    dtype, dim = bilinear.dtype, value.shape[-1]
    grad = grad_output.to(dtype).reshape(-1, dim)  # [B * Q * heads, D]
    table = value.to(dtype).reshape(-1, dim)
    rows = row.flatten()
    samples = sampling_locations.shape[3:5].numel() * 4  # rows in a bag
    bags = torch.arange(grad.shape[0], device=value.device)
    bag_of_row = bags.repeat_interleave(samples)
    weights = bilinear * attention_weights.unsqueeze(-1)
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, table, rows, bags * samples, bag_of_row, 0
    ).view_as(bilinear)
    grad_value = torch.ops.aten._embedding_bag_dense_backward(
        grad,
        rows,
        bag_of_row,
        torch.full_like(bags, samples),
        bags,
        table.shape[0],
        False,
        0,
        weights.flatten(),
    )
    sizes = spatial_shapes.to(value.device).flip(-1)[:, None]  # [L, 1, 2], (width, height)
    grad_locations = (slope * dots.unsqueeze(-1)).sum(-2) * attention_weights.unsqueeze(-1) * sizes
    return (
        grad_value.to(value.dtype).view(value.shape),
        grad_locations,
        (bilinear * dots).sum(-1),
    )


register_fallback("deformable_attention", _algebra)
register_fallback("_deformable_attention_backward", _backward_algebra)
# No autocast rule: half-precision values with float32 locations are what the operator wants.
