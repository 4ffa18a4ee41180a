// SPDX-License-Identifier: Apache-2.0
// Functions of the vectors of one instruction set, and of doubles that stand for one (see MathVec).
// Included by common/simd.isa.h.

// a > b ? a : b and a < b ? a : b, hence b where one of them is NaN: maximum(bound, x) keeps x's
// NaN.
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
inline Vec<float> maximum(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b);
}
inline Vec<float> minimum(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_min_ps((__m512)a, (__m512)b);
}
inline Vec<double> maximum(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm512_max_pd((__m512d)a, (__m512d)b);
}
inline Vec<double> minimum(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm512_min_pd((__m512d)a, (__m512d)b);
}
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
inline Vec<float> maximum(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b);
}
inline Vec<float> minimum(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_min_ps((__m256)a, (__m256)b);
}
inline Vec<double> maximum(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm256_max_pd((__m256d)a, (__m256d)b);
}
inline Vec<double> minimum(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm256_min_pd((__m256d)a, (__m256d)b);
}
#else
inline Vec<float> maximum(Vec<float> a, Vec<float> b) { return a > b ? a : b; }
inline Vec<float> minimum(Vec<float> a, Vec<float> b) { return a < b ? a : b; }
inline Vec<double> maximum(Vec<double> a, Vec<double> b) { return a > b ? a : b; }
inline Vec<double> minimum(Vec<double> a, Vec<double> b) { return a < b ? a : b; }
#endif

inline Vec<float> absolute(Vec<float> a) { return (Vec<float>)((Vec<int32_t>)a & 0x7fffffff); }

// 2^n for integers -126 <= n <= 127, given as floats.
inline Vec<float> power_of_two(Vec<float> n) {
  const Vec<int32_t> bits = (__builtin_convertvector(n, Vec<int32_t>) + 127) << 23;
  Vec<float> power;
  std::memcpy(&power, &bits, sizeof(power));
  return power;
}

inline Vec<float> round_to_integer(Vec<float> a) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return (Vec<float>)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
  return (Vec<float>)_mm256_round_ps((__m256)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return __builtin_convertvector(__builtin_convertvector(a < 0 ? a - 0.5f : a + 0.5f, Vec<int32_t>),
                                 Vec<float>);
#endif
}

inline Vec<float> round_down(Vec<float> a) {
#if AVSKERNELS_ISA >= AVSKERNELS_AVX512
  return (Vec<float>)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif AVSKERNELS_ISA == AVSKERNELS_AVX2
  return (Vec<float>)_mm256_round_ps((__m256)a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
  for (int64_t i = 0; i < kLanes<float>; ++i) a[i] = std::floor(a[i]);
  return a;
#endif
}

// e^x within 2 ulp; 0 below -104, infinity above 88.73, NaN for NaN.
inline Vec<float> exp(Vec<float> x) {
  const Vec<float> clamped = minimum(maximum(x, broadcast(-104.0f)), broadcast(89.0f));
  const Vec<float> n = round_to_integer(clamped * 1.44269504088896341f);
  const Vec<float> r = clamped - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Vec<float> y = p * r * r + r + 1.0f;
  // 2^n in two factors, because n reaches -150 and 128.
  const Vec<float> half = round_to_integer(n * 0.5f);
  return x == x ? y * power_of_two(half) * power_of_two(n - half) : x;
}

inline Vec<double> exp(Vec<double> x) {
  for (int64_t i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// log(1 + u) for 0 <= u <= 1, within 2 ulp.
inline Vec<float> log1p_unit(Vec<float> u) {
  Vec<float> p = u * 5.232690681e-3f - 2.950522886e-2f;
  p = p * u + 7.822594423e-2f;
  p = p * u - 1.366324604e-1f;
  p = p * u + 1.910600742e-1f;
  p = p * u - 2.484298259e-1f;
  p = p * u + 3.331909690e-1f;
  p = p * u - 4.999949315e-1f;
  return p * u * u + u;
}

inline Vec<float> softplus(Vec<float> x) {
  return maximum(x, Vec<float>{}) + log1p_unit(exp(-absolute(x)));
}

inline Vec<float> sigmoid(Vec<float> x) {
  const Vec<float> e = exp(-absolute(x));
  const Vec<float> one_over = 1.0f / (1.0f + e);
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
inline Logistic<Vec<float>> logistic(Vec<float> x) {
  const Vec<float> clamped = maximum(broadcast(-87.0f), -absolute(x));
  const Vec<float> n = round_to_integer(clamped * 1.44269504088896341f);
  const Vec<float> r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  Vec<float> e = r * 1.9875691500e-4f + 1.3981999507e-3f;
  e = e * r + 8.3334519073e-3f;
  e = e * r + 4.1665795894e-2f;
  e = e * r + 1.6666665459e-1f;
  e = e * r + 5.0000001201e-1f;
  e = (e * r * r + r + 1.0f) * power_of_two(n);  // e^-|x|
  const Vec<float> larger = 1.0f / (1.0f + e), smaller = e * larger, log_sum = log1p_unit(e);
  const Vec<int32_t> negative = x < 0;
  return {negative ? smaller : larger, negative ? larger : smaller,
          maximum(Vec<float>{}, -x) + log_sum, maximum(Vec<float>{}, x) + log_sum};
}

// The same of one double (see MathVec).
inline double exp(double x) { return std::exp(x); }

inline Logistic<double> logistic(double x) {
  const double e = std::exp(-std::fabs(x)), larger = 1 / (1 + e), log_sum = std::log1p(e);
  return {x < 0 ? e * larger : larger, x < 0 ? larger : e * larger, (x < 0 ? -x : 0) + log_sum,
          (x < 0 ? 0 : x) + log_sum};
}
