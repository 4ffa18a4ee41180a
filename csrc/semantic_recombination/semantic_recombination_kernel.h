// SPDX-License-Identifier: Apache-2.0
// Included once per instruction set by semantic_recombination_cpu.cpp.

// A tile of kRows x kVectors accumulators, which fill the registers.
constexpr int64_t kProductRows = AVSKERNELS_ISA >= AVSKERNELS_AVX512 ? 8 : 4;
constexpr int kProductVectors = AVSKERNELS_ISA == AVSKERNELS_PORTABLE ? 2 : 3;
constexpr int64_t kProductPixels = kProductVectors * kLanes;

// matrix [rows, channels] in groups of kProductRows rows, channel by channel; zeros behind the last
// row.
inline void pack_matrix(const float* matrix, int64_t rows, int64_t channels, float* packed) {
  for (int64_t first = 0; first < rows; first += kProductRows) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t r = first; r < first + kProductRows; ++r) {
        *packed++ = r < rows ? matrix[r * channels + c] : 0.0f;
      }
    }
  }
}

inline int64_t packed_matrix_size(int64_t rows, int64_t channels) {
  return (rows + kProductRows - 1) / kProductRows * kProductRows * channels;
}

inline int64_t product_scratch_size(int64_t channels) { return channels * kProductPixels; }

// computes: out[r, n] = sum_c matrix[r, c] x[c, n] + bias[r] for pixels [begin, end) of one image
// loop order: tiles of kProductPixels pixels, copied to scratch; groups of rows; channels
// traffic and FLOPs: x and out once; the matrix once a tile, from the second-level cache; 2 rows C
// a
//   pixel
// numerics: float32, channels in their order
// limits: fastest while matrix and tile fit the second-level cache
inline void multiply_pixels(const float* packed, const float* bias, const float* x, int64_t stride,
                            int64_t rows, int64_t channels, int64_t begin, int64_t end,
                            float* scratch, float* out) {
  for (int64_t first = begin; first < end; first += kProductPixels) {
    const int64_t count = std::min(kProductPixels, end - first);
    for (int64_t c = 0; c < channels; ++c) {
      float* to = scratch + c * kProductPixels;
      std::memcpy(to, x + c * stride + first, count * sizeof(float));
      std::fill(to + count, to + kProductPixels, 0.0f);
    }
    for (int64_t row = 0; row < rows; row += kProductRows) {
      const float* factors = packed + row * channels;
      Vec sums[kProductRows][kProductVectors] = {};
      for (int64_t c = 0; c < channels; ++c) {
        Vec pixels[kProductVectors];
#pragma GCC unroll 3
        for (int v = 0; v < kProductVectors; ++v) {
          pixels[v] = load(scratch + c * kProductPixels + v * kLanes);
        }
#pragma GCC unroll 8
        for (int r = 0; r < kProductRows; ++r) {
          const Vec factor = splat(factors[c * kProductRows + r]);
#pragma GCC unroll 3
          for (int v = 0; v < kProductVectors; ++v) sums[r][v] += factor * pixels[v];
        }
      }
      for (int64_t r = 0; r < std::min(kProductRows, rows - row); ++r) {
        const float start = bias ? bias[row + r] : 0.0f;
        float* to = out + (row + r) * stride + first;
        for (int v = 0; v < kProductVectors; ++v) {
          const int64_t rest = std::min(kLanes, count - v * kLanes);
          if (rest == kLanes) {
            store(to + v * kLanes, sums[r][v] + start);
          } else if (rest > 0) {
            store_partial(to + v * kLanes, sums[r][v] + start, rest);
          }
        }
      }
    }
  }
}
