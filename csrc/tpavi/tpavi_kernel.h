// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by tpavi_cpu.cpp.

#include "common/low_rank.h"

// computes: for one block of a frame, scores[r, n] = key_r . x_n + offset_r and the sums over the
//   block of each channel
// loop order: rows_dots; then a row of ones pooled, from the second-level cache
// traffic and FLOPs: C positions read once; (2 R + 1) C a position
// numerics: in A
// limits: none
template <typename T, typename A = accumulate_t<T>>
void score_block(const T* x, int64_t stride, const A* packed, const A* offsets, int64_t rows,
                 int64_t channels, int64_t pixels, A* scratch, A* scores, int64_t score_stride,
                 A* sums) {
  const int64_t width = padded(pixels);
  row_dots(x, stride, packed, rows, channels, pixels, scratch, width);
  for (int64_t r = 0; r < rows; ++r) {
    const A offset = offsets ? offsets[r] : A(0);
    for (int64_t n = 0; n < pixels; ++n) {
      scores[r * score_stride + n] = scratch[r * width + n] + offset;
    }
  }
  std::fill(scratch, scratch + width, A(1));
  row_pools(x, stride, scratch, width, 1, channels, pixels, sums);
}

// Copies rows of a few values a position into a padded buffer; zeros behind the last position.
template <typename A>
inline void gather_rows(const A* from, int64_t stride, int64_t rows, int64_t pixels, A* to) {
  const int64_t width = padded(pixels);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy(from + r * stride, from + r * stride + pixels, to + r * width);
    std::fill(to + r * width + pixels, to + (r + 1) * width, A(0));
  }
}

// computes: for one block of a frame, grad_x[c, n] += sum_r keys[r, c] grad_scores[r, n] +
//   grad_sums[c], and the block's part of the keys' gradient, sum_n grad_scores[r, n] x[c, n]
// loop order: row_pools, then combine_rows
// traffic and FLOPs: x read, grad_x read and written; 4 R C a position
// numerics: in A
// limits: none
template <typename T, typename A = accumulate_t<T>>
void score_block_backward(const T* x, int64_t stride, const A* keys, const A* grad_scores,
                          int64_t score_stride, const A* grad_sums, int64_t rows, int64_t channels,
                          int64_t pixels, A* scratch, T* grad_x, A* grad_keys) {
  const int64_t width = padded(pixels);
  gather_rows(grad_scores, score_stride, rows, pixels, scratch);
  row_pools(x, stride, scratch, width, rows, channels, pixels, grad_keys);
  combine_rows(grad_x, stride, static_cast<const A*>(nullptr), grad_sums, keys, channels, scratch,
               width, rows, pixels, grad_x, stride);
}

// Positions that are normalised together: a cache line of each channel of a float map, and their
// channels fit the first-level cache (32 positions take 1.4 times as long, 64 likewise).
constexpr int64_t kNormPixels = kPixelPadding;

template <typename A>
constexpr int kNormVectors = kNormPixels / kLanesOf<A>;

// averages[v] = the mean over the channels of term(mixed[c], v), in four chains of additions.
template <typename A, typename Term>
inline void average_channels(const A* mixed, int64_t channels, const Term& term,
                             VecOf<A>* averages) {
  using V = VecOf<A>;
  constexpr int kChains = 4;
  V sums[kChains][kNormVectors<A>] = {};
  const auto add = [&](int64_t c, V* chain) AVSKERNELS_TARGET {
    for (int v = 0; v < kNormVectors<A>; ++v) {
      chain[v] += term(load(mixed + c * kNormPixels + v * kLanesOf<A>), v);
    }
  };
  int64_t c = 0;
  for (; c + kChains <= channels; c += kChains) {
#pragma GCC unroll 4
    for (int i = 0; i < kChains; ++i) add(c + i, sums[i]);
  }
  for (; c < channels; ++c) add(c, sums[0]);
  for (int v = 0; v < kNormVectors<A>; ++v) {
    averages[v] = ((sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v])) / A(channels);
  }
}

