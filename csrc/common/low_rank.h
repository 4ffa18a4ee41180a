// SPDX-License-Identifier: Apache-2.0
// Products of a piece of a map, x [C, pixels] with any row stride, and a few rows: the three shapes
// that attention with few queries consists of. Included by kernel files inside an instruction set's
// namespace, hence no include guard and no includes. A is the type of sums; float maps and
// half-precision maps have A = float, double maps have A = double.
//
// The few rows come in groups of at most kGroup, whose accumulators fit the registers.

#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
constexpr int64_t kGroup = 8;
#else
constexpr int64_t kGroup = 4;  // 16 registers
#endif

// Vectors of pixels whose products with a group fill the registers.
constexpr int kTileVectors = AVSKERNELS_ISA >= AVSKERNELS_AVX2 ? 3 : 2;

// Rows of a few values a pixel are padded to this many, so that their vectors need no partial form.
constexpr int64_t kPixelPadding = 16;

inline int64_t padded(int64_t pixels) {
  return (pixels + kPixelPadding - 1) / kPixelPadding * kPixelPadding;
}

// A vector of elements, or its first `count` where kPartial.
template <bool kPartial, typename T>
inline auto load_some(const T* data, int64_t count) {
  if constexpr (kPartial) {
    return load_partial(data, count);
  } else {
    return load(data);
  }
}

template <bool kPartial, typename T, typename V>
inline void store_some(T* data, V vec, int64_t count) {
  if constexpr (kPartial) {
    store_partial(data, vec, count);
  } else {
    store(data, vec);
  }
}

// Keeps a value in a register where the compiler would rather load it again for every use.
template <typename V>
inline V in_register(V vec) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  asm("" : "+v"(vec));
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
  asm("" : "+x"(vec));
#endif
  return vec;
}

template <typename A>
inline VecOf<A> broadcast(A value) {
  return value - VecOf<A>{};  // see splat
}

// sums[i] = the sum over the lanes of vectors[i].
template <int kCount, typename A>
inline void add_lanes(const VecOf<A>* vectors, A* sums) {
  constexpr int kWidth = kLanesOf<A>, kNow = std::min(kWidth, kCount);
  VecOf<A> rows[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) rows[i] = i < kNow ? vectors[i] : VecOf<A>{};
  store_partial(sums, row_sums(rows), kNow);
  if constexpr (kCount > kWidth) add_lanes<kCount - kWidth, A>(vectors + kWidth, sums + kWidth);
}

// Calls body.operator()<n>() for the n of 1..kGroup that `rows` is.
template <int kRows = kGroup, typename Body>
inline void with_rows(int64_t rows, const Body& body) {
  if (rows == kRows) {
    body.template operator()<kRows>();
  } else if constexpr (kRows > 1) {
    with_rows<kRows - 1>(rows, body);
  }
}

// [rows, C] to groups of [C, at most kGroup], the order that row_dots reads.
template <typename A>
inline void pack_rows(const A* rows, int64_t count, int64_t channels, A* packed) {
  for (int64_t first = 0; first < count; first += kGroup) {
    const int64_t group = std::min(kGroup, count - first);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t r = 0; r < group; ++r) *packed++ = rows[(first + r) * channels + c];
    }
  }
}

// Brings the cache lines that hold the pixels behind `data` (with kWrite, for writing) into the
// second-level cache. The channels of a tile lie on as many pages, where the processor foresees
// nothing; without this each of them waits for the third-level cache (measured: 0.69 ms instead of
// 0.28 for 5 x 256 x 56 x 56). A tile ahead is more than the first level holds: fetched into that,
// it took the mixer a fifth longer, and tpavi a third.
template <int kVectors, bool kWrite = false, typename T>
inline void prefetch(const T* data) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t n = 0; n < kVectors * kLanesOf<accumulate_t<T>>; n += kLine) {
    __builtin_prefetch(data + n, kWrite, 2);
  }
}

