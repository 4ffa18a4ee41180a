// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set, by the operators that pool a map.

#include "common/low_rank.isa.h"

// Logits of pixels that the mask leaves out become -infinity before a softmax, else 0; so do those
// after the last pixel.
template <typename A>
inline void leave_out(A* logits, const bool* mask, int64_t pixels, bool softmax) {
  const A nothing = softmax ? -std::numeric_limits<A>::infinity() : A(0);
  if (mask != nullptr) {
    for (int64_t n = 0; n < pixels; ++n) logits[n] = mask[n] ? logits[n] : nothing;
  }
  for (int64_t n = pixels; n < padded(pixels); ++n) logits[n] = nothing;
}

// logits[n] becomes exp(logits[n] - base); returns their sum. A base of -infinity means that every
// pixel is left out: it counts as 0, which makes the weights 0.
template <typename A>
inline A exponentiate(A* logits, A base, int64_t pixels) {
  using V = Vec<A>;
  const A finite = base == -std::numeric_limits<A>::infinity() ? A(0) : base;
  V total = {};
  for (int64_t n = 0; n < pixels; n += kLanes<A>) {
    const V weight = exp(load(logits + n) - finite);
    store(logits + n, weight);
    total += weight;
  }
  return sum(total);
}

template <typename A>
inline A largest(const A* logits, int64_t pixels) {
  Vec<A> most = load(logits);
  for (int64_t n = kLanes<A>; n < pixels; n += kLanes<A>) {
    const Vec<A> next = load(logits + n);
    most = most > next ? most : next;
  }
  A result = most[0];
  for (int64_t i = 1; i < kLanes<A>; ++i) result = std::max(result, A(most[i]));
  return result;
}

template <typename A>
inline A sum_of(const A* values, int64_t count) {  // whole vectors
  Vec<A> total = {};
  for (int64_t n = 0; n < count; n += kLanes<A>) total += load(values + n);
  return sum(total);
}

template <typename A>
inline void add_to(A* values, A offset, int64_t count) {
  for (int64_t n = 0; n < count; ++n) values[n] += offset;
}

// computes: for one block of pixels x [C, pixels], with logits q.x + offset of h rows: their
//   maximum and sum of exp(logit - maximum), or their sum; the weighted sums of pixels [h, C]
// loop order: groups of 8 rows over pixels, then over channels; the second reading of x is from L2
// traffic and FLOPs: C pixels read once; 4 h C per pixel
// numerics: in A; NaN and +infinity logits give NaN sums; fixed order
// limits: none
template <typename T, typename A = accumulate_t<T>>
void pool_block(const PoolBlock<T>& block, A* scratch, const PoolSums<A>& out) {
  const int64_t pixels = block.features.columns, width = padded(pixels);
  const View<A> logits = {scratch, width, block.rows, width};
  row_dots<T, A>(block.features, block.packed_queries, logits);
  for (int64_t r = 0; r < block.rows; ++r) {
    A* own = logits.row(r);
    if (block.offsets != nullptr) add_to(own, block.offsets[r], pixels);
    leave_out(own, block.mask, pixels, block.softmax);
    if (block.softmax) {
      out.maximum[r] = largest(own, width);
      out.total[r] = exponentiate(own, out.maximum[r], width);
    } else {
      out.total[r] = sum_of(own, width);
    }
  }
  row_pools<T, A>(block.features, logits, out.sums);
}

// Merges what pool_block gave for the blocks of one image, in their order. `blocks` holds the
// maximum [h], total [h] and sums [h, C] of each, one after the other.
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
// traffic and FLOPs: C pixels of x (and source) read once, C of the gradient written; 10 h C each
// numerics: in A; the weights are computed again from the normalizer; fixed order
// limits: scratch holds [2 h, padded(pixels)]
template <typename T, typename A = accumulate_t<T>>
void pool_block_backward(const PoolBlock<T>& block, const PoolGradient<T>& gradient, A* scratch) {
  const int64_t rows = block.rows, pixels = block.features.columns, width = padded(pixels);
  const View<A> grad_logits = {scratch, width, rows, width};
  const View<A> weights = {scratch + rows * width, width, rows, width};
  row_dots<T, A>(block.features, block.packed_queries, weights);
  row_dots<T, A>(block.features, gradient.packed_grads, grad_logits);
  for (int64_t r = 0; r < rows; ++r) {
    A* weight = weights.row(r);
    A* grad = grad_logits.row(r);
    if (block.offsets != nullptr) add_to(weight, block.offsets[r], pixels);
    leave_out(weight, block.mask, pixels, block.softmax);
    add_to(grad, -gradient.shift[r], pixels);
    if (block.softmax) {
      exponentiate(weight, gradient.normalizer[r], width);
      for (int64_t n = 0; n < pixels; ++n) grad[n] *= weight[n];
    }
    leave_out(grad, block.softmax ? nullptr : block.mask, pixels, false);
    gradient.grad_offsets[r] = sum_of(grad, width);
  }
  row_pools<T, A>(block.features, grad_logits, gradient.grad_queries);
  combine_rows<T, A, T>({.source = gradient.source,
                         .scale = gradient.source_scale,
                         .rows = gradient.queries,
                         .weights = {scratch, width, 2 * rows, width},
                         .out = gradient.grad_features,
                         .past_caches = gradient.past_caches});
}

template <typename T>
constexpr PoolKernels<T> kPoolKernels = {
    .pack_rows = &pack_rows<accumulate_t<T>>,
    .pool_block = &pool_block<T>,
    .merge_blocks = &merge_blocks<accumulate_t<T>>,
    .pool_block_backward = &pool_block_backward<T>,
};
