// SPDX-License-Identifier: Apache-2.0
// Products of a map, or a block of one, [C, pixels] and a few rows: the three shapes that attention
// with few queries consists of. Included by kernel files (after common/view.h) inside an
// instruction set's namespace, hence no include guard and no includes. A is the accumulation dtype:
// double for maps of double, float for all others.
//
// The few rows come in groups of at most kGroup, whose accumulators fit the registers.

#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
constexpr int64_t kGroup = 8;
#else
constexpr int64_t kGroup = 4;  // 16 registers
#endif

// Vectors of pixels whose products with a group fill the registers.
constexpr int kTileVectors = AVSKERNELS_ISA >= AVSKERNELS_AVX2 ? 3 : 2;

// Rows of a few values per pixel are padded to this many, so that their vectors need no partial
// form.
constexpr int64_t kPixelPadding = 16;

inline int64_t padded(int64_t pixels) {
  return (pixels + kPixelPadding - 1) / kPixelPadding * kPixelPadding;
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

// sums[i] = the sum over the lanes of vectors[i].
template <int kCount, typename A>
inline void add_lanes(const Vec<A>* vectors, A* sums) {
  constexpr int kWidth = kLanes<A>, kNow = std::min(kWidth, kCount);
  Vec<A> rows[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) rows[i] = i < kNow ? vectors[i] : Vec<A>{};
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

// Brings the cache lines that hold the pixels from `data` on (with kWrite, for writing) into the
// second-level cache. The channels of a tile lie on as many pages, where the processor foresees
// nothing; without this each of them waits for the third-level cache (measured: 0.69 ms instead of
// 0.28 for 5 x 256 x 56 x 56). A tile ahead is more than the first level holds: fetched into that,
// it took the mixer a fifth longer, and tpavi a third.
template <int kVectors, bool kWrite = false, typename T>
inline void prefetch(const T* data) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t n = 0; n < kVectors * kLanes<accumulate_t<T>>; n += kLine) {
    __builtin_prefetch(data + n, kWrite, 2);
  }
}

