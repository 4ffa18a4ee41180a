// SPDX-License-Identifier: Apache-2.0
// Sums, minima, masks and exchanges of the lanes of vectors. Included by common/simd.isa.h.

// The sum of the lanes.
inline float sum(Vec<float> vec) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return _mm512_reduce_add_ps((__m512)vec);
#else
  for (int64_t half = kLanes<float> / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) vec[i] += vec[i + half];
  }
  return vec[0];
#endif
}

inline double sum(Vec<double> vec) {
  for (int64_t half = kLanes<double> / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) vec[i] += vec[i + half];
  }
  return vec[0];
}

inline double sum(double value) { return value; }

// The least lane.
inline float minimum(Vec<float> vec) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return _mm512_reduce_min_ps((__m512)vec);
#else
  for (int64_t half = kLanes<float> / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) vec[i] = vec[i + half] < vec[i] ? vec[i + half] : vec[i];
  }
  return vec[0];
#endif
}

#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
inline double minimum(Vec<double> vec) { return _mm512_reduce_min_pd((__m512d)vec); }
inline int64_t minimum(Vec<int64_t> vec) { return _mm512_reduce_min_epi64((__m512i)vec); }
#else
template <typename V>
  requires(std::is_same_v<V, Vec<double>> || std::is_same_v<V, Vec<int64_t>>)
inline auto minimum(V vec) {
  auto least = vec[0];
  for (int64_t i = 1; i < kLanes<double>; ++i) least = vec[i] < least ? vec[i] : least;
  return least;
}
#endif

// The lanes where a <= b, as bits.
inline uint32_t lanes_at_most(Vec<float> a, Vec<float> b) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ);
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LE_OQ));
#else
  uint32_t bits = 0;
  for (int64_t i = 0; i < kLanes<float>; ++i) bits |= (a[i] <= b[i] ? 1u : 0u) << i;
  return bits;
#endif
}

// The lanes that are true, as bits.
inline uint32_t lanes_where(Vec<int64_t> mask) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return _mm512_movepi64_mask((__m512i)mask);
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
  return _mm256_movemask_pd((__m256d)mask);
#else
  uint32_t bits = 0;
  for (int64_t i = 0; i < kLanes<double>; ++i) bits |= (mask[i] != 0) << i;
  return bits;
#endif
}

inline Vec<double> gather(const double* data, Vec<int64_t> at) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return (Vec<double>)_mm512_i64gather_pd((__m512i)at, data, 8);
#else
  Vec<double> vec;
  for (int64_t i = 0; i < kLanes<double>; ++i) vec[i] = data[at[i]];
  return vec;
#endif
}

// 0, 1, 2, ...
template <typename I>
inline Vec<I> lane_numbers() {
  Vec<I> numbers;
  for (int64_t i = 0; i < kLanes<I>; ++i) numbers[i] = static_cast<I>(i);
  return numbers;
}

// The sums of four vectors at once.
inline void sum(const Vec<float> (&vecs)[4], float* sums) {
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
  for (int i = 0; i < 4; ++i) sums[i] = sum(vecs[i]);
#endif
}

inline void sum(const Vec<double> (&vecs)[4], double* sums) {
  for (int i = 0; i < 4; ++i) {
    sums[i] = 0;
    for (int64_t lane = 0; lane < kLanes<double>; ++lane) sums[i] += vecs[i][lane];
  }
}

// Zeros, register by register: for a whole array GCC may emit `rep stos`, which can take longer
// than the loop that follows.
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
inline Vec<float> row_sums(Vec<float> (&rows)[kLanes<float>]) {
  return row_sums<kLanes<float>>(rows, std::make_index_sequence<kLanes<float>>());
}
inline Vec<double> row_sums(Vec<double> (&rows)[kLanes<double>]) {
  return row_sums<kLanes<double>>(rows, std::make_index_sequence<kLanes<double>>());
}

// The lanes of two rows, kStep apart, that make up the first and the second row after their 2 x 2
// blocks are transposed.
template <int64_t kStep>
struct PairLanes {
  int32_t first[kLanes<float>] = {};
  int32_t second[kLanes<float>] = {};

  constexpr PairLanes() {
    for (int64_t i = 0; i < kLanes<float>; ++i) {
      first[i] = static_cast<int32_t>((i & kStep) ? kLanes<float> + i - kStep : i);
      second[i] = static_cast<int32_t>((i & kStep) ? kLanes<float> + i : i + kStep);
    }
  }
};

template <int64_t kStep>
inline void exchange(Vec<float>& a, Vec<float>& b) {
  constexpr PairLanes<kStep> lanes;
  Vec<int32_t> first, second;
  std::memcpy(&first, lanes.first, sizeof(first));
  std::memcpy(&second, lanes.second, sizeof(second));
  const Vec<float> both[2] = {a, b};
  a = __builtin_shuffle(both[0], both[1], first);
  b = __builtin_shuffle(both[0], both[1], second);
}

// rows[i][j] becomes rows[j][i].
template <int64_t kStep = 1>
inline void transpose(Vec<float> (&rows)[kLanes<float>]) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes<float>; ++i) {
    if ((i & kStep) == 0) exchange<kStep>(rows[i], rows[i + kStep]);
  }
  if constexpr (2 * kStep < kLanes<float>) transpose<2 * kStep>(rows);
}
