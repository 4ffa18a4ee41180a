"""Multi-scale deformable attention."""

import torch
from torch import Tensor
from torch.nn import functional

from avskernels import reference
from avskernels._backend import use_reference
from avskernels._check import accumulate_dtype
from avskernels._library import register_fallback, register_triton

LONGEST_SIDE = 2**24  # up to here float32 counts every pixel
MOST_TOKENS = 2**31 - 1


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
            pairs; the areas add up to S. A tensor on a CUDA device is not waited for: where its
            areas do not add up, the result is NaN instead of an error.
        sampling_locations: ``Tensor[B, Q, heads, L, P, 2]``, (x, y) with 0 and 1 at the outer
            edges of the map; of value's dtype or float32, and kept in float32 at least.
        attention_weights: ``Tensor[B, Q, heads, L, P]``, dtype likewise.
        backend: see :func:`avskernels.backend`.

    Returns:
        Tensor: ``Tensor[B, Q, heads * D]`` of value's dtype, summed in float32 (float64 for
        float64).

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit, and for areas that do not add
            up to S.

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
    dtype = accumulate_dtype(value.dtype)
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
    return torch.ops.avskernels.deformable_attention.default(*args)


class MSDeformAttnFunction:
    """Stands in for the autograd function of this name in published repositories.

    ``from avskernels import MSDeformAttnFunction`` in place of their import is the whole change:
    nothing has to be compiled. It takes any D, half precision, and any number of images.
    """

    @staticmethod
    def apply(
        value,
        value_spatial_shapes,
        value_level_start_index,
        sampling_locations,
        attention_weights,
        im2col_step,
    ):
        """Call :func:`deformable_attention`; levels follow one another, images need no batches.

        Args:
            value: ``Tensor[B, S, heads, D]``.
            value_spatial_shapes: ``Tensor[L, 2]`` int64, (height, width).
            value_level_start_index: not needed, since it follows from the shapes.
            sampling_locations: ``Tensor[B, Q, heads, L, P, 2]``.
            attention_weights: ``Tensor[B, Q, heads, L, P]``.
            im2col_step: not needed.

        Returns:
            Tensor: ``Tensor[B, Q, heads * D]``.
        """
        return deformable_attention(
            value, value_spatial_shapes, sampling_locations, attention_weights
        )


def multi_scale_deformable_attention(
    value, value_spatial_shapes, sampling_locations, attention_weights
):
    """Stand in for the function of this name in Hugging Face's Mask2Former and OneFormer.

    The arguments and the result are those of :func:`deformable_attention`. Models that hold a
    module instead take :class:`avskernels.nn.MultiScaleDeformableAttention`.
    """
    return deformable_attention(value, value_spatial_shapes, sampling_locations, attention_weights)


def _check(value, spatial_shapes, sampling_locations, attention_weights):
    # The same sentences as check_deformable in csrc/deformable_attention/deformable_attention.h.
    op = "deformable_attention"
    if value.dim() != 4:
        raise RuntimeError(f"{op}: expected value [B, S, heads, D], got {list(value.shape)}")
    if value.shape[1] > MOST_TOKENS:
        raise RuntimeError(
            f"{op}: expected value of at most {MOST_TOKENS} tokens, got {list(value.shape)}"
        )
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
    dtype = accumulate_dtype(value.dtype)
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
    sides_fit = all(min(shape) >= 1 and max(shape) <= LONGEST_SIDE for shape in shapes)
    if covered != value.shape[1] or not sides_fit:
        raise RuntimeError(
            f"deformable_attention: expected spatial_shapes of sides from 1 to {LONGEST_SIDE} "
            f"whose areas add up to the {value.shape[1]} tokens of value, got {shapes}"
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
    grad_value, grad_locations, grad_weights = (
        torch.ops.avskernels._deformable_attention_backward.default(grad_output, *ctx.saved_tensors)
    )
    return grad_value, None, grad_locations, grad_weights


torch.library.register_autograd(
    "avskernels::deformable_attention", _backward, setup_context=_setup_context
)


def _levels(value, spatial_shapes, sampling_locations):
    """Yield for each level: its index, slice of tokens, maps [B * heads, D, H, W] and grid."""
    # Everything beyond [-1, 2] is off every map: infinity becomes so without becoming NaN.
    grids = (2 * sampling_locations.clamp(-1, 2) - 1).transpose(1, 2).flatten(0, 1)
    maps = value.to(grids.dtype).permute(0, 2, 3, 1).flatten(0, 1)  # [B * heads, D, S]
    start = 0
    for level, (height, width) in enumerate(spatial_shapes.tolist()):
        tokens = slice(start, start + height * width)
        yield level, tokens, maps[..., tokens].unflatten(-1, (height, width)), grids[:, :, level]
        start = tokens.stop


# Differs from the definition in holding the samples of one level at a time.
def _algebra(value, spatial_shapes, sampling_locations, attention_weights):
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    _check_tokens(value, spatial_shapes)
    batch, _, heads, dim = value.shape
    queries = sampling_locations.shape[1]
    weights = attention_weights.transpose(1, 2).flatten(0, 1)  # [B * heads, Q, L, P]
    output = weights.new_zeros(batch * heads, dim, queries)
    for level, _, maps, grid in _levels(value, spatial_shapes, sampling_locations):
        samples = functional.grid_sample(maps, grid, align_corners=False)
        output += samples.mul_(weights[:, None, :, level]).sum(-1)
    output = output.view(batch, heads * dim, queries).transpose(1, 2)
    return output.to(value.dtype).contiguous()


def _backward_algebra(grad_output, value, spatial_shapes, sampling_locations, attention_weights):
    batch, tokens, heads, dim = value.shape
    weights = attention_weights.transpose(1, 2).flatten(0, 1)  # [B * heads, Q, L, P]
    grad = grad_output.to(weights.dtype).unflatten(-1, (heads, dim))
    grad = grad.permute(0, 2, 3, 1).flatten(0, 1).unsqueeze(-1)  # [B * heads, D, Q, 1]
    grad_maps = weights.new_empty(batch * heads, dim, tokens)
    grad_grids = weights.new_empty(*weights.shape, 2)
    grad_weights = torch.empty_like(weights)
    for level, of_level, maps, grid in _levels(value, spatial_shapes, sampling_locations):
        samples = functional.grid_sample(maps, grid, align_corners=False)
        grad_weights[:, :, level] = (samples * grad).sum(1)
        grad_map, grad_grids[:, :, level] = torch.ops.aten.grid_sampler_2d_backward(
            grad * weights[:, None, :, level], maps, grid, 0, 0, False, (True, True)
        )
        grad_maps[..., of_level] = grad_map.flatten(-2)

    def per_image(tensor):  # [B * heads, Q, ...] -> [B, Q, heads, ...]
        return tensor.unflatten(0, (batch, heads)).transpose(1, 2).contiguous()

    grad_value = grad_maps.unflatten(0, (batch, heads)).permute(0, 3, 1, 2)
    return (
        grad_value.to(value.dtype).contiguous(),
        per_image(2 * grad_grids),
        per_image(grad_weights),
    )


register_fallback("deformable_attention", _algebra)
register_fallback("_deformable_attention_backward", _backward_algebra)
# CUDA C++ kernels for both wait under torch.ops.avskernels._deformable_attention_cuda and
# ..._backward_cuda, with the same arguments, until they have run on a GPU.
register_triton("deformable_attention", "deformable_attention")
register_triton("_deformable_attention_backward", "deformable_attention")
# No autocast rule: half-precision values with float32 locations are what the operator wants.
