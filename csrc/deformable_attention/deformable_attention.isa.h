// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by deformable_attention_cpu.cpp.

#include "deformable_attention/between_pixels.isa.h"

namespace {

inline Vec<int32_t> to_index(Vec<float> whole) {
  return __builtin_convertvector(whole, Vec<int32_t>);
}
inline int32_t to_index(double whole) { return static_cast<int32_t>(whole); }

// `count` locations (x, y).
inline void load_locations(const float* locations, int64_t count, Vec<float>& x, Vec<float>& y) {
  const int64_t rest = 2 * count - kLanes<float>;
  const Vec<float> first = load_up_to(locations, 2 * count);
  const Vec<float> second = rest > 0 ? load_up_to(locations + kLanes<float>, rest) : Vec<float>{};
  deinterleave(first, second, x, y);
}

inline void load_locations(const double* locations, int64_t, double& x, double& y) {
  x = locations[0];
  y = locations[1];
}

inline void store_locations(float* locations, int64_t count, Vec<float> x, Vec<float> y) {
  const int64_t rest = 2 * count - kLanes<float>;
  Vec<float> first, second;
  interleave(x, y, first, second);
  store_up_to(locations, first, 2 * count);
  if (rest > 0) store_up_to(locations + kLanes<float>, second, rest);
}

inline void store_locations(double* locations, int64_t, double x, double y) {
  locations[0] = x;
  locations[1] = y;
}

// The rows of a head lie too far apart for the hardware prefetcher. May point past the end.
template <typename T>
void prefetch(const T* row, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count + kLine - 1; i += kLine) __builtin_prefetch(row + i);
}

// The tokens and weights of the four pixels around each of the samples [begin, end) of one query
// and head: (low, low), (low, high), (high, low), (high, high) in (y, x). F is T or a vector of T.
template <typename F, typename T>
void locate(const DeformableSamples<T>& samples, int64_t begin, int64_t end, const T* locations,
            const T* attention) {
  constexpr int64_t kStep = sizeof(F) / sizeof(T);
  for (int64_t i = begin; i < end; i += kStep) {
    const int64_t count = std::min(kStep, end - i);
    F x_location, y_location;
    load_locations(locations + 2 * i, count, x_location, y_location);
    const F width = load<F>(samples.width + i);
    const Between<F> x = between_pixels<F>(x_location, width);
    const Between<F> y = between_pixels<F>(y_location, load<F>(samples.height + i));
    const auto first = load<decltype(to_index(width))>(samples.first + i);
    const auto low = first + to_index(y.low) * to_index(width);
    const auto high = first + to_index(y.high) * to_index(width);
    const auto outside = (x.low_off & x.high_off) | (y.low_off & y.high_off);
    store(samples.token[0] + i, outside ? first - first - 1 : low + to_index(x.low));
    store(samples.token[1] + i, low + to_index(x.high));
    store(samples.token[2] + i, high + to_index(x.low));
    store(samples.token[3] + i, high + to_index(x.high));
    const F weight = load_up_to<F>(attention + i, count);
    store(samples.weight[0] + i, weight * y.low_share * x.low_share);
    store(samples.weight[1] + i, weight * y.low_share * x.high_share);
    store(samples.weight[2] + i, weight * y.high_share * x.low_share);
    store(samples.weight[3] + i, weight * y.high_share * x.high_share);
  }
}