// The products of kRows rows and the first kVectors vectors of the map's pixels, or, where
// kPartial, its last pixels.
template <int kRows, int kVectors, bool kPartial, typename T, typename A>
inline void dot_tile(View<const T> map, const A* packed, A* out, int64_t out_stride) {
  using V = Vec<A>;
  constexpr int64_t kStep = kLanes<A>;
  V sums[kRows][kVectors];
  set_zero<kRows * kVectors>(sums[0]);
  for (int64_t c = 0; c < map.rows; ++c) {
    const T* channel = map.row(c);
    V pixels[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      pixels[v] = load_partial<kPartial>(channel + v * kStep, map.columns);
    if constexpr (!kPartial) prefetch<kVectors>(channel + kVectors * kStep);
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

// out[r, n] = sum_c row[r, c] map[c, n], the rows as pack_rows leaves them. out has padded(pixels)
// columns, of which those after the last pixel are undefined.
template <typename T, typename A>
inline void row_dots(View<const T> map, const A* packed, View<A> out) {
  constexpr int64_t kStep = kLanes<A>;
  const int64_t pixels = map.columns;
  for (int64_t first = 0; first < out.rows; first += kGroup) {
    const int64_t group = std::min(kGroup, out.rows - first);
    const A* own = packed + first * map.rows;
    A* to = out.row(first);
    with_rows(group, [&]<int kRows>() AVSKERNELS_TARGET {
      int64_t n = 0;
      const auto tile = [&]<int kVectors, bool kPartial>() AVSKERNELS_TARGET {
        dot_tile<kRows, kVectors, kPartial>(map.column_range(n, pixels), own, to + n, out.stride);
        n += kVectors * kStep;
      };
      while (n + kTileVectors * kStep <= pixels) tile.template operator()<kTileVectors, false>();
      while (n + kStep <= pixels) tile.template operator()<1, false>();
      if (n < pixels) tile.template operator()<1, true>();
    });
  }
}

// sums[r, c] = sum_n weights[r, n] map[c, n] for kRows rows and the first kChannels channels.
template <int kRows, int kChannels, typename T, typename A>
inline void pool_tile(View<const T> map, const A* weights, int64_t weight_stride, A* sums,
                      int64_t sum_stride) {
  using V = Vec<A>;
  constexpr int64_t kStep = kLanes<A>;
  const int64_t pixels = map.columns;
  V totals[kChannels][kRows];
  set_zero<kChannels * kRows>(totals[0]);
  int64_t n = 0;
  for (; n + kStep <= pixels; n += kStep) {
    V values[kChannels];
#pragma GCC unroll 8
    for (int c = 0; c < kChannels; ++c) values[c] = load(map.row(c) + n);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V weight = in_register(load(weights + r * weight_stride + n));
#pragma GCC unroll 8
      for (int c = 0; c < kChannels; ++c) totals[c][r] += weight * values[c];
    }
  }
  if (n < pixels) {
    for (int c = 0; c < kChannels; ++c) {
      const V value = load_partial(map.row(c) + n, pixels - n);
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

// sums[r, c] = sum_n weights[r, n] map[c, n]. The weights after the last pixel, up to
// padded(pixels), are finite.
template <typename T, typename A>
inline void row_pools(View<const T> map, View<const A> weights, A* sums) {
  const int64_t channels = map.rows;
  for (int64_t first = 0; first < weights.rows; first += kGroup) {
    with_rows(std::min(kGroup, weights.rows - first), [&]<int kRows>() AVSKERNELS_TARGET {
      constexpr int kChannels = std::min<int>(8, kTileVectors * kGroup / kRows);
      const A* own = weights.row(first);
      A* out = sums + first * channels;
      int64_t c = 0;
      for (; c + kChannels <= channels; c += kChannels) {
        pool_tile<kRows, kChannels>(map.row_range(c, channels), own, weights.stride, out + c,
                                    channels);
      }
      for (; c < channels; ++c) {
        pool_tile<kRows, 1>(map.row_range(c, channels), own, weights.stride, out + c, channels);
      }
    });
  }
}

// out[c, n] = scale[c] source[c, n] + shift[c] + sum_r rows[r, c] weights[r, n].
template <typename T, typename A, typename Out = T>
struct Combination {
  View<const T> source = {};  // [C, pixels]; may be left out
  const A* scale = nullptr;   // [C], 1 where null
  const A* shift = nullptr;   // [C], 0 where null
  const A* rows;              // [R, C]
  View<const A> weights;      // [R, pixels]
  View<Out> out;              // [C, pixels]
  bool past_caches = false;   // wants the rows of out aligned to cache lines

  // The same from channel c on.
  Combination from_channel(int64_t c) const {
    Combination rest = *this;
    if (source.data != nullptr) rest.source.data = source.row(c);
    if (scale != nullptr) rest.scale = scale + c;
    if (shift != nullptr) rest.shift = shift + c;
    rest.rows = rows + c;
    rest.out.data = out.row(c);
    return rest;
  }

  // The same from pixel n on.
  Combination from_pixel(int64_t n) const {
    Combination rest = *this;
    rest.source.data = source.data + n;
    rest.weights.data = weights.data + n;
    rest.out.data = out.data + n;
    return rest;
  }
};

// The first kVectors vectors, or where kPartial the last pixels, of the first kChannels channels.
// By value and always inlined, so that the job stays in registers.
template <bool kSource, int kChannels, int kVectors, bool kPartial, typename T, typename A,
          typename Out>
inline __attribute__((always_inline)) void combine_tile(Combination<T, A, Out> job,
                                                        int64_t channels, int64_t count) {
  using V = Vec<A>;
  constexpr int64_t kStep = kLanes<A>;
  V sums[kChannels][kVectors];
#pragma GCC unroll 4
  for (int c = 0; c < kChannels; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sums[c][v] = broadcast(job.shift ? job.shift[c] : A(0));
      if constexpr (kSource) {
        const V value = load_partial<kPartial>(job.source.row(c) + v * kStep, count);
        sums[c][v] += job.scale ? value * job.scale[c] : value;
      }
    }
  }
  for (int64_t r = 0; r < job.weights.rows; ++r) {
    V pixels[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) pixels[v] = load(job.weights.row(r) + v * kStep);
#pragma GCC unroll 4
    for (int c = 0; c < kChannels; ++c) {
      const V factor = broadcast(job.rows[r * channels + c]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[c][v] += factor * pixels[v];
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < kChannels; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Out* to = job.out.row(c) + v * kStep;
      if (!kPartial && job.past_caches) {
        store_past_caches(to, sums[c][v]);
      } else {
        store_partial<kPartial>(to, sums[c][v], count);
      }
    }
  }
}

// The first kChannels channels of `channels`.
template <bool kSource, int kChannels, typename T, typename A, typename Out>
inline __attribute__((always_inline)) void combine_channels(const Combination<T, A, Out>& job,
                                                            int64_t channels) {
  constexpr int64_t kStep = kLanes<A>;
  constexpr int kVectors = 2;
  const int64_t pixels = job.out.columns;
  int64_t n = 0;
  for (; n + kVectors * kStep <= pixels; n += kVectors * kStep) {
    combine_tile<kSource, kChannels, kVectors, false>(job.from_pixel(n), channels, kStep);
  }
  for (; n < pixels; n += kStep) {
    combine_tile<kSource, kChannels, 1, true>(job.from_pixel(n), channels,
                                              std::min(kStep, pixels - n));
  }
}

template <typename T, typename A, typename Out>
inline void combine_rows(Combination<T, A, Out> job) {
  const bool source = job.source.data != nullptr;
  const int64_t channels = job.out.rows;
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4) {
    source ? combine_channels<true, 4>(job.from_channel(c), channels)
           : combine_channels<false, 4>(job.from_channel(c), channels);
  }
  for (; c < channels; ++c) {
    source ? combine_channels<true, 1>(job.from_channel(c), channels)
           : combine_channels<false, 1>(job.from_channel(c), channels);
  }
  if (job.past_caches) stores_done();
}
