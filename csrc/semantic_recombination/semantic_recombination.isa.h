// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by semantic_recombination_cpu.cpp. A is the accumulation dtype.

#include "common/low_rank.isa.h"

// A tile of kProductRows x kProductVectors accumulators, which fill the registers.
constexpr int64_t kProductRows = AVSKERNELS_ISA >= AVSKERNELS_AVX512 ? 8 : 4;
constexpr int kProductVectors = kTileVectors;
template <typename A>
constexpr int64_t kProductPixels = kProductVectors * kLanes<A>;

// Whether one instruction multiplies and adds two channels, as bfloat16 pairs in a float's place.
template <typename T>
constexpr bool kPaired = AVSKERNELS_ISA >= AVSKERNELS_AVX512_BF16 && std::is_same_v<T, BFloat16>;

// Channels, or pairs of them.
template <typename T>
inline int64_t product_steps(int64_t channels) {
  return kPaired<T> ? (channels + 1) / 2 : channels;
}

template <typename T, typename V>
inline V multiply_add(V sum, V factor, V pixels) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512_BF16
  if constexpr (kPaired<T>) {
    return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)factor, (__m512bh)pixels);
  } else
#endif
    return sum + factor * pixels;
}

// One step's factor in all lanes.
template <typename T, typename A>
inline Vec<A> spread(const A* factor) {
  if constexpr (kPaired<T>) {
    int32_t bits;
    std::memcpy(&bits, factor, sizeof(bits));
    return (Vec<float>)broadcast(bits);
  } else {
    return broadcast(*factor);
  }
}

// matrix[r, c] = sum_i weight[r, i C + c] filters[i, c]: rows of the matrix that the tokens fold
// into, tokens in their order.
template <typename A>
void fold_rows(View<const A> weight, View<const A> filters, A* matrix) {
  const int64_t channels = filters.columns;
  for (int64_t r = 0; r < weight.rows; ++r, matrix += channels) {
    for (int64_t c = 0; c < channels; c += kLanes<A>) {
      Vec<A> sum = {};
      for (int64_t i = 0; i < filters.rows; ++i) {
        sum += load_up_to(weight.row(r) + i * channels + c, channels - c) *
               load_up_to(filters.row(i) + c, channels - c);
      }
      store_up_to(matrix + c, sum, channels - c);
    }
  }
}

// One group of kProductRows rows of a matrix [rows, channels], the group's values step by step;
// zeros after the last row and channel.
template <typename T, typename A = accumulate_t<T>>
void pack_group(const A* group, int64_t rows, int64_t channels, A* packed) {
  const int64_t steps = product_steps<T>(channels);
  std::fill(packed, packed + kProductRows * steps, A(0));
  for (int64_t r = 0; r < std::min(kProductRows, rows); ++r) {
    const A* row = group + r * channels;
    if constexpr (kPaired<T>) {
      for (int64_t c = 0; c < channels; c += kLanes<float>) {
        BFloat16 rounded[kLanes<float>];
        store(rounded, load_up_to(row + c, channels - c));
        for (int64_t i = 0; i < kLanes<float> / 2 && c / 2 + i < steps; ++i) {
          std::memcpy(packed + (c / 2 + i) * kProductRows + r, rounded + 2 * i, sizeof(A));
        }
      }
    } else {
      for (int64_t c = 0; c < channels; ++c) packed[c * kProductRows + r] = row[c];
    }
  }
}

template <typename T>
int64_t packed_group_size(int64_t channels) {
  return kProductRows * product_steps<T>(channels);
}

template <typename T>
int64_t product_scratch_size(int64_t channels) {
  return product_steps<T>(channels) * kProductPixels<accumulate_t<T>>;
}

// One step of a tile's pixels, as multiply_add takes them.
template <bool kPartial, typename T>
inline auto load_step(const T* x, int64_t stride, bool last, int64_t count) {
  const auto first = load_partial<kPartial>(x, count);
  if constexpr (kPaired<T>) {
    typedef uint32_t UVec __attribute__((vector_size(sizeof(first))));
    const UVec low = (UVec)first >> 16;  // the element itself
    return last ? (Vec<float>)low
                : (Vec<float>)((UVec)load_partial<kPartial>(x + stride, count) | low);
  } else {
    return first;
  }
}

