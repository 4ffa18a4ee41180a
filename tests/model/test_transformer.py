# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from avsmodel.transformer import (
    Attention,
    DecoderLayer,
    OneTokenAttention,
    Residual,
    pixel_centres,
    spatial_positions,
    temporal_positions,
)


def test_attention_is_the_sum_it_says():
    attention = Attention(8, 2).double().requires_grad_(False)
    query, key, value = (torch.randn(2, n, 8, dtype=torch.float64) for n in (3, 5, 5))
    mask = torch.tensor([[True] * 5, [True, False, True, False, False]])
    result = attention(query, key, value, mask)
    q, k, v = attention.query(query), attention.key(key), attention.value(value)
    for clip in range(2):
        for row in range(3):
            joined = []
            for head in (slice(0, 4), slice(4, 8)):
                seen = [s for s in range(5) if mask[clip, s]]
                scores = [float(q[clip, row, head] @ k[clip, s, head]) / 2 for s in seen]
                weights = [math.exp(score) for score in scores]
                joined.append(
                    sum(
                        weight / sum(weights) * v[clip, s, head]
                        for weight, s in zip(weights, seen, strict=True)
                    )
                )
            torch.testing.assert_close(result[clip, row], attention.output(torch.cat(joined)))


def test_attention_with_nothing_to_see_sees_all():
    attention = Attention(8, 2)
    x = torch.randn(1, 4, 8)
    blind = attention(x, x, x, torch.zeros(1, 4, dtype=torch.bool))
    torch.testing.assert_close(blind, attention(x, x, x))


@pytest.mark.parametrize("norm_first", [False, True])
def test_one_token_shortcut_equals_attention(norm_first):
    options = {"dropout": 0.0, "norm_first": norm_first}
    short = DecoderLayer(16, 4, 32, one_token=True, **options)
    full = DecoderLayer(16, 4, 32, **options)
    full.load_state_dict(short.state_dict(), strict=False)  # all but queries and keys
    tokens, memory = torch.randn(3, 5, 16), torch.randn(3, 1, 16)
    torch.testing.assert_close(
        short(tokens, memory, 0.0, torch.randn(1, 16)),
        full(tokens, memory, 0.0, torch.randn(1, 16)),
    )


def test_one_token_attention_has_no_dead_parameters():
    attention = OneTokenAttention(8)
    attention(torch.randn(1, 2, 8), torch.randn(1, 1, 8), torch.randn(1, 1, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in attention.parameters())


@pytest.mark.parametrize("norm_first", [False, True])
def test_residual(norm_first):
    residual = Residual(6, 0.0, norm_first)
    x = torch.randn(2, 6)
    norm = torch.nn.functional.layer_norm
    expected = x + 3 * norm(x, (6,)) if norm_first else norm(x + 3 * x, (6,))
    torch.testing.assert_close(residual(x, lambda value: 3 * value), expected)


def test_temporal_positions():
    positions = temporal_positions(4, 6)
    for t in range(4):
        for i in range(3):
            angle = t / 10000 ** (2 * i / 6)
            assert positions[t, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert positions[t, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


def test_spatial_positions():
    height, width, dim = 3, 5, 8
    positions = spatial_positions(height, width, dim).view(height, width, dim)
    for y in range(height):
        for x in range(width):
            for i in range(2):
                down = 2 * math.pi * (y + 0.5) / height / 10000 ** (2 * i / 4)
                right = 2 * math.pi * (x + 0.5) / width / 10000 ** (2 * i / 4)
                expected = [math.sin(down), math.cos(down), math.sin(right), math.cos(right)]
                found = positions[y, x, [2 * i, 2 * i + 1, 4 + 2 * i, 5 + 2 * i]]
                assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_pixel_centres():
    centres = pixel_centres([(2, 3), (1, 1)])
    assert centres.shape == (7, 2)
    torch.testing.assert_close(centres[4], torch.tensor([0.5, 0.75]))
    torch.testing.assert_close(centres[5], torch.tensor([5 / 6, 0.75]))
    torch.testing.assert_close(centres[6], torch.tensor([0.5, 0.5]))
