# SPDX-License-Identifier: Apache-2.0
"""The mask head of CondInst, ReferFormer and QDFormer, without its controller."""

from collections.abc import Sequence

from torch import Tensor, nn

from avskernels.ops.dynamic_mask_conv.operator import dynamic_mask_conv
from avskernels.ops.dynamic_mask_conv.plain import num_params


class DynamicMaskHead(nn.Module):
    """Masks from features and from the filters that a controller predicts for each query.

    The head has no weights of its own: the controller, any module that ends in ``num_params``
    features for each query, stands outside.

    Args:
        channels: C of the features.
        hidden: widths of the hidden layers; ``()`` is the plain filter.
        relative_coordinates: whether the position relative to the reference point is an input.
        stride: image pixels per feature pixel.
        coord_scale: factor of the relative coordinates.
        coords: ``"last"`` (ReferFormer) or ``"first"`` (AdelaiDet).

    Attributes:
        num_params: how many parameters each query brings.

    Source: CondInst (Tian et al. 2020), section 3.1; ReferFormer; QDFormer, Eq. 7.

    Example:
        >>> import torch
        >>> head = DynamicMaskHead(8)
        >>> controller = nn.Linear(256, head.num_params)
        >>> queries, points = torch.randn(2, 5, 256), torch.rand(2, 5, 2) * 224
        >>> head(torch.randn(2, 8, 56, 56), controller(queries), points).shape
        torch.Size([2, 5, 56, 56])
    """

    def __init__(
        self,
        channels: int,
        hidden: Sequence[int] = (8, 8),
        *,
        relative_coordinates: bool = True,
        stride: float = 4,
        coord_scale: float | Tensor = 1.0,
        coords: str = "last",
    ) -> None:
        super().__init__()
        self.hidden = tuple(hidden)
        self.relative_coordinates = relative_coordinates
        self.stride = stride
        self.coord_scale = coord_scale
        self.coords = coords
        self.num_params = num_params(channels, self.hidden, relative_coordinates)

    def forward(
        self,
        features: Tensor,
        params: Tensor,
        reference_points: Tensor | None = None,
        *,
        coord_scale: float | Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Return mask logits; the arguments are those of :func:`avskernels.dynamic_mask_conv`.

        A ``coord_scale`` given here, one per query for instance, replaces the head's.

        Raises:
            ValueError: where reference points are missing, or given to a head without coordinates.
        """
        if (reference_points is not None) != self.relative_coordinates:
            raise ValueError(
                "DynamicMaskHead: expected "
                f"{'reference_points' if self.relative_coordinates else 'no reference_points'}, "
                f"got {'none' if reference_points is None else list(reference_points.shape)}"
            )
        return dynamic_mask_conv(
            features,
            params,
            hidden=self.hidden,
            reference_points=reference_points,
            stride=self.stride,
            coord_scale=self.coord_scale if coord_scale is None else coord_scale,
            coords=self.coords,
            image_index=image_index,
        )

    def extra_repr(self) -> str:
        """Return the settings for ``print``."""
        return (
            f"hidden={self.hidden}, relative_coordinates={self.relative_coordinates}, "
            f"stride={self.stride}, num_params={self.num_params}"
        )