template <int kRows, int kVectors, bool kPartial, typename T, typename A>
inline void dot_tile(const T* x, int64_t stride, const A* packed, int64_t channels, int64_t count,
                     A* out, int64_t out_stride) {
  using V = VecOf<A>;
  constexpr int64_t kStep = kLanesOf<A>;
  V sums[kRows][kVectors];
  set_zero<kRows * kVectors>(sums[0]);
  for (int64_t c = 0; c < channels; ++c) {
    V pixels[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      pixels[v] = load_some<kPartial>(x + c * stride + v * kStep, count);
    }
    if constexpr (!kPartial) prefetch<kVectors>(x + c * stride + kVectors * kStep);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V factor = broadcast(packed[c * kRows + r]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] += factor * pixels[v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) store(out + r * out_stride + v * kStep, sums[r][v]);
  }
}

// out[r, n] = sum_c row[r, c] x[c, n]. out has padded(pixels) columns; those behind are undefined.
template <typename T, typename A>
inline void row_dots(const T* x, int64_t stride, const A* packed, int64_t rows, int64_t channels,
                     int64_t pixels, A* out, int64_t out_stride) {
  constexpr int64_t kStep = kLanesOf<A>;
  for (int64_t first = 0; first < rows; first += kGroup) {
    const int64_t group = std::min(kGroup, rows - first);
    const A* own = packed + first * channels;
    with_rows(group, [&]<int kRows>() AVSKERNELS_TARGET {
      int64_t n = 0;
      const auto tile = [&]<int kVectors, bool kPartial>() AVSKERNELS_TARGET {
        dot_tile<kRows, kVectors, kPartial>(x + n, stride, own, channels, pixels - n,
                                            out + first * out_stride + n, out_stride);
        n += kVectors * kStep;
      };
      while (n + kTileVectors * kStep <= pixels) tile.template operator()<kTileVectors, false>();
      while (n + kStep <= pixels) tile.template operator()<1, false>();
      if (n < pixels) tile.template operator()<1, true>();
    });
  }
}

template <int kRows, int kChannels, typename T, typename A>
inline void pool_tile(const T* x, int64_t stride, const A* weights, int64_t weight_stride,
                      int64_t pixels, A* sums, int64_t sum_stride) {
  using V = VecOf<A>;
  constexpr int64_t kStep = kLanesOf<A>;
  V totals[kChannels][kRows];
  set_zero<kChannels * kRows>(totals[0]);
  int64_t n = 0;
  for (; n + kStep <= pixels; n += kStep) {
    V values[kChannels];
#pragma GCC unroll 8
    for (int c = 0; c < kChannels; ++c) values[c] = load(x + c * stride + n);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V weight = in_register(load(weights + r * weight_stride + n));
#pragma GCC unroll 8
      for (int c = 0; c < kChannels; ++c) totals[c][r] += weight * values[c];
    }
  }
  if (n < pixels) {
    for (int c = 0; c < kChannels; ++c) {
      const V value = load_partial(x + c * stride + n, pixels - n);
      for (int r = 0; r < kRows; ++r) {
        totals[c][r] += load(weights + r * weight_stride + n) * value;
      }
    }
  }
  A flat[kChannels * kRows];
  add_lanes<kChannels * kRows, A>(totals[0], flat);
  for (int c = 0; c < kChannels; ++c) {
    for (int r = 0; r < kRows; ++r) sums[r * sum_stride + c] = flat[c * kRows + r];
  }
}

// sums[r, c] = sum_n weights[r, n] x[c, n]. The weights behind the last pixel are finite.
template <typename T, typename A>
inline void row_pools(const T* x, int64_t stride, const A* weights, int64_t weight_stride,
                      int64_t rows, int64_t channels, int64_t pixels, A* sums) {
  for (int64_t first = 0; first < rows; first += kGroup) {
    with_rows(std::min(kGroup, rows - first), [&]<int kRows>() AVSKERNELS_TARGET {
      constexpr int kChannels = std::min<int>(8, kTileVectors * kGroup / kRows);
      const A* own = weights + first * weight_stride;
      A* out = sums + first * channels;
      int64_t c = 0;
      for (; c + kChannels <= channels; c += kChannels) {
        pool_tile<kRows, kChannels>(x + c * stride, stride, own, weight_stride, pixels, out + c,
                                    channels);
      }
      for (; c < channels; ++c) {
        pool_tile<kRows, 1>(x + c * stride, stride, own, weight_stride, pixels, out + c, channels);
      }
    });
  }
}

