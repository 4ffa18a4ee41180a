// SPDX-License-Identifier: Apache-2.0
// Vectors of one instruction set: types, loads and stores. Included by common/for_each_isa.h inside
// that set's namespace, hence no include guard. Arithmetic operators
// (+ - * / < == ? :) are the compiler's own vector extension; a * b + c contracts to a fused
// multiply-add where there is one.

#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
constexpr int64_t kVectorBytes = 64;
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
constexpr int64_t kVectorBytes = 32;
#else
constexpr int64_t kVectorBytes = 16;
#endif
constexpr int kVectorRegisters = AVSKERNELS_ISA >= AVSKERNELS_AVX512 ? 32 : 16;

// A vector of A = float or double, and of int32_t or int64_t for masks (what comparisons give) and
// indices beside them. Half-precision elements become floats when they are loaded.
template <typename A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vec = typename VectorOf<A>::type;
template <typename A>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(A));

// Kernels whose functions of doubles are the standard library's (exp, log1p), or whose indices are
// 32 bits wide beside 64-bit numbers, take doubles one at a time: there a "vector" is one number,
// under the same verbs.
template <typename A>
using MathVec = std::conditional_t<std::is_same_v<A, double>, double, Vec<A>>;
template <typename A>
constexpr int64_t kMathLanes = sizeof(MathVec<A>) / sizeof(A);

// All lanes the same. Subtracting zero changes no value, so nothing but the broadcast is left
// (adding it makes 0 of -0).
template <typename A>
inline Vec<A> broadcast(A value) {
  return value - Vec<A>{};
}

template <typename V>
inline V from_memory(const void* data) {
  V vec;
  std::memcpy(&vec, data, sizeof(vec));
  return vec;
}

inline Vec<float> load(const float* data) { return from_memory<Vec<float>>(data); }
inline Vec<double> load(const double* data) { return from_memory<Vec<double>>(data); }
inline Vec<int32_t> load(const int32_t* data) { return from_memory<Vec<int32_t>>(data); }
inline Vec<int64_t> load(const int64_t* data) { return from_memory<Vec<int64_t>>(data); }

inline Vec<float> load(const BFloat16* data) {
  Vec<float> vec;
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)data));
  vec = (Vec<float>)_mm512_slli_epi32(bits, 16);
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
  const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)data));
  vec = (Vec<float>)_mm256_slli_epi32(bits, 16);
#else
  for (int64_t i = 0; i < kLanes<float>; ++i) vec[i] = static_cast<float>(data[i]);
#endif
  return vec;
}

inline Vec<float> load(const Half* data) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)data));
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)data));
#else
  Vec<float> vec;
  for (int64_t i = 0; i < kLanes<float>; ++i) vec[i] = static_cast<float>(data[i]);
  return vec;
#endif
}

// As a vector of another type: elements of any type as doubles, or one number (see MathVec).
template <typename V, typename T>
inline V load(const T* data) {
  if constexpr (std::is_arithmetic_v<V>) {
    return *data;
  } else if constexpr (std::is_same_v<V, Vec<double>> && std::is_same_v<T, float>) {
    typedef float HalfVec __attribute__((vector_size(kVectorBytes / 2)));
    return __builtin_convertvector(from_memory<HalfVec>(data), V);
  } else if constexpr (std::is_same_v<V, Vec<double>> && !std::is_same_v<T, double>) {
    V vec;
    for (int64_t i = 0; i < kLanes<double>; ++i) vec[i] = static_cast<double>(data[i]);
    return vec;
  } else {
    return load(data);
  }
}

