// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by deformable_attention_cpu.cpp.

#include "deformable_attention/between_pixels.h"

namespace {

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

inline void store_locations(float* locations, int64_t count, Vec x, Vec y) {
  const int64_t floats = 2 * count;
  Vec first, second;
  interleave(x, y, first, second);
  if (floats < kLanes) {
    store_partial(locations, first, floats);
    return;
  }
  store(locations, first);
  if (floats == 2 * kLanes) {
    store(locations + kLanes, second);
  } else {
    store_partial(locations + kLanes, second, floats - kLanes);
  }
}

inline void store_locations(double* locations, int64_t, double x, double y) {
  locations[0] = x;
  locations[1] = y;
}

inline Vec load_up_to(const float* data, int64_t count) {
  return count < kLanes ? load_partial(data, count) : load(data);
}
inline double load_up_to(const double* data, int64_t) { return data[0]; }

inline void store_up_to(float* data, int64_t count, Vec vec) {
  if (count < kLanes) {
    store_partial(data, vec, count);
  } else {
    store(data, vec);
  }
}
inline void store_up_to(double* data, int64_t, double value) { data[0] = value; }

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

// The tokens and weights of the four pixels around each of the samples [begin, end) of one query
// and head: (low, low), (low, high), (high, low), (high, high) in (y, x). F: T, or a vector of T.
template <typename F, typename T>
void locate(const DeformableSamples<T>& samples, int64_t begin, int64_t end, const T* locations,
            const T* attention) {
  constexpr int64_t kStep = sizeof(F) / sizeof(T);
  for (int64_t i = begin; i < end; i += kStep) {
    const int64_t count = std::min(kStep, end - i);
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
    write(samples.weight[0] + i, weight * y.low_share * x.low_share);
    write(samples.weight[1] + i, weight * y.low_share * x.high_share);
    write(samples.weight[2] + i, weight * y.high_share * x.low_share);
    write(samples.weight[3] + i, weight * y.high_share * x.high_share);
  }
}

// What the samples [begin, end) pass back, given the products `dot` of each of their four pixels
// with the gradient of the output.
template <typename F, typename T>
void sample_gradients(const DeformableSamples<T>& samples, int64_t begin, int64_t end,
                      const T* locations, const T* attention, const T* const (&dot)[4],
                      T* grad_locations, T* grad_attention) {
  constexpr int64_t kStep = sizeof(F) / sizeof(T);
  for (int64_t i = begin; i < end; i += kStep) {
    const int64_t count = std::min(kStep, end - i);
    F x_location, y_location;
    load_locations(locations + 2 * i, count, x_location, y_location);
    const F width = read<F>(samples.width + i), height = read<F>(samples.height + i);
    const Between<F> x = between_pixels<F>(x_location, width);
    const Between<F> y = between_pixels<F>(y_location, height);
    // Products with pixels that are off the map count as zero.
    const F low_low = zero_where<F>(y.low_off | x.low_off, read<F>(dot[0] + i));
    const F low_high = zero_where<F>(y.low_off | x.high_off, read<F>(dot[1] + i));
    const F high_low = zero_where<F>(y.high_off | x.low_off, read<F>(dot[2] + i));
    const F high_high = zero_where<F>(y.high_off | x.high_off, read<F>(dot[3] + i));
    const F low = low_low * x.low_share + low_high * x.high_share;
    const F high = high_low * x.low_share + high_high * x.high_share;
    const F x_slope = (low_high - low_low) * y.low_share + (high_high - high_low) * y.high_share;
    const F weight = load_up_to(attention + i, count);
    store_up_to(grad_attention + i, count, low * y.low_share + high * y.high_share);
    store_locations(grad_locations + 2 * i, count, weight * width * x_slope,
                    weight * height * (high - low));
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
    locate<LocateVec<T>>(samples, 0, samples.count,
                         locations + query * shape.heads * samples.count * 2,
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

// One row of `dim` numbers, widened or narrowed; the wide one is padded to whole vectors.
template <typename T>
void widen(const T* row, int64_t dim, accumulate_t<T>* wide) {
  constexpr int64_t kStep = kLanesOf<T>;
  int64_t d = 0;
  for (; d + kStep <= dim; d += kStep) store(wide + d, load(row + d));
  if (d < dim) store(wide + d, load_partial(row + d, dim - d));
}

template <typename T>
void narrow(const accumulate_t<T>* wide, int64_t dim, T* row) {
  constexpr int64_t kStep = kLanesOf<T>;
  int64_t d = 0;
  for (; d + kStep <= dim; d += kStep) store(row + d, load(wide + d));
  if (d < dim) store_partial(row + d, load(wide + d), dim - d);
}

// computes: all gradients of the samples of levels [first_level, last_level) of one image and head
// loop order: queries, then samples; the head's value and its gradient lie together in `room`
// traffic and FLOPs: value, locations, weights and their gradients once; 16 B Q heads L P D
// numerics: in accumulate_t<T>; a pixel sums its queries in order, so results are deterministic
// limits: none
template <typename T>
void deformable_gradients(const DeformableShape& shape,
                          const DeformableSamples<accumulate_t<T>>& samples,
                          const DeformableRoom<accumulate_t<T>>& room, int64_t begin, int64_t end,
                          int64_t first_token, int64_t last_token,
                          const T* grad_output,               // [Q, heads, D], from this head on
                          const T* value,                     // [S, heads, D], likewise
                          const accumulate_t<T>* locations,   // [Q, heads, L, P, 2], likewise
                          const accumulate_t<T>* attention,   // [Q, heads, L, P], likewise
                          T* grad_value,                      // as value
                          accumulate_t<T>* grad_locations,    // as locations
                          accumulate_t<T>* grad_attention) {  // as attention
  using A = accumulate_t<T>;
  constexpr int64_t kStep = kLanesOf<T>, kAhead = 4;
  const int64_t stride = shape.heads * shape.dim, samples_stride = shape.heads * samples.count;
  for (int64_t token = first_token; token < last_token; ++token) {
    A* row = room.value + (token - first_token) * room.dim;
    widen(value + token * stride, shape.dim, row);
  }
  std::memset(room.grad_value, 0, (last_token - first_token) * room.dim * sizeof(A));
  A* const values = room.value - first_token * room.dim;
  A* const grad_values = room.grad_value - first_token * room.dim;
  for (int64_t query = 0; query < shape.queries; ++query) {
    const A* query_locations = locations + query * samples_stride * 2;
    const A* query_attention = attention + query * samples_stride;
    const int64_t ahead = kAhead * samples_stride + begin;
    prefetch(query_locations + ahead * 2, (end - begin) * 2);
    prefetch(query_attention + ahead, end - begin);
    prefetch(grad_output + (query + kAhead) * stride, shape.dim);
    locate<LocateVec<T>>(samples, begin, end, query_locations, query_attention);
    widen(grad_output + query * stride, shape.dim, room.grad_row);
    for (int64_t i = begin; i < end; ++i) {
      VecOf<T> dots[4] = {};
      if (samples.token[0][i] >= 0) {
        const int64_t pixels[4] = {samples.token[0][i] * room.dim, samples.token[1][i] * room.dim,
                                   samples.token[2][i] * room.dim, samples.token[3][i] * room.dim};
        // A NaN location has no pixel to pass anything to.
        const bool located =
            !std::isnan(query_locations[2 * i]) && !std::isnan(query_locations[2 * i + 1]);
        for (int64_t d = 0; d < room.dim; d += kStep) {
          const VecOf<T> grad = load(room.grad_row + d);
          for (int c = 0; c < 4; ++c) dots[c] += load(values + pixels[c] + d) * grad;
          if (located) {
            for (int c = 0; c < 4; ++c) {
              A* pixel = grad_values + pixels[c] + d;
              store(pixel, load(pixel) + grad * samples.weight[c][i]);
            }
          }
        }
      }
      A sums[4];
      reduce_add(dots, sums);
      for (int c = 0; c < 4; ++c) room.dot[c][i] = sums[c];
    }
    sample_gradients<LocateVec<T>>(samples, begin, end, query_locations, query_attention,
                                   {room.dot[0], room.dot[1], room.dot[2], room.dot[3]},
                                   grad_locations + query * samples_stride * 2,
                                   grad_attention + query * samples_stride);
  }
  for (int64_t token = first_token; token < last_token; ++token) {
    narrow(grad_values + token * room.dim, shape.dim, grad_value + token * stride);
  }
}
