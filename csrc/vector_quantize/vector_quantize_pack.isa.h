// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by vector_quantize.isa.h: rows and codewords as the operands
// of the screening, with bounds on what these leave out. kUlp covers the rounding of single
// operations, and sum_error(D) that of sums over D in kLanes<float> parts.

constexpr float kUlp = 0x1p-20f;
inline float sum_error(int64_t dim) { return (dim / kLanes<float> + 16) * 0x1p-22f; }

// What the screening needs of a packed vector besides its operands.
struct Operand {
  float scale;     // value of one unit
  float residual;  // at least the norm of what the operands leave out
  int32_t start;   // what a sum of products starts from
};

// Squares of values below 2^-63 vanish: at most 2^-126 each.
inline float norm_bound(float square, int64_t dim) {
  return std::sqrt(square + dim * 0x1p-125f) * (1 + sum_error(dim));
}

struct Centred {
  float square;   // |v - centre|^2; not finite if v is not
  float largest;  // absolute value
};

// Writes v - centre, and zeros up to a whole vector.
template <typename T>
inline Centred centre_vector(const T* v, const float* centre, int64_t dim, float* centred) {
  Vec<float> squares = {}, largest = {};
  for (int64_t d = 0; d < dim; d += kLanes<float>) {
    const Vec<float> value = load_up_to(v + d, dim - d) - load_up_to(centre + d, dim - d);
    squares += value * value;
    largest = maximum(largest, absolute(value));
    store(centred + d, value);
  }
  return {sum(squares), -minimum(-largest)};
}

// Operands are floats: nothing is left out, but a sum over D rounds D times.
struct FloatDot {
  typedef Vec<float> Accumulator;
  static constexpr int64_t kMostDims = 1 << 19;  // up to which the bound on the rounding holds

  static int64_t steps(int64_t dim) { return dim; }
  static Vec<float> start(int32_t) { return Vec<float>{}; }
  static Vec<float> to_float(Vec<float> sum) { return sum; }
  static float codeword_residual(float, float norm, int64_t dim) { return dim * 0x1.1p-24f * norm; }

  static Vec<float> multiply_add(Vec<float> sum, const float* row, const float* codewords) {
    return sum + broadcast(*row) * load(codewords);
  }

  static Operand pack(const float* centred, float, int64_t dim, float* operands, bool) {
    std::memcpy(operands, centred, dim * sizeof(float));
    return {1.0f, 0.0f, 0};
  }
};

#if AVSKERNELS_ISA >= AVSKERNELS_AVX512_VNNI
// Operands are four int8 in -127..127, those of codewords shifted to 1..255 because the
// instruction multiplies unsigned by signed; the start takes 128 times the row's sum off again.
struct Int8Dot {
  typedef Vec<int32_t> Accumulator;
  static constexpr int64_t kMostDims = 1 << 16;  // products whose sums fit 32 bits

  static int64_t steps(int64_t dim) { return (dim + 15) / 16 * 4; }
  static Vec<int32_t> start(int32_t value) { return broadcast(value); }
  static Vec<float> to_float(Vec<int32_t> sum) { return __builtin_convertvector(sum, Vec<float>); }
  static float codeword_residual(float residual, float, int64_t) { return residual; }

  static Vec<int32_t> multiply_add(Vec<int32_t> sum, const float* row, const float* codewords) {
    int32_t word;
    std::memcpy(&word, row, sizeof(word));
    return (Vec<int32_t>)_mm512_dpbusd_epi32((__m512i)sum, _mm512_load_si512(codewords),
                                             _mm512_set1_epi32(word));
  }

