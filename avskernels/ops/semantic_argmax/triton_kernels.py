# SPDX-License-Identifier: Apache-2.0
"""The kernels of semantic_argmax: the screen, and float64 for what it leaves open."""

import triton
import triton.language as tl


@triton.jit
def _source(position, source_size, size):
    """One axis of bilinear resizing: the pixels on both sides and the share of the second."""
    scale = tl.full([], 1.0, tl.float64) * source_size / size
    at = (position.to(tl.float64) + 0.5) * scale - 0.5
    at = tl.where(at > 0, at, 0.0)
    low = at.to(tl.int64)
    low = tl.where(low < source_size, low, source_size - 1)
    high = tl.where(low + 1 < source_size, low + 1, source_size - 1)
    share = at - low.to(tl.float64)
    # A pixel without a share does not count, but 0 * infinity is NaN.
    return low, tl.where(share == 0, low, high), tl.where(share == 0, 0.5, share)


@triton.jit
def _mask_values(
    masks,
    pixel,
    exists,
    source_height,
    source_width,
    height,
    width,
    row_step,
    column_step,
    dtype: tl.constexpr,
    RESIZE: tl.constexpr,
):
    """Return mask values at output pixels and the largest magnitude they are mixed from."""
    row, column = pixel // width, pixel % width
    if RESIZE:
        top, bottom, down = _source(row, source_height, height)
        left, right, across = _source(column, source_width, width)
        down, across = down.to(dtype), across.to(dtype)
        top, bottom = top * row_step, bottom * row_step
        left, right = left * column_step, right * column_step
        a = tl.load(masks + top + left, mask=exists, other=0).to(dtype)
        b = tl.load(masks + top + right, mask=exists, other=0).to(dtype)
        c = tl.load(masks + bottom + left, mask=exists, other=0).to(dtype)
        d = tl.load(masks + bottom + right, mask=exists, other=0).to(dtype)
        upper = (1 - across) * a + across * b
        lower = (1 - across) * c + across * d
        largest = tl.maximum(tl.maximum(tl.abs(a), tl.abs(b)), tl.maximum(tl.abs(c), tl.abs(d)))
        return (1 - down) * upper + down * lower, largest
    else:
        at = masks + row * row_step + column * column_step
        value = tl.load(at, mask=exists, other=0).to(dtype)
        return value, tl.zeros_like(value)


