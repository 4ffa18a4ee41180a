// SPDX-License-Identifier: Apache-2.0
// Functions of the vectors of one instruction set, and of doubles where a kernel is written once
// for both. Included by common/simd.h.

// a > b ? a : b and a < b ? a : b, hence b where one of them is NaN: maximum(bound, x) keeps x's
// NaN.
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
inline Vec maximum(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
inline Vec minimum(Vec a, Vec b) { return (Vec)_mm512_min_ps((__m512)a, (__m512)b); }
inline DVec maximum(DVec a, DVec b) { return (DVec)_mm512_max_pd((__m512d)a, (__m512d)b); }
inline DVec minimum(DVec a, DVec b) { return (DVec)_mm512_min_pd((__m512d)a, (__m512d)b); }
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
inline Vec maximum(Vec a, Vec b) { return (Vec)_mm256_max_ps((__m256)a, (__m256)b); }
inline Vec minimum(Vec a, Vec b) { return (Vec)_mm256_min_ps((__m256)a, (__m256)b); }
inline DVec maximum(DVec a, DVec b) { return (DVec)_mm256_max_pd((__m256d)a, (__m256d)b); }
inline DVec minimum(DVec a, DVec b) { return (DVec)_mm256_min_pd((__m256d)a, (__m256d)b); }
#else
inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
inline Vec minimum(Vec a, Vec b) { return a < b ? a : b; }
inline DVec maximum(DVec a, DVec b) { return a > b ? a : b; }
inline DVec minimum(DVec a, DVec b) { return a < b ? a : b; }
#endif

inline Vec absolute(Vec a) { return (Vec)((IVec)a & 0x7fffffff); }

// 2^n for integers -126 <= n <= 127, given as floats.
inline Vec power_of_two(Vec n) {
  const IVec bits = (__builtin_convertvector(n, IVec) + 127) << 23;
  Vec power;
  std::memcpy(&power, &bits, sizeof(power));
  return power;
}

inline Vec round_to_integer(Vec a) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return (Vec)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
  return (Vec)_mm256_round_ps((__m256)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return __builtin_convertvector(__builtin_convertvector(a < 0 ? a - 0.5f : a + 0.5f, IVec), Vec);
#endif
}

inline Vec round_down(Vec a) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return (Vec)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
  return (Vec)_mm256_round_ps((__m256)a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
  for (int64_t i = 0; i < kLanes; ++i) a[i] = std::floor(a[i]);
  return a;
#endif
}

// e^x within 2 ulp; 0 below -104, infinity above 88.73, NaN for NaN.
inline Vec exp(Vec x) {
  const Vec clamped = minimum(maximum(x, splat(-104.0f)), splat(89.0f));
  const Vec n = round_to_integer(clamped * 1.44269504088896341f);
  const Vec r = clamped - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Vec y = p * r * r + r + 1.0f;
  // 2^n in two factors, because n reaches -150 and 128.
  const Vec half = round_to_integer(n * 0.5f);
  return x == x ? y * power_of_two(half) * power_of_two(n - half) : x;
}

// log(1 + u) for 0 <= u <= 1, within 2 ulp.
inline Vec log1p_unit(Vec u) {
  Vec p = u * 5.232690681e-3f - 2.950522886e-2f;
  p = p * u + 7.822594423e-2f;
  p = p * u - 1.366324604e-1f;
  p = p * u + 1.910600742e-1f;
  p = p * u - 2.484298259e-1f;
  p = p * u + 3.331909690e-1f;
  p = p * u - 4.999949315e-1f;
  return p * u * u + u;
}

inline Vec softplus(Vec x) { return maximum(x, Vec{}) + log1p_unit(exp(-absolute(x))); }

inline Vec sigmoid(Vec x) {
  const Vec e = exp(-absolute(x));
  const Vec one_over = 1.0f / (1.0f + e);
  return x < 0 ? e * one_over : one_over;
}

// What the losses of a logit x are made of.
template <typename V>
struct Logistic {
  V p;        // sigmoid(x)
  V q;        // 1 - p, unrounded
  V to_one;   // -log p
  V to_zero;  // -log q
};

// With one exponential and one division; NaN for NaN.
inline Logistic<Vec> logistic(Vec x) {
  const Vec clamped = maximum(splat(-87.0f), -absolute(x));
  const Vec n = round_to_integer(clamped * 1.44269504088896341f);
  const Vec r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  Vec e = r * 1.9875691500e-4f + 1.3981999507e-3f;
  e = e * r + 8.3334519073e-3f;
  e = e * r + 4.1665795894e-2f;
  e = e * r + 1.6666665459e-1f;
  e = e * r + 5.0000001201e-1f;
  e = (e * r * r + r + 1.0f) * power_of_two(n);  // e^-|x|
  const Vec larger = 1.0f / (1.0f + e), smaller = e * larger, log_sum = log1p_unit(e);
  const IVec negative = x < 0;
  return {negative ? smaller : larger, negative ? larger : smaller, maximum(Vec{}, -x) + log_sum,
          maximum(Vec{}, x) + log_sum};
}

// A kernel written once for float and double: floats in vectors, doubles one at a time.
template <typename A>
using lanes_t = std::conditional_t<std::is_same_v<A, double>, double, Vec>;
template <typename A>
constexpr int64_t kWidth = std::is_same_v<A, double> ? 1 : kLanes;

template <typename A, typename T>
inline lanes_t<A> read(const T* data) {
  if constexpr (std::is_same_v<A, double>) {
    return static_cast<double>(*data);
  } else {
    return load(data);
  }
}

template <typename A, typename T>
inline void write(T* data, lanes_t<A> lanes) {
  if constexpr (std::is_same_v<A, double>) {
    *data = static_cast<T>(lanes);
  } else {
    store(data, lanes);
  }
}

inline double exp(double x) { return std::exp(x); }
inline double reduce_add(double lanes) { return lanes; }

inline Logistic<double> logistic(double x) {
  const double e = std::exp(-std::fabs(x)), larger = 1 / (1 + e), log_sum = std::log1p(e);
  return {x < 0 ? e * larger : larger, x < 0 ? larger : e * larger, (x < 0 ? -x : 0) + log_sum,
          (x < 0 ? 0 : x) + log_sum};
}