// Mean and 1 / deviation over the channels of kNormPixels positions of mixed [C, kNormPixels].
template <typename A>
inline void channel_statistics(const A* mixed, int64_t channels, A eps, VecOf<A>* mean,
                               VecOf<A>* rstd) {
  using V = VecOf<A>;
  average_channels<A>(mixed, channels, [](V value, int) AVSKERNELS_TARGET { return value; }, mean);
  const auto square = [&](V value, int v) AVSKERNELS_TARGET {
    const V centred = value - mean[v];
    return centred * centred;
  };
  average_channels<A>(mixed, channels, square, rstd);
  for (int v = 0; v < kNormVectors<A>; ++v) {
    for (int64_t i = 0; i < kLanesOf<A>; ++i) rstd[v][i] = A(1) / std::sqrt(rstd[v][i] + eps);
  }
}

// computes: for one block of positions, x + values^T weights + shift, normalised over the channels
//   where norm_weight is not null
// loop order: tiles of kNormPixels positions: combine_rows into scratch, statistics, result
// traffic and FLOPs: x read, result written; (2 R + 8) C a position
// numerics: in A; the variance from centred values
// limits: past_caches wants the rows of out aligned to cache lines
template <typename T, typename A = accumulate_t<T>>
void fuse_block(const T* x, int64_t stride, const A* weights, int64_t weight_stride,
                const A* values, const A* shift, const A* norm_weight, const A* norm_bias, A eps,
                int64_t rows, int64_t channels, int64_t pixels,
                A* scratch,  // fuse_scratch(...)
                bool past_caches, T* out, A* mean, A* rstd) {
  using V = VecOf<A>;
  constexpr int64_t kStep = kLanesOf<A>;
  const int64_t width = padded(pixels);
  A* block_weights = scratch;
  A* mixed = block_weights + rows * width;
  gather_rows(weights, weight_stride, rows, pixels, block_weights);
  if (norm_weight == nullptr) {
    combine_rows(x, stride, static_cast<const A*>(nullptr), shift, values, channels, block_weights,
                 width, rows, pixels, out, stride, past_caches);
    return;
  }
  V average[kNormVectors<A>], inverse[kNormVectors<A>];
  for (int64_t first = 0; first < pixels; first += kNormPixels) {
    const int64_t count = std::min(kNormPixels, pixels - first);
    combine_rows(x + first, stride, static_cast<const A*>(nullptr), shift, values, channels,
                 block_weights + first, width, rows, count, mixed, kNormPixels);
    channel_statistics(mixed, channels, eps, average, inverse);
    std::memcpy(mean + first, average, count * sizeof(A));
    std::memcpy(rstd + first, inverse, count * sizeof(A));
    for (int64_t c = 0; c < channels; ++c) {
      const V factor = broadcast(norm_weight[c]), bias = broadcast(norm_bias[c]);
      const A* own = mixed + c * kNormPixels;
      T* to = out + c * stride + first;
      prefetch<kNormVectors<A>>(x + c * stride + first + kNormPixels);
      if (!past_caches) prefetch<kNormVectors<A>, true>(to + kNormPixels);
#pragma GCC unroll 4
      for (int v = 0; v < kNormVectors<A>; ++v) {
        const V normal = (load(own + v * kStep) - average[v]) * inverse[v];
        const V result = normal * factor + bias;
        const int64_t rest = count - v * kStep;
        if (rest >= kStep && past_caches) {
          store_past_caches(to + v * kStep, result);
        } else if (rest >= kStep) {
          store(to + v * kStep, result);
        } else if (rest > 0) {
          store_partial(to + v * kStep, result, rest);
        }
      }
    }
  }
  if (past_caches) stores_done();
}

// Elements of scratch that fuse_block needs for blocks of at most `pixels` positions.
template <typename A>
int64_t fuse_scratch(int64_t rows, int64_t channels, int64_t pixels) {
  return rows * padded(pixels) + channels * kNormPixels;
}

