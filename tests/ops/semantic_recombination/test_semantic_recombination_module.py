# SPDX-License-Identifier: Apache-2.0
"""The module against the reference, between its own layers."""

import pytest
import torch
from checks import randomise
from torch import nn

from avskernels import reference
from avskernels.nn import SemanticRecombination
from avskernels.testing import assert_close


@pytest.mark.parametrize("norm", ["batch", "group", None])
@pytest.mark.parametrize("frames", [None, 3])
def test_recombination(norm, frames):
    module = randomise(SemanticRecombination(8, 3, norm=norm, num_groups=2))
    features = torch.randn(2, *([frames] if frames else []), 8, 5, 7)
    tokens = torch.randn(2, 3, 8)
    fused = module(features, tokens)
    mixed = reference.semantic_recombination(
        features, module.filters(tokens), module.phi.weight, module.phi.bias
    )
    assert_close(fused, module.norm(mixed.flatten(0, -4)).view_as(mixed).double())
    fused.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_norms_are_those_asked_for():
    for norm, layer in (("batch", nn.BatchNorm2d), ("group", nn.GroupNorm), (None, nn.Identity)):
        assert type(SemanticRecombination(8, 3, norm=norm, num_groups=2).norm) is layer


def test_recombination_norm():
    with pytest.raises(ValueError, match="expected norm to be one of"):
        SemanticRecombination(8, 3, norm="layer")
