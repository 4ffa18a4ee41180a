# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention: a few weighted bilinear samples per query and head."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avskernels.core.backend import cpp, cuda_cpp, plain_torch, triton_kernel
from avskernels.core.operator import Operator
from avskernels.core.specification import accumulate_dtype, fail, to_dtype
from avskernels.ops.deformable_attention import plain
from avskernels.ops.deformable_attention.reference import deformable_attention as reference

MOST_TOKENS = 2**31 - 1


def deformable_attention(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Sum, for every query and head, a few bilinear samples of a feature pyramid.

    .. math:: o_{qh} = \sum_{l,p} A_{qhlp}\, V_{hl}(W_l x_{qhlp} - 1/2,\ H_l y_{qhlp} - 1/2)

    where V between pixel centres is bilinear and outside the map zero. A sample that lies off its
    map, infinitely far too, adds nothing; a location that is NaN makes its query's head NaN. The
    gradients of all three are deterministic. Autocast changes nothing: half-precision values with
    float32 locations are what the operator wants.

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
        to_dtype(sampling_locations, torch.promote_types(sampling_locations.dtype, dtype)),
        to_dtype(attention_weights, torch.promote_types(attention_weights.dtype, dtype)),
    )
    if OPERATOR.wants_reference(backend, args):
        plain.level_shapes(value, spatial_shapes)  # fails where the levels do not fit
        return reference(*args)
    output: Tensor = OPERATOR(*args)
    return output


class MSDeformAttnFunction:
    """Stands in for the autograd function of this name in published repositories.

    ``from avskernels import MSDeformAttnFunction`` in place of their import is the whole change:
    nothing has to be compiled. It takes any D, half precision, and any number of images.
    """

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
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

        Raises:
            RuntimeError: as :func:`deformable_attention`.
        """
        return deformable_attention(
            value, value_spatial_shapes, sampling_locations, attention_weights
        )


def multi_scale_deformable_attention(
    value: Tensor,
    value_spatial_shapes: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Stand in for the function of this name in Hugging Face's Mask2Former and OneFormer.

    The arguments and the result are those of :func:`deformable_attention`. Models that hold a
    module instead take :class:`avskernels.nn.MultiScaleDeformableAttention`.

    Args:
        value: ``Tensor[B, S, heads, D]``.
        value_spatial_shapes: ``Tensor[L, 2]`` int64 or pairs, (height, width).
        sampling_locations: ``Tensor[B, Q, heads, L, P, 2]``.
        attention_weights: ``Tensor[B, Q, heads, L, P]``.

    Returns:
        Tensor: ``Tensor[B, Q, heads * D]``.

    Raises:
        RuntimeError: as :func:`deformable_attention`.
    """
    return deformable_attention(value, value_spatial_shapes, sampling_locations, attention_weights)


def _triton() -> Any:
    from avskernels.ops.deformable_attention import triton

    return triton


def _require(arguments: Any) -> None:
    value = arguments.value
    if value.shape[1] > MOST_TOKENS:
        fail(
            "deformable_attention",
            f"value of at most {MOST_TOKENS} tokens",
            list(value.shape),
        )


BACKWARD = Operator(
    "_deformable_attention_backward",
    [
        cpp(),
        cuda_cpp(
            lambda *args: torch.ops.avskernels._deformable_attention_backward_cuda.default(*args)
        ),
        triton_kernel(lambda *args: _triton().backward(*args)),
        plain_torch(plain.backward),
    ],
    requires=_require,
)
OPERATOR = Operator(
    "deformable_attention",
    [
        cpp(),
        cuda_cpp(lambda *args: torch.ops.avskernels._deformable_attention_cuda.default(*args)),
        triton_kernel(lambda *args: _triton().forward(*args)),
        plain_torch(plain.forward),
    ],
    requires=_require,
    gradient=BACKWARD,
)
