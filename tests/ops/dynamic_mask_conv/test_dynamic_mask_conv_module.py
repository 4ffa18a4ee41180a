# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from avskernels.nn import DynamicMaskHead
from avskernels.reference import dynamic_mask_conv


def published(features, params, points, coord_scale):
    return dynamic_mask_conv(
        features,
        params,
        hidden=(4, 2),
        reference_points=points,
        stride=8,
        coord_scale=coord_scale,
        coords="first",
    )


def test_head_passes_its_settings_on():
    head = DynamicMaskHead(3, (4, 2), stride=8, coord_scale=0.5, coords="first")
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 5, 6, generator=generator)
    params = torch.randn(2, 4, head.num_params, generator=generator)
    points = torch.rand(2, 4, 2, generator=generator) * 40
    expected = published(features, params, points, 0.5)
    torch.testing.assert_close(head(features, params, points), expected)
    sizes = torch.rand(2, 4, generator=generator)
    expected = published(features, params, points, sizes)
    torch.testing.assert_close(head(features, params, points, coord_scale=sizes), expected)
    flat = head(
        features,
        params.flatten(0, 1),
        points.flatten(0, 1),
        image_index=torch.arange(2).repeat_interleave(4),
    )
    torch.testing.assert_close(flat.view(2, 4, 5, 6), head(features, params, points))


def test_controller_learns_through_the_head():
    head = DynamicMaskHead(8, relative_coordinates=False)
    controller = torch.nn.Linear(16, head.num_params)
    masks = head(torch.randn(1, 8, 4, 4), controller(torch.randn(1, 3, 16)))
    masks.square().sum().backward()
    assert controller.weight.grad.abs().sum() > 0
    assert not list(head.parameters())


@pytest.mark.parametrize("relative", [True, False])
def test_reference_points_must_fit_the_head(relative):
    head = DynamicMaskHead(8, relative_coordinates=relative)
    points = None if relative else torch.zeros(1, 3, 2)
    with pytest.raises(ValueError, match="DynamicMaskHead: expected"):
        head(torch.zeros(1, 8, 4, 4), torch.zeros(1, 3, head.num_params), points)