// Copies the pixels of all channels to a tile [steps, kProductPixels], zeros after them.
template <typename T, typename A = accumulate_t<T>>
inline void pack_pixels(View<const T> pixels, A* tile) {
  constexpr int64_t kChannels = kPaired<T> ? 2 : 1, kStep = kLanes<A>;
  const int64_t count = std::min(kProductPixels<A>, pixels.columns);
  for (int64_t c = 0; c < pixels.rows; c += kChannels) {
    const T* from = pixels.row(c);
    const bool last = c + 1 == pixels.rows;
    for (int v = 0; v < kProductVectors; ++v, tile += kStep) {
      const int64_t rest = count - v * kStep;
      if (rest >= kStep) {
        store(tile, load_step<false>(from + v * kStep, pixels.stride, last, kStep));
      } else if (rest > 0) {
        store(tile, load_step<true>(from + v * kStep, pixels.stride, last, rest));
      } else {
        store(tile, Vec<A>{});
      }
    }
    for (int64_t i = 0; i < kChannels && !(i == 1 && last); ++i) {
      prefetch<kProductVectors>(from + i * pixels.stride + kProductPixels<A>);
    }
  }
}

// computes: out[r, n] = sum_c matrix[r, c] x[c, n] + bias[r] (+ x[r, n]) for the pixels of a piece
//   of one image; the matrix is rounded to bfloat16 where the map is and the machine multiplies it
// loop order: tiles of kProductPixels pixels, copied to scratch; groups of rows; channels
// traffic and FLOPs: x and out once; the matrix once per tile, from the second-level cache;
//   2 rows C per pixel
// numerics: in A, channels (or pairs of them) in their order; bias and residual are added in A
// limits: fastest while matrix and tile fit the second-level cache
template <typename T, typename A = accumulate_t<T>>
void multiply_pixels(const ProductJob<T>& job, A* scratch) {
  using V = Vec<A>;
  constexpr int64_t kStep = kLanes<A>, kPixels = kProductPixels<A>;
  const View<const T> features = job.features;
  const View<T> out = job.out;
  const int64_t steps = product_steps<T>(features.rows);
  for (int64_t first = 0; first < features.columns; first += kPixels) {
    const int64_t count = std::min(kPixels, features.columns - first);
    pack_pixels(features.column_range(first, features.columns), scratch);
    for (int64_t row = 0; row < out.rows; row += kProductRows) {
      const A* factors = job.packed + row * steps;
      V sums[kProductRows][kProductVectors] = {};
      for (int64_t s = 0; s < steps; ++s) {
        V pixels[kProductVectors];
#pragma GCC unroll 3
        for (int v = 0; v < kProductVectors; ++v)
          pixels[v] = load(scratch + s * kPixels + v * kStep);
#pragma GCC unroll 8
        for (int r = 0; r < kProductRows; ++r) {
          const V factor = spread<T>(factors + s * kProductRows + r);
#pragma GCC unroll 3
          for (int v = 0; v < kProductVectors; ++v) {
            sums[r][v] = multiply_add<T>(sums[r][v], factor, pixels[v]);
          }
        }
      }
      for (int64_t r = 0; r < std::min(kProductRows, out.rows - row); ++r) {
        const A start = job.bias ? job.bias[row + r] : A(0);
        const T* source = features.row(row + r) + first;
        T* to = out.row(row + r) + first;
        for (int v = 0; v < kProductVectors; ++v) {
          const int64_t rest = count - v * kStep;
          if (rest >= kStep) {
            const V sum = sums[r][v] + start;
            store(to + v * kStep, job.residual ? sum + load(source + v * kStep) : sum);
          } else if (rest > 0) {
            const V sum = sums[r][v] + start;
            store_partial(to + v * kStep,
                          job.residual ? sum + load_partial(source + v * kStep, rest) : sum, rest);
          }
        }
      }
    }
  }
}

template <typename T>
constexpr ProductKernels<T> kProductKernels = {
    .group_rows = kProductRows,
    .group_size = &packed_group_size<T>,
    .scratch_size = &product_scratch_size<T>,
    .fold_rows = &fold_rows<accumulate_t<T>>,
    .pack_group = &pack_group<T>,
    .multiply_pixels = &multiply_pixels<T>,
};
