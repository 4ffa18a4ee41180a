# SPDX-License-Identifier: Apache-2.0
"""The gradients of the mixer's passes over the map.

Forward needs no kernel of its own: attention_pool's, the gate's small products, and torch's scaling
of a map by a factor per channel, which is one read and one write already.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from avskernels.core.composite import Known
from avskernels.core.triton import device_of
from avskernels.ops.attention_pool.triton import pool_backward as pooling_backward
from avskernels.ops.channel_attention_mixer.plain import pooled_shift

PIXELS = 1024  # of one step


# computes: sum_n x[n] y[n] of one channel of one image
# grid: images * channels
# traffic and FLOPs: both maps once; 2 per element
# numerics: float32, in a fixed order
# limits: none
@triton.jit
def _dots_kernel(x, y, sums, pixels, BLOCK_N: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, pixels, BLOCK_N):
        pixel = first + tl.arange(0, BLOCK_N)
        one = tl.load(x + row * pixels + pixel, mask=pixel < pixels, other=0).to(tl.float32)
        other = tl.load(y + row * pixels + pixel, mask=pixel < pixels, other=0).to(tl.float32)
        total += one * other
    tl.store(sums + row, tl.sum(total, axis=0))


def dots(grad: Tensor, features: Tensor) -> Tensor:
    """Return the sum over the pixels of grad * features, [B, C]."""
    batch, channels, height, width = features.shape
    sums = features.new_empty(batch, channels, dtype=torch.float32)
    with device_of(features):
        _dots_kernel[(batch * channels,)](
            grad.contiguous(), features.contiguous(), sums, height * width, BLOCK_N=PIXELS
        )
    return sums


def scale_backward(a: Known) -> dict[str, Tensor]:
    """Launch the sums of the factors' gradient."""
    return {"grad_factor": dots(a.grad_mixed, a.features)}


def pool_backward(a: Known) -> dict[str, Tensor]:
    """Launch attention_pool's backward over the gated map."""
    grad_features, grad_queries, grad_offsets = pooling_backward(
        a.features,
        a.queries,
        a.offsets,
        a.mask,
        a.grad_pooled,
        a.normalizer,
        pooled_shift(a),
        a.softmax,
        gated=(a.grad_mixed, a.factor),
    )
    return {
        "grad_features": grad_features,
        "grad_queries": grad_queries,
        "grad_offsets": grad_offsets,
    }
