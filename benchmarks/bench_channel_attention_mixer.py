"""channel_attention_mixer against AVSegFormer's code, which projects the whole map twice."""

import torch
from common import Case, grid, measure, variants

from avskernels import channel_attention_mixer, reference
from avskernels.channel_attention_mixer import _algebra

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


def algebra(features, *small):
    small = [tensor.to(torch.float32) for tensor in small]
    return _algebra(features, *small, None, None, None, 8, True, "sigmoid")[0]


VARIANTS = variants(
    eager=reference.channel_attention_mixer,
    algebra=algebra,
    avskernels=channel_attention_mixer,
)


@grid(CASES, VARIANTS, forward_only=("algebra",))
def test_channel_attention_mixer(benchmark, case, mode, dtype, variant):
    measure(benchmark, VARIANTS[variant], case, mode, dtype)
