// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set, by the operators that pool a map.

#include "common/low_rank.h"

inline Vec exponential(Vec x) { return exp(x); }
inline DVec exponential(DVec x) {
  for (int64_t i = 0; i < kLanes / 2; ++i) x[i] = std::exp(x[i]);
  return x;
}

// What takes no part becomes -infinity before a softmax, else 0; so do the columns behind the last
// pixel.
template <typename A>
inline void leave_out(A* logits, const bool* mask, int64_t pixels, bool softmax) {
  const A nothing = softmax ? -std::numeric_limits<A>::infinity() : A(0);
  if (mask != nullptr) {
    for (int64_t n = 0; n < pixels; ++n) logits[n] = mask[n] ? logits[n] : nothing;
  }
  for (int64_t n = pixels; n < padded(pixels); ++n) logits[n] = nothing;
}

// logits[n] becomes exp(logits[n] - base), with 0 in the place of an infinitely small base: then
// nothing takes part, and the weights are 0. Returns their sum.
template <typename A>
inline A exponentiate(A* logits, A base, int64_t pixels) {
  using V = VecOf<A>;
  const A finite = base == -std::numeric_limits<A>::infinity() ? A(0) : base;
  V total = {};
  for (int64_t n = 0; n < pixels; n += kLanesOf<A>) {
    const V weight = exponential(load(logits + n) - finite);
    store(logits + n, weight);
    total += weight;
  }
  return reduce_add(total);
}

template <typename A>
inline A largest(const A* logits, int64_t pixels) {
  VecOf<A> most = load(logits);
  for (int64_t n = kLanesOf<A>; n < pixels; n += kLanesOf<A>) {
    const VecOf<A> next = load(logits + n);
    most = most > next ? most : next;
  }
  A result = most[0];
  for (int64_t i = 1; i < kLanesOf<A>; ++i) result = std::max(result, A(most[i]));
  return result;
}

template <typename A>
inline void add_to(A* values, A offset, int64_t count) {
  for (int64_t n = 0; n < count; ++n) values[n] += offset;
}

// computes: for one block of pixels x [C, pixels], with logits q.x + offset of h rows: their
// maximum
//   and sum of exp(logit - maximum), or their sum; and the weighted sums of pixels [h, C]
// loop order: groups of 8 rows over pixels, then over channels; the second reading of x is from L2
// traffic and FLOPs: C pixels read once; 4 h C a pixel
// numerics: in A; NaN and +infinity logits give NaN sums; fixed order
// limits: none
template <typename T, typename A = accumulate_t<T>>
void pool_block(const T* x, int64_t stride, const A* packed, const A* offsets, const bool* mask,
                int64_t rows, int64_t channels, int64_t pixels, bool softmax, A* logits, A* maximum,
                A* total, A* sums) {
  const int64_t width = padded(pixels);
  row_dots(x, stride, packed, rows, channels, pixels, logits, width);
  for (int64_t r = 0; r < rows; ++r) {
    A* own = logits + r * width;
    if (offsets != nullptr) add_to(own, offsets[r], pixels);
    leave_out(own, mask, pixels, softmax);
    if (softmax) {
      maximum[r] = largest(own, width);
      total[r] = exponentiate(own, maximum[r], width);
    } else {
      VecOf<A> sum = {};
      for (int64_t n = 0; n < width; n += kLanesOf<A>) sum += load(own + n);
      total[r] = reduce_add(sum);
    }
  }
  row_pools(x, stride, logits, width, rows, channels, pixels, sums);
}

// Merges what pool_block gave for the blocks of one image, in their order. Of every block there are
// maximum [h], total [h] and sums [h, C] in a row.
template <typename A>
void merge_blocks(const A* blocks, int64_t count, int64_t rows, int64_t channels, bool softmax,
                  A* pooled, A* normalizer) {
  const int64_t block_size = rows * (channels + 2);
  for (int64_t r = 0; r < rows; ++r) {
    A most = -std::numeric_limits<A>::infinity();
    for (int64_t b = 0; b < count && softmax; ++b) {
      most = std::max(most, blocks[b * block_size + r]);
    }
    const A finite = most == -std::numeric_limits<A>::infinity() ? A(0) : most;
    A* out = pooled + r * channels;
    std::fill(out, out + channels, A(0));
    A total = 0;
    for (int64_t b = 0; b < count; ++b) {
      const A* block = blocks + b * block_size;
      const A factor = softmax ? std::exp(block[r] - finite) : A(1);
      total += factor * block[rows + r];
      const A* sums = block + 2 * rows + r * channels;
      for (int64_t c = 0; c < channels; ++c) out[c] += factor * sums[c];
    }
    if (softmax && total != 0) {
      for (int64_t c = 0; c < channels; ++c) out[c] /= total;
    }
    normalizer[r] = softmax ? finite + std::log(total) : total;
  }
}

// computes: for one block of pixels, the gradient of x: scale source + sum_h weight_h grad_h +
//   grad_logit_h q_h, with grad_logit = weight (grad_h.x - shift_h), or grad_h.x - shift_h where
//   there is no softmax; the gradients of the queries [h, C] and of the logits' offsets [h]
// loop order: as pool_block
// traffic and FLOPs: C pixels of x (and source) read once, of the gradient written; 10 h C a pixel
// numerics: in A; the weights are computed again from the normalizer; fixed order
// limits: none
template <typename T, typename A = accumulate_t<T>>
void pool_block_backward(const T* x, int64_t stride, const T* source, const A* scale,
                         const A* packed,   // of queries, then of grads
                         const A* queries,  // [h, C], then grads [h, C]
                         const A* offsets, const bool* mask, const A* normalizer, const A* shift,
                         int64_t rows, int64_t channels, int64_t pixels, bool softmax,
                         A* values,         // scratch [2 h, padded(pixels)]
                         bool past_caches,  // see combine_rows
                         T* grad_x, A* grad_queries, A* grad_offsets) {
  const int64_t width = padded(pixels);
  A* grad_logits = values;
  A* weights = values + rows * width;
  row_dots(x, stride, packed, rows, channels, pixels, weights, width);
  row_dots(x, stride, packed + rows * channels, rows, channels, pixels, grad_logits, width);
  for (int64_t r = 0; r < rows; ++r) {
    A* weight = weights + r * width;
    A* grad = grad_logits + r * width;
    if (offsets != nullptr) add_to(weight, offsets[r], pixels);
    leave_out(weight, mask, pixels, softmax);
    add_to(grad, -shift[r], pixels);
    if (softmax) {
      exponentiate(weight, normalizer[r], width);
      for (int64_t n = 0; n < pixels; ++n) grad[n] *= weight[n];
    }
    leave_out(grad, softmax ? nullptr : mask, pixels, false);
    VecOf<A> sum = {};
    for (int64_t n = 0; n < width; n += kLanesOf<A>) sum += load(grad + n);
    grad_offsets[r] = reduce_add(sum);
  }
  row_pools(x, stride, grad_logits, width, rows, channels, pixels, grad_queries);
  combine_rows(source, stride, scale, static_cast<const A*>(nullptr), queries, channels,
               grad_logits, width, 2 * rows, pixels, grad_x, stride, past_caches);
}
