// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by tpavi_cpu.cpp.

#include "common/low_rank.isa.h"

// computes: for one block of a frame, scores[r, n] = key_r . x_n + offset_r and the sums over the
//   block of each channel
// loop order: row_dots; then a row of ones pooled, from the second-level cache
// traffic and FLOPs: C positions read once; (2 R + 1) C per position
// numerics: in A
// limits: scratch holds [max(R, 1), padded(positions)]
template <typename T, typename A = accumulate_t<T>>
void score_block(const ScoreJob<T>& job, A* scratch) {
  const int64_t pixels = job.visual.columns, width = padded(pixels), rows = job.scores.rows;
  const View<A> dots = {scratch, width, rows, width};
  row_dots<T, A>(job.visual, job.packed_keys, dots);
  for (int64_t r = 0; r < rows; ++r) {
    const A offset = job.offsets ? job.offsets[r] : A(0);
    const A* from = dots.row(r);
    A* to = job.scores.row(r);
    for (int64_t n = 0; n < pixels; ++n) to[n] = from[n] + offset;
  }
  std::fill(scratch, scratch + width, A(1));
  row_pools<T, A>(job.visual, {scratch, width, 1, width}, job.sums);
}

// Copies rows of a few values per position into a padded buffer; zeros after the last position.
template <typename A>
inline void gather_rows(View<const A> from, A* to) {
  const int64_t pixels = from.columns, width = padded(pixels);
  for (int64_t r = 0; r < from.rows; ++r) {
    std::copy(from.row(r), from.row(r) + pixels, to + r * width);
    std::fill(to + r * width + pixels, to + (r + 1) * width, A(0));
  }
}

// computes: for one block of a frame, grad_x[c, n] += sum_r keys[r, c] grad_scores[r, n] +
//   grad_sums[c], and the block's part of the keys' gradient, sum_n grad_scores[r, n] x[c, n]
// loop order: row_pools, then combine_rows
// traffic and FLOPs: x read, grad_x read and written; 4 R C per position
// numerics: in A
// limits: scratch holds [R, padded(positions)]
template <typename T, typename A = accumulate_t<T>>
void score_block_backward(const ScoreGradientJob<T>& job, A* scratch) {
  const int64_t width = padded(job.visual.columns);
  const View<A> grad_scores = {scratch, width, job.grad_scores.rows, width};
  gather_rows(job.grad_scores, scratch);
  row_pools<T, A>(job.visual, grad_scores, job.grad_keys);
  combine_rows<T, A, T>({.source = job.grad_visual,
                         .shift = job.grad_sums,
                         .rows = job.keys,
                         .weights = grad_scores,
                         .out = job.grad_visual});
}

// Positions that are normalised together: a cache line of each channel of a float map, and their
// channels fit the first-level cache (32 positions take 1.4 times as long, 64 likewise).
constexpr int64_t kNormPixels = kPixelPadding;

template <typename A>
constexpr int kNormVectors = kNormPixels / kLanes<A>;

