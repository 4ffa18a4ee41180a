# SPDX-License-Identifier: Apache-2.0
"""The stand-ins, in the code they are meant for: Hugging Face's layers with random weights."""

import warnings

import pytest
import torch
from ops.deformable_attention.cases import CASES, oracle, sample

import avskernels
from avskernels.nn import DeformableAttention, MultiScaleDeformableAttention
from avskernels.testing import assert_close


@pytest.fixture
def transformers_models():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("transformers")
        from transformers.models.deformable_detr import modeling_deformable_detr
        from transformers.models.mask2former import modeling_mask2former
    return modeling_deformable_detr, modeling_mask2former


def test_arguments_are_those_of_the_published_function():
    value, shapes, locations, weights = sample(*CASES["odd primes"])
    start = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    output = avskernels.MSDeformAttnFunction.apply(value, shapes, start, locations, weights, 64)
    assert_close(output, oracle(value, shapes, locations, weights))


def randomized(module):
    """A module whose layers all matter: offsets and weights start at zero otherwise."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


def layer_inputs(shapes, dim, reference_size):
    generator = torch.Generator().manual_seed(1)
    tokens = sum(height * width for height, width in shapes)
    return {
        "hidden_states": torch.randn(2, 9, dim, generator=generator),
        "encoder_hidden_states": torch.randn(2, tokens, dim, generator=generator),
        "reference_points": torch.rand(2, 9, len(shapes), reference_size, generator=generator),
        "spatial_shapes": torch.tensor(shapes),
        "spatial_shapes_list": shapes,
        "attention_mask": torch.rand(2, tokens, generator=generator) > 0.2,  # True: not padding
    }


def output_and_grads(layer, inputs):
    leaves = {
        name: tensor.clone().requires_grad_()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
        else tensor
        for name, tensor in inputs.items()
    }
    output = layer(**leaves)[0]
    inputs = [leaf for leaf in leaves.values() if getattr(leaf, "requires_grad", False)]
    return [output.detach(), *torch.autograd.grad(output.square().sum(), inputs)]


@pytest.mark.parametrize("reference_size", [2, 4])
def test_deformable_detr_layer(transformers_models, reference_size):
    modeling = transformers_models[0]
    config = modeling.DeformableDetrConfig(d_model=32, num_feature_levels=2)
    layer = randomized(modeling.DeformableDetrMultiscaleDeformableAttention(config, 4, 3))
    inputs = layer_inputs([(6, 5), (3, 2)], 32, reference_size)
    expected = output_and_grads(layer, inputs)

    layer.attn = MultiScaleDeformableAttention()
    for actual, wanted in zip(output_and_grads(layer, inputs), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)

    ours = DeformableAttention(32, num_heads=4, num_levels=2, num_points=3)
    ours.load_state_dict(layer.state_dict())
    output = ours(
        inputs["hidden_states"],
        inputs["reference_points"],
        inputs["encoder_hidden_states"],
        inputs["spatial_shapes_list"],
        ~inputs["attention_mask"],
    )
    torch.testing.assert_close(output, expected[0], rtol=1e-4, atol=1e-4)


def test_mask2former_pixel_decoder(transformers_models, monkeypatch):
    modeling = transformers_models[1]
    config = modeling.Mask2FormerConfig(
        feature_size=32, mask_feature_size=32, encoder_layers=2, encoder_feedforward_dim=48
    )
    decoder = randomized(modeling.Mask2FormerPixelDecoder(config, [8, 16, 24, 32]))
    generator = torch.Generator().manual_seed(1)
    features = [
        torch.randn(1, channels, size, size + 1, generator=generator)
        for channels, size in zip([8, 16, 24, 32], [16, 8, 4, 2], strict=True)
    ]
    with torch.no_grad():
        expected = decoder(features)
        calls = []

        def counted(*args):
            calls.append(args)
            return avskernels.multi_scale_deformable_attention(*args)

        monkeypatch.setattr(modeling, "multi_scale_deformable_attention", counted)
        actual = decoder(features)
    assert len(calls) == 2  # one per layer
    torch.testing.assert_close(actual.mask_features, expected.mask_features, rtol=1e-4, atol=1e-4)
    for one, other in zip(actual.multi_scale_features, expected.multi_scale_features, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
