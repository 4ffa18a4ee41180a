# SPDX-License-Identifier: Apache-2.0
"""Dynamic mask convolution as CondInst-style codes write it: features repeated for every query."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional


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
) -> Tensor:
    """Return the masks of all queries from one grouped convolution per layer."""
    height, width = features.shape[-2:]
    queries = params.flatten(0, -2)  # [Q, P]
    if len(queries) == 0:  # torch has no convolution without groups
        return features.new_empty(*params.shape[:-1], height, width)
    if image_index is None:
        inputs = features.repeat_interleave(params.shape[1], dim=0)
    else:
        inputs = features[image_index]  # [Q, C, H, W]
    if reference_points is not None:
        x = torch.arange(width, device=params.device) * stride + stride / 2
        y = torch.arange(height, device=params.device) * stride + stride / 2
        pixels = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
        exact = torch.promote_types(features.dtype, torch.float32)
        relative = reference_points.to(exact).reshape(-1, 2, 1, 1) - pixels
        if isinstance(coord_scale, Tensor):
            coord_scale = coord_scale.detach().to(exact).reshape(-1, 1, 1, 1)
        relative = (relative * coord_scale).to(inputs)
        inputs = torch.cat([relative, inputs] if coords == "first" else [inputs, relative], dim=1)

    widths = [inputs.shape[1], *hidden, 1]
    weight_sizes = [o * i for i, o in pairwise(widths)]
    pieces = queries.split([*weight_sizes, *widths[1:]], dim=1)
    count = queries.shape[0]
    state = inputs.reshape(1, -1, height, width)
    for layer, (weight, bias) in enumerate(
        zip(pieces[: len(weight_sizes)], pieces[len(weight_sizes) :], strict=True)
    ):
        if layer > 0:
            state = state.relu()
        kernel = weight.reshape(count * widths[layer + 1], widths[layer], 1, 1)
        state = functional.conv2d(state, kernel, bias.flatten(), groups=count)
    return state.view(*params.shape[:-1], height, width)