# computes: labels (and scores) of BLOCK_P pixels of one image, or their entry into `pending`
# grid: images x blocks of pixels
# traffic and FLOPs: masks and labels once, the class table from L2; 2 N K a pixel
# numerics: products in the table's precision, sums in float32; a pixel whose two best scores are
#   closer than the error bound is left to exact_kernel
# limits: none
@triton.jit
def screen_kernel(
    table,  # [B, N, K], scaled to at most 1
    negative,  # [B, N], twice the magnitude of the lowest entry below 0
    used,  # [B, N], whether any class is left
    floors,  # [B], added to the error bound
    units,  # [B], scale of the table
    masks,  # [B, N, h, w], any strides
    labels,  # [B, H * W]
    scores,  # [B, H * W]
    pending,  # [B * H * W]
    count,  # [1]
    queries,
    classes,
    source_height,
    source_width,
    height,
    width,
    image_step,
    query_step,
    row_step,
    column_step,
    threshold,
    threshold_error,
    relative_error,
    SIGMOID: tl.constexpr,
    RESIZE: tl.constexpr,
    SCORES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Label the pixels whose best score is beyond doubt; list the others."""
    pixels = height * width
    blocks = tl.cdiv(pixels, BLOCK_P)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < pixels
    masks += image * image_step
    table += image * queries * classes

    best = tl.full([BLOCK_P], float("-inf"), tl.float32)
    second = tl.full([BLOCK_P], float("-inf"), tl.float32)
    label = tl.zeros([BLOCK_P], tl.int32)
    doubt = tl.zeros([BLOCK_P], tl.float32)
    magnitude = tl.zeros([BLOCK_P], tl.float32)
    kept = tl.zeros([BLOCK_P], tl.int32)
    unclear = tl.zeros([BLOCK_P], tl.int32)
    for first_class in range(0, classes, BLOCK_K):
        k = first_class + tl.arange(0, BLOCK_K)
        total = tl.zeros([BLOCK_K, BLOCK_P], tl.float32)
        for first_query in range(0, queries, BLOCK_N):
            n = first_query + tl.arange(0, BLOCK_N).to(tl.int64)
            known = n < queries
            counts = tl.load(used + image * queries + n, mask=known, other=0) != 0
            exists = counts[:, None] & inside[None, :]
            value, largest = _mask_values(
                masks + n[:, None] * query_step,
                pixel[None, :],
                exists,
                source_height,
                source_width,
                height,
                width,
                row_step,
                column_step,
                tl.float32,
                RESIZE,
            )
            keep = exists & (value > threshold)
            if first_class == 0:
                magnitude = tl.maximum(magnitude, tl.max(largest, axis=0))
                near = tl.abs(value - threshold) <= 6e-7 * largest + threshold_error
                kept = tl.maximum(kept, tl.max(keep.to(tl.int32), axis=0))
                unclear = tl.maximum(unclear, tl.max((near & exists).to(tl.int32), axis=0))
            if SIGMOID:
                value = 1 / (1 + tl.exp(-value))
            value = tl.where(keep, value, 0.0)
            if first_class == 0:
                below = tl.load(negative + image * queries + n, mask=known, other=0)
                doubt += tl.sum(tl.abs(value) * below[:, None], axis=0)
                if not SIGMOID:  # a negative value turns the signs of its query's entries
                    doubt += tl.sum(2 * tl.maximum(-value, 0.0), axis=0)
            entries = tl.load(
                table + n[None, :] * classes + k[:, None],
                mask=known[None, :] & (k < classes)[:, None],
                other=0,
            )
            total = tl.dot(entries, value.to(entries.dtype), total, input_precision="tf32x3")
        total = tl.where((k < classes)[:, None], total, float("-inf"))
        highest, at = tl.max(total, axis=0, return_indices=True)
        others = tl.where((k - first_class)[:, None] == at[None, :], float("-inf"), total)
        second = tl.maximum(tl.maximum(second, tl.max(others, axis=0)), tl.minimum(best, highest))
        label = tl.where(highest > best, first_class + at, label)
        best = tl.maximum(best, highest)

    error = (relative_error + 6e-7 * magnitude) * (tl.abs(best) + doubt)
    error += tl.load(floors + image)
    nothing = (kept == 0) & (unclear == 0)
    certain = nothing | ((best - second > 2 * error) & (unclear == 0))
    at = image * pixels + pixel
    tl.store(labels + at, tl.where(nothing, 0, label).to(tl.int64), mask=inside)
    if SCORES:
        score = tl.where(nothing, 0.0, best * tl.load(units + image))
        tl.store(scores + at, score, mask=inside)
    left = inside & ~certain
    slot = tl.atomic_add(count + tl.zeros([BLOCK_P], tl.int64), 1, mask=left)
    tl.store(pending + slot, at, mask=left)


# computes: labels (and scores) of the pending pixels
# grid: any number of programs, which share the pixels out
# traffic and FLOPs: the class table once a pixel from L2; 2 N K a pixel
# numerics: float64, queries in order
# limits: none
@triton.jit
def exact_kernel(
    probs,  # [B, N, K] float64
    masks,
    labels,
    scores,
    pending,
    count,
    queries,
    classes,
    source_height,
    source_width,
    height,
    width,
    image_step,
    query_step,
    row_step,
    column_step,
    threshold,  # [1] float64, of the mask value after the activation
    SIGMOID: tl.constexpr,
    RESIZE: tl.constexpr,
    SCORES: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Label the pixels on the list."""
    pixels = height * width
    limit = tl.load(threshold)
    for i in range(tl.program_id(0), tl.load(count), tl.num_programs(0)):
        at = tl.load(pending + i)
        image, pixel = at // pixels, at % pixels
        best = tl.full([], float("-inf"), tl.float64)
        label = tl.full([], 0, tl.int64)
        for first_class in range(0, classes, BLOCK_K):
            k = first_class + tl.arange(0, BLOCK_K)
            total = tl.zeros([BLOCK_K], tl.float64)
            plane = masks + image * image_step
            for n in range(queries):
                value, _ = _mask_values(
                    plane,
                    pixel,
                    pixel < pixels,
                    source_height,
                    source_width,
                    height,
                    width,
                    row_step,
                    column_step,
                    tl.float64,
                    RESIZE,
                )
                if SIGMOID:
                    value = 1 / (1 + tl.exp(-value))
                value = tl.where(value > limit, value, 0.0)
                row = probs + (image * queries + n) * classes
                entries = tl.load(row + k, mask=k < classes, other=0)
                product = entries * value
                total += tl.where(product == product, product, 0.0)  # infinity times 0 is nothing
                plane += query_step
            total = tl.where(k < classes, total, float("-inf"))
            highest, position = tl.max(total, axis=0, return_indices=True)
            label = tl.where(highest > best, first_class + position, label)
            best = tl.maximum(best, highest)
        tl.store(labels + at, label)
        if SCORES:
            tl.store(scores + at, best)
