# SPDX-License-Identifier: Apache-2.0
"""The whole TPAVI block in training against AVSBench's code with its THW x THW affinity."""

import torch
from common import Case, grid, measure, variants
from torch.nn import functional

from avskernels import reference, tpavi

OPERATOR = "tpavi"


def case(name, batch, channels, frames, height, width, **keywords):
    def arguments(dtype):
        generator = torch.Generator().manual_seed(0)
        inner = channels // 2

        def randn(*shape):
            return torch.randn(shape, generator=generator)

        projections = []
        for _ in range(3):
            projections += [randn(inner, channels) / channels**0.5, randn(inner)]
        tensors = (
            randn(batch, channels, frames, height, width),
            randn(batch, frames, channels),
            *projections,
            randn(channels, inner) / inner**0.5,
            *(randn(channels) for _ in range(5)),
        )
        return tuple(tensor.to(dtype) for tensor in tensors)

    size = batch * channels * frames * height * width
    return Case(name, arguments, bytes=12 * size, flops=(4 * frames + 10) * size, **keywords)


CASES = [
    case("one clip, 1x256x5x56x56", 1, 256, 5, 56, 56, dtypes=("float32", "bfloat16"), demo=True),
    case("one clip, 1x256x5x28x28", 1, 256, 5, 28, 28),
]


def block(function):
    def run(visual, audio, *rest):
        names = ("bn_weight", "bn_bias", "norm_weight", "norm_bias")
        norms = dict(zip(names, rest[8:], strict=True))
        return function(visual, audio, *rest[:8], **norms, training=True)

    return run


def algebra(visual, audio, *rest):
    """The rank-T product and the normalisations in plain torch."""
    theta, theta_bias, phi, phi_bias, g, g_bias, out, out_bias, *norms = rest
    pixels = visual.flatten(2)
    rows = functional.linear(audio, phi, phi_bias)  # [B, T, C']
    scores = torch.baddbmm((rows @ theta_bias).unsqueeze(2), rows @ theta, pixels)
    values = functional.linear(visual.mean((3, 4)).mT, g, g_bias) @ out.T / audio.shape[1]
    fused = torch.bmm(values.mT, scores) + out_bias.unsqueeze(1)
    fused = functional.batch_norm(fused, None, None, norms[0], norms[1], True) + pixels
    fused = functional.layer_norm(fused.mT, fused.shape[1:2], norms[2], norms[3]).mT
    return fused.view(visual.shape)


VARIANTS = variants(eager=block(reference.tpavi), algebra=algebra, avskernels=block(tpavi))


@grid(CASES, VARIANTS)
def test_tpavi(benchmark, case, mode, dtype, variant):
    measure(benchmark, VARIANTS[variant], case, mode, dtype)