// averages[v] = the mean over the channels of term(mixed[c], v), in four chains of additions.
template <typename A, typename Term>
inline void average_channels(const A* mixed, int64_t channels, const Term& term, Vec<A>* averages) {
  using V = Vec<A>;
  constexpr int kChains = 4;
  V sums[kChains][kNormVectors<A>] = {};
  const auto add = [&](int64_t c, V* chain) AVSKERNELS_TARGET {
    for (int v = 0; v < kNormVectors<A>; ++v) {
      chain[v] += term(load(mixed + c * kNormPixels + v * kLanes<A>), v);
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

// Mean and 1 / standard deviation over the channels of kNormPixels positions of mixed [C,
// kNormPixels].
template <typename A>
inline void channel_statistics(const A* mixed, int64_t channels, A eps, Vec<A>* mean,
                               Vec<A>* rstd) {
  using V = Vec<A>;
  average_channels<A>(mixed, channels, [](V value, int) AVSKERNELS_TARGET { return value; }, mean);
  const auto square = [&](V value, int v) AVSKERNELS_TARGET {
    const V centred = value - mean[v];
    return centred * centred;
  };
  average_channels<A>(mixed, channels, square, rstd);
  for (int v = 0; v < kNormVectors<A>; ++v) {
    for (int64_t i = 0; i < kLanes<A>; ++i) rstd[v][i] = A(1) / std::sqrt(rstd[v][i] + eps);
  }
}

// computes: for one block of positions, x + values^T weights + shift, normalised over the channels
//   where norm_weight is not null
// loop order: tiles of kNormPixels positions: combine_rows into scratch, statistics, result
// traffic and FLOPs: x read, result written; (2 R + 8) C per position
// numerics: in A; the variance from centred values
// limits: past_caches wants the rows of fused aligned to cache lines
template <typename T, typename A = accumulate_t<T>>
void fuse_block(const FuseJob<T>& job, A* scratch) {  // fuse_scratch(...)
  using V = Vec<A>;
  constexpr int64_t kStep = kLanes<A>;
  const View<const T> visual = job.visual;
  const View<T> fused = job.fused;
  const int64_t rows = job.weights.rows, channels = visual.rows, pixels = visual.columns;
  const A *norm_weight = job.norm_weight, *norm_bias = job.norm_bias;
  const bool past_caches = job.past_caches;
  const View<const A> weights = {scratch, padded(pixels), rows, padded(pixels)};
  A* mixed = scratch + rows * weights.stride;
  gather_rows(job.weights, scratch);
  if (norm_weight == nullptr) {
    combine_rows<T, A, T>({.source = visual,
                           .shift = job.shift,
                           .rows = job.values,
                           .weights = weights,
                           .out = fused,
                           .past_caches = past_caches});
    return;
  }
  V average[kNormVectors<A>], inverse[kNormVectors<A>];
  for (int64_t first = 0; first < pixels; first += kNormPixels) {
    const int64_t count = std::min(kNormPixels, pixels - first);
    combine_rows<T, A, A>({.source = visual.column_range(first, pixels),
                           .shift = job.shift,
                           .rows = job.values,
                           .weights = weights.column_range(first, pixels),
                           .out = {mixed, kNormPixels, channels, count}});
    channel_statistics(mixed, channels, job.norm_eps, average, inverse);
    std::memcpy(job.mean + first, average, count * sizeof(A));
    std::memcpy(job.rstd + first, inverse, count * sizeof(A));
    for (int64_t c = 0; c < channels; ++c) {
      const V factor = broadcast(norm_weight[c]), bias = broadcast(norm_bias[c]);
      const A* own = mixed + c * kNormPixels;
      T* to = fused.row(c) + first;
      prefetch<kNormVectors<A>>(visual.row(c) + first + kNormPixels);
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

// What the backward of the normalisation keeps for each channel.
template <typename A>
struct NormScratch {
  A* normal;         // [C, kNormPixels], in: x + y
  A* flow;           // [C, kNormPixels]
  Vec<A>* products;  // [C], sums of grad * normal
  Vec<A>* sums;      // [C], sums of grad
};

// The backward of the normalisation of the positions [first, first + count), at most kNormPixels.
template <bool kPartial, typename T, typename A>
inline void normalise_backward_tile(const FuseGradientJob<T>& job, int64_t first, int64_t count,
                                    NormScratch<A> scratch) {
  using V = Vec<A>;
  constexpr int64_t kStep = kLanes<A>;
  const A* norm_weight = job.norm_weight;
  const int64_t channels = job.visual.rows, stride = job.visual.stride;  // the same of all maps
  for (int64_t n = 0; n < count; n += kStep) {
    const int64_t filled = std::min(kStep, count - n), position = first + n;
    const T *grad = job.grad.data + position, *visual = job.visual.data + position;
    T* grad_visual = job.grad_visual.data + position;
    const V average = load_partial<kPartial>(job.mean + position, filled);
    const V inverse = load_partial<kPartial>(job.rstd + position, filled);
    V plain = {}, along = {};
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = c * kNormPixels + n;
      const V unit = (load(scratch.normal + at) - average) * inverse;
      const V arriving = load_partial<kPartial>(grad + c * stride, filled);
      scratch.products[c] += arriving * unit;
      scratch.sums[c] += arriving;
      const V weighted = arriving * norm_weight[c];
      plain += weighted;
      along += weighted * unit;
      store(scratch.normal + at, unit);
      store(scratch.flow + at, weighted);
    }
    plain /= A(channels);
    along /= A(channels);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = c * kNormPixels + n;
      prefetch<1>(grad + c * stride + kNormPixels);
      prefetch<1>(visual + c * stride + kNormPixels);
      prefetch<1, true>(grad_visual + c * stride + kNormPixels);
      const V passing =
          (load(scratch.flow + at) - plain - load(scratch.normal + at) * along) * inverse;
      store_partial<kPartial>(grad_visual + c * stride, passing, filled);
    }
  }
}

// computes: for one block of a frame, the gradients of fuse_block: of the map as far as it passes
//   the addition, of the weights, and the block's parts of those of values, shift and norm
// loop order: tiles of kNormPixels positions, each normalised again in scratch; then the products
//   with the gradient just written, from the second-level cache
// traffic and FLOPs: x and grad read, grad_x written; (6 R + 20) C per position
// numerics: in A, but the products see the gradient as it is stored
// limits: none
template <typename T, typename A = accumulate_t<T>>
void fuse_block_backward(const FuseGradientJob<T>& job, A* scratch) {  // fuse_backward_scratch(...)
  using V = Vec<A>;
  const int64_t rows = job.weights.rows, channels = job.visual.rows, pixels = job.visual.columns;
  const int64_t width = padded(pixels);
  const View<A> weights = {scratch, width, rows + 1, width};  // the last row is ones
  A* normal = scratch + (rows + 1) * width;
  A* flow = normal + channels * kNormPixels;
  V* products = reinterpret_cast<V*>(flow + channels * kNormPixels);
  V* sums = products + channels;
  gather_rows(job.weights, scratch);
  std::fill(weights.row(rows), weights.row(rows + 1), A(1));
  std::fill(products, products + 2 * channels, V{});
  for (int64_t first = 0; first < pixels && job.norm_weight != nullptr; first += kNormPixels) {
    const int64_t count = std::min(kNormPixels, pixels - first);
    if (count < kNormPixels) std::fill(normal, normal + channels * kNormPixels, A(0));
    combine_rows<T, A, A>({.source = job.visual.column_range(first, pixels),
                           .shift = job.shift,
                           .rows = job.values,
                           .weights = {scratch + first, width, rows, width - first},
                           .out = {normal, kNormPixels, channels, count}});
    const auto tile = count == kNormPixels ? &normalise_backward_tile<false, T, A>
                                           : &normalise_backward_tile<true, T, A>;
    tile(job, first, count, {normal, flow, products, sums});
  }
  for (int64_t c = 0; c < channels; ++c) {
    job.grad_norm_weight[c] = sum(products[c]);
    job.grad_norm_bias[c] = sum(sums[c]);
    if (job.norm_weight == nullptr) {
      std::copy(job.grad.row(c), job.grad.row(c) + pixels, job.grad_visual.row(c));
    }
  }
  row_pools<T, A>(job.grad_visual, weights, job.grad_values);
  row_dots<T, A>(job.grad_visual, job.packed_values, {scratch, width, rows, width});
  for (int64_t r = 0; r < rows; ++r) {
    std::copy(weights.row(r), weights.row(r) + pixels, job.grad_weights.row(r));
  }
}

// Elements of scratch that fuse_block_backward needs for blocks of at most `pixels` positions.
template <typename A>
int64_t fuse_backward_scratch(int64_t rows, int64_t channels, int64_t pixels) {
  return (rows + 1) * padded(pixels) + 2 * channels * (kNormPixels + kLanes<A>);
}

template <typename T>
constexpr TpaviKernels<T> kTpaviKernels = {
    .score_block = &score_block<T>,
    .score_block_backward = &score_block_backward<T>,
    .fuse_block = &fuse_block<T>,
    .fuse_scratch = &fuse_scratch<accumulate_t<T>>,
    .fuse_block_backward = &fuse_block_backward<T>,
    .fuse_backward_scratch = &fuse_backward_scratch<accumulate_t<T>>,
};