// The gradients of the locations and weights of the samples [begin, end), given the products `dot`
// of each of their four pixels with the gradient of the output.
template <typename F, typename T>
void sample_gradients(const DeformableSamples<T>& samples, int64_t begin, int64_t end,
                      const T* locations, const T* attention, const T* const (&dot)[4],
                      T* grad_locations, T* grad_attention) {
  constexpr int64_t kStep = sizeof(F) / sizeof(T);
  for (int64_t i = begin; i < end; i += kStep) {
    const int64_t count = std::min(kStep, end - i);
    F x_location, y_location;
    load_locations(locations + 2 * i, count, x_location, y_location);
    const F width = load<F>(samples.width + i), height = load<F>(samples.height + i);
    const Between<F> x = between_pixels<F>(x_location, width);
    const Between<F> y = between_pixels<F>(y_location, height);
    // Products with pixels that are off the map count as zero.
    const F low_low = zero_where<F>(y.low_off | x.low_off, load<F>(dot[0] + i));
    const F low_high = zero_where<F>(y.low_off | x.high_off, load<F>(dot[1] + i));
    const F high_low = zero_where<F>(y.high_off | x.low_off, load<F>(dot[2] + i));
    const F high_high = zero_where<F>(y.high_off | x.high_off, load<F>(dot[3] + i));
    const F low = low_low * x.low_share + low_high * x.high_share;
    const F high = high_low * x.low_share + high_high * x.high_share;
    const F x_slope = (low_high - low_low) * y.low_share + (high_high - high_low) * y.high_share;
    const F weight = load_up_to<F>(attention + i, count);
    store_up_to(grad_attention + i, low * y.low_share + high * y.high_share, count);
    store_locations(grad_locations + 2 * i, count, weight * width * x_slope,
                    weight * height * (high - low));
  }
}

// `width` channels of the output row, in kVectors vectors of which the last may be partial.
template <typename T, int kVectors, bool kPartial>
void sum_samples(const DeformableSamples<accumulate_t<T>>& samples, const T* value, int64_t stride,
                 int64_t width, T* output) {
  constexpr int64_t kStep = kLanes<accumulate_t<T>>;
  const auto load_pixel = [&](const T* pixel, int v) AVSKERNELS_TARGET {
    return load_partial<kPartial>(pixel + v * kStep, width);
  };
  Vec<accumulate_t<T>> low[kVectors] = {}, high[kVectors] = {};
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
    store_partial<kPartial>(output + v * kStep, low[v] + high[v], width);
  }
}

}  // namespace

// computes: output rows of queries [begin, end) of one image and head
// loop order: queries, then chunks of 32 channels, then samples, whose sums stay in registers
// traffic and FLOPs: locations, weights and output once; value from cache; 8 B Q heads L P D
// numerics: summed in accumulate_t<T>, level by level, point by point
// limits: none
template <typename T>
void deformable_rows(const DeformableJob<T>& job, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const DeformableShape& shape = job.shape;
  const DeformableSamples<A>& samples = job.samples;
  const View<const T> value = job.value;
  constexpr int64_t kStep = kLanes<A>, kChunk = 32, kAhead = 4;
  const int64_t samples_stride = shape.heads * samples.count;
  for (int64_t query = begin; query < end; ++query) {
    const A* locations = job.sampling_locations + query * samples_stride * 2;
    const A* attention = job.attention_weights + query * samples_stride;
    prefetch(locations + kAhead * samples_stride * 2, samples.count * 2);
    prefetch(attention + kAhead * samples_stride, samples.count);
    locate<MathVec<A>>(samples, 0, samples.count, locations, attention);
    T* row = job.output + query * shape.heads * shape.dim;
    int64_t d = 0;
    for (; d + kChunk <= shape.dim; d += kChunk) {
      sum_samples<T, kChunk / kStep, false>(samples, value.data + d, value.stride, kChunk, row + d);
    }
    for (; d + kStep <= shape.dim; d += kStep) {
      sum_samples<T, 1, false>(samples, value.data + d, value.stride, kStep, row + d);
    }
    if (d < shape.dim) {
      sum_samples<T, 1, true>(samples, value.data + d, value.stride, shape.dim - d, row + d);
    }
  }
}

// One row of `dim` numbers, widened or narrowed; the wide one is padded to whole vectors.
template <typename T>
void widen(const T* row, int64_t dim, accumulate_t<T>* wide) {
  constexpr int64_t kStep = kLanes<accumulate_t<T>>;
  int64_t d = 0;
  for (; d + kStep <= dim; d += kStep) store(wide + d, load(row + d));
  if (d < dim) store(wide + d, load_partial(row + d, dim - d));
}

