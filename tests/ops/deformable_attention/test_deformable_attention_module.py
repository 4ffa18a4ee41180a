# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from avskernels.nn import DeformableAttention

SHAPES = [(6, 5), (3, 2)]
TOKENS = 36


@pytest.fixture
def attention():
    torch.manual_seed(0)
    module = DeformableAttention(16, num_heads=4, num_levels=2, num_points=3)
    for linear in (module.sampling_offsets, module.attention_weights):
        torch.nn.init.normal_(linear.weight, std=0.5)
    return module


def inputs(width, batch=2, queries=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, queries, 16, generator=generator)
    reference_points = torch.rand(batch, queries, 2, width, generator=generator)
    return query, reference_points, torch.randn(batch, TOKENS, 16, generator=generator), SHAPES


def one_at_a_time(module, query, reference_points, value, shapes, padding_mask=None):
    """Deformable DETR's module sample by sample, with grid_sample on one map of one head."""
    batch, queries, dim = query.shape
    heads, levels, points = module.num_heads, module.num_levels, module.num_points
    projected = module.value_proj(value)
    if padding_mask is not None:
        projected = torch.where(padding_mask[..., None], 0, projected)
    offsets = module.sampling_offsets(query).view(batch, queries, heads, levels, points, 2)
    weights = module.attention_weights(query).view(batch, queries, heads, levels * points)
    weights = weights.softmax(-1).view(batch, queries, heads, levels, points)
    result = torch.zeros(batch, queries, heads, dim // heads)
    for b in range(batch):
        for head in range(heads):
            start = 0
            for level, (height, width) in enumerate(shapes):
                rows = projected[b, start : start + height * width].view(height, width, heads, -1)
                pixels = rows[:, :, head].movedim(-1, 0)[None]
                start += height * width
                for q in range(queries):
                    x, y, *box = reference_points[b, q, level]
                    for point in range(points):
                        dx, dy = offsets[b, q, head, level, point]
                        if box:
                            at = x + dx / points * box[0] / 2, y + dy / points * box[1] / 2
                        else:
                            at = x + dx / width, y + dy / height
                        grid = (2 * torch.stack(at) - 1).view(1, 1, 1, 2)
                        pixel = torch.nn.functional.grid_sample(pixels, grid, align_corners=False)
                        result[b, q, head] += weights[b, q, head, level, point] * pixel.flatten()
    return module.output_proj(result.flatten(2))


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_matches_the_published_module(attention, width, masked):
    args = inputs(width)
    mask = torch.arange(TOKENS).expand(2, -1) % 5 == 0 if masked else None
    expected = one_at_a_time(attention, *args, mask)
    torch.testing.assert_close(attention(*args, mask), expected, rtol=1e-5, atol=1e-5)


def test_loads_msdeformattn_checkpoints(attention):
    shapes = {name: list(tensor.shape) for name, tensor in attention.state_dict().items()}
    assert shapes == {
        "sampling_offsets.weight": [48, 16],
        "sampling_offsets.bias": [48],
        "attention_weights.weight": [24, 16],
        "attention_weights.bias": [24],
        "value_proj.weight": [16, 16],
        "value_proj.bias": [16],
        "output_proj.weight": [16, 16],
        "output_proj.bias": [16],
    }


def test_initial_offsets_point_outwards():
    module = DeformableAttention(16, num_heads=8, num_levels=2, num_points=3)
    offsets = module.sampling_offsets.bias.view(8, 2, 3, 2)
    assert offsets.abs().amax(-1).allclose(torch.tensor([1.0, 2.0, 3.0]).expand(8, 2, 3))
    angles = torch.atan2(offsets[..., 1], offsets[..., 0]) % (2 * math.pi)
    assert angles.allclose(torch.arange(8).view(8, 1, 1) * math.pi / 4, atol=1e-6)
    assert not module.sampling_offsets.weight.any()


def test_gradients_reach_every_parameter(attention):
    attention(*inputs(4)).sum().backward()
    assert all(parameter.grad.any() for parameter in attention.parameters())


def test_half_precision_module_keeps_its_locations(attention):
    query, reference_points, value, shapes = inputs(2)
    expected = attention(query, reference_points, value, shapes)
    half = attention.bfloat16()
    output = half(query.bfloat16(), reference_points, value.bfloat16(), shapes)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.15)


def test_autocast_runs_the_operator_in_half_precision(attention):
    args = inputs(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = attention(*args)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), attention(*args), rtol=0, atol=0.15)


def test_shape_tensors_and_pairs_are_the_same(attention):
    query, reference_points, value, shapes = inputs(2)
    expected = attention(query, reference_points, value, shapes)
    assert torch.equal(attention(query, reference_points, value, torch.tensor(shapes)), expected)


def test_heads_must_divide_dim():
    with pytest.raises(ValueError, match="expected dim to be a multiple of 3 heads, got 16"):
        DeformableAttention(16, num_heads=3)


def test_reference_points_need_a_level_axis(attention):
    query, reference_points, value, shapes = inputs(2)
    message = r"expected reference_points .* got \[2, 7, 2\]"
    with pytest.raises(RuntimeError, match=message):
        attention(query, reference_points[:, :, 0], value, shapes)