  static Operand pack(const float* centred, float largest, int64_t dim, float* operands,
                      bool shifted) {
    const float scale = largest > 1e-30f ? largest / 127 : 0.0f;
    const float inverse = largest > 1e-30f ? 127 / largest : 0.0f;
    const __m128i shift = _mm_set1_epi8(shifted ? -128 : 0);
    Vec<float> residuals = {};
    Vec<int32_t> total = {};
    for (int64_t d = 0; d < dim; d += kLanes<float>) {
      const Vec<float> exact = load(centred + d);
      const Vec<int32_t> rounded = (Vec<int32_t>)_mm512_cvtps_epi32((__m512)(exact * inverse));
      const Vec<float> left = exact - to_float(rounded) * scale;
      residuals += left * left;
      total += rounded;
      _mm_storeu_si128((__m128i*)(operands + d / 4),
                       _mm_xor_si128(_mm512_cvtsepi32_epi8((__m512i)rounded), shift));
    }
    return {scale, norm_bound(sum(residuals), dim), -128 * _mm512_reduce_add_epi32((__m512i)total)};
  }
};
#endif

// Sets the centre to the mean of up to 256 codewords: any point near them serves, so that overflow
// only costs time.
template <typename T>
void centre_codebook(const T* codebook, PackedCodebook& packed) {
  const int64_t dim = packed.dim;
  float* centre = packed.centre;
  std::fill_n(centre, dim, 0.0f);
  float count = 0;
  for (int64_t k = 0; k < packed.codewords; k += (packed.codewords + 255) / 256) {
    const T* codeword = codebook + k * dim;
    if (!all_finite(codeword, dim)) continue;
    count += 1;
    int64_t d = 0;
    for (; d + kLanes<float> <= dim; d += kLanes<float>)
      store(centre + d, load(centre + d) + load(codeword + d));
    for (; d < dim; ++d) centre[d] += static_cast<float>(codeword[d]);
  }
  for (int64_t d = 0; d < dim; ++d) centre[d] /= std::max(count, 1.0f);
}

// computes: tiles [begin, end) of a packed codebook, from codebook [K, D]
// loop order: tiles, codewords, dimensions; the words of a codeword are scattered into the tile
// traffic and FLOPs: reads K D, writes K D bytes (int8) or floats; about 10 K D
// numerics: squares and residuals in float32 with bounds on their rounding
// limits: finite codewords with a squared norm of 1e30 or more make the codebook unscreenable
template <typename T, typename Dot>
void pack_codebook(const T* codebook, PackedCodebook& packed, int64_t begin, int64_t end) {
  constexpr int64_t kTile = PackedCodebook::kTile;
  const int64_t dim = packed.dim;
  Scratch<float> centred(dim + kLanes<float>), words(packed.steps);
  std::fill_n(words.data(), packed.steps, 0.0f);
  for (int64_t tile = begin; tile < end; ++tile) {
    float norm = 0, residual = 0, rounding = 0;
    float* operands = packed.operands + tile * packed.steps * kTile;
    for (int64_t lane = 0; lane < kTile; ++lane) {
      const int64_t k = tile * kTile + lane;
      Operand operand = {0.0f, 0.0f, 0};
      float square = std::numeric_limits<float>::infinity();
      float bound = 0;
      if (k < packed.codewords) {
        const T* codeword = codebook + k * dim;
        const Centred size = centre_vector(codeword, packed.centre, dim, centred.data());
        if (size.square < 1e30f) {
          operand = Dot::pack(centred.data(), size.largest, dim, words.data(), true);
          square = size.square;
          bound = norm_bound(square, dim);
        } else if (all_finite(codeword, dim)) {
          packed.screenable = false;
        }
      }
      packed.square[k] = square;
      packed.scale[k] = operand.scale;
      packed.norm[k] = 2 * bound;
      packed.residual[k] =
          2 * (Dot::codeword_residual(operand.residual, bound, dim) + kUlp * bound);
      packed.rounding[k] = bound * bound * sum_error(dim) + dim * 0x1p-120f;
      norm = std::max(norm, packed.norm[k]);
      residual = std::max(residual, packed.residual[k]);
      rounding = std::max(rounding, packed.rounding[k]);
      for (int64_t step = 0; step < packed.steps; ++step) {
        operands[step * kTile + lane] = words.data()[step];
      }
    }
    packed.tile_norm[tile] = norm;
    packed.tile_residual[tile] = residual;
    packed.tile_rounding[tile] = rounding;
  }
}
