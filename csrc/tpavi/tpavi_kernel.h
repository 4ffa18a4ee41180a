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

// Positions that are normalised together: their channels fit the first-level cache or little more.
constexpr int64_t kNormPixels = kPixelPadding;

// Mean and 1 / deviation over the channels of kNormPixels positions of mixed [C, kNormPixels].
template <typename A>
inline void channel_statistics(const A* mixed, int64_t channels, A eps, A* mean, A* rstd) {
  using V = VecOf<A>;
  for (int64_t n = 0; n < kNormPixels; n += kLanesOf<A>) {
    V sum = {}, squares = {};
    for (int64_t c = 0; c < channels; ++c) sum += load(mixed + c * kNormPixels + n);
    const V average = sum / A(channels);
    for (int64_t c = 0; c < channels; ++c) {
      const V centred = load(mixed + c * kNormPixels + n) - average;
      squares += centred * centred;
    }
    V deviation = squares / A(channels) + eps;
    for (int64_t i = 0; i < kLanesOf<A>; ++i) deviation[i] = std::sqrt(deviation[i]);
    store(mean + n, average);
    store(rstd + n, A(1) / deviation);
  }
}

// computes: for one block of positions, x + values^T weights + shift, normalised over the channels
//   where norm_weight is not null
// loop order: tiles of kNormPixels positions: combine_rows into scratch, statistics, result
// traffic and FLOPs: x read, result written; (2 R + 8) C a position
// numerics: in A; the variance from centred values
// limits: none
template <typename T, typename A = accumulate_t<T>>
void fuse_block(const T* x, int64_t stride, const A* weights, int64_t weight_stride,
                const A* values, const A* shift, const A* norm_weight, const A* norm_bias, A eps,
                int64_t rows, int64_t channels, int64_t pixels,
                A* scratch,  // [R + C, kNormPixels]
                T* out, A* mean, A* rstd) {
  using V = VecOf<A>;
  constexpr int64_t kStep = kLanesOf<A>;
  A* mixed = scratch + rows * kNormPixels;
  A average[kNormPixels], inverse[kNormPixels];
  for (int64_t first = 0; first < pixels; first += kNormPixels) {
    const int64_t count = std::min(kNormPixels, pixels - first);
    const A* own_weights = weights + first;
    int64_t own_stride = weight_stride;
    if (count < kNormPixels) {
      gather_rows(own_weights, weight_stride, rows, count, scratch);
      own_weights = scratch;
      own_stride = kNormPixels;
    }
    if (norm_weight == nullptr) {
      combine_rows(x + first, stride, static_cast<const A*>(nullptr), shift, values, channels,
                   own_weights, own_stride, rows, count, out + first, stride);
      continue;
    }
    combine_rows(x + first, stride, static_cast<const A*>(nullptr), shift, values, channels,
                 own_weights, own_stride, rows, count, mixed, kNormPixels);
    channel_statistics(mixed, channels, eps, average, inverse);
    std::copy(average, average + count, mean + first);
    std::copy(inverse, inverse + count, rstd + first);
    for (int64_t c = 0; c < channels; ++c) {
      const V factor = broadcast(norm_weight[c]), bias = broadcast(norm_bias[c]);
      const A* own = mixed + c * kNormPixels;
      T* to = out + c * stride + first;
      int64_t n = 0;
      for (; n + kStep <= count; n += kStep) {
        const V normal = (load(own + n) - load(average + n)) * load(inverse + n);
        store(to + n, normal * factor + bias);
      }
      if (n < count) {
        const V normal = (load(own + n) - load(average + n)) * load(inverse + n);
        store_partial(to + n, normal * factor + bias, count - n);
      }
    }
  }
}

// What one channel of a map gets in the backward of the normalisation of kNormPixels positions.
template <bool kPartial, typename T, typename A>
inline void normalise_backward_tile(const T* grad, int64_t stride, const A* norm_weight,
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
    tile(grad + first, stride, norm_weight, mean + first, rstd + first, channels, count, normal,
         flow, grad_x + first, products, sums);
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
