# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels of attention_pool and tpavi share: a map's products with a few rows."""

import triton
import triton.language as tl

PROGRAMS = 264  # enough for two a multiprocessor


@triton.jit
def load_matrix(matrix, row, column, rows, columns):
    """Load ``matrix[row, column]``, zero where there is no such element."""
    at = row[:, None].to(tl.int64) * columns + column[None, :]
    exists = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(matrix + at, mask=exists, other=0)


@triton.jit
def row_products(matrix, features, row, pixel, rows, channels, pixels, start, STEP: tl.constexpr):
    """Add ``matrix[row, :] . features[:, pixel]`` to ``start[R, N]``, a few channels at a time."""
    for first in range(0, channels, STEP):
        channel = first + tl.arange(0, STEP)
        values = load_matrix(matrix, row, channel, rows, channels)
        x = load_matrix(features, channel, pixel, channels, pixels).to(tl.float32)
        start = tl.dot(values, x, start, input_precision="tf32x3")
    return start


def split(pixels, step, programs):
    """Return how many parts to cut pixels into, and how long, for enough programs in all."""
    parts = max(1, min(triton.cdiv(pixels, 4 * step), triton.cdiv(PROGRAMS, programs)))
    part_size = triton.cdiv(triton.cdiv(pixels, parts), step) * step
    return max(1, triton.cdiv(pixels, part_size)), part_size
