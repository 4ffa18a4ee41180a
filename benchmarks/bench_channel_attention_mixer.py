# SPDX-License-Identifier: Apache-2.0
"""channel_attention_mixer against AVSegFormer's code, which projects the whole map twice."""

import torch
from common import Case, grid, measure, variants
from torch.nn import functional

from avskernels import channel_attention_mixer, reference

OPERATOR = "channel_attention_mixer"


def case(name, batch, channels, height, width, **keywords):
    def arguments(dtype):
        generator = torch.Generator().manual_seed(0)
        shapes = [(batch, channels, height, width), (batch, channels), *[(channels, channels)] * 3]
        tensors = [torch.randn(shape, generator=generator) for shape in (*shapes, (channels,))]
        tensors[2:5] = (weight / channels**0.5 for weight in tensors[2:5])
        return tuple(tensor.to(dtype) for tensor in tensors)

    size = batch * channels * height * width
    return Case(name, arguments, bytes=8 * size, flops=(4 * 8 + 1) * size, **keywords)


CASES = [
    case("one clip, 5x256x56x56", 5, 256, 56, 56, dtypes=("float32", "bfloat16"), demo=True),
    case("20 frames, 20x256x56x56", 20, 256, 56, 56),
]


def algebra(features, query, k_weight, v_weight, out_weight, out_bias):
    """The projections folded into query and result, in plain torch."""
    heads = query.unflatten(1, (8, -1))
    keys = k_weight.unflatten(0, (8, -1))
    queries = torch.einsum("bhd,hdc->bhc", heads, keys) * heads.shape[2] ** -0.5
    pixels = features.flatten(2)
    weights = torch.bmm(queries, pixels).softmax(-1)
    pooled = torch.bmm(weights, pixels.mT)
    values = torch.einsum("bhc,hdc->bhd", pooled, v_weight.unflatten(0, (8, -1)))
    gate = functional.linear(values.flatten(1), out_weight, out_bias).sigmoid()
    return features * gate[:, :, None, None]


VARIANTS = variants(
    eager=reference.channel_attention_mixer,
    algebra=algebra,
    avskernels=channel_attention_mixer,
)


@grid(CASES, VARIANTS)
def test_channel_attention_mixer(benchmark, case, mode, dtype, variant):
    measure(benchmark, VARIANTS[variant], case, mode, dtype)
