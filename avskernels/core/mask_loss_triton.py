# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels of matching_cost and focal_dice_loss share: the pixel loss."""

import triton
import triton.language as tl

KINDS = {"bce": 0, "focal": 1}


@triton.jit
def logistic(x):
    """Return p, 1 - p, -log p, -log(1 - p) of logits, with one exponential."""
    e = tl.exp(-tl.abs(x))
    larger = 1 / (1 + e)
    log_sum = tl.where(e < 1e-4, e - 0.5 * e * e, tl.log(1 + e))
    p = tl.where(x < 0, e * larger, larger)
    q = tl.where(x < 0, larger, e * larger)
    return p, q, tl.where(x < 0, -x, 0.0) + log_sum, tl.where(x < 0, 0.0, x) + log_sum


@triton.jit
def pixel_terms(x, inside, outside, gamma, KIND: tl.constexpr):
    """Return slope and offset of loss(x, t) = offset + slope t, and p."""
    p, _, to_one, to_zero = logistic(x)
    if KIND == 0:
        return -x, to_zero, p
    else:
        one = inside * tl.exp(-gamma * to_zero) * to_one
        zero = outside * tl.exp(-gamma * to_one) * to_zero
        return one - zero, zero, p


@triton.jit
def read_mask(pointers, valid, BINARY: tl.constexpr):
    """Load mask pixels as float32, 0 where not valid."""
    value = tl.load(pointers, mask=valid, other=0)
    if BINARY:
        return (value != 0).to(tl.float32)
    else:
        return value.to(tl.float32)


@triton.jit
def pixel_gradients(x, inside, outside, gamma, KIND: tl.constexpr):
    """Return slope and offset of d loss / dx = offset + slope t, and dp / dx."""
    p, q, to_one, to_zero = logistic(x)
    if KIND == 0:
        return tl.full(x.shape, -1.0, tl.float32), p, p * q
    else:
        one = -inside * tl.exp(-gamma * to_zero) * (q + gamma * p * to_one)
        zero = outside * tl.exp(-gamma * to_one) * (p + gamma * q * to_zero)
        return one - zero, zero, p * q
