# SPDX-License-Identifier: Apache-2.0
"""The module against the published module's structure, written out with torch's own layers."""

import pytest
import torch
from checks import randomise
from torch import nn

from avskernels.nn import ChannelAttentionMixer
from avskernels.testing import assert_close


class PublishedMixer(nn.Module):
    """AVSegFormer's mixer by its parameter names, the key and value maps in full."""

    def __init__(self, dim, num_heads, qkv_bias):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv_proj = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, features, audio):
        tokens = features.flatten(2).mT
        query = self.q_proj(audio).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        both = self.kv_proj(tokens).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ both[0].mT * query.shape[-1] ** -0.5).softmax(-1)
        pooled = (weights @ both[1]).transpose(1, 2).flatten(1)
        return features * self.proj(pooled).sigmoid()[:, :, None, None]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_mixer_loads_the_published_checkpoint(batch, qkv_bias):
    published = randomise(PublishedMixer(24, 4, qkv_bias))
    mixer = ChannelAttentionMixer(24, 4, qkv_bias=qkv_bias)
    mixer.load_state_dict(published.state_dict())
    features, audio = torch.randn(batch, 24, 5, 7), torch.randn(batch, 1, 24)
    expected = published.double()(features.double(), audio.double())
    assert_close(mixer(features, audio), expected)
    assert_close(mixer(features, audio[:, 0]), expected)


def test_mixer_by_the_paper():
    mixer = ChannelAttentionMixer(24, 4, formula="paper")
    assert not list(mixer.parameters())
    features, audio = torch.randn(2, 24, 5, 7), torch.randn(2, 1, 24)
    heads = features.double().flatten(2).unflatten(1, (4, 6))  # [B, heads, C / heads, N]
    query = audio.double().view(2, 4, 6)
    logits = torch.einsum("bhd,bhdn->bhn", query, heads) / 6**0.5
    omega = torch.einsum("bhn,bhdn->bhd", logits, heads).flatten(1)
    expected = features + features * omega[:, :, None, None]
    assert_close(mixer(features, audio), expected)


def test_mixer_errors():
    with pytest.raises(ValueError, match="expected dim to be a multiple of 5 heads, got 24"):
        ChannelAttentionMixer(24, 5)
    with pytest.raises(ValueError, match="expected formula to be one of"):
        ChannelAttentionMixer(24, 4, formula="other")
