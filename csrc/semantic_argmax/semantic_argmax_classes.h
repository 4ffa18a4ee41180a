// SPDX-License-Identifier: Apache-2.0
// The class probabilities of an image as the kernels of semantic_argmax read them, and how far the
// screen's scores may be off.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace avskernels {

// A whole number of register blocks of any instruction set.
inline int64_t padded_classes(int64_t classes) { return (classes + 7) / 8 * 8; }

// What the kernels need of an image's class probabilities; those not above the threshold are 0. A
// pixel's score is off by at most doubt_slope * sum_n row_doubt[n] * |mask_n| + doubt_floor; `unit`
// brings the screen's scores back.
struct ArgmaxClasses {
  std::vector<double> exact;   // [N, K]
  std::vector<float> screen;   // [N, padded K], scaled to 1
  std::vector<int32_t> pairs;  // [N / 2, padded K], two 16-bit integers each; empty if not for use
  std::vector<char> used;      // [N], whether a query has any class left
  std::vector<float> row_doubt;
  float doubt_slope = 0, doubt_floor = 0, resize_floor = 0, mask_scale = 0;
  double unit = 1;
  bool empty = true;
  bool only_exact = false;

  bool integers() const { return !pairs.empty(); }
};

// Fills the integer screen's table. Masks become integers up to `mask_scale`, probabilities up to
// `scale`; sums stay below 2^31, and the two rounding errors are about equal.
inline void quantize_classes(int64_t classes, int64_t padded, double largest, double largest_sum,
                             ArgmaxClasses& table) {
  const int64_t queries = table.used.size();
  const double room = 2147480000.0;
  double mask_scale = std::min(32767.0, std::sqrt(2 * room / queries));
  const double scale = std::min((room / mask_scale - queries) / largest_sum, 32767.0 / largest);
  mask_scale = std::min(32767.0, room / (scale * largest_sum + queries));
  table.pairs.assign((queries + 1) / 2 * padded, 0);
  for (int64_t n = 0; n < queries; ++n) {
    double error = 0;
    for (int64_t k = 0; k < classes; ++k) {
      const double value = table.exact[n * classes + k] * scale;
      const double rounded = std::nearbyint(value);
      error = std::max(error, std::abs(value - rounded));
      const auto bits = static_cast<uint16_t>(static_cast<int16_t>(rounded));
      table.pairs[n / 2 * padded + k] |= static_cast<int32_t>(bits) << (n % 2 == 0 ? 0 : 16);
    }
    table.row_doubt[n] = static_cast<float>(error * 1.0001);
  }
  table.mask_scale = static_cast<float>(mask_scale);
  table.doubt_slope = static_cast<float>(mask_scale);
  table.doubt_floor = static_cast<float>(largest_sum * scale * (0.51 + 4e-7 * mask_scale) + 1000);
  table.resize_floor = static_cast<float>(largest_sum * scale * mask_scale * 0.25);
}

// steps: of images, queries and classes.
template <typename T>
ArgmaxClasses argmax_classes(const T* probs, const int64_t* steps, int64_t queries, int64_t classes,
                             double threshold, bool integers) {
  const int64_t padded = padded_classes(classes);
  ArgmaxClasses table;
  table.exact.resize(queries * classes);
  table.used.resize(queries);
  table.row_doubt.resize(queries);
  std::vector<double> sums(classes);
  double largest = 0;
  for (int64_t n = 0; n < queries; ++n) {
    double row_largest = 0;
    for (int64_t k = 0; k < classes; ++k) {
      const double value = static_cast<double>(probs[n * steps[1] + k * steps[2]]);
      const double kept = value > threshold ? value : 0.0;
      table.exact[n * classes + k] = kept;
      sums[k] += std::abs(kept);
      row_largest = std::max(row_largest, std::abs(kept));
    }
    table.used[n] = row_largest > 0;
    table.row_doubt[n] = static_cast<float>(row_largest);
    largest = std::max(largest, row_largest);
  }
  table.empty = largest == 0;
  table.only_exact = std::is_same_v<T, double> || !std::isfinite(largest);
  if (table.empty || table.only_exact) return table;
  if (integers) {
    quantize_classes(classes, padded, largest, *std::max_element(sums.begin(), sums.end()), table);
    return table;
  }
  table.unit = std::exp2(std::ilogb(largest) + 1);
  table.screen.resize(queries * padded);
  for (int64_t n = 0; n < queries; ++n) {
    table.row_doubt[n] = static_cast<float>(table.row_doubt[n] / table.unit);
    for (int64_t k = 0; k < classes; ++k) {
      table.screen[n * padded + k] = static_cast<float>(table.exact[n * classes + k] / table.unit);
    }
  }
  table.doubt_slope = static_cast<float>((queries + 8) * 0x1p-24 + 4e-7);
  table.doubt_floor = 1e-30f;
  return table;
}

}  // namespace avskernels