template <bool kSource, int kChannels, int kVectors, bool kPartial, typename T, typename A,
          typename Out>
inline void combine_tile(const T* source, int64_t source_stride, const A* scale, const A* shift,
                         const A* rows, int64_t channels, const A* weights, int64_t weight_stride,
                         int64_t count_rows, int64_t count, Out* out, int64_t out_stride,
                         bool past_caches) {
  using V = VecOf<A>;
  constexpr int64_t kStep = kLanesOf<A>;
  V sums[kChannels][kVectors];
#pragma GCC unroll 4
  for (int c = 0; c < kChannels; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sums[c][v] = broadcast(shift ? shift[c] : A(0));
      if constexpr (kSource) {
        const V value = load_some<kPartial>(source + c * source_stride + v * kStep, count);
        sums[c][v] += scale ? value * scale[c] : value;
      }
    }
  }
  for (int64_t r = 0; r < count_rows; ++r) {
    V pixels[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) pixels[v] = load(weights + r * weight_stride + v * kStep);
#pragma GCC unroll 4
    for (int c = 0; c < kChannels; ++c) {
      const V factor = broadcast(rows[r * channels + c]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[c][v] += factor * pixels[v];
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < kChannels; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Out* to = out + c * out_stride + v * kStep;
      if (!kPartial && past_caches) {
        store_past_caches(to, sums[c][v]);
      } else {
        store_some<kPartial>(to, sums[c][v], count);
      }
    }
  }
}

template <bool kSource, int kChannels, typename T, typename A, typename Out>
inline void combine_channels(const T* source, int64_t source_stride, const A* scale, const A* shift,
                             const A* rows, int64_t channels, const A* weights,
                             int64_t weight_stride, int64_t count_rows, int64_t pixels, Out* out,
                             int64_t out_stride, bool past_caches) {
  constexpr int64_t kStep = kLanesOf<A>;
  constexpr int kVectors = 2;
  int64_t n = 0;
  for (; n + kVectors * kStep <= pixels; n += kVectors * kStep) {
    combine_tile<kSource, kChannels, kVectors, false>(
        source + n, source_stride, scale, shift, rows, channels, weights + n, weight_stride,
        count_rows, kStep, out + n, out_stride, past_caches);
  }
  for (; n < pixels; n += kStep) {
    combine_tile<kSource, kChannels, 1, true>(
        source + n, source_stride, scale, shift, rows, channels, weights + n, weight_stride,
        count_rows, std::min(kStep, pixels - n), out + n, out_stride, past_caches);
  }
}

// out[c, n] = scale[c] source[c, n] + shift[c] + sum_r rows[r, c] weights[r, n]; without source,
// scale or shift where they are null (scale: 1). past_caches wants the rows of out aligned to cache
// lines.
template <typename T, typename A, typename Out>
inline void combine_rows(const T* source, int64_t source_stride, const A* scale, const A* shift,
                         const A* rows, int64_t channels, const A* weights, int64_t weight_stride,
                         int64_t count_rows, int64_t pixels, Out* out, int64_t out_stride,
                         bool past_caches = false) {
  const auto run = [&]<bool kSource, int kChannels>(int64_t c) AVSKERNELS_TARGET {
    combine_channels<kSource, kChannels>(
        kSource ? source + c * source_stride : source, source_stride, scale ? scale + c : scale,
        shift ? shift + c : shift, rows + c, channels, weights, weight_stride, count_rows, pixels,
        out + c * out_stride, out_stride, past_caches);
  };
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4) {
    source ? run.template operator()<true, 4>(c) : run.template operator()<false, 4>(c);
  }
  for (; c < channels; ++c) {
    source ? run.template operator()<true, 1>(c) : run.template operator()<false, 1>(c);
  }
  if (past_caches) stores_done();
}
