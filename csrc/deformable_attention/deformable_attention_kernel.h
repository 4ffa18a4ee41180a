// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by deformable_attention_cpu.cpp.

#include "deformable_attention/between_pixels.h"

namespace {

template <typename T>
using VecOf = decltype(load(static_cast<const T*>(nullptr)));

template <typename T>
constexpr int64_t kLanesOf = sizeof(VecOf<T>) / sizeof(accumulate_t<T>);

inline IVec to_index(Vec whole) { return __builtin_convertvector(whole, IVec); }
inline int32_t to_index(double whole) { return static_cast<int32_t>(whole); }

// `count` locations (x, y).
inline void load_locations(const float* locations, int64_t count, Vec& x, Vec& y) {
  const int64_t floats = 2 * count;
  const Vec first = floats < kLanes ? load_partial(locations, floats) : load(locations);
  Vec second = {};
  if (floats == 2 * kLanes) {
    second = load(locations + kLanes);
  } else if (floats > kLanes) {
    second = load_partial(locations + kLanes, floats - kLanes);
  }
  deinterleave(first, second, x, y);
}

inline void load_locations(const double* locations, int64_t, double& x, double& y) {
  x = locations[0];
  y = locations[1];
}

inline Vec load_up_to(const float* data, int64_t count) {
  return count < kLanes ? load_partial(data, count) : load(data);
}
inline double load_up_to(const double* data, int64_t) { return data[0]; }

template <typename T>
T read(const auto* data) {
  T value;
  std::memcpy(&value, data, sizeof(value));
  return value;
}

void write(auto* data, auto value) { std::memcpy(data, &value, sizeof(value)); }

// The rows of a head lie too far apart for the processor to foresee them. May point past the end.
template <typename T>
void prefetch(const T* row, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count + kLine - 1; i += kLine) __builtin_prefetch(row + i);
}

// The tokens and weights of the four pixels around each of the L * P samples of one query and head:
// (low, low), (low, high), (high, low), (high, high) in (y, x). F: T, or a vector of T.
template <typename F, typename T>
void locate(const DeformableSamples<T>& samples, const T* locations, const T* attention) {
  constexpr int64_t kStep = sizeof(F) / sizeof(T);
  for (int64_t i = 0; i < samples.count; i += kStep) {
    const int64_t count = std::min(kStep, samples.count - i);
    F x_location, y_location;
    load_locations(locations + 2 * i, count, x_location, y_location);
    const F width = read<F>(samples.width + i);
    const Between<F> x = between_pixels<F>(x_location, width);
    const Between<F> y = between_pixels<F>(y_location, read<F>(samples.height + i));
    const auto first = read<decltype(to_index(width))>(samples.first + i);
    const auto low = first + to_index(y.low) * to_index(width);
    const auto high = first + to_index(y.high) * to_index(width);
    const auto outside = (x.low_off & x.high_off) | (y.low_off & y.high_off);
    write(samples.token[0] + i, outside ? first - first - 1 : low + to_index(x.low));
    write(samples.token[1] + i, low + to_index(x.high));
    write(samples.token[2] + i, high + to_index(x.low));
    write(samples.token[3] + i, high + to_index(x.high));
    const F weight = load_up_to(attention + i, count);
    const F low_weight = zero_where<F>(y.low_off, weight * y.low_share);
    const F high_weight = zero_where<F>(y.high_off, weight * y.high_share);
    write(samples.weight[0] + i, zero_where<F>(x.low_off, low_weight * x.low_share));
    write(samples.weight[1] + i, zero_where<F>(x.high_off, low_weight * x.high_share));
    write(samples.weight[2] + i, zero_where<F>(x.low_off, high_weight * x.low_share));
    write(samples.weight[3] + i, zero_where<F>(x.high_off, high_weight * x.high_share));
  }
}

template <typename T>
using LocateVec = std::conditional_t<std::is_same_v<T, double>, double, Vec>;

// `width` channels of the output row, in kVectors vectors of which the last may be partial.
template <typename T, int kVectors, bool kPartial>
void sum_samples(const DeformableSamples<accumulate_t<T>>& samples, const T* value, int64_t stride,
                 int64_t width, T* output) {
  constexpr int64_t kStep = kLanesOf<T>;
  const auto load_pixel = [&](const T* pixel, int v) AVSKERNELS_TARGET {
    if constexpr (kPartial) {
      return load_partial(pixel + v * kStep, width);
    } else {
      return load(pixel + v * kStep);
    }
  };
  VecOf<T> low[kVectors] = {}, high[kVectors] = {};
  for (int64_t i = 0; i < samples.count; ++i) {
    if (samples.token[0][i] < 0) continue;
    const T* pixel0 = value + samples.token[0][i] * stride;
    const T* pixel1 = value + samples.token[1][i] * stride;
    const T* pixel2 = value + samples.token[2][i] * stride;
    const T* pixel3 = value + samples.token[3][i] * stride;
    for (int v = 0; v < kVectors; ++v) {
      low[v] += load_pixel(pixel0, v) * samples.weight[0][i];
      high[v] += load_pixel(pixel2, v) * samples.weight[2][i];
      low[v] += load_pixel(pixel1, v) * samples.weight[1][i];
      high[v] += load_pixel(pixel3, v) * samples.weight[3][i];
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    if constexpr (kPartial) {
      store_partial(output + v * kStep, low[v] + high[v], width);
    } else {
      store(output + v * kStep, low[v] + high[v]);
    }
  }
}

}  // namespace

// computes: output rows of queries [begin, end) of one image and head
// loop order: queries, then chunks of 32 channels, then samples, whose sums stay in registers
// traffic and FLOPs: locations, weights and output once; value from cache; 8 B Q heads L P D
// numerics: summed in accumulate_t<T>, level by level, point by point
// limits: none
template <typename T>
void deformable_rows(const DeformableShape& shape,
                     const DeformableSamples<accumulate_t<T>>& samples,
                     const T* value,                    // [S, D] of this head, S by `stride`
                     int64_t stride,                    //
                     const accumulate_t<T>* locations,  // [Q, heads, L, P, 2], from this head on
                     const accumulate_t<T>* attention,  // [Q, heads, L, P], from this head on
                     int64_t begin, int64_t end,        //
                     T* output) {                       // [Q, heads, D], from this head on
  constexpr int64_t kStep = kLanesOf<T>, kChunk = 32, kAhead = 4;
  for (int64_t query = begin; query < end; ++query) {
    prefetch(locations + (query + kAhead) * shape.heads * samples.count * 2, samples.count * 2);
    prefetch(attention + (query + kAhead) * shape.heads * samples.count, samples.count);
    locate<LocateVec<T>>(samples, locations + query * shape.heads * samples.count * 2,
                         attention + query * shape.heads * samples.count);
    T* row = output + query * shape.heads * shape.dim;
    int64_t d = 0;
    for (; d + kChunk <= shape.dim; d += kChunk) {
      sum_samples<T, kChunk / kStep, false>(samples, value + d, stride, kChunk, row + d);
    }
    for (; d + kStep <= shape.dim; d += kStep) {
      sum_samples<T, 1, false>(samples, value + d, stride, kStep, row + d);
    }
    if (d < shape.dim) {
      sum_samples<T, 1, true>(samples, value + d, stride, shape.dim - d, row + d);
    }
  }
}