// The first `count` elements, at most a vector, and zeros after them. kPartial = false is for code
// that is compiled once for whole vectors and once for partial ones.
template <bool kPartial = true, typename T>
inline auto load_partial(const T* data, int64_t count) {
  if constexpr (!kPartial) {
    return load(data);
  } else {
    T buffer[kLanes<float>] = {};
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
}

// All lanes, or the first `count` elements where these are fewer.
template <typename V = void, typename T>
inline auto load_up_to(const T* data, int64_t count) {
  if constexpr (std::is_arithmetic_v<V>) {
    return V(*data);
  } else {
    return count < kLanes<accumulate_t<T>> ? load_partial(data, count) : load(data);
  }
}

// Splits a0 b0 a1 b1 ... over two vectors into a0 a1 ... and b0 b1 ...
inline void deinterleave(Vec<float> first, Vec<float> second, Vec<float>& even, Vec<float>& odd) {
  Vec<int32_t> from;
  for (int64_t i = 0; i < kLanes<float>; ++i) from[i] = 2 * i;
  even = __builtin_shuffle(first, second, from);
  odd = __builtin_shuffle(first, second, from + 1);
}

// The reverse.
inline void interleave(Vec<float> even, Vec<float> odd, Vec<float>& first, Vec<float>& second) {
  Vec<int32_t> from;
  for (int64_t i = 0; i < kLanes<float>; ++i) from[i] = i / 2 + i % 2 * kLanes<float>;
  first = __builtin_shuffle(even, odd, from);
  second = __builtin_shuffle(even, odd, from + kLanes<float> / 2);
}

inline void store(float* data, Vec<float> vec) { std::memcpy(data, &vec, sizeof(vec)); }
inline void store(double* data, Vec<double> vec) { std::memcpy(data, &vec, sizeof(vec)); }
inline void store(int32_t* data, Vec<int32_t> vec) { std::memcpy(data, &vec, sizeof(vec)); }
inline void store(int64_t* data, Vec<int64_t> vec) { std::memcpy(data, &vec, sizeof(vec)); }
inline void store(double* data, double value) { *data = value; }
inline void store(int32_t* data, int32_t value) { *data = value; }

// Rounds to the nearest, ties to even, as BFloat16(float) does.
inline void store(BFloat16* data, Vec<float> vec) {
  typedef uint32_t UVec __attribute__((vector_size(kLanes<float> * 4)));
  typedef uint16_t SVec __attribute__((vector_size(kLanes<float> * 2)));
  const UVec bits = (UVec)vec;
  const UVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const UVec result = vec == vec ? rounded : UVec{} + 0x7fc0;
  const SVec narrow = __builtin_convertvector(result, SVec);
  std::memcpy(data, &narrow, sizeof(narrow));
}

inline void store(Half* data, Vec<float> vec) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  _mm256_storeu_si256((__m256i*)data,
                      _mm512_cvtps_ph((__m512)vec, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
  _mm_storeu_si128((__m128i*)data, _mm256_cvtps_ph((__m256)vec, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int64_t i = 0; i < kLanes<float>; ++i) data[i] = Half(vec[i]);
#endif
}

// The counterparts of load_partial and load_up_to.
template <bool kPartial = true, typename T, typename V>
inline void store_partial(T* data, V vec, int64_t count) {
  if constexpr (!kPartial) {
    store(data, vec);
  } else {
    T buffer[kLanes<float>];
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
}

template <typename T, typename V>
inline void store_up_to(T* data, V vec, int64_t count) {
  if constexpr (std::is_arithmetic_v<V>) {
    store(data, vec);
  } else if (count < kLanes<accumulate_t<T>>) {
    store_partial(data, vec, count);
  } else {
    store(data, vec);
  }
}

// Writes past the caches (see common/large_output.h). `data` is aligned to the bytes written;
// stores_done() makes what was written visible to other threads.
template <typename T, typename V>
inline void store_past_caches(T* data, V vec) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX2
  constexpr int64_t kBytes = kLanes<accumulate_t<T>> * sizeof(T);
  alignas(64) T buffer[kLanes<float>];
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

#include "common/simd_lanes.isa.h"
#include "common/simd_math.isa.h"
