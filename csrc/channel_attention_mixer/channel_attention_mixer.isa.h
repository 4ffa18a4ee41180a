// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by channel_attention_mixer_cpu.cpp.

#include "common/low_rank.isa.h"

// computes: out[h, :] = scale sum_j vector[h d + j] weight[h d + j, :], the weight's rows of each
//   head summed with the head's part of a vector; one head makes it vector x weight
// loop order: heads, rows, columns
// traffic and FLOPs: the weight once, from cache; 2 C heads d
// numerics: in A
// limits: none
template <typename A>
void sum_rows(const A* vector, const A* weight, int64_t heads, int64_t width, int64_t channels,
              A scale, A* out) {
  std::fill(out, out + heads * channels, A(0));
  for (int64_t i = 0; i < heads * width; ++i) {
    const A factor = scale * vector[i];
    A* sums = out + i / width * channels;
    for (int64_t c = 0; c < channels; ++c) sums[c] += factor * weight[i * channels + c];
  }
}

// sum_n x[n] y[n]
template <typename X, typename Y, typename A = accumulate_t<X>>
inline A dot_product(const X* x, const Y* y, int64_t count) {
  using V = Vec<A>;
  constexpr int64_t kStep = kLanes<A>;
  V sums[4] = {};
  int64_t n = 0;
  for (; n + 4 * kStep <= count; n += 4 * kStep) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sums[v] += load(x + n + v * kStep) * load(y + n + v * kStep);
  }
  for (; n < count; n += kStep) {
    const int64_t rest = std::min(kStep, count - n);
    sums[0] += load_partial(x + n, rest) * load_partial(y + n, rest);
  }
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// computes: out[i] = weight[i, :] . rows[i / d, :] + bias[i] (times bias_factor[i / d]), for d rows
//   of the weight to each of `heads` rows; bias and bias_factor may be null
// loop order: rows
// traffic and FLOPs: as sum_rows
// numerics: in A
// limits: none
template <typename A>
void project(const A* rows, const A* weight, const A* bias, const A* bias_factor, int64_t heads,
             int64_t channels, A* out) {
  const int64_t width = channels / heads;
  for (int64_t i = 0; i < channels; ++i) {
    const int64_t head = i / width;
    out[i] = dot_product(weight + i * channels, rows + head * channels, channels);
    if (bias != nullptr) out[i] += bias[i] * (bias_factor ? bias_factor[head] : A(1));
  }
}

// computes: mixed[c, n] = factors[c] features[c, n]
// loop order: channels, pixels
// traffic and FLOPs: features read once, mixed written once; 1 per element
// numerics: in A
// limits: past_caches wants the rows of mixed aligned to cache lines
template <typename T, typename A = accumulate_t<T>>
void scale_channels(View<const T> features, const A* factors, bool past_caches, View<T> mixed) {
  constexpr int64_t kStep = kLanes<A>;
  const int64_t pixels = features.columns;
  for (int64_t c = 0; c < features.rows; ++c) {
    const Vec<A> factor = broadcast(factors[c]);
    const T* from = features.row(c);
    T* to = mixed.row(c);
    int64_t n = 0;
    if (past_caches) {
      for (; n + kStep <= pixels; n += kStep) store_past_caches(to + n, load(from + n) * factor);
    }
    for (; n + kStep <= pixels; n += kStep) store(to + n, load(from + n) * factor);
    if (n < pixels) store_partial(to + n, load_partial(from + n, pixels - n) * factor, pixels - n);
  }
  if (past_caches) stores_done();
}

// computes: dots[c] = sum_n x[c, n] y[c, n]
// loop order: channels, pixels
// traffic and FLOPs: both maps once; 2 per element
// numerics: in A
// limits: none
template <typename T, typename A = accumulate_t<T>>
void channel_dots(View<const T> x, View<const T> y, A* dots) {
  for (int64_t c = 0; c < x.rows; ++c) dots[c] = dot_product(x.row(c), y.row(c), x.columns);
}

template <typename T>
constexpr MixerKernels<T> kMixerKernels = {
    .sum_rows = &sum_rows<accumulate_t<T>>,
    .project = &project<accumulate_t<T>>,
    .scale_channels = &scale_channels<T>,
    .channel_dots = &channel_dots<T>,
};
