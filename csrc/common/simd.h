// SPDX-License-Identifier: Apache-2.0
// Vectors of one instruction set: loads, stores, sums and exchanges of lanes. Included by
// common/for_each_isa.h inside that set's namespace, hence no include guard. Arithmetic operators
// (+ - * / < == ? :) are the compiler's own vector extension; a * b + c contracts to a fused
// multiply-add where there is one.

#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
constexpr int64_t kLanes = 16;
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IVec __attribute__((vector_size(kLanes * 4)));
typedef int64_t LVec __attribute__((vector_size(kLanes * 4)));
typedef double DVec __attribute__((vector_size(kLanes * 4)));  // kLanes / 2 doubles

constexpr int kVectorRegisters = AVSKERNELS_ISA >= AVSKERNELS_AVX512 ? 32 : 16;

// The vector that elements of a type are summed in.
template <typename T>
using VecOf = std::conditional_t<std::is_same_v<T, double>, DVec, Vec>;
template <typename T>
constexpr int64_t kLanesOf = sizeof(VecOf<T>) / sizeof(accumulate_t<T>);

// Subtracting zero changes no value, so nothing but the broadcast is left (adding it
// makes 0 of -0).
inline Vec splat(float value) { return value - Vec{}; }
inline DVec splat_double(double value) { return value - DVec{}; }

inline Vec load(const float* data) {
  Vec vec;
  std::memcpy(&vec, data, sizeof(vec));
  return vec;
}

inline DVec load(const double* data) {
  DVec vec;
  std::memcpy(&vec, data, sizeof(vec));
  return vec;
}

inline Vec load(const BFloat16* data) {
  Vec vec;
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)data));
  vec = (Vec)_mm512_slli_epi32(bits, 16);
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
  const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)data));
  vec = (Vec)_mm256_slli_epi32(bits, 16);
#else
  for (int64_t i = 0; i < kLanes; ++i) vec[i] = static_cast<float>(data[i]);
#endif
  return vec;
}

inline Vec load(const Half* data) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)data));
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)data));
#else
  Vec vec;
  for (int64_t i = 0; i < kLanes; ++i) vec[i] = static_cast<float>(data[i]);
  return vec;
#endif
}

// The first `count` < kLanes elements (or fewer than a DVec holds), zeros behind them.
template <typename T>
inline auto load_partial(const T* data, int64_t count) {
  T buffer[kLanes] = {};
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 4) {
    _mm512_storeu_ps(buffer, _mm512_maskz_loadu_ps((__mmask16)mask, data));
  } else if constexpr (sizeof(T) == 2) {
    _mm256_storeu_si256((__m256i*)buffer, _mm256_maskz_loadu_epi16((__mmask16)mask, data));
  } else {
    _mm512_storeu_pd(buffer, _mm512_maskz_loadu_pd((__mmask8)mask, data));
  }
#else
  std::memcpy(buffer, data, count * sizeof(T));
#endif
  return load(buffer);
}

// Splits a0 b0 a1 b1 ... over two vectors into a0 a1 ... and b0 b1 ...
inline void deinterleave(Vec first, Vec second, Vec& even, Vec& odd) {
  IVec from;
  for (int64_t i = 0; i < kLanes; ++i) from[i] = 2 * i;
  even = __builtin_shuffle(first, second, from);
  odd = __builtin_shuffle(first, second, from + 1);
}

// The reverse.
inline void interleave(Vec even, Vec odd, Vec& first, Vec& second) {
  IVec from;
  for (int64_t i = 0; i < kLanes; ++i) from[i] = i / 2 + i % 2 * kLanes;
  first = __builtin_shuffle(even, odd, from);
  second = __builtin_shuffle(even, odd, from + kLanes / 2);
}

inline void store(float* data, Vec vec) { std::memcpy(data, &vec, sizeof(vec)); }
inline void store(double* data, DVec vec) { std::memcpy(data, &vec, sizeof(vec)); }

// Rounds to the nearest, ties to even, as BFloat16(float) does.
inline void store(BFloat16* data, Vec vec) {
  typedef uint32_t UVec __attribute__((vector_size(kLanes * 4)));
  typedef uint16_t SVec __attribute__((vector_size(kLanes * 2)));
  const UVec bits = (UVec)vec;
  const UVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const UVec result = vec == vec ? rounded : UVec{} + 0x7fc0;
  const SVec narrow = __builtin_convertvector(result, SVec);
  std::memcpy(data, &narrow, sizeof(narrow));
}

inline void store(Half* data, Vec vec) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  _mm256_storeu_si256((__m256i*)data,
                      _mm512_cvtps_ph((__m512)vec, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
  _mm_storeu_si128((__m128i*)data, _mm256_cvtps_ph((__m256)vec, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int64_t i = 0; i < kLanes; ++i) data[i] = Half(vec[i]);
#endif
}

template <typename T, typename V>
inline void store_partial(T* data, V vec, int64_t count) {
  T buffer[kLanes];
  store(buffer, vec);
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(data, (__mmask16)mask, _mm512_loadu_ps(buffer));
  } else if constexpr (sizeof(T) == 2) {
    _mm256_mask_storeu_epi16(data, (__mmask16)mask, _mm256_loadu_si256((const __m256i*)buffer));
  } else {
    _mm512_mask_storeu_pd(data, (__mmask8)mask, _mm512_loadu_pd(buffer));
  }
#else
  std::memcpy(data, buffer, count * sizeof(T));
#endif
}

// Writes past the caches (see common/large_output.h). `data` is aligned to the bytes written;
// stores_done() makes what was written visible to other threads.
template <typename T, typename V>
inline void store_past_caches(T* data, V vec) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX2
  constexpr int64_t kBytes = kLanesOf<accumulate_t<T>> * sizeof(T);
  alignas(64) T buffer[kLanes];
  store(buffer, vec);
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  if constexpr (kBytes == 64) {
    return _mm512_stream_si512((__m512i*)data, _mm512_load_si512(buffer));
  }
#endif
  if constexpr (kBytes == 32) {
    _mm256_stream_si256((__m256i*)data, _mm256_load_si256((const __m256i*)buffer));
  } else {
    _mm_stream_si128((__m128i*)data, _mm_load_si128((const __m128i*)buffer));
  }
#else
  store(data, vec);
#endif
}

