# SPDX-License-Identifier: Apache-2.0
"""The kernels of vector_quantize: screening with a certificate, and full scans."""

import triton
import triton.language as tl


@triton.jit
def _address(row, inner, stride_outer, stride_inner):
    return (row // inner).to(tl.int64) * stride_outer + (row % inner).to(tl.int64) * stride_inner


@triton.jit
def _load_rows(base, d, stride, dim, exists):
    """Load elements ``d`` of rows that start at ``base``, zero where there are none."""
    mask = exists[:, None] & (d < dim)[None, :]
    return tl.load(base[:, None] + d.to(tl.int64)[None, :] * stride, mask=mask, other=0)


@triton.jit
def _squared_difference(x, stride, codewords, dim, exists, BLOCK_D: tl.constexpr):
    """Sum the squared differences of rows at ``x`` and ``codewords``, in float64."""
    total = tl.zeros(exists.shape, tl.float64)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        difference = _load_rows(x, d, stride, dim, exists).to(tl.float64)
        difference -= _load_rows(codewords, d, 1, dim, exists).to(tl.float64)
        total += tl.sum(difference * difference, axis=1)
    return total


@triton.jit
def _closer(distance, k, best, best_k, dim):
    """Tell whether k is nearer than best_k, or as near within rounding, and lower."""
    tie = 1 + (dim + 4) * 2.2e-16
    return (distance * tie < best) | ((distance <= best * tie) & (k < best_k))


# computes: index and squared distance of BLOCK_M rows, and their codewords; -1 where a row could
#   not be certified
# grid: blocks of rows x groups
# traffic and FLOPs: x and quantized once, the codebook in float16 once a program from L2; 2 M K D
#   on tensor cores, about 10 operations a score
# numerics: a score errs by at most 2 (|r_x| |c'| + (|x'| + |r_x|) |r_c|) plus rounding, where the
#   residuals r of float16 are measured; each lane keeps its least possible scores, every codeword
#   that may be the nearest is measured in float64
# limits: up to 4 such codewords a row, one a lane; rows that are not finite or too large
@triton.jit
def screen_kernel(
    x,
    codebook,  # [G, K, D]
    half,  # [G, K, D] float16
    terms,  # [G, 4, K]: square, twice the norm, twice the residual, rounding
    scale,  # [G]
    centre,  # [G, D]
    quantized,
    indices,  # [M, G]
    distances,  # [M, G]
    rows,
    codewords,
    dim,
    inner,
    x_outer,
    x_inner,
    x_group,
    x_stride,
    q_outer,
    q_inner,
    q_group,
    q_stride,
    largest_square,
    ulp,
    STORE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Quantize the rows whose nearest codeword float16 products can tell."""
    group = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = row < rows
    x += group * x_group + _address(row, inner, x_outer, x_inner)
    codebook += group * codewords * dim
    half += group * codewords * dim
    terms += group * 4 * codewords
    centre += group * dim

    square = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mean = tl.load(centre + d, mask=d < dim, other=0)
        value = _load_rows(x, d, x_stride, dim, exists).to(tl.float32) - mean[None, :]
        square += tl.sum(value * value, axis=1)
        largest = tl.maximum(largest, tl.max(tl.abs(value), axis=1))
    usable = square < largest_square  # false for NaN
    unit = tl.where(usable & (largest > 1e-30), largest, 1.0)
    residual = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mean = tl.load(centre + d, mask=d < dim, other=0)
        value = _load_rows(x, d, x_stride, dim, exists).to(tl.float32) - mean[None, :]
        left = value - (value / unit[:, None]).to(tl.float16).to(tl.float32) * unit[:, None]
        residual += tl.sum(left * left, axis=1)
    slack = 1 + dim * ulp
    norm = tl.sqrt(square + dim * 1e-37) * slack
    residual = tl.sqrt(residual + dim * 1e-37) * slack + ulp * norm
    reach = norm + residual
    factor = 2 * unit * tl.load(scale + group)

    infinity = float("inf")
    upper = tl.full([BLOCK_M, BLOCK_N], infinity, tl.float32)
    least = tl.full([BLOCK_M, BLOCK_N], infinity, tl.float32)
    second = tl.full([BLOCK_M, BLOCK_N], infinity, tl.float32)
    nearest = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for first in range(0, codewords, BLOCK_N):
        k = first + tl.arange(0, BLOCK_N)
        product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, dim, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            mean = tl.load(centre + d, mask=d < dim, other=0)
            value = _load_rows(x, d, x_stride, dim, exists).to(tl.float32) - mean[None, :]
            operand = _load_rows(half + k.to(tl.int64) * dim, d, 1, dim, k < codewords)
            value = (value / unit[:, None]).to(tl.float16)
            product = tl.dot(value, tl.trans(operand), product)
        known = k < codewords
        score = tl.load(terms + k, mask=known, other=infinity)
        score = score[None, :] - factor[:, None] * product
        bound = tl.load(terms + 3 * codewords + k, mask=known, other=0)[None, :]
        bound += residual[:, None] * tl.load(terms + codewords + k, mask=known, other=0)[None, :]
        bound += reach[:, None] * tl.load(terms + 2 * codewords + k, mask=known, other=0)[None, :]
        upper = tl.minimum(upper, score + bound)
        score -= bound
        second = tl.minimum(second, tl.maximum(least, score))
        nearest = tl.where(score < least, k[None, :], nearest)
        least = tl.minimum(least, score)

    best_upper = tl.min(upper, axis=1)
    best = tl.full([BLOCK_M], infinity, tl.float64)
    best_k = tl.full([BLOCK_M], 2147483647, tl.int32)
    for _ in range(4):
        lowest = tl.min(least, axis=1)
        k = tl.min(tl.where(least == lowest[:, None], nearest, 2147483647), axis=1)
        candidate = exists & usable & (lowest <= best_upper) & (k < codewords)
        least = tl.where(nearest == k[:, None], infinity, least)
        chosen = codebook + tl.where(candidate, k, 0).to(tl.int64) * dim
        distance = _squared_difference(x, x_stride, chosen, dim, candidate, BLOCK_D)
        closer = candidate & _closer(distance, k, best, best_k, dim)
        best_k = tl.where(closer, k, best_k)
        best = tl.where(candidate, tl.minimum(best, distance), best)
    open_ones = (tl.min(tl.minimum(least, second), axis=1) <= best_upper) | (best == infinity)
    certified = exists & usable & ~open_ones
    place = row.to(tl.int64) * tl.num_programs(1) + group
    tl.store(indices + place, tl.where(certified, best_k, -1).to(tl.int64), mask=exists)
    tl.store(distances + place, best.to(tl.float32), mask=certified)
    if STORE:
        quantized += group * q_group + _address(row, inner, q_outer, q_inner)
        chosen = codebook + tl.where(certified, best_k, 0).to(tl.int64) * dim
        for start in range(0, dim, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            value = _load_rows(chosen, d, 1, dim, certified)
            mask = certified[:, None] & (d < dim)[None, :]
            tl.store(quantized[:, None] + d.to(tl.int64)[None, :] * q_stride, value, mask=mask)


# computes: the same for the rows whose index is -1 (or for all, with ALL), one after another
# grid: blocks of rows x groups
# traffic and FLOPs: the codebook once a row from L2; 3 K D a row in float64
# numerics: difference form in float64
# limits: none; a row that is not finite gets index 0 and distance NaN
@triton.jit
def scan_kernel(
    x,
    codebook,  # [G, K, D]
    quantized,
    indices,  # [M, G]
    distances,  # [M, G]
    rows,
    codewords,
    dim,
    inner,
    x_outer,
    x_inner,
    x_group,
    x_stride,
    q_outer,
    q_inner,
    q_group,
    q_stride,
    STORE: tl.constexpr,
    ALL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Quantize rows by measuring all codewords."""
    group = tl.program_id(1).to(tl.int64)
    codebook += group * codewords * dim
    for i in range(ROWS):
        row = tl.program_id(0) * ROWS + i
        place = row.to(tl.int64) * tl.num_programs(1) + group
        needed = row < rows
        if not ALL:
            needed = needed & (tl.load(indices + place, mask=needed, other=0) < 0)
        if needed:
            source = x + group * x_group + _address(row, inner, x_outer, x_inner)
            lanes = tl.arange(0, BLOCK_N)
            sources = source + lanes.to(tl.int64) * 0
            zeros = tl.zeros([BLOCK_N], tl.float64)
            best = zeros + float("inf")
            best_k = tl.zeros([BLOCK_N], tl.int32) + 2147483647
            for first in range(0, codewords, BLOCK_N):
                k = first + lanes
                known = k < codewords
                chosen = codebook + tl.where(known, k, 0).to(tl.int64) * dim
                distance = _squared_difference(sources, x_stride, chosen, dim, known, BLOCK_D)
                distance = tl.where(known & (distance == distance), distance, float("inf"))
                closer = (distance < float("inf")) & _closer(distance, k, best, best_k, dim)
                best_k = tl.where(closer, k, best_k)
                best = tl.minimum(best, distance)
            distance = tl.min(best, axis=0)
            tie = 1 + (dim + 4) * 2.2e-16
            k = tl.min(tl.where(best <= distance * tie, best_k, 2147483647), axis=0)
            finite = distance < float("inf")
            k = tl.where(finite, k, 0)
            tl.store(indices + place, k.to(tl.int64))
            distance = tl.where(finite, distance, float("nan"))
            tl.store(distances + place, distance.to(distances.dtype.element_ty))
            if STORE:
                target = quantized + group * q_group + _address(row, inner, q_outer, q_inner)
                for start in range(0, dim, BLOCK_D):
                    d = start + tl.arange(0, BLOCK_D)
                    value = tl.load(codebook + k.to(tl.int64) * dim + d, mask=d < dim)
                    tl.store(target + d.to(tl.int64) * q_stride, value, mask=d < dim)
