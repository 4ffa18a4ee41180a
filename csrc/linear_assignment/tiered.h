// SPDX-License-Identifier: Apache-2.0
// The costs of problems with forbidden (NaN, +Inf) or preferred (-Inf) pairs.
#pragma once

#include <cstdint>
#include <limits>

#include "common/host_device.h"

namespace avskernels {

// A cost in two digits: forbidden and preferred pairs count in `tier`, finite costs in `value`, and
// no sum of values outweighs a tier. Shortest paths need an ordered group and nothing more.
struct TieredCost {
  double tier;
  double value;

  friend HOST_DEVICE TieredCost operator+(TieredCost a, TieredCost b) {
    return {a.tier + b.tier, a.value + b.value};
  }
  friend HOST_DEVICE TieredCost operator-(TieredCost a, TieredCost b) {
    return {a.tier - b.tier, a.value - b.value};
  }
  friend HOST_DEVICE bool operator<(TieredCost a, TieredCost b) {
    return a.tier < b.tier || (a.tier == b.tier && a.value < b.value);
  }
};

// Whether sums of costs up to this size (in double) cannot overflow.
inline constexpr double kLargestCost = 1e290;

HOST_DEVICE inline bool is_finite(double value) { return value - value == 0; }

HOST_DEVICE inline bool is_huge(double value) {
  return is_finite(value) && (value > kLargestCost || value < -kLargestCost);
}

// The tiered costs of a problem with n rows; `huge` ones are scaled down by a power of two.
template <typename Cost>
struct Tiers {
  Cost cost;
  double forbidden;  // n + 1: outweighs a preferred pair in every row
  double scale;

  HOST_DEVICE Tiers(const Cost& cost, int64_t n, bool huge)
      : cost(cost), forbidden(static_cast<double>(n + 1)), scale(huge ? 0x1p-64 : 1) {}

  HOST_DEVICE TieredCost operator()(int64_t i, int64_t j) const {
    const double value = cost(i, j);
    if (is_finite(value)) {
      return {0, value * scale};
    }
    return {value < 0 ? -1.0 : forbidden, 0};
  }
};

}  // namespace avskernels