inline void stores_done() {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX2
  _mm_sfence();
#endif
}

inline float reduce_add(Vec vec) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return _mm512_reduce_add_ps((__m512)vec);
#else
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) vec[i] += vec[i + half];
  }
  return vec[0];
#endif
}

inline float reduce_min(Vec vec) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return _mm512_reduce_min_ps((__m512)vec);
#else
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) vec[i] = vec[i + half] < vec[i] ? vec[i + half] : vec[i];
  }
  return vec[0];
#endif
}

// The lanes where a <= b, as bits.
inline uint32_t lanes_at_most(Vec a, Vec b) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ);
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LE_OQ));
#else
  uint32_t bits = 0;
  for (int64_t i = 0; i < kLanes; ++i) bits |= (a[i] <= b[i] ? 1u : 0u) << i;
  return bits;
#endif
}

inline double reduce_add(DVec vec) {
  for (int64_t half = kLanes / 4; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) vec[i] += vec[i + half];
  }
  return vec[0];
}

// Zeros, register by register: for an array GCC may call on `rep stos`, which takes longer than
// many a loop behind it.
template <int kCount, typename V>
inline void set_zero(V* vectors) {
  if constexpr (kCount > 0) {
    vectors[0] = V{};
    set_zero<kCount - 1>(vectors + 1);
  }
}

// Adds neighbouring lanes of each two of the rows, until one row is left.
template <int kCount, typename V, size_t... I>
inline V row_sums(V* rows, std::index_sequence<I...> lanes) {
  if constexpr (kCount == 1) {
    return rows[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kCount / 2; ++i) {
      rows[i] = __builtin_shufflevector(rows[2 * i], rows[2 * i + 1], (2 * I)...) +
                __builtin_shufflevector(rows[2 * i], rows[2 * i + 1], (2 * I + 1)...);
    }
    return row_sums<kCount / 2>(rows, lanes);
  }
}

// The sums of the rows: the result's lane i is that of rows[i]. Overwrites the rows.
inline Vec row_sums(Vec (&rows)[kLanes]) {
  return row_sums<kLanes>(rows, std::make_index_sequence<kLanes>());
}
inline DVec row_sums(DVec (&rows)[kLanes / 2]) {
  return row_sums<kLanes / 2>(rows, std::make_index_sequence<kLanes / 2>());
}

// Which lanes of two rows `step` apart make up the first and the second row of their 2 x 2 blocks'
// transpose.
template <int64_t kStep>
struct PairLanes {
  int32_t first[kLanes] = {};
  int32_t second[kLanes] = {};

  constexpr PairLanes() {
    for (int64_t i = 0; i < kLanes; ++i) {
      first[i] = static_cast<int32_t>((i & kStep) ? kLanes + i - kStep : i);
      second[i] = static_cast<int32_t>((i & kStep) ? kLanes + i : i + kStep);
    }
  }
};

template <int64_t kStep>
inline void exchange(Vec& a, Vec& b) {
  constexpr PairLanes<kStep> lanes;
  IVec first, second;
  std::memcpy(&first, lanes.first, sizeof(first));
  std::memcpy(&second, lanes.second, sizeof(second));
  const Vec both[2] = {a, b};
  a = __builtin_shuffle(both[0], both[1], first);
  b = __builtin_shuffle(both[0], both[1], second);
}

// rows[i][j] becomes rows[j][i].
template <int64_t kStep = 1>
inline void transpose(Vec (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes; ++i) {
    if ((i & kStep) == 0) exchange<kStep>(rows[i], rows[i + kStep]);
  }
  if constexpr (2 * kStep < kLanes) transpose<2 * kStep>(rows);
}

// Four sums at once.
inline void reduce_add(const Vec (&vecs)[4], float* sums) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  const __m512 a = (__m512)vecs[0], b = (__m512)vecs[1], c = (__m512)vecs[2], d = (__m512)vecs[3];
  const __m512 ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
  const __m512 cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
  const __m512 lanes = (__m512)(_mm512_unpacklo_pd((__m512d)ab, (__m512d)cd)) +
                       (__m512)(_mm512_unpackhi_pd((__m512d)ab, (__m512d)cd));
  const __m256 halves = _mm512_castps512_ps256(lanes) + _mm512_extractf32x8_ps(lanes, 1);
  _mm_storeu_ps(sums, _mm256_castps256_ps128(halves) + _mm256_extractf128_ps(halves, 1));
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
  const __m256 ab = _mm256_hadd_ps((__m256)vecs[0], (__m256)vecs[1]);
  const __m256 cd = _mm256_hadd_ps((__m256)vecs[2], (__m256)vecs[3]);
  const __m256 halves = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(sums, _mm256_castps256_ps128(halves) + _mm256_extractf128_ps(halves, 1));
#else
  for (int i = 0; i < 4; ++i) sums[i] = reduce_add(vecs[i]);
#endif
}

inline void reduce_add(const DVec (&vecs)[4], double* sums) {
  for (int i = 0; i < 4; ++i) {
    sums[i] = 0;
    for (int64_t lane = 0; lane < kLanes / 2; ++lane) sums[i] += vecs[i][lane];
  }
}

#include "common/simd_math.h"