// What one channel of a map gets in the backward of the normalisation of kNormPixels positions.
template <bool kPartial, typename T, typename A>
inline void normalise_backward_tile(const T* grad, const T* x, int64_t stride, const A* norm_weight,
                                    const A* mean, const A* rstd, int64_t channels, int64_t count,
                                    A* normal,  // [C, kNormPixels], in: x + y; scratch
                                    A* flow,    // [C, kNormPixels], scratch
                                    T* grad_x, VecOf<A>* products, VecOf<A>* sums) {
  using V = VecOf<A>;
  constexpr int64_t kStep = kLanesOf<A>;
  for (int64_t n = 0; n < count; n += kStep) {
    const int64_t filled = std::min(kStep, count - n);
    const V average = load_some<kPartial>(mean + n, filled);
    const V inverse = load_some<kPartial>(rstd + n, filled);
    V plain = {}, along = {};
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = c * kNormPixels + n;
      const V unit = (load(normal + at) - average) * inverse;
      const V arriving = load_some<kPartial>(grad + c * stride + n, filled);
      products[c] += arriving * unit;
      sums[c] += arriving;
      const V weighted = arriving * norm_weight[c];
      plain += weighted;
      along += weighted * unit;
      store(normal + at, unit);
      store(flow + at, weighted);
    }
    plain /= A(channels);
    along /= A(channels);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = c * kNormPixels + n;
      prefetch<1>(grad + c * stride + n + kNormPixels);
      prefetch<1>(x + c * stride + n + kNormPixels);
      prefetch<1, true>(grad_x + c * stride + n + kNormPixels);
      const V passing = (load(flow + at) - plain - load(normal + at) * along) * inverse;
      store_some<kPartial>(grad_x + c * stride + n, passing, filled);
    }
  }
}

// computes: for one block of a frame, the gradients of fuse_block: of the map as far as it passes
//   the addition, of the weights, and the block's parts of those of values, shift and norm
// loop order: tiles of kNormPixels positions, each normalised again in scratch; then the products
//   with the gradient just written, from the second-level cache
// traffic and FLOPs: x and grad read, grad_x written; (6 R + 20) C a position
// numerics: in A, but the products see the gradient as it is stored
// limits: none
template <typename T, typename A = accumulate_t<T>>
void fuse_block_backward(const T* grad, const T* x, int64_t stride, const A* weights,
                         int64_t weight_stride,
                         const A* values,         // [R, C]
                         const A* packed_values,  // the same, packed
                         const A* shift, const A* norm_weight, const A* mean, const A* rstd,
                         int64_t rows, int64_t channels, int64_t pixels,
                         A* scratch,  // fuse_backward_scratch(...)
                         T* grad_x, A* grad_weights, int64_t grad_weight_stride,
                         A* grad_values,  // [R + 1, C], of the block; the last row is the shift's
                         A* grad_norm_weight, A* grad_norm_bias) {
  using V = VecOf<A>;
  const int64_t width = padded(pixels);
  A* block_weights = scratch;  // [R + 1, width], the last row is ones
  A* normal = block_weights + (rows + 1) * width;
  A* flow = normal + channels * kNormPixels;
  V* products = reinterpret_cast<V*>(flow + channels * kNormPixels);
  V* sums = products + channels;
  gather_rows(weights, weight_stride, rows, pixels, block_weights);
  std::fill(block_weights + rows * width, block_weights + (rows + 1) * width, A(1));
  std::fill(products, products + 2 * channels, V{});
  for (int64_t first = 0; first < pixels && norm_weight != nullptr; first += kNormPixels) {
    const int64_t count = std::min(kNormPixels, pixels - first);
    if (count < kNormPixels) std::fill(normal, normal + channels * kNormPixels, A(0));
    combine_rows(x + first, stride, static_cast<const A*>(nullptr), shift, values, channels,
                 block_weights + first, width, rows, count, normal, kNormPixels);
    const auto tile = count == kNormPixels ? &normalise_backward_tile<false, T, A>
                                           : &normalise_backward_tile<true, T, A>;
    tile(grad + first, x + first, stride, norm_weight, mean + first, rstd + first, channels, count,
         normal, flow, grad_x + first, products, sums);
  }
  for (int64_t c = 0; c < channels; ++c) {
    grad_norm_weight[c] = reduce_add(products[c]);
    grad_norm_bias[c] = reduce_add(sums[c]);
    if (norm_weight == nullptr) {
      std::copy(grad + c * stride, grad + c * stride + pixels, grad_x + c * stride);
    }
  }
  row_pools(grad_x, stride, block_weights, width, rows + 1, channels, pixels, grad_values);
  row_dots(grad_x, stride, packed_values, rows, channels, pixels, block_weights, width);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy(block_weights + r * width, block_weights + r * width + pixels,
              grad_weights + r * grad_weight_stride);
  }
}

// Elements of scratch that fuse_block_backward needs for blocks of at most `pixels` positions.
template <typename A>
int64_t fuse_backward_scratch(int64_t rows, int64_t channels, int64_t pixels) {
  return (rows + 1) * padded(pixels) + 2 * channels * (kNormPixels + kLanesOf<A>);
}