template <typename T>
void narrow(const accumulate_t<T>* wide, int64_t dim, T* row) {
  constexpr int64_t kStep = kLanes<accumulate_t<T>>;
  int64_t d = 0;
  for (; d + kStep <= dim; d += kStep) store(row + d, load(wide + d));
  if (d < dim) store_partial(row + d, load(wide + d), dim - d);
}

// computes: all gradients of the samples of levels [first_level, last_level) of one image and head
// loop order: queries, then samples; the head's value and its gradient lie together in scratch
// traffic and FLOPs: value, locations, weights and their gradients once; 16 B Q heads L P D
// numerics: in accumulate_t<T>; a pixel sums its queries in order, so results are deterministic
// limits: none
template <typename T>
void deformable_gradients(const DeformableGradientJob<T>& job, const LevelRange& levels) {
  using A = accumulate_t<T>;
  constexpr int64_t kStep = kLanes<A>, kAhead = 4;
  const DeformableShape& shape = job.shape;
  const DeformableSamples<A>& samples = job.samples;
  const DeformableScratch<A>& scratch = job.scratch;
  const auto [begin, end, first_token, last_token] = levels;
  const int64_t stride = shape.heads * shape.dim, samples_stride = shape.heads * samples.count;
  for (int64_t token = first_token; token < last_token; ++token) {
    A* row = scratch.value + (token - first_token) * scratch.dim;
    widen(job.value + token * stride, shape.dim, row);
  }
  std::memset(scratch.grad_value, 0, (last_token - first_token) * scratch.dim * sizeof(A));
  A* const values = scratch.value - first_token * scratch.dim;
  A* const grad_values = scratch.grad_value - first_token * scratch.dim;
  for (int64_t query = 0; query < shape.queries; ++query) {
    const A* locations = job.sampling_locations + query * samples_stride * 2;
    const A* attention = job.attention_weights + query * samples_stride;
    const int64_t ahead = kAhead * samples_stride + begin;
    prefetch(locations + ahead * 2, (end - begin) * 2);
    prefetch(attention + ahead, end - begin);
    prefetch(job.grad_output + (query + kAhead) * stride, shape.dim);
    locate<MathVec<A>>(samples, begin, end, locations, attention);
    widen(job.grad_output + query * stride, shape.dim, scratch.grad_row);
    for (int64_t i = begin; i < end; ++i) {
      Vec<A> dots[4] = {};
      if (samples.token[0][i] >= 0) {
        const int64_t pixels[4] = {
            samples.token[0][i] * scratch.dim, samples.token[1][i] * scratch.dim,
            samples.token[2][i] * scratch.dim, samples.token[3][i] * scratch.dim};
        // A NaN location passes no gradient to any pixel.
        const bool located = !std::isnan(locations[2 * i]) && !std::isnan(locations[2 * i + 1]);
        for (int64_t d = 0; d < scratch.dim; d += kStep) {
          const Vec<A> grad = load(scratch.grad_row + d);
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
      sum(dots, sums);
      for (int c = 0; c < 4; ++c) scratch.dot[c][i] = sums[c];
    }
    sample_gradients<MathVec<A>>(samples, begin, end, locations, attention,
                                 {scratch.dot[0], scratch.dot[1], scratch.dot[2], scratch.dot[3]},
                                 job.grad_locations + query * samples_stride * 2,
                                 job.grad_attention + query * samples_stride);
  }
  for (int64_t token = first_token; token < last_token; ++token) {
    narrow(grad_values + token * scratch.dim, shape.dim, job.grad_value + token * stride);
  }
}

template <typename T>
constexpr DeformableKernels<T> kDeformableKernels = {
    .rows = &deformable_rows<T>,
    .gradients = &deformable_gradients<T>,
};
