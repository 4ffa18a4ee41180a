"""The mixer's backward passes over the maps.

Forward needs no kernel of its own: attention_pool's, the gate's small products, and torch's scaling
of a map by a factor a channel, which is one read and one write already.
"""

import torch
import triton
import triton.language as tl

from avskernels._channel_attention_mixer_algebra import backward_over, channel_dots, pass_backward
from avskernels.triton import device_of
from avskernels.triton.attention_pool import pool_backward

PIXELS = 1024  # of one step


# computes: sum_n x[n] y[n] of one channel of one image
# grid: images * channels
# traffic and FLOPs: both maps once; 2 an element
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


def _launch_dots(grad, features):
    if features.dtype == torch.float64 or features.numel() == 0:
        return channel_dots(grad, features)
    batch, channels, height, width = features.shape
    sums = features.new_empty(batch, channels, dtype=torch.float32)
    with device_of(features):
        _dots_kernel[(batch * channels,)](
            grad.contiguous(), features.contiguous(), sums, height * width, BLOCK_N=PIXELS
        )
    return sums


def _launch_pass(
    grad, features, factor, queries, offsets, mask, grad_pooled, normalizer, shift, softmax
):
    grads = pool_backward(
        features,
        queries,
        offsets,
        mask,
        grad_pooled,
        normalizer,
        shift,
        softmax,
        gated=(grad, factor),
    )
    if grads is None:
        return pass_backward(
            grad, features, factor, queries, offsets, mask, grad_pooled, normalizer, shift, softmax
        )
    return grads


def _channel_attention_mixer_backward(*arguments):
    """Launch the sums of grad * features, then the pass of attention_pool's backward."""
    return backward_over(_launch_dots, _launch_pass, *arguments)
